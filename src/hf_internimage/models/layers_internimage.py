# SPDX-License-Identifier: MIT
"""Layers of InternImage.

Tensors between modules are (N, C, H, W), as everywhere in transformers; inside a stage they are (N, H, W, C). All
convolutions see channels-last memory, so going from one to the other is a permuted view and never a copy.
Parameter names are those of OpenGVLab's checkpoints.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_internimage import InternImageConfig
from .dcnv3_reference import dcnv3_reference

try:
    from hf_internimage.ops import dcnv3, fused_cpu
except ImportError as error:
    if error.name not in ("hf_internimage", "hf_internimage.ops"):
        raise
    # Code loaded from the Hub, without the package or with a version that lacks these names: plain PyTorch.
    dcnv3, fused_cpu = dcnv3_reference, None  # type: ignore[assignment]

_LAYER_NORM_EPS = 1e-6
# Sizes of the CLIP projector; the released H and G share them and the original cannot change them.
PROJECTOR_WIDTH, PROJECTOR_OUT, PROJECTOR_STRIDE = 1024, 768, 2
_PROJECTOR_HEADS = 16
ACTIVATIONS: dict[str, type[nn.Module]] = {"GELU": nn.GELU, "SiLU": nn.SiLU, "ReLU": nn.ReLU}


class InternImageToChannelsLast(nn.Module):
    """Permute (N, C, H, W) -> (N, H, W, C), a view."""

    only_permutes = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.permute(0, 2, 3, 1)


class InternImageToChannelsFirst(nn.Module):
    """Permute (N, H, W, C) -> (N, C, H, W), a view."""

    only_permutes = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return channels_first(hidden_states)


def channels_first(hidden_states: torch.Tensor) -> torch.Tensor:
    """Permute (N, H, W, C) -> (N, C, H, W): a view, or under torch.compile a contiguous tensor."""
    view = hidden_states.permute(0, 3, 1, 2)
    # PyTorch 2.13 cannot lower a convolution of such a view when height and width are dynamic.
    return view.contiguous() if torch.compiler.is_compiling() and not torch.compiler.is_exporting() else view


def layer_norm(channels: int) -> nn.Sequential:
    """Return a LayerNorm over the last axis, named `0` inside as in the checkpoints."""
    return nn.Sequential(nn.LayerNorm(channels, eps=_LAYER_NORM_EPS))


def _convolution_norm(channels: int, norm_layer: str, channels_last: bool) -> nn.Sequential:
    """Return the norm after a convolution, with names as in the checkpoints.

    It takes (N, C, H, W) and returns (N, H, W, C) if `channels_last`, else (N, C, H, W).
    """
    if norm_layer == "BN":
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        return nn.Sequential(*layers, *([InternImageToChannelsLast()] if channels_last else []))
    layers = [InternImageToChannelsLast(), nn.LayerNorm(channels, eps=_LAYER_NORM_EPS)]
    return nn.Sequential(*layers, *([] if channels_last else [InternImageToChannelsFirst()]))


def linear_layer(in_features: int, out_features: int, initialization: str, bias: bool = True) -> nn.Linear:
    """Return a linear layer that `_init_weights` initialises as its attribute `initialization` says.

    An attribute rather than a subclass, because tools such as `torch.ao.quantization.quantize_dynamic` compare exact
    types.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.initialization = initialization  # type: ignore[assignment]
    return layer


