# SPDX-License-Identifier: MIT
"""InternImage in PyTorch: base model, image classifier and backbone."""

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_internimage import InternImageConfig
from .layers_internimage import (
    ACTIVATIONS,
    PROJECTOR_OUT,
    PROJECTOR_STRIDE,
    PROJECTOR_WIDTH,
    InternImageAttentionPooling,
    InternImageCrossAttention,
    InternImageDeformableConvolution,
    InternImageLayer,
    InternImageStem,
    layer_norm,
    make_stages,
)
from .loading_report import LoadingReportMixin

_HEAD_NAMES = "conv_head|dcnv3_head_x3|dcnv3_head_x4|clip_projector|fc_norm|head"


class InternImagePreTrainedModel(LoadingReportMixin, PreTrainedModel):
    """Weight initialisation and class attributes for transformers, shared by all InternImage models."""

    config: InternImageConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternImageStem", "InternImageLayer", "InternImageDownsample"]
    _can_compile_fullgraph = True
    _classifier_modules = ("head",)

    def __init__(self, config: InternImageConfig, *inputs: Any, **kwargs: Any) -> None:
        own = cast(type[InternImageConfig], self.config_class)
        if config._operators != own._operators:  # the configuration of one family is a subclass of the other's
            raise ValueError(
                f"{type(self).__name__} takes configurations of model_type {own.model_type!r}, and this one has "
                f"{config.model_type!r}; AutoModel.from_config and the other Auto classes choose the class by it."
            )
        config.check_architecture()  # a field may have been set since the configuration was made
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module as the original does (OpenGVLab/InternImage@31c962d)."""
        if isinstance(module, nn.Linear):
            initialization = getattr(module, "initialization", None)
            if initialization == "zeros":  # sampling offsets and mask logits
                init.zeros_(module.weight)
            elif initialization == "xavier":  # the operator's input and output projections
                init.xavier_uniform_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=float(self.config.initializer_range))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):  # PyTorch's own default, which the original leaves as it is
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_channels // module.groups * math.prod(module.kernel_size))
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                for name, buffer in module.named_buffers():
                    init.constant_(buffer, float(name == "running_var"))
        elif isinstance(module, InternImageLayer):
            if self.config.layer_scale is not None:
                init.constant_(module.layer_scale1, float(self.config.layer_scale))
                init.constant_(module.layer_scale2, float(self.config.layer_scale))
        elif isinstance(module, InternImageDeformableConvolution):
            if module.center_feature_scale_proj_weight is not None:
                init.zeros_(module.center_feature_scale_proj_weight)
                init.zeros_(module.center_feature_scale_proj_bias)
        elif isinstance(module, InternImageCrossAttention):
            for bias in (module.q_bias, module.k_bias, module.v_bias):
                init.zeros_(bias)


class InternImageTrunk(InternImagePreTrainedModel):
    """Stem and stages, shared by the base model and the backbone."""

    layer_class: type[InternImageLayer] = InternImageLayer
    # Checkpoints of the classifier contain its head, which the trunk does not use.
    _keys_to_ignore_on_load_unexpected = [rf"^(model\.)?({_HEAD_NAMES})\."]

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.patch_embed = InternImageStem(config)
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.levels = make_stages(config, self.layer_class)
        self.post_init()
        if config.with_cp:  # transformers 5.23 renamed the method and warns about the old name
            getattr(self, "activation_checkpointing_enable", self.gradient_checkpointing_enable)()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    def encode(self, pixel_values: torch.Tensor | None) -> list[torch.Tensor]:
        """Return stem output and each stage's features, all (N, C, H, W), for pixels (N, num_channels, H, W)."""
        if pixel_values is None:
            raise ValueError("pixel_values is None, expected a tensor (N, num_channels, height, width).")
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (N, {self.config.num_channels}, height, "
                "width) as num_channels of the configuration says."
            )
        hidden_states = self.pos_drop(self.patch_embed(pixel_values))
        collected = [hidden_states]
        for level in self.levels:
            features, hidden_states = level(hidden_states)
            collected.append(features)
        return collected

    def _select_hidden_states(
        self, collected: list[torch.Tensor], output_hidden_states: bool | int | Sequence[int] | None
    ) -> Any:
        """Return None, all hidden states, or the selected ones with None in place of the others.

        `output_hidden_states` is False, True, or one or several indices; None takes the configuration's value.
        """
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
        """Compute features of a batch of images.

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
            hidden_states=self._select_hidden_states(collected, output_hidden_states),
        )


class InternImageBackbone(BackboneMixin, InternImageTrunk):
    """InternImage as a backbone: feature maps of the stages in `config.out_features`, without additional norms."""

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
        """Compute feature maps of a batch of images.

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
        by_stage = dict(zip(self.stage_names, collected, strict=True))
        return BackboneOutput(
            feature_maps=tuple(by_stage[stage] for stage in self.out_features),
            hidden_states=self._select_hidden_states(collected, output_hidden_states),
        )


