# SPDX-License-Identifier: MIT
"""Systems that are exported: each on InternImage, and on transformers' ConvNeXt of the same size; random weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoBackbone,
    ConvNextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_internimage import InternImageConfig, InternImageDinoConfig, InternImageDinoForObjectDetection

from .models import CONVNEXT, FAMILIES, TINY, spread_offsets


class System(NamedTuple):
    """A kind of model.

    Attributes:
        title: for the table.
        make: (family, size) -> model.
        side: of the square images in pixels.
    """

    title: str
    make: Callable[[str, str], nn.Module]
    side: int


def _backbone_config(family: str, size: str) -> Any:
    """Return the configuration of a backbone that gives the maps of all four stages."""
    depths: dict[str, Any] = {"depths": [1, 1, 1, 1]}
    if family == "convnext":
        tiny = {**depths, "hidden_sizes": [8, 16, 32, 64]}
        config: Any = ConvNextConfig(**(tiny if size == TINY else CONVNEXT[size]))
    elif size == TINY:
        config = InternImageConfig.from_size("t", channels=16, groups=[1, 2, 4, 8], **depths)
    else:
        config = InternImageConfig.from_size(size)
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    return config


def _upernet(family: str, size: str) -> nn.Module:
    backbone = _backbone_config(family, size)
    width = 16 if size == TINY else 512
    head: dict[str, Any] = {"hidden_size": width, "use_auxiliary_head": False, "num_labels": 150}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **head))


def _mask2former(family: str, size: str) -> nn.Module:
    backbone = _backbone_config(family, size)
    fields: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5} if size == TINY else {}
    fields["num_labels"] = 150
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, **fields))


def _dino(family: str, size: str) -> nn.Module:
    backbone = _backbone_config(family, size)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 5, "d_model": 32}
    fields: dict[str, Any] = layers if size == TINY else {}
    return InternImageDinoForObjectDetection(InternImageDinoConfig(backbone_config=backbone, **fields))


SYSTEMS = {
    "classifier": System("", lambda family, size: FAMILIES[family](size), 224),
    "backbone": System("maps", lambda family, size: AutoBackbone.from_config(_backbone_config(family, size)), 224),
    "upernet": System("UperNet", _upernet, 256),
    "mask2former": System("Mask2Former", _mask2former, 256),
    "dino": System("DINO", _dino, 256),
}


def build(system: str, family: str, size: str) -> Any:
    """Return a model in evaluation mode, with the same random weights at each call."""
    torch.manual_seed(0)
    model = SYSTEMS[system].make(family, size).eval()
    spread_offsets(model)
    return model
