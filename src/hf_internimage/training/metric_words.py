# SPDX-License-Identifier: MIT
"""Write metrics for people: shares in percent, under the names of the field."""

from collections.abc import Mapping
from typing import Any

from ..hub.card_blocks import percent

_NAMES = {"top1": "accuracy", "top5": "top-5 accuracy", "top5_accuracy": "top-5 accuracy"}
_WORDS = {"iou": "IoU", "map": "mAP", "mar": "recall", "f1": "F1"}
# Ends of the names of what Trainer logs beside the metrics of a task, all of which are shares from 0 to 1.
_NOT_SHARES = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch", "step")


def metric_name(name: str) -> str:
    """Return the name of a metric for people: "mean_iou" is "mean IoU"."""
    return _NAMES.get(name) or " ".join(_WORDS.get(word, word) for word in name.split("_"))


def shares(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a task: those that are shares, from 0 to 1."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not name.endswith(_NOT_SHARES)
    }


def in_words(metrics: Mapping[str, Any]) -> str:
    """Return the loss and the metrics of a task as text: "loss 0.31, accuracy 93.3 %"."""
    loss = [f"loss {metrics['loss']:.4g}"] if isinstance(metrics.get("loss"), (int, float)) else []
    return ", ".join([*loss, *(f"{metric_name(name)} {percent(value)}" for name, value in shares(metrics).items())])


__all__ = ["in_words", "metric_name", "shares"]
