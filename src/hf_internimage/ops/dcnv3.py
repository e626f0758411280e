# SPDX-License-Identifier: MIT
"""The public door to DCNv3."""

from collections.abc import Sequence

import torch

from ..dcnv3_reference import dcnv3_reference

_BACKENDS = ("torch",)


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
    backend: str | None = None,
) -> torch.Tensor:
    """Sum bilinear samples of `value` at learned positions, weighted by `mask` (deformable convolution v3).

    Shapes: value (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask (N, Ho, Wo, G*P) -> (N, Ho, Wo, G*D),
    with P = Kh*Kw - remove_center and Ho = (H + 2*pad_h - dil_h*(Kh-1) - 1)//stride_h + 1 (int or (h, w) pair each).
    Units: pixels. Offsets are pairs (x, y); taps run over kernel columns in the outer loop and rows in the inner one;
    `offset_scale` scales grid and offsets about the kernel's centre. Positions outside the image read 0, and so do
    NaN or infinite ones. With `softmax=True` the mask holds logits, normalised inside over the taps of each group.
    Result: value.dtype, summed in float32 (float64 for float64). First-order gradients for all three tensors.
    `backend`: None picks the best that can run the call; a name ("torch") demands that one.
    Raises: ValueError for shapes, dtypes, devices, layouts or arguments that disagree, and for an unknown backend.
    Source: arXiv:2211.05778 eq. 2; equal to OpenGVLab/InternImage@31c962d for square padding.

    >>> value, offset, mask = torch.rand(1, 5, 7, 8), torch.zeros(1, 5, 7, 36), torch.rand(1, 5, 7, 18)
    >>> dcnv3(value, offset, mask, groups=2, softmax=True).shape
    torch.Size([1, 5, 7, 8])
    """
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected None or one of {', '.join(_BACKENDS)}.")
    return dcnv3_reference(
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
        softmax=softmax,
    )
