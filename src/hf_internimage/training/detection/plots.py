# SPDX-License-Identifier: MIT
"""Pictures of images with their annotated boxes beside the detected ones, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from PIL.Image import Image as PILImage

from ...hub.card_blocks import percent
from ..images import ImageReader
from ..plot_style import cut, image_panels, rows_to_draw, style
from .data import read_objects

_COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]
_PANEL_INCHES, _DPI = 5.0, 110
_SMALL = 256  # pixels; single pixels of images with a shorter side stay visible


def draw_overlays(
    split: Dataset,
    detections: Mapping[int, np.ndarray],
    label_names: Sequence[str],
    folder: Path,
    *,
    prefix: str = "",
    count: int,
    threshold: float,
    reader: ImageReader,
) -> list[Path]:
    """Draw images spread evenly over a split: left with the annotated boxes, right with the detected ones.

    Args:
        split: a split of `data.DetectionData`.
        detections: `image_id` -> (K, 6), rows of `coco_map.stack_detections`.
        label_names: names of the classes.
        folder: folder of the PNG files, made if needed; they are named by `image_id` and the image's name.
        prefix: beginning of the files' names.
        count: largest number of images; 0 for none.
        threshold: smallest score of the detections that are drawn.
        reader: reads the images.

    Returns: the paths of the files.
    """
    paths = []
    for row in rows_to_draw(len(split), count):
        example = split[row]
        image, target, _ = read_objects(example, reader)
        boxes = target["boxes"]
        truth = np.concatenate([np.ones((len(boxes), 1)), target["classes"][:, None], boxes], 1)
        truth[:, 4:] += truth[:, 2:4]
        detected = detections[example["image_id"]]
        # The image's name alone may occur twice, in several folders.
        stem = Path(example["image"]["path"] or "").stem
        path = folder / f"{prefix}{example['image_id']:06d}_{stem}.png"
        folder.mkdir(parents=True, exist_ok=True)
        draw_boxes(image, truth, detected[detected[:, 0] >= threshold], label_names, path)
        paths.append(path)
    return paths


def draw_boxes(
    image: PILImage, truth: np.ndarray, detected: np.ndarray, label_names: Sequence[str], path: str | Path
) -> None:
    """Draw one image twice: with the annotated boxes, and with the detected ones and their scores.

    Args:
        image: RGB.
        truth, detected: (n, 6), (score, class, left, top, right, bottom) in pixels.
        label_names: names of the classes.
        path: PNG file to write.
    """
    titles = [f"annotated: {len(truth)}", f"detected: {len(detected)}"]
    with style(label_names) as labels:
        figure, axes = image_panels(image.size, titles, panel_inches=_PANEL_INCHES, dpi=_DPI)
        for axis, boxes in zip(axes, (truth, detected), strict=True):
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
                text = name if boxes is truth else f"{name} {percent(score, 0)}"
                placing: Any = {"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none", "alpha": 0.85}
                axis.text(*corner, text, va="bottom", fontsize=7, color="white", clip_on=False, bbox=placing)
        figure.savefig(path)


__all__ = ["draw_boxes", "draw_overlays"]
