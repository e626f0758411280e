# SPDX-License-Identifier: MIT
"""InternImage in PyTorch: base model, image classifier and backbone.

Tensors between modules are (N, C, H, W), as everywhere in transformers; inside a stage they are (N, H, W, C). All
convolutions see channels-last memory, so going from one to the other is a permuted view and never a copy.
Parameter names are those of OpenGVLab's checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_internimage import InternImageConfig
from .dcnv3_reference import dcnv3_reference

try:
    from hf_internimage.ops import dcnv3
except ModuleNotFoundError as error:
    if error.name not in ("hf_internimage", "hf_internimage.ops"):
        raise
    dcnv3 = dcnv3_reference  # package absent (code loaded from the Hub): plain PyTorch

_LAYER_NORM_EPS = 1e-6
# Sizes of the CLIP projector; the released H and G share them and the original cannot change them.
_PROJECTOR_WIDTH, _PROJECTOR_HEADS, _PROJECTOR_OUT, _PROJECTOR_STRIDE = 1024, 16, 768, 2
_ACTIVATIONS: dict[str, type[nn.Module]] = {"GELU": nn.GELU, "SiLU": nn.SiLU, "ReLU": nn.ReLU}
_HEAD_NAMES = "conv_head|dcnv3_head_x3|dcnv3_head_x4|clip_projector|fc_norm|head"


class InternImageToChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C), a view."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.permute(0, 2, 3, 1)


class InternImageToChannelsFirst(nn.Module):
    """(N, H, W, C) -> (N, C, H, W), a view."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.permute(0, 3, 1, 2)


def _layer_norm(channels: int) -> nn.Sequential:
    """A LayerNorm over the last axis, under the checkpoints' name `0`."""
    return nn.Sequential(nn.LayerNorm(channels, eps=_LAYER_NORM_EPS))


def _convolution_norm(channels: int, norm_layer: str, channels_last: bool) -> nn.Sequential:
    """The norm after a convolution: (N, C, H, W) in, (N, H, W, C) out if `channels_last`, under the checkpoints' names."""
    if norm_layer == "BN":
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        return nn.Sequential(*layers, *([InternImageToChannelsLast()] if channels_last else []))
    layers = [InternImageToChannelsLast(), nn.LayerNorm(channels, eps=_LAYER_NORM_EPS)]
    return nn.Sequential(*layers, *([] if channels_last else [InternImageToChannelsFirst()]))


class InternImageZeroLinear(nn.Linear):
    """A linear layer that starts at zero: sampling offsets and mask logits."""


class InternImageProjection(nn.Linear):
    """A linear layer that starts Xavier-uniform: the operator's input and output projections."""