def project(layer: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return layer(hidden_states)."""
    result = fused_cpu.linear(hidden_states, layer) if fused_cpu is not None else None
    return layer(hidden_states) if result is None else result


def _convolution_normed(norms: nn.Sequential, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return norms(hidden_states), (N, C, H, W) -> (N, H, W, C); `norms` is a `_convolution_norm`, channels last."""
    fused = fused_cpu.norm(hidden_states.permute(0, 2, 3, 1), norms) if fused_cpu is not None else None
    return norms(hidden_states) if fused is None else fused


class InternImageDropPath(nn.Module):
    """Stochastic depth: drop the residual branch of a whole sample with probability `rate`, in training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def only_permutes(self) -> bool:
        """True if the result is the input."""
        return self.rate == 0.0 or not self.training

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.only_permutes:
            return hidden_states
        keep = hidden_states.new_empty((hidden_states.shape[0],) + (1,) * (hidden_states.dim() - 1))
        return hidden_states * keep.bernoulli_(1 - self.rate).div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class InternImageStem(nn.Module):
    """Two 3x3 convolutions of stride 2: pixels (N, num_channels, H, W) -> (N, channels, ceil(H/4), ceil(W/4))."""

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__()
        half = config.channels // 2
        self.conv1 = nn.Conv2d(config.num_channels, half, kernel_size=3, stride=2, padding=1)
        self.norm1 = _convolution_norm(half, config.norm_layer, channels_last=False)
        self.act = ACTIVATIONS[config.act_layer]()
        self.conv2 = nn.Conv2d(half, config.channels, kernel_size=3, stride=2, padding=1)
        self.norm2 = _convolution_norm(config.channels, config.norm_layer, channels_last=True)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # In channels-last memory. Permuted by hand, because torch.func cannot batch `memory_format`.
        pixel_values = pixel_values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        hidden_states = self.conv1(pixel_values)
        fused = (
            fused_cpu.norm(hidden_states.permute(0, 2, 3, 1), self.norm1, self.act) if fused_cpu is not None else None
        )
        normed = self.act(self.norm1(hidden_states)) if fused is None else channels_first(fused)
        hidden_states = self.conv2(normed)
        return channels_first(_convolution_normed(self.norm2, hidden_states))  # (N, H, W, C) -> (N, C, H, W)


class InternImageDeformableConvolution(nn.Module):
    """DCNv3 with its projections: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(
        self,
        config: InternImageConfig,
        channels: int,
        groups: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.offset_scale = config.offset_scale
        self.remove_center = config.remove_center
        taps = groups * (self.kernel_size**2 - self.remove_center)
        dw_kernel_size = config.dw_kernel_size or self.kernel_size
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, dw_kernel_size, padding=dw_kernel_size // 2, groups=channels),
            _convolution_norm(channels, config.norm_layer, channels_last=True),
            ACTIVATIONS[config.act_layer](),
        )
        self.offset = linear_layer(channels, taps * 2, "zeros")
        self.mask = linear_layer(channels, taps, "zeros")
        self.input_proj = linear_layer(channels, channels, "xavier")
        self.output_proj = linear_layer(channels, channels, "xavier")
        if config.center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(groups, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(groups))
        else:
            self.register_parameter("center_feature_scale_proj_weight", None)
            self.register_parameter("center_feature_scale_proj_bias", None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value = project(self.input_proj, hidden_states)
        local = self._local(hidden_states)
        sampled = dcnv3(
            value,
            project(self.offset, local),
            project(self.mask, local),
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            softmax=True,
        )
        if self.center_feature_scale_proj_weight is not None:
            centre = F.linear(
                local, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            ).sigmoid()
            by_group = (self.groups, -1)  # the scale is one number for all channels of a group
            blend = torch.lerp(sampled.unflatten(-1, by_group), value.unflatten(-1, by_group), centre.unsqueeze(-1))
            sampled = blend.flatten(-2)
        return project(self.output_proj, sampled)

    def _local(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the features for the offset and mask layers: depth-wise convolution, norm and activation.

        Shapes: (N, H, W, C) -> (N, H, W, C).
        """
        local = fused_cpu.depthwise_norm_gelu(hidden_states, self.dw_conv) if fused_cpu is not None else None
        if local is None:
            local = self.dw_conv(channels_first(hidden_states))  # (N, H, W, C) -> (N, C, H, W) -> (N, H, W, C)
        return local


class InternImageMLP(nn.Module):
    """Two linear layers with an activation between: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, config: InternImageConfig, channels: int, fc2_bias: bool = True) -> None:
        super().__init__()
        hidden = int(channels * config.mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = ACTIVATIONS[config.act_layer]()
        self.fc2 = nn.Linear(hidden, channels, bias=fc2_bias)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        fused = fused_cpu.mlp(hidden_states, self.fc1, self.act, self.fc2, self.drop) if fused_cpu is not None else None
        if fused is not None:
            return fused
        return self.drop(self.fc2(self.drop(self.act(self.fc1(hidden_states)))))


# What a block's branches are if nobody has replaced them.
_BRANCHES: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (InternImageDeformableConvolution, InternImageMLP)
}


class InternImageLayer(GradientCheckpointingLayer):
    """One block, a DCNv3 and an MLP branch with residual connections: (N, H, W, C) -> (N, H, W, C)."""

    dcn_class: Any = InternImageDeformableConvolution
    mlp_class: Any = InternImageMLP

    def __init__(self, config: InternImageConfig, channels: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1 = layer_norm(channels)
        self.dcn = self.dcn_class(config, channels, groups)
        self.drop_path = InternImageDropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = layer_norm(channels)
        self.mlp = self.mlp_class(config, channels)
        if config.layer_scale is not None:
            self.layer_scale1 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
            self.layer_scale2 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
        else:
            self.register_parameter("layer_scale1", None)
            self.register_parameter("layer_scale2", None)
        self.res_post_norm1: nn.Sequential | None = None
        self.res_post_norm2: nn.Sequential | None = None
        if config.res_post_norm:
            self.res_post_norm1, self.res_post_norm2 = layer_norm(channels), layer_norm(channels)
        # As in the original: no effect together with post_norm or a layer scale.
        self.uses_res_post_norm = config.res_post_norm and not config.post_norm and config.layer_scale is None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        fused = fused_cpu.block(hidden_states, self, _BRANCHES) if fused_cpu is not None else None
        if fused is not None:
            return fused
        for branch, norm, after, scale in (
            (self.dcn, self.norm1, self.res_post_norm1, self.layer_scale1),
            (self.mlp, self.norm2, self.res_post_norm2, self.layer_scale2),
        ):
            if self.post_norm:
                branched = norm(branch(hidden_states))
            else:
                branched = branch(norm(hidden_states))
                if after is not None and self.uses_res_post_norm:
                    branched = after(branched)
            branched = self.drop_path(branched)
            hidden_states = hidden_states + branched if scale is None else torch.addcmul(hidden_states, branched, scale)
        return hidden_states


class InternImageDownsample(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels: (N, C, H, W) -> (N, 2C, ceil(H/2), ceil(W/2))."""

    def __init__(self, config: InternImageConfig, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = _convolution_norm(2 * channels, config.norm_layer, channels_last=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return channels_first(_convolution_normed(self.norm, self.conv(hidden_states)))  # (N, H, W, C) -> (N, C, H, W)


class InternImageStage(nn.Module):
    """Blocks, a norm if the architecture has one, and the downsampling to the next stage."""

    def __init__(
        self,
        config: InternImageConfig,
        index: int,
        drop_paths: Sequence[float],
        layer_class: type[InternImageLayer] = InternImageLayer,
    ) -> None:
        super().__init__()
        channels, groups = config.hidden_sizes[index], config.groups[index]
        self.blocks = nn.ModuleList(layer_class(config, channels, groups, rate) for rate in drop_paths)
        has_norm = not config.post_norm or config.center_feature_scale
        self.norm = layer_norm(channels) if has_norm else nn.Identity()
        takes_post_norms = config.level2_post_norm and index == 2
        self.post_norm_block_ids = list((config.level2_post_norm_block_ids or ()) if takes_post_norms else ())
        self.post_norms = nn.ModuleList(layer_norm(channels) for _ in self.post_norm_block_ids)
        is_last = index == len(config.depths) - 1
        self.downsample = None if is_last else InternImageDownsample(config, channels)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the stage's features (N, C, H, W) and the input of the next stage, None after the last one."""
        hidden_states = hidden_states.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        for index, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if index in self.post_norm_block_ids:
                hidden_states = self.post_norms[self.post_norm_block_ids.index(index)](hidden_states)
        features = channels_first(self.norm(hidden_states))  # (N, H, W, C) -> (N, C, H, W)
        return features, self.downsample(features) if self.downsample is not None else None


def make_stages(config: InternImageConfig, layer_class: type[InternImageLayer] = InternImageLayer) -> nn.ModuleList:
    """Return the stages of a backbone, with the stochastic depth rates of the configuration."""
    blocks = sum(config.depths)
    linear = config.drop_path_type == "linear"
    rates = [config.drop_path_rate * (i / max(blocks - 1, 1) if linear else 1) for i in range(blocks)]
    ends = [sum(config.depths[: index + 1]) for index in range(len(config.depths))]
    return nn.ModuleList(
        InternImageStage(config, index, rates[end - config.depths[index] : end], layer_class)
        for index, end in enumerate(ends)
    )


class InternImageCrossAttention(nn.Module):
    """Multi-head attention of one query over all positions, with separate biases for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        width = PROJECTOR_WIDTH
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.proj = nn.Linear(width, PROJECTOR_OUT)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend from query (N, 1, width) to key and value (N, L, width) -> (N, 1, 768)."""
        heads = (_PROJECTOR_HEADS, -1)
        projected = (
            _linear(layer, states, bias).unflatten(-1, heads).transpose(1, 2)
            for states, layer, bias in (
                (query, self.q, self.q_bias),
                (key, self.k, self.k_bias),
                (value, self.v, self.v_bias),
            )
        )
        return self.proj(F.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(-2))


def _linear(layer: nn.Module, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return layer(states) + bias: in one step for a plain linear layer, also for one that replaces it (quantized)."""
    if type(layer) is nn.Linear:
        return F.linear(states, layer.weight, bias)
    projected = layer(states)
    return projected + bias.to(projected.dtype)


class InternImageAttentionPooling(nn.Module):
    """The CLIP projector: attention pooling, with the mean over all positions as the query."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (layer_norm(PROJECTOR_WIDTH) for _ in range(3))
        self.cross_dcn = InternImageCrossAttention()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Pool (N, L, 1024) -> (N, 768)."""
        query = self.norm1_q(hidden_states.mean(1, keepdim=True))
        return self.cross_dcn(query, self.norm1_k(hidden_states), self.norm1_v(hidden_states)).squeeze(1)
