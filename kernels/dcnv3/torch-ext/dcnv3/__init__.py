# SPDX-License-Identifier: MIT
"""Deformable convolution v3 (DCNv3, arXiv:2211.05778) in CUDA C++, forward and backward, softmax included.

Shapes, channels last: value (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask (N, Ho, Wo, G*P) -> (N, Ho, Wo, G*D),
with P = Kh*Kw - remove_center taps. Offsets are pairs (x, y) in pixels; taps run over kernel columns in the outer loop
and rows in the inner one. Positions outside the image, NaN and infinite ones read zero. Sums are taken in float32
(float64 for float64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._ops import add_op_namespace_prefix, ops

__all__ = ["backward", "dcnv3", "forward"]

_SUM_BITS = 62  # of a 64-bit integer; one is the sign, one is spare for the rounding of the summands
_MOST_EXPONENT = 1000  # of the scale of fixed-point sums, so that it is finite


def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> torch.Tensor:
    """Compute DCNv3 with first-order gradients for all three tensors, on a CUDA device. Sizes are ints or pairs (h, w).

    With softmax=True the mask holds logits, normalised over the taps of each group.
    """
    geometry = _geometry(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax)
    return _DCNv3.apply(value, offset, mask, geometry)


def forward(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> torch.Tensor:
    """Return the output (N, Ho, Wo, G*D) in value's dtype, without autograd."""
    geometry = _geometry(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax)
    return ops.dcnv3_forward(value.detach(), offset.detach(), mask.detach(), *geometry)


def backward(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of value, offset and mask, contiguous, in their shapes and dtypes.

    Under `torch.use_deterministic_algorithms` they are the same bits at every run: that of value is summed in fixed
    point.
    """
    geometry = _geometry(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax)
    return _backward(grad_output.detach(), value.detach(), offset.detach(), mask.detach(), geometry)


_Geometry = tuple[int, int, int, int, int, int, int, int, int, float, bool, bool]


def _geometry(
    groups: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> _Geometry:
    """Return the arguments of the operators after the tensors."""
    pairs = [part for size in (kernel_size, stride, padding, dilation) for part in _pair(size)]
    return (int(groups), *pairs, float(offset_scale), bool(remove_center), bool(softmax))  # type: ignore[return-value]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _backward(
    grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: _Geometry
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not torch.are_deterministic_algorithms_enabled():
        return ops.dcnv3_backward(grad_output, value, offset, mask, *geometry)
    scale = _scale(grad_output, mask, geometry)
    total, grad_offset, grad_mask = ops.dcnv3_backward(grad_output, value, offset, mask, *geometry, scale)
    return total.double().div_(scale).to(value.dtype), grad_offset, grad_mask


def _scale(grad_output: torch.Tensor, mask: torch.Tensor, geometry: _Geometry) -> torch.Tensor:
    """Return the value of 1 in fixed-point sums (float64, no dimensions, on the device), a power of two.

    No sum exceeds max|grad_output| * max|mask| * the largest number of terms of one element. The scale and then the
    gradient are NaN if that bound is not finite.
    """
    _, kernel_h, kernel_w, *_, remove_center, softmax = geometry
    taps = kernel_h * kernel_w - remove_center
    terms = grad_output.shape[1] * grad_output.shape[2] * (2 if softmax else taps)  # 2: weights of 1, rounded
    tensors = (grad_output,) if softmax else (grad_output, mask)
    if not all(tensor.numel() for tensor in tensors):
        return grad_output.new_ones((), dtype=torch.float64)
    bound = torch.stack([tensor.abs().amax().double() for tensor in tensors]).prod() * float(terms)
    exponent = (_SUM_BITS - torch.frexp(bound).exponent.long()).clamp(max=_MOST_EXPONENT)
    power = ((exponent + 1023) << 52).view(torch.float64)  # by bits: powers computed on the device may be inexact
    return torch.where(bound.isfinite(), power, torch.nan)


class _DCNv3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: _Geometry
    ) -> torch.Tensor:
        ctx.save_for_backward(value, offset, mask)
        ctx.geometry = geometry
        return ops.dcnv3_forward(value, offset, mask, *geometry)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("This kernel has first-order gradients only; hf_internimage.ops.dcnv3 has all orders.")
        value, offset, mask = ctx.saved_tensors
        return (*_backward(grad_output, value, offset, mask, ctx.geometry), None)


@torch.library.register_fake(add_op_namespace_prefix("dcnv3_forward"))
def _fake_forward(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *geometry: Any) -> torch.Tensor:
    return value.new_empty((*offset.shape[:3], value.shape[3]))


@torch.library.register_fake(add_op_namespace_prefix("dcnv3_backward"))
def _fake_backward(
    grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *geometry: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    fixed_point = len(geometry) > 12 and geometry[12] is not None
    total = value.new_empty(value.shape, dtype=torch.int64 if fixed_point else value.dtype)
    return total, offset.new_empty(offset.shape), mask.new_empty(mask.shape)
