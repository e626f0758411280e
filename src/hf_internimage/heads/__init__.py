# SPDX-License-Identifier: MIT
"""Segmentation, detection and matting heads of transformers on an InternImage, with pretrained backbone weights.

A head of transformers accepts any registered backbone as its `backbone_config`, but has requirements of its own, and
does not load pretrained backbone weights. `from_backbone` handles both; docs/heads.md has examples and a table.
"""

from .building import (
    FREE_FIELDS,
    check_queries,
    find_backbone,
    from_backbone,
    gradient_checkpointing,
    head_config,
    load_backbone,
)
from .table import HEADS, UNSUITABLE, Head, did_you_mean

__all__ = [
    "FREE_FIELDS",
    "HEADS",
    "UNSUITABLE",
    "Head",
    "check_queries",
    "did_you_mean",
    "find_backbone",
    "from_backbone",
    "gradient_checkpointing",
    "head_config",
    "load_backbone",
]
