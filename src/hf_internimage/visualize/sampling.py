# SPDX-License-Identifier: MIT
"""Where an output pixel of a block samples, in pixels of the image."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .blocks import Taps, convolutions, find_stage, find_trunk, recorded_taps, run


@dataclass(frozen=True)
class SamplingPoints:
    """The points that one pixel of a feature map samples. Positions are (x, y) in pixels; a pixel's centre is whole.

    Attributes:
        centre: (x, y) of the feature pixel in the image.
        positions: (G, P, 2); (M, 2) if several layers are composed.
        weights: (G, P), which sum to 1 in each group; (M,), which sum to at most 1, if layers are composed.
        stride: pixels of the image from one feature pixel to the next.
        image_size: (height, width) of the image.
    """

    centre: tuple[float, float]
    positions: np.ndarray
    weights: np.ndarray
    stride: int
    image_size: tuple[int, int]

    @property
    def inside(self) -> np.ndarray:
        """True for each point within the image; others read zeros."""
        height, width = self.image_size
        x, y = self.positions[..., 0], self.positions[..., 1]
        return (x > -self.stride) & (y > -self.stride) & (x < width - 1 + self.stride) & (y < height - 1 + self.stride)


def sampling_points(
    model: nn.Module,
    pixel_values: torch.Tensor,
    *,
    stage: int,
    at: tuple[float, float],
    block: int = -1,
    layers: int = 1,
) -> SamplingPoints:
    """Return where the feature pixel nearest to a point of the image samples.

    With several `layers`, the points of the block's samples in the block before it follow, and so on: what a point adds
    to the next layer is its weight, averaged over groups, times its bilinear weight for each of its four pixels. This
    follows the operators alone, and leaves out what the layers between them do.

    Args:
        model: a model with an InternImage in it.
        pixel_values: one image as the model takes it, (1, C, H, W).
        stage: from 1.
        at: (x, y) in pixels of `pixel_values`.
        block: of the stage, from 0; -1 is the last.
        layers: blocks of the stage to compose, from `block` backwards.

    Raises:
        ValueError: for a stage, block or point that is not there.

    >>> points = sampling_points(model, pixel_values, stage=3, block=0, at=(100, 80))  # doctest: +SKIP
    """
    if pixel_values.dim() != 4 or pixel_values.shape[0] != 1:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected (1, C, H, W).")
    height, width = pixel_values.shape[2:]
    if not (0 <= at[0] <= width - 1 and 0 <= at[1] <= height - 1):
        raise ValueError(f"at is {at}, expected a point (x, y) within the image of width {width} and height {height}.")
    available = convolutions(find_stage(find_trunk(model), stage))
    if not -len(available) <= block < len(available):
        raise ValueError(f"block is {block}, expected 0 to {len(available) - 1} in stage {stage}.")
    last = block % len(available)
    if not 1 <= layers <= last + 1:
        raise ValueError(f"layers is {layers}, expected 1 to {last + 1}, the blocks up to that one.")
    blocks = available[last + 1 - layers : last + 1][::-1]
    with recorded_taps(blocks) as taps:
        run(model, pixel_values)
    stride = 4 * 2 ** (stage - 1)
    lines, columns = taps[0].positions.shape[1:3]
    column, line = min(round(at[0] / stride), columns - 1), min(round(at[1] / stride), lines - 1)
    centre = (float(column * stride), float(line * stride))
    if layers == 1:
        positions, weights = taps[0].positions[0, line, column], taps[0].weights[0, line, column]
    else:
        positions, weights = _compose(taps, line, column)
    return SamplingPoints(centre, (positions * stride).cpu().numpy(), weights.cpu().numpy(), stride, (height, width))


def _compose(taps: list[Taps], line: int, column: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions (M, 2) in the last block's input and their weights (M,), from a pixel of the first one."""
    lines, columns = taps[0].positions.shape[1:3]
    shares = taps[0].weights.new_zeros(lines, columns)
    shares[line, column] = 1
    for depth, block in enumerate(taps):
        reached = shares > 0
        groups = block.weights.shape[3]
        positions = block.positions[0][reached].flatten(0, 2)
        weights = (block.weights[0][reached] * shares[reached].view(-1, 1, 1) / groups).flatten()
        if depth < len(taps) - 1:
            shares = _spread(positions, weights, lines, columns)
    return positions, weights


def _spread(positions: torch.Tensor, weights: torch.Tensor, lines: int, columns: int) -> torch.Tensor:
    """Return the weights (M,) of positions (M, 2) on the pixels that they interpolate, (lines, columns)."""
    shares = weights.new_zeros(lines, columns)
    corner = positions.floor()
    part = positions - corner
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            share = weights * (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
            inside = (x >= 0) & (y >= 0) & (x < columns) & (y < lines)
            shares.index_put_((y[inside].long(), x[inside].long()), share[inside], accumulate=True)
    return shares


__all__ = ["SamplingPoints", "sampling_points"]
