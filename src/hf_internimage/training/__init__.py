# SPDX-License-Identifier: MIT
"""The original's training recipe for transformers' Trainer, and the data around it. Needs the extra `train`."""
