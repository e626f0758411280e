# SPDX-License-Identifier: MIT
"""Semantic maps from the outputs of segmentation models, by the rules of the original and in bounded memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_float32

# Values of one full-size block of classes: 256 MB in float32.
BLOCK_VALUES = 2**26


def semantic_scores(outputs: Any) -> Tensor:
    """Return one score per class and position: (N, classes, h, w), in float32, or float64 for float64 outputs.

    For models with `logits` (UperNet), scores are the logits. For models with queries (Mask2Former, MaskFormer), they
    are the sum over queries of class probabilities, without "no object", times mask probabilities, at the resolution of
    the masks.

    Raises: ValueError for outputs of another kind.
    Source: OpenGVLab/InternImage@31c962d, segmentation/mmseg_custom/models/segmentors/encoder_decoder_mask2former.py.
    """
    if getattr(outputs, "logits", None) is not None:
        return at_least_float32(outputs.logits)
    if not has_queries(outputs):
        raise ValueError(
            f"The outputs of a segmentation model have `logits`, or `class_queries_logits` and `masks_queries_logits`; "
            f"{type(outputs).__name__} has neither."
        )
    classes = at_least_float32(outputs.class_queries_logits).softmax(dim=-1)[..., :-1]
    masks = at_least_float32(outputs.masks_queries_logits).sigmoid()
    return torch.einsum("nqc,nqhw->nchw", classes, masks)


def has_queries(outputs: Any) -> bool:
    """Return True if a segmentation model's outputs are classes and masks of queries."""
    return hasattr(outputs, "class_queries_logits") and hasattr(outputs, "masks_queries_logits")


def resize_scores(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Resize scores (N, C, h, w) to `size` = (height, width), bilinearly, with `align_corners=False`."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)


def resized_blocks(scores: Tensor, sizes: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
    """Resize scores (C, h, w) through all `sizes` in turn; yield (first class, scores (c, height, width)) of blocks.

    Two resizes in a row differ from one: the original resizes to the network's input first, then to the image.
    """
    classes_per_block = max(1, BLOCK_VALUES // max(height * width for height, width in sizes))
    for first in range(0, len(scores), classes_per_block):
        block = scores[None, first : first + classes_per_block]
        for size in sizes:
            block = resize_scores(block, size)
        yield first, block[0]


def label_map(scores: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Return the best class of scores (C, h, w) resized through `sizes`: (height, width) int64.

    Of equal scores the lower class is taken.
    """
    best = scores.new_full(tuple(sizes[-1]), -torch.inf)
    labels = torch.zeros_like(best, dtype=torch.int64)
    for first, block in resized_blocks(scores, sizes):
        value, label = block.max(dim=0)
        labels = torch.where(value > best, label + first, labels)
        best = torch.maximum(best, value)
    return labels


def add_probabilities(total: Tensor, scores: Tensor, sizes: Sequence[Sequence[int]], flipped: bool = False) -> None:
    """Add softmax over classes of scores (C, h, w) resized through `sizes` to `total` (C, height, width), in place.

    With `flipped`, probabilities are mirrored left to right before the addition. `total` may be on another device than
    `scores`. Each block of classes is resized twice, so that `total` is the only full-size map of all classes.
    """
    largest = scores.new_full(tuple(sizes[-1]), -torch.inf)
    denominator = torch.zeros_like(largest)
    for _, block in resized_blocks(scores, sizes):
        before, largest = largest, torch.maximum(largest, block.amax(dim=0))
        denominator = denominator * (before - largest).exp_() + (block - largest).exp_().sum(dim=0)
    for first, block in resized_blocks(scores, sizes):
        probabilities = (block - largest).exp_().div_(denominator)
        if flipped:
            probabilities = probabilities.flip(-1)
        total[first : first + len(probabilities)] += probabilities.to(total.device)