def _rename_official_head(_: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Make `load_state_dict` accept the official layout as well: Trainer resumes from saved files with it."""
    pattern = re.compile(rf"^{re.escape(prefix)}model\.(?=({_HEAD_NAMES})\.)")
    for key in [key for key in state_dict if pattern.match(key)]:
        state_dict[pattern.sub(prefix, key)] = state_dict.pop(key)


class InternImageForImageClassification(InternImagePreTrainedModel):
    """InternImage with the original's classification head: a wide 1x1 convolution, or the CLIP projector of H and G."""

    accepts_loss_kwargs = False
    trunk_class: type[InternImageModel] = InternImageModel

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.trunk_class(config)
        channels = config.hidden_sizes[-1]
        if config.use_clip_projector:
            self.dcnv3_head_x4 = nn.Sequential(
                nn.Conv2d(channels, PROJECTOR_WIDTH * PROJECTOR_STRIDE**2, 1), nn.PixelShuffle(PROJECTOR_STRIDE)
            )
            self.dcnv3_head_x3 = nn.Conv2d(channels // 2, PROJECTOR_WIDTH, 1)
            self.clip_projector = InternImageAttentionPooling()
            self.fc_norm = layer_norm(PROJECTOR_OUT)
            features = PROJECTOR_OUT
        else:
            features = int(channels * config.cls_scale)
            self.conv_head = nn.Sequential(
                nn.Conv2d(channels, features, 1, bias=False),
                nn.Sequential(nn.BatchNorm2d(features)),
                ACTIVATIONS[config.act_layer](),
            )
        self.head = nn.Linear(features, config.num_labels) if config.num_labels else nn.Identity()
        self.register_load_state_dict_pre_hook(_rename_official_head)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Compute the original's pooled features, the input of its last linear layer.

        Args:
            pixel_values: normalised images (N, num_channels, H, W). With the CLIP projector (H, G) the size must make
                the third stage even; multiples of 32 are safe.
            output_hidden_states: also return the stem's output and each stage's features; an index or several select.
            return_dict: False for a tuple.

        Returns:
            `pooler_output` (N, F), with F = cls_scale times the last stage's channels (global average of the head's
            convolution), or 768 with the CLIP projector; `last_hidden_state` (N, C, ceil(H/32), ceil(W/32)); and
            `hidden_states`, num_stages + 1 tensors (N, C, H, W) with strides 4, 4, 8, 16, 32.

        Raises:
            ValueError: for pixel values of another shape, or a size the CLIP projector cannot take.

        Source: OpenGVLab/InternImage@31c962d, classification/models/intern_image.py.
        """
        outputs = self.model(pixel_values, output_hidden_states=True, return_dict=True)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self._pool(outputs.hidden_states),
            hidden_states=self.model._select_hidden_states(list(outputs.hidden_states), output_hidden_states),
        )

    def _pool(self, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pool the features of the last stages, (N, C, H, W) each, into (N, F)."""
        if not self.config.use_clip_projector:
            return self.conv_head(hidden_states[-1]).mean((2, 3))
        third, fourth = hidden_states[-2], self.dcnv3_head_x4(hidden_states[-1])
        if third.shape[-2:] != fourth.shape[-2:]:
            raise ValueError(
                f"The third stage has size {tuple(third.shape[-2:])}, but the CLIP projector needs even sides: give "
                "images whose height and width are multiples of 32."
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
        """Compute class scores of a batch of images, and the loss if labels are given.

        Args:
            pixel_values: normalised images (N, num_channels, H, W); with the CLIP projector (H, G) of a size that
                makes the third stage even (multiples of 32 are safe).
            labels: classes (N,) as integers for a classification loss, (N, num_labels) as floats for a multi-label
                loss, (N,) floats with one label for regression; `config.problem_type` decides, or they do.
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
            hidden_states=self.model._select_hidden_states(list(outputs.hidden_states), output_hidden_states),
        )


# In OpenGVLab's files the head has the prefix `model.` like the stages; here it is a child of the classifier. Saved
# files have the official layout: `from_pretrained` and `save_pretrained` convert with this mapping.
for _name in ("InternImageForImageClassification", "FlashInternImageForImageClassification"):
    register_checkpoint_conversion_mapping(
        _name, [WeightRenaming(rf"^model\.({_HEAD_NAMES})\.", r"^\1\.")], overwrite=True
    )

__all__ = [
    "InternImageBackbone",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImagePreTrainedModel",
]
