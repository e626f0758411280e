# SPDX-License-Identifier: MIT
"""The 8-bit RGB pixels of an image of any mode, one rule for the image processors and the training."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from transformers.image_transforms import to_pil_image
from transformers.image_utils import ChannelDimension, SizeDict, is_pil_image

_DEEP_MODES = ("I", "F")  # of more than 8 bits; so are those that begin with "I;"
_PLAIN_MODES = {"La": "LA", "RGBa": "RGBA"}  # premultiplied mode -> the same with plain colours


_LARGEST = 3.4e38  # number that float32 can hold
_MOST_SIDE = 1_000_000  # pixels


class WrongPixelsError(ValueError):
    """A readable image whose pixels have no meaning as colours."""


class RgbMixin:
    """Convert Pillow images by `to_rgb` before an image processor of transformers reads them, with `do_convert_rgb`.

    Raises: ValueError for an `image_mean` or `image_std` that leaves no finite pixels, and for a `size`, `crop_size`,
        `pad_size` or `rescale_factor` that cannot be one, when it is set or given.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        processor: Any = self
        if processor.do_normalize:
            check_normalisation(processor.image_mean, processor.image_std)

    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict:
        for name in ("size", "crop_size", "pad_size"):
            check_size(name, kwargs.get(name))
        factor = kwargs.get("rescale_factor")
        if isinstance(factor, Real) and not abs(factor) <= _LARGEST:  # type: ignore[operator]
            raise ValueError(f"rescale_factor is {factor!r}, expected a finite number; leave it out for 1/255.")
        processor: Any = super()
        return processor._standardize_kwargs(*args, **kwargs)

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """Convert a single image to the working format of the image processor."""
        do_convert_rgb = args[0] if args else kwargs.get("do_convert_rgb")
        if do_convert_rgb and is_pil_image(image):
            image = to_rgb(image)
        processor: Any = super()
        return processor.process_image(image, *args, **kwargs)

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("do_normalize"):
            check_normalisation(kwargs.get("image_mean"), kwargs.get("image_std"))
        processor: Any = super()
        processor._validate_preprocess_kwargs(*args, **kwargs)


def check_normalisation(mean: Any, std: Any) -> None:
    """Raise ValueError for an `image_mean` or `image_std`, a number or several, that leaves no finite pixels."""
    for name, value in (("image_mean", mean), ("image_std", std)):
        try:
            numbers = np.atleast_1d(np.asarray(() if value is None else value, dtype=np.float64))
        except (TypeError, ValueError, OverflowError):
            numbers = np.array([np.nan])
        if not (abs(numbers) <= _LARGEST).all() or (name == "image_std" and (numbers <= 0).any()):
            rule = "finite numbers above 0" if name == "image_std" else "finite numbers"
            raise ValueError(f"{name} is {value!r}, expected {rule}; leave it out for ImageNet's.")


def check_size(name: str, value: Any) -> None:
    """Raise ValueError for a size in pixels, in any form that transformers knows, that cannot be one; None is none."""
    sides = [value]
    if isinstance(value, (list, tuple)) and len(value) == 2:
        sides = list(value)
    elif isinstance(value, (Mapping, SizeDict)):
        sides = [side for key, side in dict(value).items() if not str(key).endswith("_pixels")]
    for side in sides:
        is_whole = isinstance(side, Integral) and not isinstance(side, bool)
        if side is not None and not (is_whole and 1 <= side <= _MOST_SIDE):
            raise ValueError(
                f"{name} is {value!r}, expected sides of 1 to {_MOST_SIDE} pixels: an integer, a pair (height, width) "
                "or a dict."
            )


def to_rgb(image: Any) -> Any:
    """Return a Pillow image of any mode as 8-bit RGB.

    Transparency is composited on white. Gray of 16 bits loses its low byte. 32-bit integers up to 255 are taken as they
    are, larger ones as 16 bits; floats as 0 to 1 or, if larger, 0 to 255.

    `load_image` of transformers, which its pipelines use, drops transparency and clips 16 bits to white instead: give
    them what this returns.

    Raises: WrongPixelsError for an image without pixels, and for 32-bit pixels of another range.
    """
    if 0 in image.size:
        raise WrongPixelsError(f"the image has no pixels ({image.width}x{image.height}); replace or remove it.")
    if _is_deep(image):
        values = np.asarray(image)
        pixels = (values >> 8).astype(np.uint8) if image.mode.startswith("I;") else to_8_bits(values)
        if isinstance(transparent := image.info.get("transparency"), int):
            pixels = np.where(values == transparent, np.uint8(255), pixels)
        return to_pil_image(np.stack([pixels] * 3, -1), do_rescale=False, input_data_format=ChannelDimension.LAST)
    if _is_transparent(image):
        pixels = image.convert(_PLAIN_MODES.get(image.mode, image.mode)).convert("RGBA")
        white = pixels.copy()
        white.paste((255, 255, 255, 255), (0, 0, *pixels.size))
        white.alpha_composite(pixels)
        return white.convert("RGB")
    return image.convert("RGB")


def is_read_otherwise(image: Any, rgb: Any) -> bool:
    """Return True if `load_image` of transformers gives an image other pixels than `to_rgb`, whose result is `rgb`."""
    if not (_is_deep(image) or _is_transparent(image)):
        return False
    try:
        return bool((np.asarray(image.convert("RGB")) != np.asarray(rgb)).any())
    except ValueError:  # Pillow converts some modes in two steps only
        return True


def _is_deep(image: Any) -> bool:
    return image.mode in _DEEP_MODES or image.mode.startswith("I;")


def _is_transparent(image: Any) -> bool:
    return bool({"A", "a"} & set(image.getbands())) or image.info.get("transparency") is not None


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Return pixels of 32-bit integers or floats as uint8, of the same shape.

    Integers up to 255 are taken as they are, larger ones as 16 bits; floats as 0 to 1 or, if larger, 0 to 255.

    Raises: WrongPixelsError for other values.
    """
    lowest, highest = float(values.min()), float(values.max())
    if values.dtype.kind == "i" and lowest >= 0 and highest < 2**16:
        return (values >> (8 if highest > 255 else 0)).astype(np.uint8)
    if values.dtype.kind == "f" and lowest >= 0 and highest <= 255:
        return np.round(values * (255 if highest <= 1 else 1)).astype(np.uint8)
    raise WrongPixelsError(
        f"the image has 32-bit pixels from {lowest:g} to {highest:g}, a range that says nothing of black and white; "
        "convert it to 8 or 16 bits."
    )


__all__ = [
    "RgbMixin",
    "WrongPixelsError",
    "check_normalisation",
    "check_size",
    "is_read_otherwise",
    "to_8_bits",
    "to_rgb",
]
