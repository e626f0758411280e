# SPDX-License-Identifier: MIT
"""What a model predicts for an image, as plain dataclasses of lists and numpy arrays."""

from dataclasses import dataclass

import numpy as np

NO_CLASS_8_BIT, NO_CLASS_16_BIT = 255, 65535  # pixels of a label map that belong to no class


@dataclass(frozen=True, eq=False)
class Classification:
    """The most probable classes of an image.

    Attributes:
        path: the image's or the video's file; None for an image that was given in memory.
        labels: K names of classes, the most probable one first.
        scores: their K probabilities, 0 to 1. Over all classes they sum to 1, except for a model whose images have
            several labels each.
        frame: number of the frame in its video, from 0; None for an image.
    """

    path: str | None
    labels: list[str]
    scores: list[float]
    frame: int | None = None


@dataclass(frozen=True)
class Segment:
    """A connected object or region of a panoptic segmentation.

    Attributes:
        id: its number in `Segmentation.segment_map`, from 1.
        label: name of its class.
        score: its probability, 0 to 1.
    """

    id: int
    label: str
    score: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of each pixel of an image.

    Attributes:
        path: as in `Classification`.
        label_map: (height, width) class numbers, at the size of the image: uint8 and 255 for pixels of no class, which
            only a panoptic segmentation has; uint16 and 65535 for a model of more than 255 classes.
        label_names: the name of each class number.
        segment_map: (height, width) int32, the `id` of each pixel's segment, 0 for none; only of a panoptic
            segmentation.
        segments: the segments, largest id last; only of a panoptic segmentation.
        frame: as in `Classification`.
    """

    path: str | None
    label_map: np.ndarray
    label_names: list[str]
    segment_map: np.ndarray | None = None
    segments: list[Segment] | None = None
    frame: int | None = None


@dataclass(frozen=True, eq=False)
class Detection:
    """The objects in an image, the highest score first.

    Attributes:
        path: as in `Classification`.
        boxes: (K, 4) float32, left, top, right and bottom (x1, y1, x2, y2) in pixels of the image.
        scores: (K,) float32, 0 to 1.
        labels: K names of classes.
        masks: (K, height, width) bool, the pixels of each object; None for a model that gives boxes alone.
        class_indices: (K,) int64, the class numbers of the model.
        size: height and width of the image in pixels.
        frame: as in `Classification`.
    """

    path: str | None
    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    masks: np.ndarray | None
    class_indices: np.ndarray
    size: tuple[int, int]
    frame: int | None = None


Prediction = Classification | Segmentation | Detection

__all__ = [
    "NO_CLASS_8_BIT",
    "NO_CLASS_16_BIT",
    "Classification",
    "Detection",
    "Prediction",
    "Segment",
    "Segmentation",
]
