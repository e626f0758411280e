# SPDX-License-Identifier: MIT
"""Table of the heads of transformers that work on an InternImage, of those that do not, and their names."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ALL, _LAST_THREE, _LAST = (4, 8, 16, 32), (8, 16, 32), (32,)


@dataclass(frozen=True)
class Head:
    """A head of transformers that works on an InternImage.

    Attributes:
        config: name of its configuration class in transformers.
        model: name of its model class in transformers.
        strides: strides in pixels of the feature maps it reads.
        extra: function that returns the fields of its configuration that follow from the backbone. Its arguments are
            the configuration class, the backbone's configuration with `out_features` set, the strides of these, and
            the user's fields.
        channels: the `num_channels` of the backbone that the head requires; None for any.
    """

    config: str
    model: str
    strides: tuple[int, ...]
    extra: Callable[..., dict[str, Any]] | None = None
    channels: int | None = None


def _maskformer(
    config_class: type, backbone: "PreTrainedConfig", strides: list[int], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of MaskFormer.

    Its decoder is a DETR, whose default configuration has an unused timm backbone, which would have to be installed.
    """
    from transformers import DetrConfig

    decoder = fields.get("decoder_config") or {}
    return {
        "decoder_config": DetrConfig(**{"backbone_config": backbone, **decoder})
        if isinstance(decoder, Mapping)
        else decoder
    }


