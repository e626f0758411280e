# SPDX-License-Identifier: MIT
"""Precision of what half types are too coarse for: scores that are ranked, positions of boxes, sums."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32 if it is float16 or bfloat16, else the tensor itself."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


__all__ = ["at_least_float32"]
