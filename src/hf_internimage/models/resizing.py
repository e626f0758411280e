# SPDX-License-Identifier: MIT
"""Image sizes and resizes of the original's segmentation and detection pipelines, without OpenCV."""

import numpy as np


def keep_ratio_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return (height, width) of the largest image with this aspect ratio that fits `short` and `long`.

    The short side is at most `short` and the long side at most `long`; both are rounded half up, and at least 1.

    Source: `Resize(keep_ratio=True)` of mmseg 0.30 and mmdet 2.28 with `img_scale=(long, short)`.
    """
    factor = min(long / max(height, width), short / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def multiple_size(height: int, width: int, divisor: int) -> tuple[int, int]:
    """Return (height, width) with both sides rounded up to a multiple of `divisor`."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def opencv_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize 8-bit pixels to `size` = (height, width) bilinearly, bit for bit as OpenCV's `INTER_LINEAR`.

    There is no antialiasing. OpenCV computes in fixed point, with weights of 11 bits; a bilinear resize in floating
    point differs from it by one grey level in about an eighth of the values.

    Shapes: image (H, W, C) or (H, W) uint8 -> (height, width, C) or (height, width) uint8, always new memory.
    Raises: ValueError for another dtype or number of dimensions, for an empty image or size.
    Source: `resize` of OpenCV 4.10 (5.0 gives the same pixels), checked against its results.
    """
    _check(image, size)
    if image.dtype != np.uint8:
        raise ValueError(f"opencv_bilinear resizes uint8 pixels, got {image.dtype}.")
    if image.shape[:2] == tuple(size):
        return image.copy()
    # Columns outside the image take the border's value with full weight ...
    left, fraction = _positions(image.shape[1], size[1])
    fraction[(left < 0) | (left >= image.shape[1] - 1)] = 0
    left = left.clip(0, image.shape[1] - 1)
    right = (left + 1).clip(max=image.shape[1] - 1)
    # ... rows outside keep their weights: the same border row twice, whose rounding differs.
    upper, row_fraction = _positions(image.shape[0], size[0])
    upper, lower = upper.clip(0, image.shape[0] - 1), (upper + 1).clip(0, image.shape[0] - 1)
    used = np.unique(np.concatenate([upper, lower]))

    pixels = image[used]
    near, far = (weight.reshape(-1, *(1,) * (image.ndim - 2)) for weight in _fixed_point(fraction))
    rows = np.take(pixels, left, axis=1).astype(np.int32)
    rows *= near
    if far.any():
        rows += np.take(pixels, right, axis=1) * far
    rows >>= 4

    near, far = (weight.reshape(-1, *(1,) * (image.ndim - 1)) for weight in _fixed_point(row_fraction))
    result = rows[np.searchsorted(used, upper)]
    result *= near
    result >>= 16
    other = rows[np.searchsorted(used, lower)]
    other *= far
    other >>= 16
    result += other
    result += 2
    result >>= 2
    return result.astype(np.uint8)


def opencv_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize labels or masks of any dtype to `size` = (height, width) as OpenCV's `INTER_NEAREST`.

    Output pixel d is input pixel floor(d * old size / new size). The original resizes ground truth like this.

    Shapes: image (H, W) or (H, W, C) -> (height, width) or (height, width, C), always new memory.
    Raises: ValueError for another number of dimensions, for an empty image or size.
    """
    _check(image, size)
    rows, columns = (
        np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64)
        for old, new in zip(image.shape[:2], size, strict=True)
    )
    return np.take(image[rows], columns, axis=1)


def _check(image: np.ndarray, size: tuple[int, int]) -> None:
    if image.ndim not in (2, 3) or not image.size:
        raise ValueError(f"An image to resize must be (H, W) or (H, W, C) and not empty, got shape {image.shape}.")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"The new size must be (height, width), at least 1 each, got {tuple(size)}.")


def _positions(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each of `new` pixel centres, the index of the old centre before it and the distance to it, 0..1."""
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    before = np.floor(position)
    return before.astype(np.int64), position - before


def _fixed_point(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights 1 - fraction and fraction in units of 1/2048, rounded separately, halves to even."""
    one = np.float32(1)
    return np.rint((one - fraction) * 2048).astype(np.int32), np.rint(fraction * 2048).astype(np.int32)
