# SPDX-License-Identifier: MIT
"""What the tests of Mask R-CNN and Cascade Mask R-CNN share: whether torchvision works here, and small models."""

import torch
from transformers.utils import is_torchvision_available

from hf_internimage import InternImageConfig, InternImageMaskRCNNConfig
from hf_internimage.models.configuration_internimage_mask_rcnn import CASCADE, STAGES
from support.golden_heads import backbone_fields, document


def why_no_torchvision():
    """None if torchvision's operators work here, else the reason in words; a tried call, not a look at the version."""
    if not is_torchvision_available():
        return "torchvision is not installed"
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError) as error:
        return f"torchvision's operators cannot be loaded ({str(error).splitlines()[0]})"
    return None


def golden_config():
    """Configuration of the golden Mask R-CNN."""
    upstream = document("maskrcnn_tiny")["config"]
    box_head = upstream["roi_head"]["bbox_head"]
    return InternImageMaskRCNNConfig(
        backbone_config=InternImageConfig(**backbone_fields(upstream["backbone"]), out_features=STAGES),
        fpn_channels=upstream["neck"]["out_channels"],
        box_head_size=box_head["fc_out_channels"],
        num_labels=box_head["num_classes"],
    )


def tiny_config(cascade=False, **fields):
    """A system small enough for tests about mechanics."""
    backbone = InternImageConfig(
        channels=8, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], layer_scale=1.0, out_features=STAGES
    )
    fields = {"backbone_config": backbone, "fpn_channels": 8, "box_head_size": 16, "num_labels": 3, **fields}
    return InternImageMaskRCNNConfig(**{**(CASCADE if cascade else {}), **fields})
