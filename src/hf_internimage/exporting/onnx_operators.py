# SPDX-License-Identifier: MIT
"""DCNv3 as ONNX's own operator DeformConv, for `torch.onnx.export`.

DeformConv sums bilinear samples times a mask times weights, here ones with a group for each channel. It differs from
DCNv3 in the order of taps (rows first) and of coordinates (y, x), has no scale of offsets and no missing centre.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from onnxscript import ir
from onnxscript import opset19 as op

from ..models.dcnv3_reference import DCNv3Geometry


def dcnv3_as_deform_conv(value: Any, offset: Any, mask: Any, *arguments: Any) -> Any:
    """Write a call of hf_internimage::dcnv3 as ONNX operators (opset 19); tensors are (N, H, W, features)."""
    groups, *pairs = arguments[:9]
    offset_scale, remove_center, softmax = arguments[9:12]
    kernel_size, stride, padding, dilation = ((pairs[i], pairs[i + 1]) for i in range(0, 8, 2))
    geometry = DCNv3Geometry(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center)
    channels, taps = int(value.shape[3]), geometry.taps()
    original, (value, offset, mask) = value, (_as_float32(tensor) for tensor in (value, offset, mask))
    # DeformConv's taps are rows first. A removed centre takes the offset of the first tap and the mask 0.
    order = [(i, j) for j in range(kernel_size[0]) for i in range(kernel_size[1])]
    picked = [taps.index(tap) if tap in taps else None for tap in order]

    mask = _rows(mask, [0, 0, 0, groups, len(taps)])
    if softmax:
        mask = op.Softmax(mask, axis=-1)
    if remove_center:
        mask = op.Pad(mask, _integers([0] * 9 + [1]))
    columns = len(taps) + remove_center
    by_group = [g * columns + (len(taps) if tap is None else tap) for g in range(groups) for tap in picked]
    mask = _channels_first(_rows(mask, [0, 0, 0, -1]), by_group)

    by_group = [(g * len(taps) + (tap or 0)) * 2 + axis for g in range(groups) for tap in picked for axis in (1, 0)]
    offset = _channels_first(offset, by_group)
    if offset_scale != 1:
        scaled_grid = [_shift(geometry, tap) for _ in range(groups) for tap in order]
        offset = op.Add(op.Mul(offset, _floats(offset_scale)), _floats(np.reshape(scaled_grid, (1, -1, 1, 1))))

    sampled = op.DeformConv(
        op.Transpose(value, perm=[0, 3, 1, 2]),
        _floats(np.ones((channels, 1, *kernel_size))),
        offset,
        _floats(np.zeros(channels)),  # TensorRT needs one
        mask,
        dilations=list(dilation),
        group=channels,
        kernel_shape=list(kernel_size),
        offset_group=groups,
        pads=[*padding, *padding],
        strides=list(stride),
    )
    result = op.Transpose(sampled, perm=[0, 2, 3, 1])
    return result if original.dtype == ir.DataType.FLOAT else op.Cast(result, to=original.dtype)


def _as_float32(tensor: Any) -> Any:
    return tensor if tensor.dtype == ir.DataType.FLOAT else op.Cast(tensor, to=ir.DataType.FLOAT)


def _channels_first(tensor: Any, order: list[int]) -> Any:
    """Write (N, H, W, features) as (N, features, H, W) with the features in another order.

    The order changes last: whole images are copied then, not single numbers.
    """
    return op.Gather(op.Transpose(tensor, perm=[0, 3, 1, 2]), _integers(order), axis=1)


def _shift(geometry: DCNv3Geometry, tap: tuple[int, int]) -> tuple[float, float]:
    """Return the (y, x) by which `offset_scale` moves a tap (column, row) that has no offset."""
    return tuple(  # type: ignore[return-value]
        (geometry.offset_scale - 1) * (dilation * index - dilation * (size - 1) // 2)
        for index, size, dilation in zip(reversed(tap), geometry.kernel_size, geometry.dilation, strict=True)
    )


def _rows(tensor: Any, shape: list[int]) -> Any:
    return op.Reshape(tensor, _integers(shape))


def _integers(values: list[int]) -> Any:
    return op.Constant(value_ints=values)


def _floats(values: Any) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.asarray(values, dtype=np.float32)))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.hf_internimage.dcnv3.default: dcnv3_as_deform_conv,
    torch.ops.hf_internimage.dcnv3.backend: dcnv3_as_deform_conv,
}

__all__ = ["TRANSLATIONS", "dcnv3_as_deform_conv"]
