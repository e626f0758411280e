# SPDX-License-Identifier: MIT
"""Image classification: data, augmentation, trainer, metrics, evaluation, and the script's main function."""
