# SPDX-License-Identifier: MIT
"""Augmentation of images with their boxes: DINO's recipe."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image as PILImage

from ...models.resizing import keep_ratio_size
from .data import Target, usable

# The original's crops, as shares of the short side of 800 pixels in evaluation: the short sides to which an image is
# resized before the crop, and the smallest and largest side of the crop.
_SHORT_SIDES_BEFORE_CROP, _CROP_SIDES = (400 / 800, 500 / 800, 600 / 800), (384 / 800, 600 / 800)
_ATTEMPTS = 10
_SMALLEST_SIDE = 1.0  # pixels


@dataclass
class DetectionAugmentationArguments:
    """Settings of the augmentation. The defaults are the original's for T and L; sizes come from the processor."""

    flip_probability: float = field(default=0.5, metadata={"help": "Probability of mirroring left and right."})
    crop_probability: float = field(
        default=0.5, metadata={"help": "Probability of cutting a part out before the image gets its size."}
    )
    resize_min: float = field(
        default=0.6, metadata={"help": "Smallest short side of an image, as a share of that in evaluation."}
    )
    resize_max: float = field(default=1.0, metadata={"help": "Largest short side, as such a share."})
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


@dataclass(frozen=True)
class Geometry:
    """Changes of one image, in the order in which they are applied; sizes are (height, width) in pixels.

    Attributes:
        mirrored: True if left and right are exchanged.
        size_before_crop: size to which the image is resized before the crop; None without a crop.
        crop_box: top, left, height and width of the part that stays; None without a crop.
        size: size of the result.
    """

    mirrored: bool
    size_before_crop: tuple[int, int] | None
    crop_box: tuple[int, int, int, int] | None
    size: tuple[int, int]

    def apply(self, pixels: torch.Tensor, corners: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Return changed pixels (3, height, width) and corners of boxes (n, 4): left, top, right, bottom in pixels."""
        if self.mirrored:
            pixels, corners = mirror(pixels, corners)
        if self.size_before_crop is not None and self.crop_box is not None:
            pixels, corners = resize(pixels, corners, self.size_before_crop)
            pixels, corners = crop(pixels, corners, self.crop_box)
        return resize(pixels, corners, self.size)


def mirror(pixels: torch.Tensor, corners: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Return pixels (3, H, W) and corners (n, 4) with left and right exchanged."""
    left, top, right, bottom = corners.T
    width = pixels.shape[2]
    return pixels.flip(2), np.stack([width - right, top, width - left, bottom], 1)


def crop(pixels: torch.Tensor, corners: np.ndarray, box: tuple[int, int, int, int]) -> tuple[torch.Tensor, np.ndarray]:
    """Return the part in `box` = (top, left, height, width), with corners clipped to it; boxes may become empty."""
    top, left, height, width = box
    corners = (corners - [left, top, left, top]).clip(0, [width, height, width, height])
    return pixels[:, top : top + height, left : left + width], corners


def resize(pixels: torch.Tensor, corners: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, np.ndarray]:
    """Return pixels (3, H, W) resized to `size` = (height, width), bilinearly without antialiasing, and their boxes.

    The rule is that of OpenCV and of evaluation, in floating point: half-pixel centres (`align_corners=False`).
    """
    scale_y, scale_x = (new / old for new, old in zip(size, pixels.shape[1:], strict=True))
    pixels = F.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]
    return pixels, corners * [scale_x, scale_y, scale_x, scale_y]


class DetectionAugmentation:
    """Make training pixels and boxes of an image: mirroring, a crop half of the time, one of several sizes.

    The aspect ratio stays, unless the processor has fixed sides: then it changes, as in evaluation. A crop that leaves
    no object is drawn again, ten times at most, the last time without a crop. Boxes are clipped to the crop; boxes
    with less than a pixel left are dropped.

    Call with an RGB image, its objects and a seed; returns `pixel_values` (3, height, width) float32, normalised, and
    `labels`: `class_labels` (n,) and `boxes` (n, 4), (centre x, centre y, width, height) as fractions of the result.
    Two calls with one seed return the same.

    Args:
        processor: image processor of evaluation. Its sizes (`shortest_edge` and `longest_edge`, or `height` and
            `width`), mean and standard deviation are used.
        arguments: the recipe.

    Source: training pipelines of OpenGVLab/InternImage@31c962d, detection/configs/coco/dino_*. One difference: there,
    an image whose crop has no object is replaced by another image.
    """

    def __init__(self, processor: Any, arguments: DetectionAugmentationArguments) -> None:
        self.arguments = arguments
        size = dict(processor.size)
        self.fixed_size = (size["height"], size["width"]) if size.get("height") else None
        self.short = min(self.fixed_size) if self.fixed_size else size["shortest_edge"]
        self.long = max(self.fixed_size) if self.fixed_size else size["longest_edge"]
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))

    def __call__(self, image: PILImage, target: Target, seed: list[int]) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        original_pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)  # (3, H, W)
        original_corners, usable_objects = usable(target, image.width, image.height)
        for attempt in range(_ATTEMPTS):
            geometry = self.draw_geometry(image.height, image.width, generator, allow_crop=attempt + 1 < _ATTEMPTS)
            pixels, corners = geometry.apply(original_pixels, original_corners)
            kept = (corners[:, 2:] - corners[:, :2] >= _SMALLEST_SIDE).all(1)
            if kept.any() or not len(original_corners):
                break
        corners = corners[kept] / np.tile(geometry.size[::-1], 2)
        boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        labels = {
            "class_labels": torch.from_numpy(target["classes"][usable_objects][kept]),
            "boxes": torch.from_numpy(boxes).float(),
        }
        return {"pixel_values": (pixels - self.mean) / self.std, "labels": labels}

    def draw_geometry(self, height: int, width: int, generator: np.random.Generator, allow_crop: bool) -> Geometry:
        """Return random changes of an image of this size, without a crop unless `allow_crop`."""
        arguments = self.arguments
        mirrored = generator.random() < arguments.flip_probability
        size_before_crop = crop_box = None
        if generator.random() < arguments.crop_probability and allow_crop:
            short = round(self.short * generator.choice(_SHORT_SIDES_BEFORE_CROP))
            size_before_crop = keep_ratio_size(height, width, short, 10 * max(short, self.long))
            least, most = (round(self.short * share) for share in _CROP_SIDES)
            height, width = (
                int(generator.integers(min(side, least), min(side, most) + 1)) for side in size_before_crop
            )
            top, left = (
                int(generator.integers(side - kept + 1))
                for side, kept in zip(size_before_crop, (height, width), strict=True)
            )
            crop_box = (top, left, height, width)
        size = self.fixed_size or keep_ratio_size(height, width, self.draw_short_side(generator), self.long)
        return Geometry(mirrored, size_before_crop, crop_box, size)

    def draw_short_side(self, generator: np.random.Generator) -> int:
        """Return one of the recipe's short sides in pixels."""
        arguments = self.arguments
        if arguments.resize_count:
            shares = np.linspace(arguments.resize_min, arguments.resize_max, arguments.resize_count)
            return round(self.short * generator.choice(shares))
        least, most = (round(self.short * share) for share in (arguments.resize_min, arguments.resize_max))
        return int(generator.integers(least, most + 1))


__all__ = ["DetectionAugmentation", "DetectionAugmentationArguments", "Geometry", "crop", "mirror", "resize"]
