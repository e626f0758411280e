# SPDX-License-Identifier: MIT
"""Metric of classification for the package `evaluate`, which loads this file by its path; imports no other file."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
One class an image: accuracy, and top-5 accuracy where there are more than five classes.
Several classes an image (configuration "multi_label"): mean average precision over the classes that occur, and micro F1
at a threshold of 0.5.
"""
_INPUTS = """
Args:
    predictions: classes of each image, best first, any number of them (five for top-5 accuracy).
        With "multi_label": a score between 0 and 1 for each class.
    references: the right class of each image. With "multi_label": 0 or 1 for each class.

Returns:
    accuracy, and top5_accuracy if five or more classes are given for each image.
    With "multi_label": mean_average_precision and f1. All are between 0 and 1.
"""


class ClassificationAccuracy(evaluate.Metric):
    """Compute the metrics that `_DESCRIPTION` describes."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "multi_label":
            kinds = {"predictions": datasets.List(datasets.Value("float32"))}
            kinds["references"] = datasets.List(datasets.Value("int8"))
        elif self.config_name == "default":
            kinds = {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
        else:
            raise ValueError(f"The configuration is {self.config_name!r}, expected 'default' or 'multi_label'.")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(kinds),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        if self.config_name == "multi_label":
            return multi_label(np.asarray(predictions, np.float32), np.asarray(references))
        hits = np.asarray(predictions) == np.asarray(references)[:, None]  # (N, predicted classes)
        result = {"accuracy": float(hits[:, 0].mean())}
        if hits.shape[1] >= 5:
            result["top5_accuracy"] = float(hits[:, :5].any(axis=1).mean())
        return result


def multi_label(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return mean average precision and micro F1 of scores (N, classes) against zeros and ones (N, classes)."""
    positive = truth == 1
    precisions = [
        average_precision(scores[:, index], positive[:, index]) for index in np.flatnonzero(positive.any(axis=0))
    ]
    predicted = scores > 0.5
    total = int(predicted.sum() + positive.sum())
    return {
        "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        "f1": 2 * int((predicted & positive).sum()) / total if total else 0.0,
    }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the steps of precision over recall of (N,) scores and booleans.

    Equal scores count as one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last of each run of equal scores
    hits = np.cumsum(positive[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (ends + 1)) / hits[-1])
