# SPDX-License-Identifier: MIT
"""Stand-in of hf-internimage-compat for the compiled extension of DCNv4, version 1.0.0.post2.

Both functions take their arguments in the order of the extension's. They run on the tensors' device and in their dtype,
also under autocast. `im2col_step`, `d_stride` and `block_thread` have no effect: they say how the extension divides its
work. Tensors need not be contiguous.

Source: signatures of OpenGVLab/DCNv4@4b848f7, DCNv4_op/src/dcnv4.h.
"""

from typing import Any

import torch

import hf_internimage.ops  # noqa: F401  it registers the operators
from hf_internimage.models.dcnv4_layout import split_offset_mask

_OPERATORS = torch.ops.hf_internimage


def dcnv4_forward(
    value: torch.Tensor,
    p_offset: torch.Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    remove_center: int,
    d_stride: int,
    block_thread: int,
    softmax: bool,
) -> torch.Tensor:
    """Return `hf_internimage.ops.dcnv4` of these tensors; `softmax` applies one over the weights of each group.

    Raises: ValueError or RuntimeError for shapes, dtypes or arguments that disagree.
    """
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    geometry, parts = _arguments(value, p_offset, sizes, group, group_channels, offset_scale, remove_center)
    return _OPERATORS.dcnv3(value, *parts, *geometry, bool(softmax))


def dcnv4_backward(
    value: torch.Tensor,
    p_offset: torch.Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    grad_output: torch.Tensor,
    remove_center: int,
    d_stride: int,
    block_thread: int,
    softmax: bool,
) -> list[torch.Tensor]:
    """Return the gradients of `value` and `p_offset`, from that of the result of `dcnv4_forward`.

    That of the features behind the last group is 0.

    Raises: as `dcnv4_forward`.
    """
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    geometry, parts = _arguments(value, p_offset, sizes, group, group_channels, offset_scale, remove_center)
    grad_value, *gradients = _OPERATORS.dcnv3_backward(grad_output, value, *parts, *geometry, bool(softmax))
    grad_offset, grad_mask = (gradient.unflatten(-1, (group, -1)) for gradient in gradients)
    features = grad_offset.shape[-1], grad_mask.shape[-1]  # of each group
    grad_p_offset = torch.zeros_like(p_offset, memory_format=torch.contiguous_format)
    parts = grad_p_offset[..., : group * sum(features)].unflatten(-1, (group, -1)).split(features, -1)
    for part, gradient in zip(parts, (grad_offset, grad_mask), strict=True):
        part.copy_(gradient)  # torch.cat refuses float16 under autocast
    return [grad_value, grad_p_offset]


def _arguments(
    value: torch.Tensor,
    p_offset: torch.Tensor,
    sizes: tuple[int, ...],
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: int,
) -> tuple[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]]:
    """Return the operator's arguments after its tensors, without the softmax, and its offset and mask."""
    if value.shape[-1] != group * group_channels:
        raise ValueError(
            f"value has {value.shape[-1]} channels, but group={group} and group_channels={group_channels} make "
            f"{group * group_channels}."
        )
    taps = sizes[0] * sizes[1] - bool(remove_center)
    if p_offset.shape[-1] < 3 * group * taps:
        raise ValueError(
            f"p_offset has {p_offset.shape[-1]} features, expected at least {3 * group * taps}, three for each of "
            f"{taps} taps of group={group}."
        )
    return (group, *sizes, offset_scale, bool(remove_center)), split_offset_mask(p_offset, group, taps)
