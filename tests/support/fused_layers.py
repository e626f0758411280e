# SPDX-License-Identifier: MIT
"""Layers that the CPU fuses, each with its fused and its plain form."""

import torch
from torch import nn

from hf_internimage.models.layers_internimage import InternImageToChannelsLast
from hf_internimage.ops import fused_cpu


def dw_conv(channels=16, kernel=3, dtype=torch.float32):
    """What offsets and masks are made from, as in the model, with a norm that does something."""
    torch.manual_seed(channels)
    epsilon = 1e-6 if channels > 8 else 0.1  # a few numbers can be nearly equal, and their norm then enlarges rounding
    block = nn.Sequential(
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
        nn.Sequential(InternImageToChannelsLast(), nn.LayerNorm(channels, eps=epsilon)),
        nn.GELU(),
    )
    nn.init.uniform_(block[1][1].weight, 0.5, 1.5)
    nn.init.uniform_(block[1][1].bias, -0.5, 0.5)
    return block.to(dtype)


def mlp(channels=16, dtype=torch.float32):
    torch.manual_seed(channels)
    parts = {"first": nn.Linear(channels, 4 * channels), "act": nn.GELU(), "second": nn.Linear(4 * channels, channels)}
    return nn.ModuleDict({**parts, "drop": nn.Dropout(0.0)}).to(dtype)


def fused_dw_conv(states, block):
    return fused_cpu.depthwise_norm_gelu(states, block)


def plain_dw_conv(states, block):
    return block(states.permute(0, 3, 1, 2))


def fused_mlp(states, parts):
    return fused_cpu.mlp(states, parts["first"], parts["act"], parts["second"], parts["drop"])


def plain_mlp(states, parts):
    return parts["drop"](parts["second"](parts["drop"](parts["act"](parts["first"](states)))))


def norm(channels=16, dtype=torch.float32):
    torch.manual_seed(channels)
    layer_norm = nn.LayerNorm(channels, eps=1e-6 if channels > 8 else 0.1)
    nn.init.uniform_(layer_norm.weight, 0.5, 1.5)
    nn.init.uniform_(layer_norm.bias, -0.5, 0.5)
    return nn.ModuleDict({"norms": nn.Sequential(InternImageToChannelsLast(), layer_norm), "act": nn.GELU()}).to(dtype)


def fused_norm(states, parts):
    return fused_cpu.norm(states, parts["norms"], parts["act"])


def plain_norm(states, parts):
    return parts["act"](parts["norms"](states.permute(0, 3, 1, 2)))


KINDS = {
    "dw_conv": (dw_conv, fused_dw_conv, plain_dw_conv),
    "mlp": (mlp, fused_mlp, plain_mlp),
    "norm": (norm, fused_norm, plain_norm),  # only where no gradients are wanted
}