def _hybrid(
    config_class: Any, backbone: "PreTrainedConfig", strides: list[int], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of RT-DETR and its descendants, whose configurations repeat the description of feature maps."""
    levels = len(strides)
    width = fields.get("encoder_hidden_dim", config_class.encoder_hidden_dim)
    described = {
        "encoder_in_channels": _out_channels(backbone),
        "feat_strides": strides,
        "encode_proj_layers": [levels - 1],
        "decoder_in_channels": [width] * levels,
        "num_feature_levels": levels,
        "decoder_n_levels": levels,
    }
    return {name: value for name, value in described.items() if hasattr(config_class, name)}


def _omdet(
    config_class: Any, backbone: "PreTrainedConfig", strides: list[int], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of OmDet-Turbo.

    Its layer norms after the backbone expect channels-last maps. It fails if two of its widths are equal.
    """
    widths = [fields.get(name, getattr(config_class, name)) for name in ("class_embed_dim", "decoder_hidden_dim")]
    if widths[0] == widths[1]:
        raise ValueError(
            f"class_embed_dim and decoder_hidden_dim are both {widths[0]}, with which transformers' OmDet-Turbo fails "
            "(it then has no task_project); choose different values."
        )
    levels = len(strides)
    return {
        "apply_layernorm_after_vision_backbone": False,
        "encoder_in_channels": _out_channels(backbone),
        "encoder_projection_indices": [levels - 1],
        "vision_features_channels": [fields.get("encoder_hidden_dim", config_class.encoder_hidden_dim)] * levels,
        "num_feature_levels": levels,
    }


# The stages and fields of each head were determined by building, running and training it.
HEADS: dict[str, Head] = {
    "upernet": Head("UperNetConfig", "UperNetForSemanticSegmentation", _ALL),
    "maskformer": Head("MaskFormerConfig", "MaskFormerForInstanceSegmentation", _ALL, _maskformer),
    "mask2former": Head("Mask2FormerConfig", "Mask2FormerForUniversalSegmentation", _ALL),
    "oneformer": Head("OneFormerConfig", "OneFormerForUniversalSegmentation", _ALL),
    "detr": Head("DetrConfig", "DetrForObjectDetection", _LAST),
    "detr_segmentation": Head("DetrConfig", "DetrForSegmentation", _ALL),
    "conditional_detr": Head("ConditionalDetrConfig", "ConditionalDetrForObjectDetection", _LAST),
    "table_transformer": Head("TableTransformerConfig", "TableTransformerForObjectDetection", _LAST),
    "deformable_detr": Head("DeformableDetrConfig", "DeformableDetrForObjectDetection", _LAST_THREE),
    "dab_detr": Head("DabDetrConfig", "DabDetrForObjectDetection", _LAST),
    "rt_detr": Head("RTDetrConfig", "RTDetrForObjectDetection", _LAST_THREE, _hybrid),
    "rt_detr_v2": Head("RTDetrV2Config", "RTDetrV2ForObjectDetection", _LAST_THREE, _hybrid),
    "d_fine": Head("DFineConfig", "DFineForObjectDetection", _LAST_THREE, _hybrid),
    "deimv2": Head("Deimv2Config", "Deimv2ForObjectDetection", _LAST_THREE, _hybrid),
    "grounding_dino": Head("GroundingDinoConfig", "GroundingDinoForObjectDetection", _LAST_THREE),
    "mm_grounding_dino": Head("MMGroundingDinoConfig", "MMGroundingDinoForObjectDetection", _LAST_THREE),
    "omdet_turbo": Head("OmDetTurboConfig", "OmDetTurboForObjectDetection", _LAST_THREE, _omdet),
    # pixels and the trimap
    "vitmatte": Head("VitMatteConfig", "VitMatteForImageMatting", (16,), channels=4),
}

# Models of transformers that take no InternImage, by name without separators, and the reason: "it ...".
_TOKENS, _NO_BACKBONE = "expects a patch size and tokens, except from Swin V2", "has no replaceable backbone"
_OWN_TRANSFORMER = "builds its own vision transformer"
UNSUITABLE = {
    "dpt": f"{_TOKENS}; for semantic segmentation it ignores `backbone_config`",
    "zoedepth": _TOKENS,
    "depthanything": "expects tokens (N, L, C)",
    "promptdepthanything": "expects tokens (N, L, C)",
    "vitpose": "expects a patch size and tokens",
    "lwdetr": _OWN_TRANSFORMER,
    "rfdetr": _OWN_TRANSFORMER,
    **dict.fromkeys(("eomt", "yolos", "beit", "segformer", "sam"), _NO_BACKBONE),
}
# Systems that are models of this package, no heads of transformers.
_DINO = "InternImageDinoForObjectDetection(InternImageDinoConfig(backbone_config=...))"
_MASK_RCNN = "InternImageMaskRCNNForInstanceSegmentation(InternImageMaskRCNNConfig(backbone_config=...))"
_OWN_MODELS = {
    **dict.fromkeys(("dino", "internimagedino"), _DINO),
    **dict.fromkeys(("maskrcnn", "cascadercnn", "cascademaskrcnn", "internimagemaskrcnn"), _MASK_RCNN),
}


def _out_channels(backbone: Any) -> list[int]:
    """Return the channels of the backbone's `out_features`."""
    widths = [backbone.channels, *backbone.hidden_sizes]
    return [widths[index] for index in backbone.out_indices]


def head_name(head: str | type) -> str:
    """Return the name in `HEADS` of a head given by name, class or class name.

    Raises:
        ValueError: for another one: similar names, or why it takes no InternImage.
    """
    given_name = head if isinstance(head, str) else getattr(head, "__name__", repr(head))
    for name, entry in HEADS.items():
        if given_name.lower().replace("-", "_") == name or given_name in (entry.config, entry.model):
            return name
    short_name = _without_separators(re.sub(r"(For[A-Z]\w*|Config|Model)$", "", given_name))
    if short_name in _OWN_MODELS:
        raise ValueError(f"{given_name} is no head of transformers; build this package's {_OWN_MODELS[short_name]}.")
    if short_name in UNSUITABLE:
        raise ValueError(
            f"{given_name} does not work on an InternImage: it {UNSUITABLE[short_name]}. docs/heads.md lists the heads "
            "that do."
        )
    raise ValueError(f"head is {given_name!r}{did_you_mean(given_name, HEADS)}")


def did_you_mean(name: str, choices: Collection[str]) -> str:
    """Return the end of an error message about a wrong name: the most similar choices, or all if none is similar."""
    by_short_name = {_without_separators(choice): choice for choice in choices}
    similar = get_close_matches(_without_separators(name), by_short_name, n=2, cutoff=0.7)
    if similar:
        return f"; did you mean {' or '.join(by_short_name[short_name] for short_name in similar)}?"
    return f", expected one of {', '.join(choices)}."


def _without_separators(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


__all__ = ["HEADS", "UNSUITABLE", "Head", "did_you_mean", "head_name"]
