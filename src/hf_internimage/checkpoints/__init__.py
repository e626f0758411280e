# SPDX-License-Identifier: MIT
"""Tables of the published checkpoints: image classifiers, segmentation and detection systems, and a list of all."""

from .classifiers import CHECKPOINTS, FLASH_CHECKPOINTS, FLASH_SOURCE, SOURCE, PublishedCheckpoint, imagenet_1k_labels
from .listing import ListedModel, list_models

__all__ = [
    "CHECKPOINTS",
    "FLASH_CHECKPOINTS",
    "FLASH_SOURCE",
    "SOURCE",
    "ListedModel",
    "PublishedCheckpoint",
    "imagenet_1k_labels",
    "list_models",
]
