# SPDX-License-Identifier: MIT
"""Stand-in of hf-internimage-compat for InternImage's compiled extension DCNv3, versions 1.0 and 1.1.

Both functions take their arguments in the order of the extension's. They run on the tensors' device and in their dtype,
also under autocast. `im2col_step` has no effect, and the batch need not be a multiple of it.

Source: signatures of OpenGVLab/InternImage@31c962d, classification/ops_dcnv3/src/dcnv3.h.
"""

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
    _check_group_channels(input, group, group_channels)
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    return _OPERATORS.dcnv3(input, offset, mask, group, *sizes, offset_scale, bool(remove_center), False)


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
    _check_group_channels(input, group, group_channels)
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    scale, without_centre = offset_scale, bool(remove_center)
    return list(
        _OPERATORS.dcnv3_backward(grad_output, input, offset, mask, group, *sizes, scale, without_centre, False)
    )


def _check_group_channels(input: torch.Tensor, group: int, group_channels: int) -> None:
    if input.shape[-1] != group * group_channels:
        raise ValueError(
            f"input has {input.shape[-1]} channels, but group={group} and group_channels={group_channels} make "
            f"{group * group_channels}."
        )
