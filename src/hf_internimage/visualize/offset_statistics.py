# SPDX-License-Identifier: MIT
"""How far the blocks of a model reach: statistics of their offsets and masks."""

from dataclasses import dataclass

import torch
from torch import nn

from .blocks import Taps, convolutions, find_stage, find_trunk, recorded_taps, run

_DEAD = 0.1  # of the weight of a tap if all were equal


@dataclass(frozen=True)
class BlockOffsets:
    """Statistics of one block over some images.

    Attributes:
        stage: from 1.
        block: from 0.
        spread: mean distance of the taps from the pixel itself, in pixels of the feature map (1.07 for plain 3x3).
        movement: mean distance of the taps from their places in the plain grid.
        outside: share of the taps that lie outside the image and read zeros only.
        dead_taps: share of the taps (of all groups) whose mean weight is below a tenth of that of equal taps.
    """

    stage: int
    block: int
    spread: float
    movement: float
    outside: float
    dead_taps: float


def offset_statistics(model: nn.Module, pixel_values: torch.Tensor) -> list[BlockOffsets]:
    """Return statistics of the offsets and masks of all blocks, for images (N, C, H, W) as the model takes them."""
    trunk = find_trunk(model)
    blocks = {
        (stage, block): convolution
        for stage in range(1, len(trunk.levels) + 1)
        for block, convolution in enumerate(convolutions(find_stage(trunk, stage)))
    }
    with recorded_taps(list(blocks.values())) as taps:
        run(model, pixel_values)
    return [_statistics(stage, block, each) for (stage, block), each in zip(blocks, taps, strict=True)]


def _statistics(stage: int, block: int, taps: Taps) -> BlockOffsets:
    lines, columns = taps.positions.shape[1:3]
    device = taps.positions.device
    own = torch.stack(
        torch.meshgrid(torch.arange(columns, device=device), torch.arange(lines, device=device), indexing="xy"), -1
    ).view(lines, columns, 1, 1, 2)
    centre = [side // 2 for side in reversed(taps.geometry.kernel_size)]
    grid = torch.tensor(taps.geometry.taps(), device=device) - torch.tensor(centre, device=device)
    from_pixel = taps.positions - own
    x, y = taps.positions.unbind(-1)
    outside = (x <= -1) | (y <= -1) | (x >= columns) | (y >= lines)
    mean_weights = taps.weights.mean((0, 1, 2))
    return BlockOffsets(
        stage,
        block,
        spread=float(from_pixel.norm(dim=-1).mean()),
        movement=float((from_pixel - grid).norm(dim=-1).mean()),
        outside=float(outside.double().mean()),
        dead_taps=float((mean_weights < _DEAD / mean_weights.shape[-1]).double().mean()),
    )


__all__ = ["BlockOffsets", "offset_statistics"]
