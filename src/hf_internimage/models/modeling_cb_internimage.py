# SPDX-License-Identifier: MIT
"""CB-InternImage in PyTorch: the composite backbone of the original's largest detectors."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_cb_internimage import CBInternImageConfig
from .layers_internimage import make_stages
from .modeling_internimage import InternImagePreTrainedModel, InternImageTrunk


class CBInternImageAssistedStages(nn.Module):
    """The second backbone: stages without a stem. Each stage adds features of the first backbone to its input."""

    def __init__(self, config: CBInternImageConfig) -> None:
        super().__init__()
        self.round_gamma = config.round_gamma
        self.levels = make_stages(config)
        for index, width in enumerate(config.hidden_sizes):
            self.register_parameter(f"gamma{index}", nn.Parameter(torch.zeros(width)))

    def forward(self, hidden_states: torch.Tensor, assistance: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the features of each stage, all (N, C, H, W).

        Args:
            hidden_states: the stem's output.
            assistance: features of the first backbone to add before each stage.
        """
        collected = []
        for index, level in enumerate(self.levels):
            gamma = getattr(self, f"gamma{index}")
            if self.round_gamma:
                gamma = gamma.half().to(hidden_states.dtype)
            hidden_states = hidden_states + gamma[:, None, None] * assistance[index]
            features, hidden_states = level(hidden_states)
            collected.append(features)
        return collected


class CBInternImageBackbone(BackboneMixin, InternImagePreTrainedModel):
    """Two InternImages as one backbone: feature maps of the second, which reads all stages of the first.

    Before stage i, the second backbone adds features of the first backbone's stages i to the last, times a factor per
    channel. Features of stage i are added unchanged, those of later stages after a 1x1 convolution and
    nearest-neighbour upsampling. The factors start at zero, so that the second backbone at first only shares the stem.
    """

    config: CBInternImageConfig
    has_attentions = False
    _no_split_modules = ["InternImageStem", "InternImageLayer", "InternImageDownsample"]

    def __init__(self, config: CBInternImageConfig) -> None:
        super().__init__(config)
        self.num_features = [config.channels, *config.hidden_sizes]
        self.cb_modules: Any = nn.ModuleList([InternImageTrunk(config), CBInternImageAssistedStages(config)])
        widths = config.hidden_sizes
        self.cb_linears: Any = nn.ModuleList(
            nn.ModuleList([nn.Identity(), *(nn.Conv2d(wider, width, 1) for wider in widths[index + 1 :])])
            for index, width in enumerate(widths)
        )
        self.post_init()
        if config.with_cp:  # transformers 5.23 renamed the method and warns about the old name
            getattr(self, "activation_checkpointing_enable", self.gradient_checkpointing_enable)()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module as the original does.

        Source: OpenGVLab/InternImage@31c962d, detection/mmdet_custom/models/backbones/cbnet.py.
        """
        super()._init_weights(module)
        if isinstance(module, CBInternImageAssistedStages):
            for index in range(len(module.levels)):
                init.zeros_(getattr(module, f"gamma{index}"))

    def get_input_embeddings(self) -> nn.Module:
        stem: nn.Module = self.cb_modules[0].patch_embed
        return stem

    def _assistance(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return, for each stage, the sum of the first backbone's features from this stage on, at this stage's size."""
        sums = []
        for index, (linears, own) in enumerate(zip(self.cb_linears, features, strict=True)):
            projected = [linear(states) for linear, states in zip(linears, features[index:], strict=True)]
            resized = (F.interpolate(states, size=own.shape[-2:], mode="nearest") for states in projected)
            sums.append(reduce(torch.add, resized))
        return sums

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Compute feature maps of a batch of images.

        Args:
            pixel_values: normalised images (N, num_channels, H, W); H and W are multiples of 32.
            output_hidden_states: also return the stem's output, then each stage's features of the first backbone, then
                of the second; an index or several select.
            return_dict: False for a tuple.

        Returns:
            `feature_maps` of the second backbone, a tuple of tensors (N, C, H, W) in the order of `out_features`; and
            `hidden_states`, 2 * num_stages + 1 tensors.

        Raises:
            ValueError: for pixel values of another shape, or of a height or width that is no multiple of 32.

        Source: https://arxiv.org/abs/2107.00420; OpenGVLab/InternImage@31c962d.
        """
        stride = 2 ** (len(self.config.depths) + 1)
        if pixel_values.dim() == 4 and any(side % stride for side in pixel_values.shape[-2:]):
            height, width = pixel_values.shape[-2:]
            raise ValueError(
                f"pixel_values is {height} high and {width} wide, expected multiples of {stride}: the composite "
                "backbone adds feature maps of neighbouring stages; pad the images."
            )
        first = self.cb_modules[0].encode(pixel_values)
        second = self.cb_modules[1](first[0], self._assistance(first[1:]))
        by_stage = dict(zip(self.stage_names, [first[0], *second], strict=True))
        return BackboneOutput(
            feature_maps=tuple(by_stage[stage] for stage in self.out_features),
            hidden_states=self.cb_modules[0]._select_hidden_states([*first, *second], output_hidden_states),
        )


__all__ = ["CBInternImageBackbone"]
