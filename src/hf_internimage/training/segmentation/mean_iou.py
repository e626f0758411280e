# SPDX-License-Identifier: MIT
"""Metric of segmentation for the package `evaluate`, which loads this file by its path; imports no other file."""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Mean intersection over union of semantic segmentation, from the counts of (true class, predicted class) over all
pixels: batches are added up and not kept. Load it with `num_labels` classes and, if it is not 255, the `ignore_index`
of pixels without a class.
"""
_INPUTS = """
Args:
    predictions: the predicted class of each pixel, an array of any shape, or a list of arrays.
    references: the true class of each pixel, of the same shape or shapes.

Returns: numbers between 0 and 1.
    mean_iou: mean over the classes that occur in references or predictions.
    mean_accuracy: of the classes that occur in references, the share of their pixels that is predicted right.
    overall_accuracy: share of all pixels.
    iou, accuracy: the same of each class, a list; NaN for a class that does not occur.
"""


class MeanIoU(evaluate.Metric):
    """Compute the metrics that `_DESCRIPTION` describes.

    Attributes:
        counts: (num_labels, num_labels) int64, pixels by true class (row) and predicted class (column).
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **options: Any) -> None:
        super().__init__(**options)
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}, expected at least 1.")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.counts = np.zeros((num_labels, num_labels), np.int64)

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.List(datasets.List(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def add_batch(self, predictions: Any = None, references: Any = None) -> None:
        """Count the pixels of some images."""
        if len(predictions) != len(references):
            raise ValueError(f"There are {len(predictions)} predictions for {len(references)} references.")
        for prediction, reference in zip(predictions, references):  # noqa: B905  # evaluate compiles it elsewhere
            self.add(prediction, reference)

    def add(self, prediction: Any = None, reference: Any = None) -> None:
        """Count the pixels of one image."""
        predicted, truth = np.asarray(prediction), np.asarray(reference)
        if predicted.shape != truth.shape:
            raise ValueError(f"A prediction has the shape {predicted.shape}, its reference {truth.shape}.")
        labelled = truth != self.ignore_index
        predicted, truth = predicted[labelled].astype(np.int64), truth[labelled].astype(np.int64)
        for name, values in (("prediction", predicted), ("reference", truth)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_labels:
                wrong = values.min() if values.min() < 0 else values.max()
                raise ValueError(
                    f"A {name} holds class {wrong}, but there are {self.num_labels}: 0 to {self.num_labels - 1}."
                )
        pairs = np.bincount(truth * self.num_labels + predicted, minlength=self.num_labels**2)
        self.counts += pairs.reshape(self.counts.shape)

    def compute(self, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        """Return the metrics of all images added, and of these, then start counting again."""
        if predictions is not None:
            self.add_batch(predictions, references)
        counts, self.counts = self.counts, np.zeros_like(self.counts)
        if not counts.any():
            raise ValueError("No pixel with a class was added; add predictions and references first.")
        right, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
        with np.errstate(invalid="ignore"):
            iou, accuracy = right / (true + predicted - right), right / true
        return {
            "mean_iou": float(np.nanmean(iou)),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "overall_accuracy": float(right.sum() / counts.sum()),
            "iou": iou.tolist(),
            "accuracy": accuracy.tolist(),
        }
