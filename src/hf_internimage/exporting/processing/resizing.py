# SPDX-License-Identifier: MIT
"""Resizes of 8-bit images as ONNX operators, to the grey level: Pillow's with antialiasing, and OpenCV's bilinear one.

Images are (C, H, W) or, for OpenCV's, (H, W, C). Sizes are two int64 scalars. Functions take and return names.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from .nodes import Nodes

_INTEGER, _DOUBLE = np.int64, np.float64
_FIXED_POINT = 2.0**22  # Pillow's weights are multiples of its inverse
_OPENCV_ONE = 2048  # OpenCV's weights are multiples of its inverse


def shape(op: Nodes, image: str, first_axis: int) -> tuple[str, str]:
    """Return (height, width) of an image whose rows are on `first_axis`."""
    height, width = (op.Gather(op.Shape(image), _INTEGER(first_axis + axis)) for axis in (0, 1))
    return height, width


def double(op: Nodes, number: str) -> str:
    """Return a number as float64."""
    return op.Cast(number, to=TensorProto.DOUBLE)


def pillow_resize(op: Nodes, image: str, size: tuple[str, str], resample: int) -> str:
    """Resize (C, H, W) float64 of whole numbers from 0 to 255 to `size`, by one matrix product for each axis.

    Args:
        resample: 2 for bilinear, 3 for bicubic, with antialiasing.

    Source: `ImagingResample` of Pillow 12 for 8 bits: columns first, rounded to whole numbers after each axis.
    """
    (height, width), (new_height, new_width) = shape(op, image, 1), size
    columns = op.Transpose(_pillow_weights(op, width, new_width, resample), perm=[1, 0])
    image = _rounded(op, op.MatMul(image, columns))
    return _rounded(op, op.MatMul(_pillow_weights(op, height, new_height, resample), image))


def opencv_resize(op: Nodes, image: str, size: tuple[str, str]) -> str:
    """Resize (H, W, C) int32 of whole numbers from 0 to 255 to `size`, as `models.resizing.opencv_bilinear`."""
    (height, width), (new_height, new_width) = shape(op, image, 0), size
    left, fraction = _positions(op, width, new_width)
    inside = op.And(
        op.GreaterOrEqual(left, _INTEGER(0)), op.Less(left, op.Sub(width, _INTEGER(1)))
    )  # columns outside take the border's value with full weight
    fraction = op.Where(inside, fraction, np.float32(0))
    near, far = _opencv_weights(op, fraction, [-1, 1])
    columns = [op.Gather(image, _inside(op, index, width), axis=1) for index in (left, op.Add(left, _INTEGER(1)))]
    rows = op.Div(op.Add(op.Mul(columns[0], near), op.Mul(columns[1], far)), np.int32(16))

    upper, fraction = _positions(op, height, new_height)
    parts = [
        op.Div(op.Mul(op.Gather(rows, _inside(op, index, height), axis=0), weight), np.int32(2**16))
        for index, weight in zip(
            (upper, op.Add(upper, _INTEGER(1))), _opencv_weights(op, fraction, [-1, 1, 1]), strict=True
        )
    ]
    return op.Div(op.Add(op.Add(*parts), np.int32(2)), np.int32(4))


def _pillow_weights(op: Nodes, old: str, new: str, resample: int) -> str:
    """Return the matrix (new, old) of weights, whole multiples of 2^-22."""
    weight, support = _FILTERS[resample]
    scale = op.Div(double(op, old), double(op, new))
    stretch = op.Max(scale, _DOUBLE(1))
    reach = op.Mul(stretch, _DOUBLE(support))
    centres = op.Unsqueeze(op.Mul(op.Add(_range(op, new), _DOUBLE(0.5)), scale), np.array([1]))
    starts, ends = (op.Floor(op.Add(change(centres, reach), _DOUBLE(0.5))) for change in (op.Sub, op.Add))
    pixels = op.Unsqueeze(_range(op, old), np.array([0]))
    distances = op.Mul(op.Add(op.Sub(pixels, centres), _DOUBLE(0.5)), op.Reciprocal(stretch))
    reached = op.And(op.GreaterOrEqual(pixels, starts), op.Less(pixels, ends))
    weights = op.Where(reached, weight(op, op.Abs(distances)), _DOUBLE(0))
    weights = op.Div(weights, op.ReduceSum(weights, np.array([1])))
    fixed = op.Mul(weights, _DOUBLE(_FIXED_POINT))
    halves_away = op.Mul(op.Sign(fixed), op.Floor(op.Add(op.Abs(fixed), _DOUBLE(0.5))))
    return op.Div(halves_away, _DOUBLE(_FIXED_POINT))


def _bilinear(op: Nodes, distance: str) -> str:
    return op.Max(op.Sub(_DOUBLE(1), distance), _DOUBLE(0))


def _bicubic(op: Nodes, distance: str) -> str:
    """Keys' cubic with a = -1/2; `distance` is not negative."""
    square = op.Mul(distance, distance)
    near = op.Add(op.Mul(op.Sub(op.Mul(_DOUBLE(1.5), distance), _DOUBLE(2.5)), square), _DOUBLE(1))
    far = op.Add(op.Mul(op.Sub(distance, _DOUBLE(5)), distance), _DOUBLE(8))
    far = op.Mul(op.Sub(op.Mul(far, distance), _DOUBLE(4)), _DOUBLE(-0.5))
    far = op.Where(op.Less(distance, _DOUBLE(2)), far, _DOUBLE(0))
    return op.Where(op.Less(distance, _DOUBLE(1)), near, far)


def _rounded(op: Nodes, image: str) -> str:
    return op.Clip(op.Floor(op.Add(image, _DOUBLE(0.5))), _DOUBLE(0), _DOUBLE(255))


def _positions(op: Nodes, old: str, new: str) -> tuple[str, str]:
    """Return, for each of `new` pixel centres, the index of the old one before it, and the float32 distance to it."""
    scale = op.Reciprocal(op.Div(double(op, new), double(op, old)))
    positions = op.Sub(op.Mul(op.Add(_range(op, new), _DOUBLE(0.5)), scale), _DOUBLE(0.5))
    positions = op.Cast(positions, to=TensorProto.FLOAT)
    before = op.Floor(positions)
    return op.Cast(before, to=TensorProto.INT64), op.Sub(positions, before)


def _opencv_weights(op: Nodes, fraction: str, shape: list[int]) -> list[str]:
    one = np.float32(_OPENCV_ONE)
    weights = (op.Mul(op.Sub(np.float32(1), fraction), one), op.Mul(fraction, one))
    return [op.Reshape(op.Cast(op.Round(weight), to=TensorProto.INT32), np.array(shape)) for weight in weights]


def _inside(op: Nodes, index: str, length: str) -> str:
    return op.Clip(index, _INTEGER(0), op.Sub(length, _INTEGER(1)))


def _range(op: Nodes, length: str) -> str:
    return double(op, op.Range(_INTEGER(0), length, _INTEGER(1)))


_FILTERS: dict[int, tuple[Callable[[Nodes, str], Any], int]] = {2: (_bilinear, 1), 3: (_bicubic, 2)}
RESAMPLES = tuple(_FILTERS)

__all__ = ["RESAMPLES", "double", "opencv_resize", "pillow_resize", "shape"]
