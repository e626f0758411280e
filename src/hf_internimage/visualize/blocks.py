# SPDX-License-Identifier: MIT
"""Find the InternImage in a model, and record the offsets and masks of its blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ..models.dcnv3_reference import DCNv3Geometry, sampling_positions
from ..models.layers_internimage import InternImageDeformableConvolution, InternImageLayer, InternImageStage
from ..models.modeling_internimage import InternImageTrunk


@dataclass(frozen=True)
class Taps:
    """What a block samples.

    Attributes:
        positions: (N, H, W, G, P, 2), pairs (x, y) in pixels of the block's feature map, float64.
        weights: (N, H, W, G, P), which sum to 1 over the taps of a group.
        geometry: of the operator.
    """

    positions: torch.Tensor
    weights: torch.Tensor
    geometry: DCNv3Geometry


def trunk_in(model: Any) -> InternImageTrunk | None:
    """Return the (first) InternImage in a model; None for models without one, and for what is no model."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    return next((part for part in parts if isinstance(part, InternImageTrunk)), None)


def samples_points(model: Any) -> bool:
    """Return True if there is an InternImage in a model, and its operator is DCNv3."""
    trunk = trunk_in(model)
    if trunk is None:
        return False
    block = cast(InternImageLayer, find_stage(trunk, 1).blocks[0])
    return isinstance(block.dcn, InternImageDeformableConvolution)


def find_trunk(model: nn.Module) -> InternImageTrunk:
    """Return the (first) InternImage in a model.

    Raises:
        ValueError: if there is none.
    """
    trunk = trunk_in(model)
    if trunk is None:
        raise ValueError(f"{type(model).__name__} holds no InternImage.")
    return trunk


def find_stage(trunk: InternImageTrunk, stage: int) -> InternImageStage:
    """Return a stage, counted from 1.

    Raises:
        ValueError: for one that the model does not have.
    """
    if not 1 <= stage <= len(trunk.levels):
        raise ValueError(f"stage is {stage}, expected 1 to {len(trunk.levels)}.")
    return cast(InternImageStage, trunk.levels[stage - 1])


def convolutions(stage: InternImageStage) -> list[InternImageDeformableConvolution]:
    """Return the deformable convolutions of a stage's blocks.

    Raises:
        ValueError: for blocks with another operator than DCNv3.
    """
    found = [cast(InternImageLayer, block).dcn for block in stage.blocks]
    if not all(isinstance(convolution, InternImageDeformableConvolution) for convolution in found):
        raise ValueError(
            f"{type(stage.blocks[0]).__name__} has no DCNv3, whose samples can be shown; give an InternImage."
        )
    return found


@contextmanager
def recorded_taps(blocks: Sequence[InternImageDeformableConvolution]) -> Iterator[list[Taps]]:
    """Record the taps of blocks; the list is filled, in the blocks' order, at the end of the `with` block."""
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        outputs[module] = output.detach()

    handles = [layer.register_forward_hook(keep) for block in blocks for layer in (block.offset, block.mask)]
    taps: list[Taps] = []
    try:
        yield taps
        taps += [_taps(block, outputs[block.offset], outputs[block.mask]) for block in blocks]
    finally:
        for handle in handles:
            handle.remove()


def _taps(block: InternImageDeformableConvolution, offset: torch.Tensor, mask: torch.Tensor) -> Taps:
    size, padding = (block.kernel_size,) * 2, (block.kernel_size // 2,) * 2
    geometry = DCNv3Geometry(block.groups, size, (1, 1), padding, (1, 1), block.offset_scale, bool(block.remove_center))
    weights = mask.to(torch.float64).unflatten(3, (block.groups, -1)).softmax(-1)
    return Taps(sampling_positions(offset, geometry), weights, geometry)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for the `with` block; what is no model has no mode."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def run(model: nn.Module, pixel_values: torch.Tensor) -> None:
    """Run a model in evaluation mode without gradients, and leave its mode as it was.

    Raises:
        ValueError: for pixels of another shape than (N, C, H, W).
    """
    if pixel_values.dim() != 4:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected (N, C, H, W).")
    with torch.no_grad(), evaluating(model):
        model(pixel_values)


__all__ = [
    "Taps",
    "convolutions",
    "evaluating",
    "find_stage",
    "find_trunk",
    "recorded_taps",
    "run",
    "samples_points",
    "trunk_in",
]
