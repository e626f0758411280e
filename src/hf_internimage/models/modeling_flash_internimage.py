# SPDX-License-Identifier: MIT
"""FlashInternImage in PyTorch: base model, image classifier and backbone."""

from .configuration_flash_internimage import FlashInternImageConfig
from .layers_flash_internimage import FlashInternImageLayer
from .layers_internimage import InternImageLayer
from .modeling_internimage import (
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageModel,
    InternImagePreTrainedModel,
)


class FlashInternImagePreTrainedModel(InternImagePreTrainedModel):
    """Class attributes for transformers, shared by all FlashInternImage models."""

    config: FlashInternImageConfig
    layer_class: type[InternImageLayer] = FlashInternImageLayer
    _no_split_modules = ["InternImageStem", "FlashInternImageLayer", "InternImageDownsample"]


class FlashInternImageModel(FlashInternImagePreTrainedModel, InternImageModel):
    """FlashInternImage without a head. `pooler_output` is the global average of the last stage's features."""


class FlashInternImageBackbone(FlashInternImagePreTrainedModel, InternImageBackbone):
    """FlashInternImage as a backbone: feature maps of the stages in `config.out_features`."""


class FlashInternImageForImageClassification(FlashInternImagePreTrainedModel, InternImageForImageClassification):
    """FlashInternImage with the original's classification head, a wide 1x1 convolution."""

    trunk_class = FlashInternImageModel


__all__ = [
    "FlashInternImageBackbone",
    "FlashInternImageForImageClassification",
    "FlashInternImageModel",
    "FlashInternImagePreTrainedModel",
]
