# SPDX-License-Identifier: MIT
"""Object detection: data, augmentation, trainer, metrics, evaluation."""
