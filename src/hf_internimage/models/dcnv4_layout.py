# SPDX-License-Identifier: MIT
"""The memory layout of DCNv4, whose arithmetic is that of DCNv3 without the softmax."""

import torch


def split_offset_mask(offset_mask: torch.Tensor, groups: int, taps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return offset (..., groups*taps*2) and mask (..., groups*taps), as DCNv3 takes them.

    Args:
        offset_mask: (..., F) with F of at least 3*groups*taps: for each group the pairs (x, y) of all taps and then
            their weights; the features behind the last group are not read.
        groups: number of groups.
        taps: number of taps of a group.
    """
    by_group = offset_mask[..., : 3 * groups * taps].unflatten(-1, (groups, 3 * taps))
    return by_group[..., : 2 * taps].flatten(-2), by_group[..., 2 * taps :].flatten(-2)


def offset_mask_features(groups: int, taps: int) -> int:
    """Return how many features the layer before DCNv4 computes: 3*groups*taps, rounded up to a multiple of 8."""
    return -(-3 * groups * taps // 8) * 8


__all__ = ["offset_mask_features", "split_offset_mask"]
