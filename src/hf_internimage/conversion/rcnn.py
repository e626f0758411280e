# SPDX-License-Identifier: MIT
"""Conversion of Mask R-CNN and Cascade Mask R-CNN of mmdet to `InternImageMaskRCNNForInstanceSegmentation`.

Only `build_model` needs torchvision.
Source: names and shapes of OpenGVLab/InternImage@31c962d, detection/configs/coco, with mmdet 2.28's heads; the norms of
the feature pyramid are those of OpenGVLab/DCNv4@4b848f7, detection/mmdet_custom/models/necks/fpn.py.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.configuration_internimage_mask_rcnn import CASCADE, InternImageMaskRCNNConfig
from ..tensors import Shapes, dimensions
from .backbone import backbone_config, backbone_rules
from .renaming import Converted, Rule, rename

_BOX_HEAD = "roi_head.bbox_head."
_PARAMETER = r"(weight|bias)"


def matches(names: Collection[str]) -> bool:
    """Return True for names of a region proposal network and of box heads."""
    return all(any(name.startswith(part) for name in names) for part in ("rpn_head.", _BOX_HEAD))


def guess_config(shapes: Shapes) -> InternImageMaskRCNNConfig:
    """Return the configuration of the released system; shapes give widths, classes, stages and layers of the heads.

    Raises:
        ValueError: for a backbone that was not released, another number of stages, and heads that are incomplete, have
            no masks or predict one box for all classes.
    """
    stages = {name.split(".")[2] for name in shapes if name.startswith(_BOX_HEAD)} & set("0123456789")
    if stages not in (set(), {"0", "1", "2"}):
        raise ValueError(
            f"Its heads have the stages {', '.join(sorted(stages))}, expected 0, 1, 2 or "
            "none; give a released Mask R-CNN or Cascade Mask R-CNN checkpoint."
        )
    if not any(name.startswith("roi_head.mask_head.") for name in shapes):
        raise ValueError("It has no roi_head.mask_head; give a Mask R-CNN or Cascade Mask R-CNN checkpoint.")
    head = f"{_BOX_HEAD}0." if stages else _BOX_HEAD
    num_labels = dimensions(shapes, f"{head}fc_cls.weight", 2)[0] - 1
    codes = dimensions(shapes, f"{head}fc_reg.weight", 2)[0]
    if codes != 4 * num_labels:
        raise ValueError(
            f"{head}fc_reg.weight has {codes} rows for {num_labels} classes, expected four "
            "of each; give a released checkpoint, whose boxes are predicted for each class."
        )
    fields: dict[str, Any] = {
        **(CASCADE if stages else {}),
        "num_labels": num_labels,
        "fpn_channels": dimensions(shapes, "neck.lateral_convs.0.conv.weight", 4)[0],
        "fpn_norm": "layer_norm" if "neck.lateral_convs.0.ln.weight" in shapes else None,
        "box_head_convs": _count(shapes, f"{head}shared_convs."),
        "box_head_linears": _count(shapes, f"{head}shared_fcs."),
        "box_head_size": dimensions(shapes, f"{head}fc_cls.weight", 2)[1],
    }
    return InternImageMaskRCNNConfig(backbone_config=backbone_config(shapes), **fields)


def _count(shapes: Shapes, prefix: str) -> int:
    """Return the number of layers in the list with this prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def convert(state_dict: Mapping[str, torch.Tensor], config: InternImageMaskRCNNConfig) -> Converted:
    """Return the tensors under the names of `InternImageMaskRCNNForInstanceSegmentation`.

    No classes are reordered: background stays the last row of the classifier, and has no boxes and masks.

    Raises:
        ValueError: as `rename`.
    """
    return rename(state_dict, _rules(config))


def _rules(config: InternImageMaskRCNNConfig) -> list[Rule]:
    stage = r"(\d)\." if config.num_stages > 1 else "()"

    def within(target: str) -> str:
        return target.replace("STAGE", r"\1" if config.num_stages > 1 else "0")

    def linear(match: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        # The list holds convolutions, one layer that flattens, then pairs of a linear layer and an activation.
        layer = config.box_head_convs + 1 + 2 * int(match[2])
        return {f"roi_heads.box_heads.{match[1] or 0}.layers.{layer}.{match[3]}": tensor}

    box, mask = rf"roi_head\.bbox_head\.{stage}", rf"roi_head\.mask_head\.{stage}"
    box_target, mask_target = within("roi_heads.box_heads.STAGE"), within("roi_heads.mask_heads.STAGE")
    return [
        *backbone_rules(),
        (rf"neck\.lateral_convs\.(\d)\.conv\.{_PARAMETER}", r"fpn.inner_blocks.\1.0.\2"),
        (rf"neck\.fpn_convs\.(\d)\.conv\.{_PARAMETER}", r"fpn.layer_blocks.\1.0.\2"),
        (rf"neck\.lateral_convs\.(\d)\.ln\.{_PARAMETER}", r"fpn.inner_blocks.\1.1.\2"),
        (rf"neck\.fpn_convs\.(\d)\.ln\.{_PARAMETER}", r"fpn.layer_blocks.\1.1.\2"),
        (rf"rpn_head\.rpn_conv\.{_PARAMETER}", r"rpn.head.conv.0.0.\1"),
        (rf"rpn_head\.rpn_cls\.{_PARAMETER}", r"rpn.head.cls_logits.\1"),
        (rf"rpn_head\.rpn_reg\.{_PARAMETER}", r"rpn.head.bbox_pred.\1"),
        (rf"{box}shared_convs\.(\d)\.conv\.(weight)", rf"{box_target}.layers.\2.0.\3"),
        (
            rf"{box}shared_convs\.(\d)\.bn\.(weight|bias|running_mean|running_var|num_batches_tracked)",
            rf"{box_target}.layers.\2.1.\3",
        ),
        (rf"{box}shared_fcs\.(\d)\.{_PARAMETER}", linear),
        (rf"{box}fc_cls\.{_PARAMETER}", rf"{box_target}.classifier.\2"),
        (rf"{box}fc_reg\.{_PARAMETER}", rf"{box_target}.regressor.\2"),
        (rf"{mask}convs\.(\d)\.conv\.{_PARAMETER}", rf"{mask_target}.layers.\2.0.\3"),
        (rf"{mask}upsample\.{_PARAMETER}", rf"{mask_target}.predictor.conv5_mask.\2"),
        (rf"{mask}conv_logits\.{_PARAMETER}", rf"{mask_target}.predictor.mask_fcn_logits.\2"),
    ]


def build_model(config: InternImageMaskRCNNConfig) -> PreTrainedModel:
    """Build the detector of a configuration.

    Raises:
        ImportError: without torchvision; the message says how to install it.
    """
    from ..models.mask_rcnn import InternImageMaskRCNNForInstanceSegmentation

    return InternImageMaskRCNNForInstanceSegmentation(config)


__all__ = ["build_model", "convert", "guess_config", "matches"]
