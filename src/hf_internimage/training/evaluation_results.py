# SPDX-License-Identifier: MIT
"""The result of an evaluation, as JSON: what `cards.evaluated_card` makes a model card of."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments

from .. import __version__
from ..ops import explain
from .sources import SourceArguments

BACKEND_VARIABLE = "HF_INTERNIMAGE_BACKEND"
_NAMES = {"accuracy": "top1", "top5_accuracy": "top5"}  # of the metric -> in results


def evaluation_result(
    model: Any,
    name: str,
    data: SourceArguments,
    split: str,
    *,
    samples: int,
    metrics: Mapping[str, float],
    image_size: Sequence[int],
    batch_size: int,
    dtype: str,
    device: torch.device,
    images_per_second: float,
    **more: Any,
) -> dict[str, Any]:
    """One evaluation's numbers, and what is needed to repeat it.

    Args:
        model: the model itself.
        name: folder or repository it is from.
        data, split: what it was evaluated on: train, validation or test.
        samples: number of images.
        metrics: of the task, from 0 to 1, and the mean loss.
        image_size: height and width in pixels; of segmentation and detection the shortest and longest edge.
        batch_size: images a batch and process.
        dtype: what it was computed in, such as float32.
        device: where.
        images_per_second: of all processes together.
        more: further entries.
    """
    folder = getattr(data, f"{split}_dir") or data.train_dir  # of which a share is held out, without a folder
    return {
        "model": name,
        "dataset": {
            "name": data.dataset_name or folder,
            "config": data.dataset_config_name,
            "split": getattr(data, f"{split}_split_name") or split,
            "revision": data.dataset_revision,
        },
        "samples": samples,
        "metrics": {_NAMES.get(metric, metric): value for metric, value in metrics.items()},
        "image_size": list(image_size),
        "batch_size": batch_size,
        "dtype": dtype,
        "backend": _backend(model, device, dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "images_per_second": round(images_per_second, 2),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hf_internimage": __version__,
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }


def _backend(model: Any, device: torch.device, dtype: str) -> str | None:
    """The backend that runs InternImage's operator, also as a part of the model; None for other models."""
    kinds = {getattr(getattr(module, "config", None), "model_type", None) for module in model.modules()}
    if not kinds & {"internimage", "cb_internimage"}:
        return None
    start = f"dcnv3 on {device.type}, {dtype}: "
    found = (line.removeprefix(start) for line in explain().splitlines() if line.startswith(start))
    return os.environ.get(BACKEND_VARIABLE) or next(found, None)


def precision(training: TrainingArguments) -> str:
    """What a trainer computes in: bfloat16, float16 or float32."""
    return "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write a file that appears complete or not at all."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.resolve().parent, delete=False) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    os.replace(file.name, path)


__all__ = ["BACKEND_VARIABLE", "evaluation_result", "precision", "write_json"]
