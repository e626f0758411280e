# SPDX-License-Identifier: MIT
"""Semantic segmentation: data, augmentation, trainer, metrics, evaluation, and the script's main function."""
