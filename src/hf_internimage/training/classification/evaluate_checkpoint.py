# SPDX-License-Identifier: MIT
"""Measure an image classifier on a data set: top-1 and top-5 accuracy, loss, images a second.

Takes any checkpoint that AutoModelForImageClassification loads, and any data that the training takes.
Classes of the data are matched to the model's classes by name (see --match_labels). Needs the extra `train`.

    hf-internimage evaluate OpenGVLab/internimage_t_1k_224 --dataset_name ILSVRC/imagenet-1k
    hf-internimage evaluate out --validation_dir images/validation --dtype bfloat16 --batch_size 64
    torchrun --nproc-per-node 8 -m hf_internimage evaluate out --validation_dir images/validation
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.accelerator import Accelerator
from accelerate.utils import concatenate, send_to_device
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification, EvalPrediction, HfArgumentParser
from transformers.utils import logging

from ...devices import DTYPES, find_device
from ...hub.loading import loading
from ...models import auto
from ...ops import BackendError
from ...ops.registry import BACKEND_VARIABLE
from ...plain_text import show
from ..bad_images import image_facts, without_bad_images
from ..command_line import SettingsHelpFormatter, error_text, missing_extra
from ..evaluation_results import evaluation_result
from ..json_files import write_json
from ..plots import draw_classes
from ..run import usable_cpus
from ..sources import are_unnamed
from ..summary import evaluation_row, table
from .data import ClassificationDataArguments, collate, load_data
from .metrics import ComputeMetrics, class_scores, keep_best, keep_scores


@dataclass
class EvaluationArguments:
    """Name the model, the split and the settings of the evaluation."""

    model: str = field(metadata={"help": "Checkpoint: a folder, or a repository on the Hub."})
    split: str = field(
        default="validation", metadata={"help": "Which data: validation (validation_dir), test or train."}
    )
    match_labels: str = field(
        default="auto",
        metadata={
            "help": "How classes of data and model belong together: by name, by index, or auto: by name if both have "
            "names. Folders named by synset are in the order of ImageNet models: index."
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Images at a time, on each device."})
    dtype: str = field(default="float32", metadata={"help": f"Type of the weights and images: {', '.join(DTYPES)}."})
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda:1; default: the best there is."})
    backend: str | None = field(
        default=None, metadata={"help": f"Demand this backend of InternImage's operator, as {BACKEND_VARIABLE} does."}
    )
    num_workers: int = field(default=0, metadata={"help": "Processes that read images, for each device."})
    output: str | None = field(
        default=None, metadata={"help": "JSON file to write; beside it, a picture of the classes."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code from the Hub."})

    def __post_init__(self) -> None:
        choices = {"split": ("train", "validation", "test"), "match_labels": ("auto", "name", "index"), "dtype": DTYPES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1.")
        if self.output is not None and not Path(self.output).resolve().parent.is_dir():
            raise ValueError(f"The folder of output={self.output} does not exist; make it first.")


def match_labels(data_names: Sequence[str], model_names: Sequence[str], match: str = "auto") -> tuple[list[int], str]:
    """Return the model's index for each class of the data, and "name" or "index", whichever was used.

    Args:
        match: "name", "index", or "auto": by name if both have names.

    Raises:
        ValueError: listing what does not match.
    """
    if len(data_names) == len(model_names) and (match == "index" or list(data_names) == list(model_names)):
        return list(range(len(data_names))), "index" if match == "index" else "name"
    without_names = are_unnamed(model_names) or list(data_names) == [str(index) for index in range(len(data_names))]
    if match == "index" or (match == "auto" and without_names):
        if len(data_names) > len(model_names):
            raise ValueError(
                f"The data have {len(data_names)} classes, the model {len(model_names)}; take a model of these classes."
            )
        return list(range(len(data_names))), "index"
    index_of = {name: index for index, name in enumerate(model_names)}
    count = Counter(model_names)
    missing = [name for name in data_names if count[name] != 1]
    if missing:
        some = ", ".join(repr(name) for name in missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        first_names = ", ".join(repr(name) for name in model_names[:3])
        raise ValueError(
            f"{len(missing)} of {len(data_names)} classes of the data are not, or not once, among the model's "
            f"({some}; the model's begin {first_names}): rename them, or set --match_labels index if the order is the "
            "same."
        )
    return [index_of[name] for name in data_names], "name"


class ModelLabels:
    """A `DatasetTransform` that gives labels as the model's class indices.

    Args:
        transform: of the data.
        indices: the model's index for each class of the data.
        classes: number of the model's classes.
    """

    def __init__(self, transform: Any, indices: list[int], classes: int) -> None:
        self.transform, self.indices, self.classes = transform, torch.tensor(indices), classes

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        result = self.transform(batch)
        labels = []
        for label in result["labels"]:
            if isinstance(label, torch.Tensor):
                labels.append(torch.zeros(self.classes).index_copy(0, self.indices, label))
            else:
                labels.append(self.indices[label])
        return {**result, "labels": labels}


@dataclass
class Predictions:
    """Predictions for all images of all processes, on the CPU."""

    scores: Any  # in the form of the metric: the best classes and their probabilities, or all scores
    labels: torch.Tensor
    losses: torch.Tensor
    image_size: tuple[int, int]
    seconds: float  # without loading the first batch


@torch.inference_mode()
def predict(model: torch.nn.Module, loader: Any, accelerator: Accelerator, device: torch.device) -> Predictions:
    """Run the model on every batch, and on the first one twice, to warm up."""
    dtype = next(model.parameters()).dtype
    batches: list[Any] = []
    start = None
    hidden = None if os.environ.get("RANK", "0") == "0" else True  # None: in files and pipes
    for batch in tqdm(loader, desc="evaluation", leave=False, disable=hidden):
        pixels, labels = batch["pixel_values"].to(device, dtype), batch["labels"].to(device)
        if start is None:
            model(pixel_values=pixels).logits.cpu()
            start = time.perf_counter()
        logits = model(pixel_values=pixels).logits.float()
        if labels.ndim == 2:  # several labels an image
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
            results: Any = (keep_scores(logits), labels, losses)
        else:
            results = (keep_best(logits), labels, F.cross_entropy(logits, labels, reduction="none"))
        batches.append(send_to_device(accelerator.gather_for_metrics(results), "cpu"))
    seconds = time.perf_counter() - (start or 0)
    scores, labels, losses = concatenate(batches)
    return Predictions(scores, labels, losses, (pixels.shape[-2], pixels.shape[-1]), seconds)


def load_model(options: EvaluationArguments) -> tuple[Any, Any]:
    """Load the checkpoint's model and image processor.

    Raises:
        ValueError: naming the checkpoint, if it cannot be loaded.
    """
    source = {"revision": options.model_revision, "trust_remote_code": options.trust_remote_code}
    try:
        with loading(options.model, report_new_weights=True):
            auto.load_config(options.model, **source)  # for its errors
            model_class, dtype = AutoModelForImageClassification, DTYPES[options.dtype]
            model = model_class.from_pretrained(options.model, dtype=dtype, **source)
            return model, AutoImageProcessor.from_pretrained(options.model, **source)
    except OSError as error:
        raise ValueError(f"{options.model}: cannot be loaded: {error}") from error


def evaluate_model(options: EvaluationArguments, data_options: ClassificationDataArguments) -> dict[str, Any]:
    """Evaluate the model; return the result as it is written to the JSON file.

    Raises:
        ValueError: in one sentence, for data or a model that do not fit.
    """
    if options.backend is not None:
        os.environ[BACKEND_VARIABLE] = options.backend
    accelerator = Accelerator(cpu=options.device == "cpu" or not torch.accelerator.is_available())
    if accelerator.num_processes > 1 and options.device not in (None, "cpu"):
        raise ValueError(f"device is {options.device}, but several processes have a device each; leave it out.")
    device = find_device(options.device) if options.device else accelerator.device
    with accelerator.main_process_first():
        data = load_data(data_options, splits=[options.split])

    model, processor = load_model(options)
    data = without_bad_images(data, data_options.bad_images, processor, folder=None)
    model = model.to(device).eval()
    classes = model.config.num_labels
    model_names = [model.config.id2label[index] for index in range(classes)]
    indices, matched_by = match_labels(data.label_names, model_names, options.match_labels)

    transform = ModelLabels(data.evaluation_transform(processor), indices, classes)
    loader: Any = DataLoader(
        getattr(data, options.split).with_transform(transform),
        options.batch_size,
        collate_fn=collate,
        num_workers=min(options.num_workers, usable_cpus()),
        pin_memory=device.type == "cuda",
    )
    # On one device, accelerate has nothing to do, and would not know of `device`.
    loader = accelerator.prepare(loader) if accelerator.num_processes > 1 else loader
    predictions = predict(model, loader, accelerator, device)
    labels: Any = predictions.labels
    metrics = ComputeMetrics(classes, data.multi_label)(EvalPrediction(predictions.scores, labels))
    return evaluation_result(
        model,
        options.model,
        data_options,
        options.split,
        samples=len(labels),
        metrics={**metrics, "loss": predictions.losses.mean().item()},
        image_size=predictions.image_size,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=device,
        images_per_second=len(labels) / predictions.seconds,
        processes=accelerator.num_processes,
        labels_matched_by=matched_by,
        per_class=class_scores(predictions.scores, labels, model_names),
        **image_facts(data.reader),
    )


def write_result(result: dict[str, Any], path: Path) -> list[Path]:
    """Write a result as JSON, and its precision and recall of each class as a picture beside it; return the files.

    The picture of `x_evaluation.json` is `x_classes.png`, that of `x.json` also.
    """
    write_json(result, path)
    files = [path]
    rows = result.get("per_class", [])
    if rows:
        measures = {name: [row[name] for row in rows] for name in ("recall", "precision")}
        picture = path.with_name(f"{path.stem.removesuffix('_evaluation')}_classes.png")
        draw_classes([row["class"] for row in rows], measures, picture)
        files.append(picture)
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 after one sentence on stderr; wrong arguments exit with 2."""
    parser = HfArgumentParser(
        (EvaluationArguments, ClassificationDataArguments),  # type: ignore[arg-type]
        prog="hf-internimage evaluate",
        description=__doc__,
        formatter_class=SettingsHelpFormatter,
    )
    logging.disable_progress_bar()
    try:
        options, data_options = parser.parse_args_into_dataclasses(args=argv)
        result = evaluate_model(options, data_options)
        if int(os.environ.get("RANK", "0")) == 0:
            files = [] if options.output is None else write_result(result, Path(options.output))
            show(table([evaluation_row(options.split, result, list)]))
            if files:
                show(f"written to {' and '.join(map(str, files))}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted.\n")
        return 130
    except ImportError as error:
        sys.stderr.write(f"error: {missing_extra(error)}\n")
        return 1
    except (ValueError, OSError, BackendError, SafetensorError) as error:
        sys.stderr.write(f"error: {' '.join(error_text(error).split())}\n")
        return 1
    return 0
