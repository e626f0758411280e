# SPDX-License-Identifier: MIT
"""Predict classes, label maps, boxes and masks of images, as dataclasses or as files in a folder."""

from .predictor import Predictor, predict
from .results import Classification, Detection, Prediction, Segment, Segmentation
from .sources import Source

__all__ = [
    "Classification",
    "Detection",
    "Prediction",
    "Predictor",
    "Segment",
    "Segmentation",
    "Source",
    "predict",
]
