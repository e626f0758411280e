# SPDX-License-Identifier: MIT
"""The operator as the authors' autograd function is called.

Source: signature of OpenGVLab/DCNv4@4b848f7, DCNv4_op/DCNv4/functions/dcnv4_func.py.
"""

import torch

from ..ext import dcnv4_forward


class DCNv4Function:
    """`DCNv4Function.apply(...)`, with the gradients of `hf_internimage.ops.dcnv4`, also second ones."""

    @staticmethod
    def apply(
        input: torch.Tensor,
        offset_mask: torch.Tensor,
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
    ) -> torch.Tensor:
        """Return the operator's output; see `DCNv4.ext.dcnv4_forward`."""
        sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        return dcnv4_forward(
            input, offset_mask, *sizes, group, group_channels, offset_scale, im2col_step, remove_center, 8, 0, False
        )


__all__ = ["DCNv4Function"]
