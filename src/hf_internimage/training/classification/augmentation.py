# SPDX-License-Identifier: MIT
"""Augmentation of training images: the original's recipe (timm's `rand-m9-mstd0.5-inc1`) on Pillow and numpy.

No maintained library offers this recipe without torchvision. The result depends on the image and the seed only, so that
it is the same with any number of worker processes and ranks, and after an interruption.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

_STRONGEST = 10.0  # operations are strongest at this magnitude
_ATTEMPTS = 10


@dataclass
class AugmentationArguments:
    """Settings of the augmentation. The defaults are the original's; sizes and colours come from the processor."""

    crop_scale_min: float = field(
        default=0.08, metadata={"help": "Smallest share of the image's area that a random crop may keep."}
    )
    crop_ratio_max: float = field(
        default=4 / 3, metadata={"help": "Largest width / height of a random crop; the smallest is its inverse."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of mirroring left and right."})
    rand_augment_magnitude: float = field(
        default=9.0, metadata={"help": "RandAugment: strength of its operations, 0 to 10; 0 switches it off."}
    )
    rand_augment_std: float = field(
        default=0.5, metadata={"help": "RandAugment: standard deviation of the strength from operation to operation."}
    )
    rand_augment_operations: int = field(default=2, metadata={"help": "RandAugment: operations an image."})
    color_jitter: float = field(
        default=0.4,
        metadata={"help": "Largest change of brightness, contrast and saturation; used without RandAugment only."},
    )
    erase_probability: float = field(
        default=0.25, metadata={"help": "Random erasing: probability of filling a rectangle with noise."}
    )

    def __post_init__(self) -> None:
        for name in ("crop_scale_min", "flip_probability", "erase_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number between 0 and 1.")
        if not 0 <= self.rand_augment_magnitude <= _STRONGEST:
            raise ValueError(
                f"rand_augment_magnitude is {self.rand_augment_magnitude}, expected 0 to {_STRONGEST:.0f}."
            )
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter is {self.color_jitter}, expected a number between 0 and 1.")
        if self.crop_ratio_max < 1:
            raise ValueError(f"crop_ratio_max is {self.crop_ratio_max}, expected at least 1.")


class Augmentation:
    """Make training pixels of an image: random crop, mirroring, RandAugment, normalisation, random erasing.

    Call with an RGB image and a seed; returns float32 (3, height, width). Two calls with one seed return the same
    pixels.

    Args:
        size: height and width of the result in pixels.
        mean, std: mean and standard deviation of each channel, for pixels between 0 and 1.
        arguments: the recipe.

    Source: InternImage's recipe (OpenGVLab/InternImage@31c962d, classification/dataset/build.py) with timm's
    definitions: operations and strengths of `rand-m9-mstd0.5-inc1` (arXiv:1909.13719), random erasing with pixel noise
    (arXiv:1708.04896).
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: list[float],
        std: list[float],
        arguments: AugmentationArguments,
    ) -> None:
        self.size, self.arguments = size, arguments
        self.mean, self.std = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
        self.fill = tuple(min(255, round(255 * value)) for value in mean)

    def __call__(self, image: Image.Image, seed: int | list[int]) -> torch.Tensor:
        generator = np.random.default_rng(seed)
        arguments = self.arguments
        image = self.crop(image, generator)
        if generator.random() < arguments.flip_probability:
            image = ImageOps.mirror(image)
        if arguments.rand_augment_magnitude > 0:
            image = self.rand_augment(image, generator)
        elif arguments.color_jitter > 0:
            image = self.jitter(image, generator)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255  # (H, W, 3) -> (3, H, W)
        pixels = (pixels - self.mean) / self.std
        if generator.random() < arguments.erase_probability:
            self.erase(pixels, generator)
        return torch.from_numpy(pixels)

    def crop(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Return a random part of the image, resized (bicubic) to `size`; the middle if no part drawn fits."""
        height, width = self.size
        longest = math.log(self.arguments.crop_ratio_max)
        for _ in range(_ATTEMPTS):
            area = image.width * image.height * generator.uniform(self.arguments.crop_scale_min, 1)
            ratio = math.exp(generator.uniform(-longest, longest))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= image.width and 0 < down <= image.height:
                left = int(generator.integers(image.width - across + 1))
                top = int(generator.integers(image.height - down + 1))
                box = (left, top, left + across, top + down)
                return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)

    def rand_augment(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Apply each of some random operations with probability 0.5."""
        for name in generator.choice(list(OPERATIONS), self.arguments.rand_augment_operations):
            if generator.random() < 0.5:
                continue
            strength = self.arguments.rand_augment_magnitude + self.arguments.rand_augment_std * generator.normal()
            sign = generator.choice((-1.0, 1.0))
            image = OPERATIONS[name](image, min(max(strength, 0.0), _STRONGEST) / _STRONGEST, sign, self.fill)
        return image

    def jitter(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Change brightness, contrast and saturation in random order."""
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for index in generator.permutation(len(enhancers)):
            image = enhancers[index](image).enhance(1 + self.arguments.color_jitter * generator.uniform(-1, 1))
        return image

    def erase(self, pixels: np.ndarray, generator: np.random.Generator) -> None:
        """Fill a rectangle of 2 % to a third of the area with normal noise, in place."""
        _, height, width = pixels.shape
        for _ in range(_ATTEMPTS):
            area = height * width * generator.uniform(0.02, 1 / 3)
            ratio = math.exp(generator.uniform(math.log(0.3), -math.log(0.3)))
            down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if down < height and across < width:
                top, left = int(generator.integers(height - down + 1)), int(generator.integers(width - across + 1))
                shape = (pixels.shape[0], down, across)
                pixels[:, top : top + down, left : left + across] = generator.standard_normal(shape, np.float32)
                return


def _enhancer(kind: type) -> Callable[..., Image.Image]:
    return lambda image, strength, sign, fill: kind(image).enhance(max(0.1, 1 + sign * 0.9 * strength))


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(image: Image.Image, strength: float, sign: float, fill: tuple[int, ...]) -> Image.Image:
    bits = 4 - int(4 * strength)
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _solarize_add(image: Image.Image, strength: float, sign: float, fill: tuple[int, ...]) -> Image.Image:
    added = min(128, int(110 * strength))
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


# name -> function of an RGB image, a strength between 0 and 1, a sign, and a colour for pixels from outside the image
OPERATIONS: dict[str, Callable[[Image.Image, float, float, tuple[int, ...]], Image.Image]] = {
    "AutoContrast": lambda image, strength, sign, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, sign, fill: ImageOps.equalize(image),
    "Invert": lambda image, strength, sign, fill: ImageOps.invert(image),
    "Rotate": lambda image, strength, sign, fill: image.rotate(
        sign * 30 * strength, Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "Posterize": _posterize,
    "Solarize": lambda image, strength, sign, fill: ImageOps.solarize(image, 256 - min(256, int(256 * strength))),
    "SolarizeAdd": _solarize_add,
    "Color": _enhancer(ImageEnhance.Color),
    "Contrast": _enhancer(ImageEnhance.Contrast),
    "Brightness": _enhancer(ImageEnhance.Brightness),
    "Sharpness": _enhancer(ImageEnhance.Sharpness),
    "ShearX": lambda image, strength, sign, fill: _affine(image, (1, sign * 0.3 * strength, 0, 0, 1, 0), fill),
    "ShearY": lambda image, strength, sign, fill: _affine(image, (1, 0, 0, sign * 0.3 * strength, 1, 0), fill),
    "TranslateX": lambda image, strength, sign, fill: _affine(
        image, (1, 0, sign * 0.45 * strength * image.width, 0, 1, 0), fill
    ),
    "TranslateY": lambda image, strength, sign, fill: _affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * strength * image.height), fill
    ),
}

__all__ = ["OPERATIONS", "Augmentation", "AugmentationArguments"]
