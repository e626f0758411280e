# SPDX-License-Identifier: MIT
"""Stand-in of hf-internimage-compat for InternImage's compiled extension DCNv3, versions 1.0 and 1.1.

Both functions take their arguments in the order of the extension's. They run on the tensors' device and in their dtype,
also under autocast. `im2col_step` has no effect, and the batch need not be a multiple of it.

The extension does not look at the shapes of offset and mask: it reads as many numbers as it needs, in order. Some
repositories give it channels first, or maps that are larger than the output of a stride of 2. So does this module, but
it refuses tensors that are too small.

Source: signatures of OpenGVLab/InternImage@31c962d, classification/ops_dcnv3/src/dcnv3.h.
"""

import math
from typing import Any

import torch

import hf_internimage.ops  # noqa: F401  it registers the operators

_OPERATORS = torch.ops.hf_internimage


def dcnv3_forward(
    input: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
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
    remove_center: int = 0,
) -> torch.Tensor:
    """Return `hf_internimage.ops.dcnv3` of these tensors, without its softmax.

    Raises: ValueError or RuntimeError for shapes, dtypes or arguments that disagree.
    """
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    geometry = _geometry(input, group, group_channels, sizes, offset_scale, remove_center)
    return _OPERATORS.dcnv3(input, *_in_order(input, offset, mask, geometry), *geometry, False)


def dcnv3_backward(
    input: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
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
    grad_output: torch.Tensor,
    im2col_step: int,
    remove_center: int = 0,
) -> list[torch.Tensor]:
    """Return the gradients of input, offset and mask, from that of the result of `dcnv3_forward`.

    Raises: as `dcnv3_forward`.
    """
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    geometry = _geometry(input, group, group_channels, sizes, offset_scale, remove_center)
    operands = _in_order(input, offset, mask, geometry)
    grad_input, *gradients = _OPERATORS.dcnv3_backward(grad_output, input, *operands, *geometry, False)
    pairs = zip(gradients, (offset, mask), strict=True)
    return [grad_input, *(_in_place_of(gradient, tensor) for gradient, tensor in pairs)]


def _geometry(
    input: torch.Tensor,
    group: int,
    group_channels: int,
    sizes: tuple[int, ...],
    offset_scale: float,
    remove_center: int,
) -> tuple[Any, ...]:
    """Return the operator's arguments after its tensors, without the softmax."""
    if input.shape[-1] != group * group_channels:
        raise ValueError(
            f"input has {input.shape[-1]} channels, but group={group} and group_channels={group_channels} make "
            f"{group * group_channels}."
        )
    return (group, *sizes, offset_scale, bool(remove_center))


def _in_order(
    input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: tuple[Any, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first numbers of offset and mask in the shapes that the operator expects: (N, Ho, Wo, features)."""
    group, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _, remove_center = geometry
    height = (input.shape[1] + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    width = (input.shape[2] + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    taps = group * (kernel_h * kernel_w - remove_center)
    reshaped = []
    for name, tensor, features in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        shape = (input.shape[0], height, width, features)
        if tensor.numel() < math.prod(shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, too few numbers for {shape}.")
        reshaped.append(tensor if tensor.shape == shape else tensor.reshape(-1)[: math.prod(shape)].view(shape))
    return reshaped[0], reshaped[1]


def _in_place_of(gradient: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a tensor from that of its first numbers; that of the others is 0."""
    if gradient.shape == tensor.shape:
        return gradient
    rest = gradient.new_zeros(tensor.numel() - gradient.numel())
    return torch.cat((gradient.reshape(-1), rest)).view(tensor.shape)
