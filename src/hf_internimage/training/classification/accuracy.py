# SPDX-License-Identifier: MIT
"""Metric of the package `evaluate`: how well images are classified. Loaded by its path; stands alone."""

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
    predictions: classes of each image, best first, as many as wanted (five for top-5 accuracy).
        With "multi_label": a score between 0 and 1 for each class.
    references: the right class of each image. With "multi_label": 0 or 1 for each class.

Returns:
    accuracy, and top5_accuracy if five or more classes are given for each image.
    With "multi_label": mean_average_precision and f1. All are between 0 and 1.
"""


class ClassificationAccuracy(evaluate.Metric):
    """See the descriptions above, which `evaluate` shows."""

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
        hits = np.asarray(predictions) == np.asarray(references)[:, None]  # (N, classes named)
        result = {"accuracy": float(hits[:, 0].mean())}
        if hits.shape[1] >= 5:
            result["top5_accuracy"] = float(hits[:, :5].any(axis=1).mean())
        return result


def multi_label(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean average precision and micro F1 of scores (N, classes) and zeros and ones (N, classes)."""
    right = truth == 1
    average = [average_precision(scores[:, index], right[:, index]) for index in np.flatnonzero(right.any(axis=0))]
    found = scores > 0.5
    total = int(found.sum() + right.sum())
    return {
        "mean_average_precision": float(np.mean(average)) if average else 0.0,
        "f1": 2 * int((found & right).sum()) / total if total else 0.0,
    }


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Area under the steps of precision over recall, (N,) scores and booleans; equal scores count as one threshold."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last of each run of equal scores
    hits = np.cumsum(right[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (ends + 1)) / hits[-1])
