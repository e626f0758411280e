# SPDX-License-Identifier: MIT
"""Scalar arguments of a kernel call: `hfi_dcnv3` of api.h and `Call` of dcnv3.cuh."""

import ctypes

import torch

from ...models.dcnv3_reference import DCNv3Geometry

_SIZES = "batch height width out_height out_width groups channels"
_PAIRS = "kernel stride padding dilation"
FIELDS: list[tuple[str, type]] = [
    *((name, ctypes.c_int64) for name in _SIZES.split()),
    *((f"{name}_{axis}", ctypes.c_int64) for name in _PAIRS.split() for axis in "hw"),
    ("remove_center", ctypes.c_int64),
    ("softmax", ctypes.c_int64),
    ("offset_scale", ctypes.c_double),
]


def has_dense_features(tensor: torch.Tensor) -> bool:
    """Return True if the features of a pixel lie side by side in memory; tensor (N, height, width, features)."""
    return tensor.stride(3) == 1 or tensor.shape[3] <= 1


def with_dense_features(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a contiguous copy if the features of a pixel do not lie side by side."""
    return tensor if has_dense_features(tensor) else tensor.contiguous()


def scalar_arguments(
    geometry: DCNv3Geometry, softmax: bool, value: torch.Tensor, offset: torch.Tensor
) -> tuple[float, ...]:
    """Return the values of FIELDS, in their order."""
    batch, height, width, channels = value.shape
    return (
        batch,
        height,
        width,
        *offset.shape[1:3],
        geometry.groups,
        channels // geometry.groups,
        *geometry.kernel_size,
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
        geometry.remove_center,
        softmax,
        geometry.offset_scale,
    )
