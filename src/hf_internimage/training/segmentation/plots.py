# SPDX-License-Identifier: MIT
"""Pictures of label maps over their images: image, truth and prediction side by side, with a legend."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from PIL import Image

from ..plot_style import cut, image_panels, style

BACKGROUND = "background"  # a class of this name is drawn as the image itself
_GOLDEN = 0.6180339887498949
_OPACITY = 0.6
_PANEL_INCHES, _DPI = 3.2, 120
_LEGEND_ENTRIES, _LEGEND_COLUMNS = 40, 6


def class_colours(names: Sequence[str]) -> np.ndarray:
    """Return a colour for each class, (classes, 3) uint8; it depends on the index only, and neighbours differ much."""
    colours = [
        colorsys.hsv_to_rgb(index * _GOLDEN % 1, (0.85, 0.5, 0.7)[index // 8 % 3], (0.95, 0.7)[index // 4 % 2])
        for index in range(len(names))
    ]
    return np.round(255 * np.array(colours)).astype(np.uint8).reshape(-1, 3)


def blend(image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the image blended with the colours of its classes, (H, W, 3) uint8.

    The class "background" and pixels whose label is no class are left as they are.

    Args:
        image: RGB.
        labels: class of each pixel, (H, W).
        names: names of the classes.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    coloured = (labels >= 0) & (labels < len(names))
    if BACKGROUND in names:
        coloured &= labels != list(names).index(BACKGROUND)
    colours = class_colours(names)[np.where(coloured, labels, 0)]
    blended = np.where(coloured[..., None], (1 - _OPACITY) * pixels + _OPACITY * colours, pixels)
    return np.round(blended).astype(np.uint8)


def draw_masks(
    image: Image.Image, truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], path: str | Path
) -> None:
    """Write a PNG of three panels: the image, the true classes, the predicted classes.

    Args:
        image: RGB.
        truth, predicted: class of each pixel, (H, W); 255 in the truth is no class.
        names: names of the classes.
        path: PNG file to write.
    """
    present = [index for index in np.union1d(truth, predicted) if index < len(names) and names[index] != BACKGROUND]
    panels = {"image": image, "truth": blend(image, truth, names), "predicted": blend(image, predicted, names)}
    rows = -(-min(len(present), _LEGEND_ENTRIES) // _LEGEND_COLUMNS)
    with style(names) as labels:
        figure, axes = image_panels(
            image.size, list(panels), panel_inches=_PANEL_INCHES, dpi=_DPI, legend_inches=0.2 * rows
        )
        for axis, panel in zip(axes, panels.values(), strict=True):
            axis.imshow(panel, interpolation="nearest")
        colours = class_colours(names) / 255
        entries = [Patch(color=colours[index], label=cut(labels[index], 22)) for index in present[:_LEGEND_ENTRIES]]
        if entries:
            figure.legend(handles=entries, loc="outside lower left", ncols=_LEGEND_COLUMNS, frameon=False)
        figure.savefig(path)


__all__ = ["BACKGROUND", "blend", "class_colours", "draw_masks"]
