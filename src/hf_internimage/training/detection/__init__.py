# SPDX-License-Identifier: MIT
"""Object detection: data, augmentation, trainer, metrics, evaluation, and the script's main function."""
