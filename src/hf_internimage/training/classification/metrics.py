# SPDX-License-Identifier: MIT
"""Metrics of a classifier for Trainer, with bounded memory for any number of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..metric_modules import load_metric_module

ACCURACY = Path(__file__).with_name("accuracy.py")
KEPT_CLASSES = 5  # classes kept for each image


def load_metric(multi_label: bool = False) -> Any:
    """Return the metric of `accuracy.py`."""
    return load_metric_module(ACCURACY, config_name="multi_label" if multi_label else "default")


def keep_best(logits: Any, labels: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best few classes of each image and their probabilities, for images with one class.

    For `preprocess_logits_for_metrics` of Trainer.

    Shapes: logits (N, classes) -> classes (N, k) int64 and probabilities (N, k) float32, best first, with k = 5, or the
    number of classes if there are fewer. The first element of a tuple of outputs is used.
    """
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    best = logits.float().softmax(-1).topk(min(KEPT_CLASSES, logits.shape[-1]))
    return best.indices, best.values


def keep_scores(logits: Any, labels: Any = None) -> torch.Tensor:
    """Return scores between 0 and 1 of logits, both (N, classes), for images with several classes.

    For `preprocess_logits_for_metrics` of Trainer. The first element of a tuple of outputs is used.
    """
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    return logits.float().sigmoid()


class ComputeMetrics:
    """Compute metrics from the results of `keep_best` or `keep_scores`: Trainer's `compute_metrics`.

    Works with and without `batch_eval_metrics`. The metrics are `accuracy` and, with more than five classes,
    `top5_accuracy`; with `multi_label` they are `mean_average_precision` and `f1`.

    Args:
        classes: number of classes of the model.
        multi_label: True if images have any number of labels.
    """

    def __init__(self, classes: int, multi_label: bool = False) -> None:
        self.classes, self.multi_label = classes, multi_label
        self.metric = load_metric(multi_label)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        predictions: Any = prediction.predictions
        predictions = predictions if self.multi_label else predictions[0]
        self.metric.add_batch(predictions=_as_numpy(predictions), references=_as_numpy(prediction.label_ids))
        if not compute_result:
            return {}
        result = self.metric.compute()
        if self.classes <= KEPT_CLASSES:
            result.pop("top5_accuracy", None)
        return result

    @property
    def best_metric(self) -> str:
        """Return the name of the metric by which to choose a model."""
        return "mean_average_precision" if self.multi_label else "accuracy"


def class_scores(predictions: Any, labels: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the number of images, the precision and the recall of each class, in the order of the classes.

    Precision is None for a class that was never predicted, recall for one without an image.

    Args:
        predictions: of `keep_best`, or of `keep_scores`, where scores above 0.5 are predictions.
        labels: class of each image, (N,), or with `keep_scores` 0 or 1 for each class, (N, classes).
        names: names of the classes.
    """
    truth, classes = _as_numpy(labels), len(names)
    if truth.ndim == 2:
        predicted = _as_numpy(predictions) > 0.5
        hits = (predicted & (truth == 1)).sum(0)
        positives, images = predicted.sum(0), (truth == 1).sum(0)
    else:
        best = _as_numpy(predictions[0])[:, 0]
        hits, positives, images = (
            np.bincount(values, minlength=classes) for values in (truth[best == truth], best, truth)
        )
    return [
        {
            "class": name,
            "images": int(images[index]),
            "precision": float(hits[index] / positives[index]) if positives[index] else None,
            "recall": float(hits[index] / images[index]) if images[index] else None,
        }
        for index, name in enumerate(names)
    ]


def _as_numpy(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


__all__ = ["ComputeMetrics", "class_scores", "keep_best", "keep_scores", "load_metric"]
