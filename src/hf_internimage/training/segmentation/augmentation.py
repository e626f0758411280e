# SPDX-License-Identifier: MIT
"""Augmentation of images and their segmentation maps: the original's recipe, with kornia's colour operations.

The result depends on the image, its map and the seed only, so that it is the same with any number of worker processes
and ranks, and after an interruption. kornia's random modules draw from PyTorch's global generator; therefore only its
functions are used, with numbers drawn here. Resizing is that of the image processor, so that training sees the pixels
that evaluation sees.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...models.resizing import keep_ratio_size, opencv_bilinear, opencv_nearest

IGNORED_LABEL = 255  # pixels without a class; also in transformers' losses and mmseg's data
_ATTEMPTS = 10
# Strengths of mmseg's photometric distortion; the hue's in radians (18 of OpenCV's units of 2 degrees).
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32 / 255, (0.5, 1.5), (0.5, 1.5), math.radians(36)


@dataclass
class SegmentationAugmentationArguments:
    """Settings of the augmentation. The defaults are the original's for 512-pixel crops."""

    crop_size: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Side of training crops in pixels, or height and width."}
    )
    scale_min: float = field(default=0.5, metadata={"help": "Smallest factor of the image's size."})
    scale_max: float = field(default=2.0, metadata={"help": "Largest factor of the image's size."})
    crop_most_of_a_class: float = field(
        default=0.75,
        metadata={"help": "Largest share of one class in a crop; others are drawn again, ten times at most."},
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of mirroring left and right."})
    color_distortion: bool = field(
        default=True,
        metadata={"help": "Whether to change brightness, contrast, saturation and hue, each of half of the images."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.crop_size, int):  # in a file of settings
            self.crop_size = [self.crop_size]
        if len(self.crop_size) not in (1, 2) or min(self.crop_size) < 1:
            raise ValueError(f"crop_size is {self.crop_size}, expected a side in pixels, or height and width.")
        if not 0 < self.scale_min <= self.scale_max:
            raise ValueError(
                f"scale_min is {self.scale_min} and scale_max {self.scale_max}, expected 0 < scale_min <= scale_max."
            )
        if not 0 < self.crop_most_of_a_class <= 1:
            raise ValueError(
                f"crop_most_of_a_class is {self.crop_most_of_a_class}, expected more than 0 and at most 1."
            )
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability is {self.flip_probability}, expected a number between 0 and 1.")

    @property
    def crop(self) -> tuple[int, int]:
        """Return height and width."""
        return self.crop_size[0], self.crop_size[-1]


class SegmentationAugmentation:
    """Make a training example of an image and its map: resize, crop, mirror, distort colours, normalise, pad.

    Call with an RGB image, a map (H, W) of classes and a seed; returns `pixel_values` float32 (3, height, width) and
    `labels` int64 (height, width), both in the size of a crop. Pixels outside the image are 0 and have the label 255.

    Args:
        short, long: limits of the short and the long edge in the image processor; a random factor scales both.
        mean, std: mean and standard deviation of each channel, for pixels between 0 and 1.
        arguments: the recipe.

    Raises: ImportError if kornia is needed and missing.
    Source: training pipelines of OpenGVLab/InternImage@31c962d, segmentation/configs, with mmseg 0.30's definitions.
    """

    def __init__(
        self, short: int, long: int, mean: list[float], std: list[float], arguments: SegmentationAugmentationArguments
    ) -> None:
        self.short, self.long, self.arguments = short, long, arguments
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
        if arguments.color_distortion:
            kornia_enhance()

    def __call__(self, image: Image.Image, labels: np.ndarray, seed: int | list[int]) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng(seed)
        pixels, labels = self.resize(np.asarray(image), labels, generator)
        pixels, labels = self.crop(pixels, labels, generator)
        if generator.random() < self.arguments.flip_probability:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        # (H, W, 3) -> (3, H, W)
        values = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 255
        if self.arguments.color_distortion:
            values = distort_colours(values, generator)
        values = (values - self.mean) / self.std
        height, width = self.arguments.crop
        missing = (0, width - values.shape[2], 0, height - values.shape[1])
        pad = torch.nn.functional.pad
        return {
            "pixel_values": pad(values, missing),
            "labels": pad(torch.from_numpy(labels.astype(np.int64)), missing, value=IGNORED_LABEL),
        }

    def resize(
        self, pixels: np.ndarray, labels: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Resize to the processor's size times a random factor, with both edges truncated to whole pixels."""
        factor = generator.uniform(self.arguments.scale_min, self.arguments.scale_max)
        short, long = (max(1, int(edge * factor)) for edge in (self.short, self.long))
        size = keep_ratio_size(labels.shape[0], labels.shape[1], short, long)
        return opencv_bilinear(pixels, size), opencv_nearest(labels, size)

    def crop(
        self, pixels: np.ndarray, labels: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a random part, drawn again if one class has too much of it or it has fewer than two classes."""
        height, width = (min(sides) for sides in zip(labels.shape, self.arguments.crop, strict=True))
        most = self.arguments.crop_most_of_a_class
        for _ in range(_ATTEMPTS):
            top, left = (
                int(generator.integers(side - kept + 1))
                for side, kept in zip(labels.shape, (height, width), strict=True)
            )
            part = np.s_[top : top + height, left : left + width]
            cropped_labels = labels[part]
            counts = np.unique(cropped_labels[cropped_labels != IGNORED_LABEL], return_counts=True)[1]
            if most == 1 or (len(counts) > 1 and counts.max() < most * counts.sum()):
                break
        return pixels[part], cropped_labels


def distort_colours(values: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Add to brightness, multiply contrast and saturation, shift the hue, each with probability 0.5.

    Contrast comes before or after saturation and hue. Shapes: RGB (3, H, W) from 0 to 1 -> the same.

    Source: PhotoMetricDistortion of mmseg 0.30; kornia's `adjust_` functions have the same definitions on RGB or
    HSV values, but do not round to 8 bits after each change.
    """
    enhance = kornia_enhance()

    def coin() -> bool:
        return bool(generator.random() < 0.5)

    def contrast(values: torch.Tensor) -> torch.Tensor:
        return enhance.adjust_contrast(values, generator.uniform(*_CONTRAST)) if coin() else values

    if coin():
        values = enhance.adjust_brightness(values, generator.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = coin()
    if contrast_first:
        values = contrast(values)
    if coin():
        values = enhance.adjust_saturation(values, generator.uniform(*_SATURATION))
    if coin():
        values = enhance.adjust_hue(values, generator.uniform(-_HUE, _HUE))
    return values if contrast_first else contrast(values)


def kornia_enhance() -> Any:
    """Return the module `kornia.enhance`, or raise ImportError with advice."""
    try:
        from kornia import enhance
    except ModuleNotFoundError as error:
        raise ImportError(
            "Colour distortion needs kornia: install hf-internimage[train], or set color_distortion to false."
        ) from error
    return enhance


__all__ = [
    "IGNORED_LABEL",
    "SegmentationAugmentation",
    "SegmentationAugmentationArguments",
    "distort_colours",
    "kornia_enhance",
]
