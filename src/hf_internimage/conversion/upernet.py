# SPDX-License-Identifier: MIT
"""Conversion of UperNet segmenters of mmseg, with both heads, to UperNetForSemanticSegmentation.

Source: names and shapes of OpenGVLab/InternImage@31c962d, segmentation/configs, with mmseg 0.27's UPerHead and FCNHead.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from ..tensors import Shapes, dimensions
from .backbone import backbone_config, backbone_rules
from .renaming import Converted, Rule, rename

_CLASSIFIER = re.compile(r"(?:module\.)?(?:decode_head|auxiliary_head)\.conv_seg\.(?:weight|bias)")
_CONV = (
    r"(decode_head\.(?:psp_modules\.\d+\.1|bottleneck|lateral_convs\.\d+|fpn_convs\.\d+|fpn_bottleneck)"
    r"|auxiliary_head\.convs\.\d+)"
)
_RULES: tuple[Rule, ...] = (
    *backbone_rules(),
    (r"(decode_head|auxiliary_head)\.conv_seg\.(weight|bias)", r"\1.classifier.\2"),
    (rf"{_CONV}\.conv\.(weight)", r"\1.conv.\2"),
    (rf"{_CONV}\.bn\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"\1.batch_norm.\2"),
)


def matches(names: Collection[str]) -> bool:
    """Return True for names of a pyramid pooling module and of a feature pyramid."""
    return all(
        any(name.startswith(f"decode_head.{part}.") for name in names) for part in ("psp_modules", "fpn_bottleneck")
    )


def guess_config(shapes: Shapes) -> UperNetConfig:
    """Return the configuration of the released system; shapes give widths, classes and number of convolutions.

    Raises:
        ValueError: for a backbone that was not released, and for a head that is incomplete or has other pooling scales.
    """
    scales = {name.split(".")[2] for name in shapes if name.startswith("decode_head.psp_modules.")}
    if len(scales) != 4:
        raise ValueError(
            f"The decoder pools at {len(scales)} scales, expected the 4 released ones (1, 2, 3, 6); give the model's "
            "own configuration."
        )
    auxiliary = {name.split(".")[2] for name in shapes if name.startswith("auxiliary_head.convs.")}
    fields: dict[str, Any] = {
        "backbone_config": backbone_config(shapes),
        "hidden_size": dimensions(shapes, "decode_head.bottleneck.conv.weight", 4)[0],
        "num_labels": dimensions(shapes, "decode_head.conv_seg.weight", 4)[0],
        "pool_scales": [1, 2, 3, 6],
        "use_auxiliary_head": bool(auxiliary),
        "auxiliary_loss_weight": 0.4,
        "loss_ignore_index": 255,
    }
    if auxiliary:
        fields["auxiliary_channels"] = dimensions(shapes, "auxiliary_head.conv_seg.weight", 4)[1]
        fields["auxiliary_num_convs"] = len(auxiliary)
    return UperNetConfig(**fields)


def convert(state_dict: Mapping[str, torch.Tensor], config: UperNetConfig) -> Converted:
    """Return the tensors under the names of `UperNetForSemanticSegmentation`.

    Raises:
        ValueError: as `rename`.
    """
    return rename(state_dict, _RULES)


def build_model(config: UperNetConfig) -> UperNetForSemanticSegmentation:
    """Build the segmenter of a configuration."""
    return UperNetForSemanticSegmentation(config)


def keep_labels(state_dict: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Return the tensors, under the original's names, with the first `count` rows of both heads' classifiers.

    The released UperNets of Cityscapes and Mapillary have 150 classes, left over from the settings for ADE20K; only the
    first 19 occur in their training data.

    Raises:
        ValueError: if a classifier has fewer rows or is missing.
    """
    classifiers = [name for name in state_dict if _CLASSIFIER.fullmatch(name)]
    if not classifiers:
        raise ValueError("There is no decode_head.conv_seg; give a complete UperNet checkpoint.")
    for name in classifiers:
        rows = state_dict[name].shape[0] if state_dict[name].ndim else 0
        if not 1 <= count <= rows:
            raise ValueError(f"{name} has {rows} classes, of which {count} cannot be kept; choose 1 to {rows}.")
    return {**state_dict, **{name: state_dict[name][:count].clone() for name in classifiers}}


__all__ = ["build_model", "convert", "guess_config", "keep_labels", "matches"]