class InternImageDropPath(nn.Module):
    """Stochastic depth: in training, drops the residual branch of a whole sample with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
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
        self.act = _ACTIVATIONS[config.act_layer]()
        self.conv2 = nn.Conv2d(half, config.channels, kernel_size=3, stride=2, padding=1)
        self.norm2 = _convolution_norm(config.channels, config.norm_layer, channels_last=True)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv1(pixel_values.contiguous(memory_format=torch.channels_last))
        hidden_states = self.conv2(self.act(self.norm1(hidden_states)))
        return self.norm2(hidden_states).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class InternImageDeformableConvolution(nn.Module):
    """DCNv3 with its projections: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, config: InternImageConfig, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.kernel_size = 3
        self.offset_scale = config.offset_scale
        self.remove_center = config.remove_center
        taps = groups * (self.kernel_size**2 - self.remove_center)
        dw_kernel_size = config.dw_kernel_size or self.kernel_size
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, dw_kernel_size, padding=dw_kernel_size // 2, groups=channels),
            _convolution_norm(channels, config.norm_layer, channels_last=True),
            _ACTIVATIONS[config.act_layer](),
        )
        self.offset = InternImageZeroLinear(channels, taps * 2)
        self.mask = InternImageZeroLinear(channels, taps)
        self.input_proj = InternImageProjection(channels, channels)
        self.output_proj = InternImageProjection(channels, channels)
        if config.center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(groups, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(groups))
        else:
            self.center_feature_scale_proj_weight = None
            self.center_feature_scale_proj_bias = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value = self.input_proj(hidden_states)
        local = self.dw_conv(hidden_states.permute(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W) -> (N, H, W, C)
        sampled = dcnv3(
            value,
            self.offset(local),
            self.mask(local),
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=1,
            padding=self.kernel_size // 2,
            dilation=1,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            softmax=True,
        )
        if self.center_feature_scale_proj_weight is not None:
            centre = F.linear(local, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias).sigmoid()
            by_group = (self.groups, -1)  # the scale is one number for all channels of a group
            blend = torch.lerp(sampled.unflatten(-1, by_group), value.unflatten(-1, by_group), centre.unsqueeze(-1))
            sampled = blend.flatten(-2)
        return self.output_proj(sampled)


class InternImageMLP(nn.Module):
    """Two linear layers with an activation between: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, config: InternImageConfig, channels: int) -> None:
        super().__init__()
        hidden = int(channels * config.mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = _ACTIVATIONS[config.act_layer]()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(hidden_states)))))


class InternImageLayer(GradientCheckpointingLayer):
    """One block, a DCNv3 and an MLP branch with residual connections: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, config: InternImageConfig, channels: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1 = _layer_norm(channels)
        self.dcn = InternImageDeformableConvolution(config, channels, groups)
        self.drop_path = InternImageDropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = _layer_norm(channels)
        self.mlp = InternImageMLP(config, channels)
        if config.layer_scale is not None:
            self.layer_scale1 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
            self.layer_scale2 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
        else:
            self.layer_scale1 = self.layer_scale2 = None
        if config.res_post_norm:
            self.res_post_norm1, self.res_post_norm2 = _layer_norm(channels), _layer_norm(channels)
        # As in the original: no effect beside post_norm or a layer scale.
        self.uses_res_post_norm = config.res_post_norm and not config.post_norm and config.layer_scale is None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.post_norm:
            hidden_states = self._add(hidden_states, self.norm1(self.dcn(hidden_states)), self.layer_scale1)
            return self._add(hidden_states, self.norm2(self.mlp(hidden_states)), self.layer_scale2)
        branch = self.dcn(self.norm1(hidden_states))
        if self.uses_res_post_norm:
            branch = self.res_post_norm1(branch)
        hidden_states = self._add(hidden_states, branch, self.layer_scale1)
        branch = self.mlp(self.norm2(hidden_states))
        if self.uses_res_post_norm:
            branch = self.res_post_norm2(branch)
        return self._add(hidden_states, branch, self.layer_scale2)

    def _add(self, residual: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        branch = self.drop_path(branch)
        return residual + branch if scale is None else torch.addcmul(residual, branch, scale)


class InternImageDownsample(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels: (N, C, H, W) -> (N, 2C, ceil(H/2), ceil(W/2))."""

    def __init__(self, config: InternImageConfig, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = _convolution_norm(2 * channels, config.norm_layer, channels_last=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(hidden_states)).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class InternImageStage(nn.Module):
    """Blocks, the stage's norm where it has one, and the way down to the next stage."""

    def __init__(self, config: InternImageConfig, index: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        channels, groups = config.hidden_sizes[index], config.groups[index]
        self.blocks = nn.ModuleList(InternImageLayer(config, channels, groups, rate) for rate in drop_paths)
        has_norm = not config.post_norm or config.center_feature_scale
        self.norm = _layer_norm(channels) if has_norm else nn.Identity()
        takes_post_norms = config.level2_post_norm and index == 2
        self.post_norm_block_ids = list((config.level2_post_norm_block_ids or ()) if takes_post_norms else ())
        self.post_norms = nn.ModuleList(_layer_norm(channels) for _ in self.post_norm_block_ids)
        is_last = index == len(config.depths) - 1
        self.downsample = None if is_last else InternImageDownsample(config, channels)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, C, H, W) -> the stage's features (N, C, H, W), and the next stage's input or None after the last."""
        hidden_states = hidden_states.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        for index, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if index in self.post_norm_block_ids:
                hidden_states = self.post_norms[self.post_norm_block_ids.index(index)](hidden_states)
        features = self.norm(hidden_states).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        return features, self.downsample(features) if self.downsample is not None else None


class InternImageCrossAttention(nn.Module):
    """Multi-head attention of one query over all positions, with separate biases for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        width = _PROJECTOR_WIDTH
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.proj = nn.Linear(width, _PROJECTOR_OUT)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Query (N, 1, width), key and value (N, L, width) -> (N, 1, 768)."""
        heads = (_PROJECTOR_HEADS, -1)
        projected = (
            F.linear(states, layer.weight, bias).unflatten(-1, heads).transpose(1, 2)
            for states, layer, bias in (
                (query, self.q, self.q_bias),
                (key, self.k, self.k_bias),
                (value, self.v, self.v_bias),
            )
        )
        return self.proj(F.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(-2))


class InternImageAttentionPooling(nn.Module):
    """The CLIP projector: pools positions by attention of their mean over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (_layer_norm(_PROJECTOR_WIDTH) for _ in range(3))
        self.cross_dcn = InternImageCrossAttention()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(N, L, 1024) -> (N, 768)."""
        query = self.norm1_q(hidden_states.mean(1, keepdim=True))
        return self.cross_dcn(query, self.norm1_k(hidden_states), self.norm1_v(hidden_states)).squeeze(1)


class InternImagePreTrainedModel(PreTrainedModel):
    """Weight initialisation and the library's hooks, shared by all InternImage models."""

    config: InternImageConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternImageStem", "InternImageLayer", "InternImageDownsample"]
    _can_compile_fullgraph = True

    def __init__(self, config: InternImageConfig, *inputs: Any, **kwargs: Any) -> None:
        config.check_architecture()  # a field may have been set since the configuration was made
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The original's initialisation (OpenGVLab/InternImage@31c962d)."""
        if isinstance(module, InternImageZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, InternImageProjection):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):  # PyTorch's own default, which the original leaves as it is
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, InternImageLayer):
            if module.layer_scale1 is not None:
                init.constant_(module.layer_scale1, self.config.layer_scale)
                init.constant_(module.layer_scale2, self.config.layer_scale)
        elif isinstance(module, InternImageDeformableConvolution):
            if module.center_feature_scale_proj_weight is not None:
                init.zeros_(module.center_feature_scale_proj_weight)
                init.zeros_(module.center_feature_scale_proj_bias)
        elif isinstance(module, InternImageCrossAttention):
            for bias in (module.q_bias, module.k_bias, module.v_bias):
                init.zeros_(bias)


class InternImageTrunk(InternImagePreTrainedModel):
    """Stem and stages, shared by the base model and the backbone."""

    # Checkpoints of the classifier hold its head, which the trunk has no use for.
    _keys_to_ignore_on_load_unexpected = [rf"^(model\.)?({_HEAD_NAMES})\."]

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.patch_embed = InternImageStem(config)
        self.pos_drop = nn.Dropout(config.drop_rate)
        blocks = sum(config.depths)
        linear = config.drop_path_type == "linear"
        rates = [config.drop_path_rate * (i / max(blocks - 1, 1) if linear else 1) for i in range(blocks)]
        ends = [sum(config.depths[: index + 1]) for index in range(len(config.depths))]
        self.levels = nn.ModuleList(
            InternImageStage(config, index, rates[end - config.depths[index] : end]) for index, end in enumerate(ends)
        )
        self.post_init()
        if config.with_cp:
            self.gradient_checkpointing_enable()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    def encode(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Stem output and each stage's features, all (N, C, H, W), for pixels (N, num_channels, H, W)."""
        if pixel_values is None:
            raise ValueError("pixel_values is None, expected a tensor (N, num_channels, height, width).")
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (N, {self.config.num_channels}, height, "
                "width) as num_channels of the configuration says."
            )
        hidden_states: torch.Tensor | None = self.pos_drop(self.patch_embed(pixel_values))
        collected = [hidden_states]
        for level in self.levels:
            features, hidden_states = level(hidden_states)
            collected.append(features)
        return collected

    def _asked_for(
        self, collected: list[torch.Tensor], output_hidden_states: bool | int | Sequence[int] | None
    ) -> tuple[torch.Tensor | None, ...] | None:
        """The hidden states to return: none, all, or those of the indices given (None in place of the others)."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if isinstance(output_hidden_states, bool) or output_hidden_states is None:
            return tuple(collected) if output_hidden_states else None
        count = len(collected)
        indices = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
        chosen = {index % count for index in indices if -count <= index < count}
        return tuple(states if index in chosen else None for index, states in enumerate(collected))


class InternImageModel(InternImageTrunk):
    """InternImage without a head. `pooler_output` is the global average of the last stage's features."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Features of a batch of images.

        Args:
            pixel_values: normalised images (N, num_channels, H, W), of any size.
            output_hidden_states: also return the stem's output and each stage's features; an index or several select.
            return_dict: False for a tuple.

        Returns:
            `last_hidden_state` (N, C, ceil(H/32), ceil(W/32)), `pooler_output` (N, C), and `hidden_states`, num_stages
            + 1 tensors (N, C, H, W) with strides 4, 4, 8, 16, 32.

        Raises:
            ValueError: for pixel values of another shape.

        Source: https://arxiv.org/abs/2211.05778.
        """
        collected = self.encode(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=collected[-1],
            pooler_output=collected[-1].mean((2, 3)),
            hidden_states=self._asked_for(collected, output_hidden_states),
        )


class InternImageBackbone(BackboneMixin, InternImageTrunk):
    """InternImage as a backbone: feature maps of the stages named in `config.out_features`, with no further norms."""

    has_attentions = False

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.num_features = [config.channels, *config.hidden_sizes]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Feature maps of a batch of images.

        Args:
            pixel_values: normalised images (N, num_channels, H, W), of any size.
            output_hidden_states: also return the stem's output and each stage's features; an index or several select.
            return_dict: False for a tuple.

        Returns:
            `feature_maps`, a tuple of tensors (N, C, H, W) in the order of `out_features`; and `hidden_states`.

        Raises:
            ValueError: for pixel values of another shape.

        Source: https://arxiv.org/abs/2211.05778.
        """
        collected = self.encode(pixel_values)
        return BackboneOutput(
            feature_maps=tuple(
                states for stage, states in zip(self.stage_names, collected, strict=True) if stage in self.out_features
            ),
            hidden_states=self._asked_for(collected, output_hidden_states),
        )


class InternImageForImageClassification(InternImagePreTrainedModel):
    """InternImage with the original's classification head: a wide 1x1 convolution, or the CLIP projector of H and G."""

    accepts_loss_kwargs = False

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = InternImageModel(config)
        channels = config.hidden_sizes[-1]
        if config.use_clip_projector:
            self.dcnv3_head_x4 = nn.Sequential(
                nn.Conv2d(channels, _PROJECTOR_WIDTH * _PROJECTOR_STRIDE**2, 1), nn.PixelShuffle(_PROJECTOR_STRIDE)
            )
            self.dcnv3_head_x3 = nn.Conv2d(channels // 2, _PROJECTOR_WIDTH, 1)
            self.clip_projector = InternImageAttentionPooling()
            self.fc_norm = _layer_norm(_PROJECTOR_OUT)
            features = _PROJECTOR_OUT
        else:
            features = int(channels * config.cls_scale)
            self.conv_head = nn.Sequential(
                nn.Conv2d(channels, features, 1, bias=False),
                nn.Sequential(nn.BatchNorm2d(features)),
                _ACTIVATIONS[config.act_layer](),
            )
        self.head = nn.Linear(features, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The original's pooled features, which its last linear layer classifies.

        Args:
            pixel_values: normalised images (N, num_channels, H, W). With the CLIP projector (H, G) the size must make
                the third stage even; multiples of 32 are safe.

        Returns:
            (N, F), with F = cls_scale times the last stage's channels (global average of the head's convolution), or
            768 with the CLIP projector.

        Raises:
            ValueError: for a size the CLIP projector cannot take.

        Source: OpenGVLab/InternImage@31c962d, classification/models/intern_image.py.
        """
        needed = [-2, -1] if self.config.use_clip_projector else False
        outputs = self.model(pixel_values, output_hidden_states=needed, return_dict=True)
        return self._pool(outputs.hidden_states or (outputs.last_hidden_state,))

    def _pool(self, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """From the last stages' features, (N, C, H, W) each, to (N, F)."""
        if not self.config.use_clip_projector:
            return self.conv_head(hidden_states[-1]).mean((2, 3))
        third, fourth = hidden_states[-2], self.dcnv3_head_x4(hidden_states[-1])
        if third.shape[-2:] != fourth.shape[-2:]:
            raise ValueError(
                f"The stage before the last has size {tuple(third.shape[-2:])}, but the CLIP projector needs even sides; "
                "give images whose height and width are multiples of 32."
            )
        mixed = fourth + self.dcnv3_head_x3(third)
        return self.fc_norm(self.clip_projector(mixed.flatten(-2).transpose(1, 2)))  # (N, C, H, W) -> (N, H*W, C)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """Class scores of a batch of images, and the loss if labels are given.

        Args:
            pixel_values: normalised images (N, num_channels, H, W); with the CLIP projector (H, G) of a size that
                makes the third stage even (multiples of 32 are safe).
            labels: classes (N,) as integers for a classification loss, (N, num_labels) as floats for a multi-label
                loss, (N,) floats with one label for regression; `config.problem_type` decides, or is found from them.
            output_hidden_states: also return the stem's output and each stage's features; an index or several select.
            return_dict: False for a tuple.

        Returns:
            `loss` (if labels are given), `logits` (N, num_labels), and `hidden_states`, num_stages + 1 tensors
            (N, C, H, W) with strides 4, 4, 8, 16, 32.

        Raises:
            ValueError: for pixel values of another shape, or a size the CLIP projector cannot take.

        Source: https://arxiv.org/abs/2211.05778.
        """
        outputs = self.model(pixel_values, output_hidden_states=True, return_dict=True)
        logits = self.head(self._pool(outputs.hidden_states))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutputWithNoAttention(
            loss=loss,
            logits=logits,
            hidden_states=self.model._asked_for(list(outputs.hidden_states), output_hidden_states),
        )


# OpenGVLab's files keep the head beside the stages, under the prefix `model.`; ours is a child of the classifier.
register_checkpoint_conversion_mapping(
    "InternImageForImageClassification",
    [WeightRenaming(rf"^model\.({_HEAD_NAMES})\.", r"^\1\.")],
    overwrite=True,
)

__all__ = [
    "InternImageBackbone",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImagePreTrainedModel",
]
