# SPDX-License-Identifier: MIT
"""Augmentation of images with their boxes: DINO's recipe, by kornia."""

from dataclasses import dataclass, field
from typing import Any

import kornia.augmentation as kornia_augmentation
import numpy as np
import torch
from PIL.Image import Image as PILImage

from ...models.resizing import keep_ratio_size
from .data import Target, usable

# Of the original's crops, as shares of the short side of 800 pixels: short side of the image before the crop, and the
# least and the largest side of the crop.
_BEFORE_CROP, _CROP = (400 / 800, 500 / 800, 600 / 800), (384 / 800, 600 / 800)
_ATTEMPTS = 10
_SMALLEST_SIDE = 1.0  # pixels


@dataclass
class DetectionAugmentationArguments:
    """How training images are varied. The defaults are the original's for T and L; sizes come from the processor."""

    flip_probability: float = field(default=0.5, metadata={"help": "Probability of mirroring left and right."})
    crop_probability: float = field(
        default=0.5, metadata={"help": "Probability of cutting a part out before the image gets its size."}
    )
    resize_min: float = field(
        default=0.6, metadata={"help": "Smallest short side of an image, as a share of that in evaluation."}
    )
    resize_max: float = field(default=1.0, metadata={"help": "Largest short side, likewise."})
    resize_count: int = field(
        default=11, metadata={"help": "How many sizes from the smallest to the largest there are; 0 for any."}
    )

    def __post_init__(self) -> None:
        for name in ("flip_probability", "crop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number between 0 and 1.")
        if not 0 < self.resize_min <= self.resize_max:
            raise ValueError(
                f"resize_min is {self.resize_min} and resize_max {self.resize_max}, expected more than 0 and at least "
                "as much."
            )
        if self.resize_count < 0:
            raise ValueError(f"resize_count is {self.resize_count}, expected 0 or more.")


class DetectionAugmentation:
    """Makes training pixels and boxes of an image: mirroring, a crop half of the time, one of several sizes.

    The aspect ratio stays, unless the processor has fixed sides: then it changes, as in evaluation. A crop that leaves
    no object is drawn anew; what a crop leaves of an object is clipped, and less than a pixel is dropped.

    Call with an RGB image, its objects and a seed; gives `pixel_values` (3, height, width) float32, normalised, and
    `labels`: `class_labels` (n,) and `boxes` (n, 4), (centre x, centre y, width, height) as fractions of the result.
    Two calls with one seed give the same.

    Args:
        processor: of evaluation, for its sizes (`shortest_edge` and `longest_edge`, or `height` and `width`), mean and
            standard deviation.
        arguments: the recipe.

    Source: training pipelines of OpenGVLab/InternImage@31c962d, detection/configs/coco/dino_*. One difference: there,
    an image whose crop has no object is replaced by another image.
    """

    def __init__(self, processor: Any, arguments: DetectionAugmentationArguments) -> None:
        self.arguments = arguments
        size = dict(processor.size)
        self.fixed = (size["height"], size["width"]) if size.get("height") else None
        self.short = min(self.fixed) if self.fixed else size["shortest_edge"]
        self.long = max(self.fixed) if self.fixed else size["longest_edge"]
        mean, std = (torch.tensor(list(values)) for values in (processor.image_mean, processor.image_std))
        self.normalize = [kornia_augmentation.Normalize(mean, std)] if processor.do_normalize else []

    def __call__(self, image: PILImage, target: Target, seed: list[int]) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)[None]  # (1, 3, H, W)
        corners, kept = usable(target, image.width, image.height)
        classes = torch.from_numpy(target["classes"][kept])
        for attempt in range(_ATTEMPTS):
            steps = self.steps(image.height, image.width, generator, attempt + 1 < _ATTEMPTS)
            result, moved = self.apply(steps, pixels, corners, int(generator.integers(2**62)))
            height, width = result.shape[-2:]
            moved = moved.clamp(torch.zeros(()), torch.tensor([width, height] * 2, dtype=moved.dtype))
            left = (moved[:, 2:] - moved[:, :2] >= _SMALLEST_SIDE).all(1)
            if left.any() or not len(corners):
                break
        moved = moved[left] / torch.tensor([width, height] * 2)
        boxes = torch.cat([(moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]], 1)
        return {"pixel_values": result[0], "labels": {"class_labels": classes[left], "boxes": boxes.float()}}

    def steps(self, height: int, width: int, generator: np.random.Generator, crop: bool) -> list[Any]:
        """What happens to an image of this size, drawn at random; without a crop unless `crop`."""
        arguments = self.arguments
        steps: list[Any] = []
        if generator.random() < arguments.flip_probability:
            steps.append(kornia_augmentation.RandomHorizontalFlip(p=1.0))
        if generator.random() < arguments.crop_probability and crop:
            short = round(self.short * generator.choice(_BEFORE_CROP))
            height, width = keep_ratio_size(height, width, short, 10 * max(short, self.long))
            steps.append(_resize(height, width))
            least, most = (round(self.short * share) for share in _CROP)
            height, width = (int(generator.integers(min(side, least), min(side, most) + 1)) for side in (height, width))
            steps.append(kornia_augmentation.RandomCrop((height, width), cropping_mode="slice"))
        if self.fixed is not None:
            steps.append(_resize(*self.fixed))
        else:
            steps.append(_resize(*keep_ratio_size(height, width, self.short_side(generator), self.long)))
        return [*steps, *self.normalize]

    def short_side(self, generator: np.random.Generator) -> int:
        arguments = self.arguments
        if arguments.resize_count:
            shares = np.linspace(arguments.resize_min, arguments.resize_max, arguments.resize_count)
            return round(self.short * generator.choice(shares))
        least, most = (round(self.short * share) for share in (arguments.resize_min, arguments.resize_max))
        return int(generator.integers(least, most + 1))

    def apply(
        self, steps: list[Any], pixels: torch.Tensor, corners: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (1, 3, H, W), and corners (n, 4) left, top, right, bottom, after the steps."""
        points = torch.from_numpy(corners).float().reshape(1, -1, 2)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU only, unlike torch.manual_seed
            for step in steps:
                if isinstance(step, kornia_augmentation.Resize) or not len(corners):
                    # Before 0.9, kornia's resize moves points as if the corners' pixel centres stayed in place, and
                    # its other steps do not take no points.
                    before = pixels.shape
                    pixels = step(pixels)
                    points = points * torch.tensor([pixels.shape[axis] / before[axis] for axis in (3, 2)])
                else:
                    sequence = kornia_augmentation.AugmentationSequential(step, data_keys=["input", "keypoints"])
                    pixels, points = sequence(pixels, points - 0.5)  # a pixel's centre is a whole number in kornia
                    points = points + 0.5
        points = points.reshape(-1, 2, 2)
        return pixels, torch.cat([points.amin(1), points.amax(1)], 1)  # mirroring swaps left and right


def _resize(height: int, width: int) -> Any:
    # Half-pixel centres without antialiasing, as OpenCV and evaluation have it.
    return kornia_augmentation.Resize((height, width), align_corners=False, antialias=False)


__all__ = ["DetectionAugmentation", "DetectionAugmentationArguments"]
