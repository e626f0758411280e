# SPDX-License-Identifier: MIT
"""DCNv3 and DCNv4 as layers with the authors' arguments and parameter names, for blocks and weights of other models."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import init

from .models.configuration_internimage import InternImageConfig
from .models.dcnv4_layout import offset_mask_features
from .models.layers_internimage import InternImageDeformableConvolution
from .ops import dcnv4


class DCNv3(InternImageDeformableConvolution):
    """DCNv3 with its projections, offsets, masks and their softmax: (N, H, W, C) -> (N, H, W, C).

    Constructor, names of the parameters and initial values are those of the authors' modules `DCNv3` and
    `DCNv3_pytorch`, which are the same here, on any device. `stride`, `pad` and `dilation` are those of the operator.
    Offsets are computed at every input pixel, therefore they must keep the size: stride 1, and for a kernel of 3 for
    example `pad` = `dilation`.

    Args:
        channels: C.
        kernel_size: taps of the operator in each direction.
        dw_kernel_size: kernel of the depth-wise convolution before offsets and masks, odd; `kernel_size` if None.
        stride: distance of the sampling centres, in pixels.
        pad: zero pixels around the input.
        dilation: distance of the taps, in pixels.
        group: groups of channels that share offsets and masks; must divide `channels`.
        offset_scale: factor of the sampling grid and the offsets.
        act_layer: "GELU", "SiLU" or "ReLU".
        norm_layer: "LN" or "BN", after the depth-wise convolution.
        center_feature_scale: blend the result with the projected input by a learned factor per group.
        remove_center: leave the centre tap out; `kernel_size` must be odd.

    Raises:
        ValueError: for arguments that disagree, and in a call that does not keep the size.

    Example:
        >>> import torch
        >>> from hf_internimage.nn import DCNv3
        >>> layer = DCNv3(channels=32, group=2)
        >>> layer(torch.rand(1, 20, 24, 32)).shape
        torch.Size([1, 20, 24, 32])

    Source: OpenGVLab/InternImage@31c962d, classification/ops_dcnv3/modules/dcnv3.py.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        if channels % group:
            raise ValueError(f"channels is {channels}, expected a multiple of group={group}.")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number with remove_center.")
        config = InternImageConfig(
            dw_kernel_size=kernel_size if dw_kernel_size is None else dw_kernel_size,
            offset_scale=offset_scale,
            act_layer=act_layer,
            norm_layer=norm_layer,
            center_feature_scale=bool(center_feature_scale),
            remove_center=bool(remove_center),
        )
        super().__init__(config, channels, group, kernel_size, stride, pad, dilation)
        for layer in (self.offset, self.mask):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            init.xavier_uniform_(layer.weight)
            init.zeros_(layer.bias)


DCNv3_pytorch = DCNv3


class DCNv4(nn.Module):
    """DCNv4 with its projections, offsets and weights: (N, L, C) -> (N, L, C), L pixels row by row.

    Constructor, names of the parameters and initial values are those of the authors' module `DCNv4`, on any device.
    `stride`, `pad` and `dilation` are those of the operator. Offsets are computed at every input pixel, therefore they
    must keep the size: stride 1, and for a kernel of 3 for example `pad` = `dilation`. Channels per group need not be
    a multiple of 16.

    Args:
        channels: C.
        kernel_size: taps of the operator in each direction.
        stride: distance of the sampling centres, in pixels.
        pad: zero pixels around the input.
        dilation: distance of the taps, in pixels.
        group: groups of channels that share offsets and weights; must divide `channels`.
        offset_scale: factor of the sampling grid and the offsets.
        dw_kernel_size: kernel of a depth-wise convolution before offsets and weights, odd; no convolution if None.
        center_feature_scale: blend the result with the projected input by a factor per group, computed from the result.
        remove_center: leave the centre tap out; `kernel_size` must be odd.
        output_bias: bias of the linear layer after the operator.
        without_pointwise: no linear layers before and after the operator.
        ignored: other names have no effect, as in the authors' module.

    Raises:
        ValueError: for arguments that disagree, and in a call that does not keep the size.

    Example:
        >>> import torch
        >>> from hf_internimage.nn import DCNv4
        >>> layer = DCNv4(channels=32, group=2)
        >>> layer(torch.rand(1, 20 * 24, 32), shape=(20, 24)).shape
        torch.Size([1, 480, 32])

    Source: OpenGVLab/DCNv4@4b848f7, DCNv4_op/DCNv4/modules/dcnv4.py.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if channels % group:
            raise ValueError(f"channels is {channels}, expected a multiple of group={group}.")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number with remove_center.")
        if dw_kernel_size is not None and dw_kernel_size % 2 == 0:
            raise ValueError(f"dw_kernel_size is {dw_kernel_size}, expected an odd number or None.")
        self.group = group
        self.geometry: dict[str, Any] = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": pad,
            "dilation": dilation,
            "offset_scale": offset_scale,
            "remove_center": bool(remove_center),
        }
        self.center_feature_scale_proj_weight = self.center_feature_scale_proj_bias = None
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.offset_mask_dw = None
        if dw_kernel_size is not None:
            padding = dw_kernel_size // 2
            self.offset_mask_dw = nn.Conv2d(channels, channels, dw_kernel_size, padding=padding, groups=channels)
        self.offset_mask = nn.Linear(channels, offset_mask_features(group, kernel_size**2 - bool(remove_center)))
        init.zeros_(self.offset_mask.weight)
        init.zeros_(self.offset_mask.bias)
        self.value_proj = self.output_proj = None
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
            for layer in (self.value_proj, self.output_proj):
                init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    init.zeros_(layer.bias)

    def forward(self, input: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
        """Return the layer's output (N, L, C) for (N, L, C).

        Args:
            input: features of L = H*W pixels, row by row.
            shape: (H, W); a square if None.
        """
        pixels = input.shape[1] if input.dim() == 3 else None
        if pixels is None or (shape is None and math.isqrt(pixels) ** 2 != pixels):
            raise ValueError(
                f"input has shape {tuple(input.shape)}, expected (N, L, C) with shape=(height, width) or a square L."
            )
        height, width = (math.isqrt(pixels),) * 2 if shape is None else shape
        if height * width != pixels:
            raise ValueError(f"shape is {(height, width)}, expected a height and a width that make {pixels} pixels.")
        states = input.unflatten(1, (height, width))  # (N, H, W, C)
        value = states if self.value_proj is None else self.value_proj(states)
        local = states
        if self.offset_mask_dw is not None:
            local = self.offset_mask_dw(states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        sampled = dcnv4(value, self.offset_mask(local), groups=self.group, **self.geometry)
        if self.center_feature_scale_proj_weight is not None:
            weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            centre = nn.functional.linear(sampled, weight, bias).sigmoid()
            by_group = (self.group, -1)  # the scale is one number for all channels of a group
            sampled = torch.lerp(
                sampled.unflatten(-1, by_group), value.unflatten(-1, by_group), centre.unsqueeze(-1)
            ).flatten(-2)
        sampled = sampled.flatten(1, 2)
        return sampled if self.output_proj is None else self.output_proj(sampled)


__all__ = ["DCNv3", "DCNv3_pytorch", "DCNv4"]
