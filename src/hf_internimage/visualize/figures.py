# SPDX-License-Identifier: MIT
"""Pictures of what this package computes, as matplotlib figures; nothing is shown or saved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from .offset_statistics import BlockOffsets
from .receptive_field import ReceptiveField
from .sampling import SamplingPoints

_SIDE = 4.5  # inches of a picture
_OFFSETS = {
    "spread": "distance from the pixel",
    "movement": "distance from the plain grid",
    "outside": "share outside the image",
    "dead_taps": "share of dead taps",
}


def to_images(pixel_values: torch.Tensor, image_processor: Any = None) -> np.ndarray:
    """Return pixels (N, 3, H, W) as colours (N, H, W, 3) from 0 to 1, as they were before the image processor.

    Args:
        pixel_values: as the model takes them.
        image_processor: whose `image_mean` and `image_std` are undone; None scales to the least and greatest value.
    """
    pixels = pixel_values.detach().permute(0, 2, 3, 1).double().cpu().numpy()
    if image_processor is None:
        low, high = pixels.min(), pixels.max()
        return (pixels - low) / max(high - low, 1e-12)
    return np.clip(pixels * np.array(image_processor.image_std) + np.array(image_processor.image_mean), 0, 1)


def draw_sampling_points(image: np.ndarray, points: SamplingPoints, *, group: int | None = None) -> Figure:
    """Draw sampling points on their image (H, W, 3): larger and brighter with their weight.

    Args:
        image: colours from 0 to 1, of the size of the model's input.
        points: of one pixel.
        group: only this one; None for all, in colours of their own. Composed points have no groups.

    Raises:
        ValueError: for a group that is not there.
    """
    positions, weights = points.positions, points.weights
    if positions.ndim == 3:
        groups = list(range(len(positions)))
        if group is not None and group not in groups:
            raise ValueError(f"group is {group}, expected 0 to {len(groups) - 1}.")
        groups = groups if group is None else [group]
        colours = np.repeat(np.array(groups), positions.shape[1])
        positions, weights = positions[groups].reshape(-1, 2), weights[groups].ravel()
    else:
        colours = weights
    figure, axes = _figure()
    height, width = points.image_size
    axes.imshow(image)
    largest = max(float(weights.max()), 1e-12)
    axes.scatter(
        positions[:, 0],
        positions[:, 1],
        s=6 + 60 * weights / largest,
        c=colours,
        cmap="turbo",
        alpha=np.clip(0.15 + 0.85 * weights / largest, 0, 1),
        edgecolors="white",
        linewidths=0.4,
    )
    axes.scatter(*points.centre, marker="+", s=140, c="white", linewidths=2.5)
    axes.scatter(*points.centre, marker="+", s=120, c="crimson", linewidths=1.5)
    left, right = min(0, positions[:, 0].min()), max(width - 1, positions[:, 0].max())
    top, bottom = min(0, positions[:, 1].min()), max(height - 1, positions[:, 1].max())
    axes.set_xlim(left - 2, right + 2)
    axes.set_ylim(bottom + 2, top - 2)
    axes.set_axis_off()
    return figure


def draw_receptive_fields(fields: Mapping[str, ReceptiveField], *, share: float = 0.5) -> Figure:
    """Draw receptive fields beside each other, with the circle that holds a share of the energy.

    Args:
        fields: title -> receptive field.
        share: of the energy within the circle, 0 to 1.
    """
    figure = Figure(figsize=(_SIDE * len(fields), _SIDE + 0.9), layout="compressed")
    for axes, (title, field) in zip(np.atleast_1d(figure.subplots(1, len(fields))), fields.items(), strict=True):
        # The fourth root shows small values, too; the energies span many orders of magnitude.
        axes.imshow((field.energy / max(field.energy.max(), 1e-300)) ** 0.25, cmap="magma", vmin=0, vmax=1)
        radius = field.radius_of(share)
        axes.add_patch(Circle(field.centre, radius, fill=False, color="white", linestyle="--"))
        axes.set_title(f"{title}\n{100 * share:.0f} % within {radius:.0f} pixels")
        axes.set_axis_off()
    return figure


def draw_map(image: np.ndarray, values: np.ndarray, title: str = "") -> Figure:
    """Draw a map (H, W) over its image (H, W, 3); negative values are blue, positive ones red."""
    figure, axes = _figure()
    limit = max(float(np.percentile(np.abs(values), 99.5)), 1e-12)
    axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=1)
    strength = np.clip(np.abs(values) / limit, 0, 1)
    axes.imshow(values, cmap="coolwarm", vmin=-limit, vmax=limit, alpha=0.85 * strength)
    axes.set_title(title)
    axes.set_axis_off()
    return figure


def draw_offset_statistics(blocks: Sequence[BlockOffsets]) -> Figure:
    """Draw the statistics of all blocks, in the order of the model."""
    figure = Figure(figsize=(2 * _SIDE, _SIDE), layout="constrained")
    starts = [i for i, block in enumerate(blocks) if block.block == 0]
    for axes, (name, title) in zip(figure.subplots(2, 2, sharex=True).ravel(), _OFFSETS.items(), strict=True):
        axes.plot([getattr(block, name) for block in blocks], marker="o", markersize=3)
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(bottom=0)
        axes.set_xticks(starts, [f"stage {blocks[i].stage}" for i in starts])
        for start in starts[1:]:
            axes.axvline(start - 0.5, color="0.85", zorder=0)
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(_SIDE, _SIDE), layout="constrained")
    return figure, figure.subplots()


__all__ = [
    "draw_map",
    "draw_offset_statistics",
    "draw_receptive_fields",
    "draw_sampling_points",
    "to_images",
]
