# SPDX-License-Identifier: MIT
"""Tables of the published checkpoints: image classifiers, and segmentation and detection systems."""

from .classifiers import CHECKPOINTS, SOURCE, PublishedCheckpoint, imagenet_1k_labels

__all__ = ["CHECKPOINTS", "SOURCE", "PublishedCheckpoint", "imagenet_1k_labels"]
