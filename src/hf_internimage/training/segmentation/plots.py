# SPDX-License-Identifier: MIT
"""Pictures of label maps over their images: image, truth and prediction side by side, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from PIL import Image

from ...prediction.drawing import BACKGROUND, blend, class_colours
from ..plot_style import cut, image_panels, style

_PANEL_INCHES, _DPI = 3.2, 120
_LEGEND_ENTRIES, _LEGEND_COLUMNS = 40, 6


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
        colours = class_colours(len(names)) / 255
        entries = [Patch(color=colours[index], label=cut(labels[index], 22)) for index in present[:_LEGEND_ENTRIES]]
        if entries:
            figure.legend(handles=entries, loc="outside lower left", ncols=_LEGEND_COLUMNS, frameon=False)
        figure.savefig(path)


__all__ = ["draw_masks"]
