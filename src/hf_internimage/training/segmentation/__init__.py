# SPDX-License-Identifier: MIT
"""Semantic segmentation: data, augmentation, trainer, metrics, evaluation."""
