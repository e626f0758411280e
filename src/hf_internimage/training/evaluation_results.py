# SPDX-License-Identifier: MIT
"""Describe an evaluation as JSON, from which `cards.evaluated_card` makes a model card."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments

from .. import __version__
from ..models import auto
from ..ops.dcnv3 import backend_for
from .json_files import write_json
from .sources import SourceArguments
from .trainer import RecipeTrainer

EVALUATION_PREFIXES = {"validation": "eval", "test": "test"}  # of the names of files and metrics, as Trainer's are
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
    """Return the numbers of an evaluation, and all that is needed to repeat it.

    Args:
        model: the model itself.
        name: folder or repository it is from.
        data, split: arguments that name the data, and the part that was used: train, validation or test.
        samples: number of images.
        metrics: of the task, from 0 to 1, and the mean loss.
        image_size: height and width in pixels; of segmentation and detection the shortest and longest edge.
        batch_size: images a batch and process.
        dtype: of the computation, such as float32.
        device: of the computation.
        images_per_second: of all processes together.
        more: further entries.
    """
    folder = getattr(data, f"{split}_dir") or data.train_dir  # without a folder, a share of the training data
    return {
        "model": name,
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
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
        "backend": backend_for(device.type, dtype) if has_operator(model) else None,
        "device": device_name(device),
        "images_per_second": round(images_per_second, 2),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hf_internimage": __version__,
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }


def has_operator(model: Any) -> bool:
    """Return whether a model or a part of it is an InternImage, and so runs the operator DCNv3."""
    model_types = {getattr(getattr(module, "config", None), "model_type", None) for module in model.modules()}
    return bool(model_types & auto.model_types("AutoBackbone"))


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU, else the type of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def compute_dtype(training: TrainingArguments) -> str:
    """Return the dtype in which a training computes, such as float32."""
    return "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"


def report_evaluation(
    trainer: RecipeTrainer,
    data: SourceArguments,
    split: str,
    *,
    model_name: str,
    samples: int,
    metrics: Mapping[str, float],
    image_size: Sequence[int],
    images_per_second: float,
    **more: Any,
) -> dict[str, Any]:
    """Return the evaluation of a trainer's model, and write it to the output folder: eval_ or test_evaluation.json.

    Args: see `evaluation_result`; what is missing there comes from the trainer. `more` may have another batch_size.
    """
    training = trainer.args
    evaluation = evaluation_result(
        trainer.model,
        model_name,
        data,
        split,
        samples=samples,
        metrics=metrics,
        image_size=image_size,
        dtype=compute_dtype(training),
        device=training.device,
        images_per_second=images_per_second,
        processes=training.world_size,
        **{"batch_size": training.eval_batch_size, **more},
    )
    if trainer.is_world_process_zero():
        write_json(evaluation, Path(str(training.output_dir), f"{EVALUATION_PREFIXES[split]}_evaluation.json"))
    return evaluation


__all__ = [
    "EVALUATION_PREFIXES",
    "compute_dtype",
    "device_name",
    "evaluation_result",
    "has_operator",
    "report_evaluation",
]
