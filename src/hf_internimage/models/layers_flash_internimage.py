# SPDX-License-Identifier: MIT
"""The layers in which FlashInternImage differs from InternImage. Parameter names are those of OpenGVLab's files."""

import torch
from torch import nn

from .configuration_flash_internimage import FlashInternImageConfig
from .dcnv4_layout import offset_mask_features, split_offset_mask
from .layers_internimage import InternImageLayer, InternImageMLP, channels_first, dcnv3, linear_layer, project


class FlashInternImageDeformableConvolution(nn.Module):
    """DCNv4 with its projections: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, config: FlashInternImageConfig, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.kernel_size = 3
        self.offset_scale = config.offset_scale
        self.remove_center = config.remove_center
        self.taps = self.kernel_size**2 - self.remove_center
        kernel = config.dw_kernel_size
        self.offset_mask_dw = (
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels) if kernel else None
        )
        self.offset_mask = linear_layer(channels, offset_mask_features(groups, self.taps), "zeros")
        self.value_proj = linear_layer(channels, channels, "xavier")
        self.output_proj = linear_layer(channels, channels, "xavier", bias=config.dcn_output_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        local = hidden_states
        if self.offset_mask_dw is not None:  # (N, H, W, C) -> (N, C, H, W) -> (N, H, W, C)
            local = self.offset_mask_dw(channels_first(local)).permute(0, 2, 3, 1)
        sampled = dcnv3(
            project(self.value_proj, hidden_states),
            *split_offset_mask(project(self.offset_mask, local), self.groups, self.taps),
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=1,
            padding=self.kernel_size // 2,
            dilation=1,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        return project(self.output_proj, sampled)


class FlashInternImageMLP(InternImageMLP):
    """InternImage's MLP, whose second layer has a bias only if the configuration says so."""

    def __init__(self, config: FlashInternImageConfig, channels: int) -> None:
        super().__init__(config, channels, fc2_bias=config.mlp_fc2_bias)


class FlashInternImageLayer(InternImageLayer):
    """One block, a DCNv4 and an MLP branch with residual connections: (N, H, W, C) -> (N, H, W, C)."""

    dcn_class = FlashInternImageDeformableConvolution
    mlp_class = FlashInternImageMLP


__all__ = ["FlashInternImageDeformableConvolution", "FlashInternImageLayer", "FlashInternImageMLP"]
