# SPDX-License-Identifier: MIT
"""DCNv4 for every device: another memory layout of DCNv3 without the softmax, on its backends."""

from collections.abc import Sequence

import torch

from ..models.dcnv3_reference import check_kernel
from ..models.dcnv4_layout import split_offset_mask
from .dcnv3 import dcnv3


def dcnv4(
    value: torch.Tensor,
    offset_mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Sum bilinear samples of `value` at learned positions with learned weights (deformable convolution v4).

    Shapes: value (N, H, W, G*D), offset_mask (N, Ho, Wo, F) -> (N, Ho, Wo, G*D), with F >= 3*G*P and N, Ho, Wo and P
    as in `dcnv3`. Group g has the features 3*P*g to 3*P*(g+1)-1 of `offset_mask`: the pairs (x, y) of its taps, then
    their weights, which are used as they are. The features behind the last group are not read.
    All else, with the names "offset" and "mask" in messages for the two parts of `offset_mask`, is as in `dcnv3`.
    Raises: as `dcnv3`, and ValueError for an `offset_mask` that has too few features.
    Source: arXiv:2401.06197; equal to OpenGVLab/DCNv4@4b848f7 but for two cases. The offset gradient of a sample
    exactly on the line of zeros around the image is one-sided here and 0 there. A NaN or infinite weight of a sample
    outside the image makes the output NaN here and is left out there.

    >>> value, offset_mask = torch.rand(1, 5, 7, 32), torch.zeros(1, 5, 7, 56)
    >>> dcnv4(value, offset_mask, groups=2).shape
    torch.Size([1, 5, 7, 32])
    """
    height, width = check_kernel(groups, kernel_size, remove_center)
    taps = height * width - bool(remove_center)
    if not isinstance(offset_mask, torch.Tensor):
        raise ValueError(f"offset_mask is a {type(offset_mask).__name__}, expected a torch.Tensor.")
    if offset_mask.dim() != 4 or offset_mask.shape[-1] < 3 * groups * taps:
        raise ValueError(
            f"offset_mask has shape {tuple(offset_mask.shape)}, expected 4 dimensions (N, height, width, features) "
            f"with at least {3 * groups * taps} features, three for each of {taps} taps of groups={groups}."
        )
    if offset_mask.layout != torch.strided:
        raise ValueError(f"offset_mask has layout {offset_mask.layout}, expected torch.strided; call to_dense() on it.")
    offset, mask = split_offset_mask(offset_mask, groups, taps)
    return dcnv3(
        value,
        offset,
        mask,
        groups=groups,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_scale=offset_scale,
        remove_center=remove_center,
        backend=backend,
    )


__all__ = ["dcnv4"]
