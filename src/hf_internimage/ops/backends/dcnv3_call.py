# SPDX-License-Identifier: MIT
"""What the plans of all compiled backends share: the check of their tensors, and the scalar arguments of a call."""

import ctypes

import torch

from ...models.dcnv3_reference import DCNv3Geometry
from ..operands import Operand, check_saved

_SIZES = "batch height width out_height out_width groups channels"
_PAIRS = "kernel stride padding dilation"
# `hfi_dcnv3` of api.h and `Call` of dcnv3.cuh
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


class CheckedPlan:
    """A call prepared for tensors of certain shapes, strides and dtypes; several threads may use it at once.

    Whatever reaches a kernel passes through `forward` or `backward`, which compare it with the tensors planned for.
    A backend defines `_forward` and `_backward`.
    """

    def __init__(
        self, geometry: DCNv3Geometry, softmax: bool, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> None:
        self.geometry, self.softmax = geometry, softmax
        self._inputs = tuple(map(Operand.of, (value, offset, mask)))
        self._output_shape = (*offset.shape[:3], value.shape[3])
        self._output = Operand(value.dtype, value.device, self._output_shape, ())

    def forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the output (N, Ho, Wo, G*D) in value's dtype.

        Raises: RuntimeError if a tensor is not as planned.
        """
        return self._plan_for(value, offset, mask)._forward(value, offset, mask)

    def backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of value, offset and mask, contiguous, in their shapes and dtypes.

        Raises: RuntimeError if a tensor is not as planned.
        """
        grad_output = grad_output.resolve_neg().contiguous()
        self._output.check(grad_output)
        return self._plan_for(value, offset, mask)._backward(grad_output, value, offset, mask)

    def _plan_for(self, *inputs: torch.Tensor) -> "CheckedPlan":
        """Return this plan, or one for the strides of these tensors, which hooks for saved tensors may change."""
        return self if check_saved(self._inputs, inputs) else type(self)(self.geometry, self.softmax, *inputs)

    def _forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        raise NotImplementedError
