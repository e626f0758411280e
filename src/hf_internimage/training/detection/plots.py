# SPDX-License-Identifier: MIT
"""Images with their annotated boxes beside the detected ones, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL.Image import Image as PILImage

from ..images import MAX_PIXELS
from ..plot_style import INK, cut, style
from .data import read_objects

_COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]
_PANEL_INCHES, _DPI = 5.0, 110
_SMALL = 256  # pixels; below, an image's own pixels are worth seeing


def draw_overlays(
    split: Dataset,
    detections: Mapping[int, np.ndarray],
    label_names: Sequence[str],
    folder: Path,
    *,
    prefix: str = "",
    count: int,
    threshold: float,
    max_pixels: int = MAX_PIXELS,
) -> list[Path]:
    """Draw images evenly chosen from a split: left as annotated, right as detected.

    Args:
        split: of `detection_data.DetectionData`.
        detections: `image_id` -> (K, 6), as `coco_map.stack_detections` makes them.
        label_names: of the classes.
        folder: where the PNG files go, named by `image_id` and the image's name; made if needed.
        prefix: of the files' names.
        count: images at most; 0 for none.
        threshold: least score of what is drawn as detected.
        max_pixels: see `images.decode_image`.

    Returns: the files.
    """
    chosen = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))
    paths = []
    for row in chosen.tolist():
        example = split[row]
        image, target, _ = read_objects(example, max_pixels)
        boxes = target["boxes"]
        truth = np.concatenate([np.ones((len(boxes), 1)), target["classes"][:, None], boxes], 1)
        truth[:, 4:] += truth[:, 2:4]
        found = detections[example["image_id"]]
        # Names alone may come twice, in several folders.
        stem = Path(example["image"]["path"] or "").stem
        path = folder / f"{prefix}{example['image_id']:06d}_{stem}.png"
        folder.mkdir(parents=True, exist_ok=True)
        draw_boxes(image, truth, found[found[:, 0] >= threshold], label_names, path)
        paths.append(path)
    return paths


def draw_boxes(
    image: PILImage, truth: np.ndarray, found: np.ndarray, label_names: Sequence[str], path: str | Path
) -> None:
    """One image twice: with the annotated boxes, and with the detected ones and their scores.

    Args:
        image: RGB.
        truth, found: (n, 6), (score, class, left, top, right, bottom) in pixels.
        label_names: of the classes.
        path: PNG file to write.
    """
    with style(label_names) as labels:
        height = _PANEL_INCHES * image.height / image.width
        figure = Figure(figsize=(2 * _PANEL_INCHES, height + 0.4), dpi=_DPI, layout="constrained")
        axes: Any = figure.subplots(1, 2)
        for axis, title, boxes in zip(axes, ("annotated", "detected"), (truth, found), strict=True):
            axis.set_axis_off()
            axis.set_title(f"{title}: {len(boxes)}", loc="left", color=INK)
            axis.imshow(image, interpolation="nearest" if min(image.size) < _SMALL else "antialiased")
            axis.set_xlim(-0.5, image.width - 0.5)
            axis.set_ylim(image.height - 0.5, -0.5)
            for score, label, left, top, right, bottom in sorted(boxes.tolist()):
                colour = _COLOURS[int(label) % len(_COLOURS)]
                corner = (left - 0.5, top - 0.5)  # the first pixel's centre is at 0
                axis.add_patch(
                    Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.8)
                )
                name = cut(labels[int(label)], 24)
                text = name if boxes is truth else f"{name} {score:.2f}"
                placing: Any = {"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none", "alpha": 0.85}
                axis.text(*corner, text, va="bottom", fontsize=7, color="white", clip_on=False, bbox=placing)
        figure.savefig(path)


__all__ = ["draw_boxes", "draw_overlays"]
