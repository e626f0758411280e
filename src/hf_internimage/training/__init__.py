# SPDX-License-Identifier: MIT
"""Train by the original's recipes with transformers' Trainer: data, augmentation, trainers. Needs the extra `train`."""
