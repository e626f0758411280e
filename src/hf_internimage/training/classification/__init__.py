# SPDX-License-Identifier: MIT
"""Image classification: data, augmentation, trainer, metrics, evaluation."""
