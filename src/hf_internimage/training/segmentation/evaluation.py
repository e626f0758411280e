# SPDX-License-Identifier: MIT
"""Evaluate a trained segmenter at the images' own size, draw its masks, and publish it with its card."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ...hub.trained_cards import trained_card
from ...segmentation import SemanticSegmenter
from ..bad_images import image_facts
from ..evaluation_results import EVALUATION_PREFIXES, report_evaluation
from ..metric_modules import load_metric_module
from ..plot_style import rows_to_draw
from ..plots import draw_classes
from ..publish import base_repository, model_id_of, publish_by_trainer, training_facts
from .data import DatasetTransform, SegmentationData, SegmentationDataArguments
from .plots import draw_masks
from .trainer import MEAN_IOU, SegmentationTrainer

_REPORTED_SETTINGS = ("inference", "inference_crop", "inference_stride", "tta_ratios", "tta_flip")


@dataclass
class InferenceArguments:
    """Settings of the evaluation at the end: whole images or windows, averages, overlays."""

    inference: str = field(
        default="whole", metadata={"help": "See images whole, or through windows that slide over them: slide."}
    )
    inference_crop: list[int] = field(
        default_factory=list, metadata={"help": "slide: side of the windows in pixels, or height and width."}
    )
    inference_stride: list[int] = field(
        default_factory=list, metadata={"help": "slide: pixels from window to window, or down and across."}
    )
    inference_windows: int = field(default=1, metadata={"help": "slide: windows that go through the model at once."})
    tta_ratios: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Average over these multiples of the image's size."}
    )
    tta_flip: bool = field(default=False, metadata={"help": "Average over each of them and its mirror image."})
    overlays: int = field(default=16, metadata={"help": "Images of the evaluation to draw; 0 for none."})

    def __post_init__(self) -> None:
        for name in ("inference_crop", "inference_stride", "tta_ratios"):
            if isinstance(value := getattr(self, name), (int, float)):  # in a file of settings
                setattr(self, name, [value])
        for name in ("inference_crop", "inference_stride"):
            if len(getattr(self, name)) > 2:
                raise ValueError(f"{name} is {getattr(self, name)}, expected one number, or height and width.")
        if self.inference not in ("whole", "slide"):
            raise ValueError(f"inference is {self.inference!r}, expected 'whole' or 'slide'.")
        slides = self.inference == "slide"
        if bool(self.inference_crop) != slides or bool(self.inference_stride) != slides:
            raise ValueError("inference_crop and inference_stride are for inference=slide, which needs both.")

    def segmenter(self, model: Any, processor: Any) -> SemanticSegmenter:
        """Build the segmenter of these settings; raise ValueError for those that `SemanticSegmenter` refuses."""
        return SemanticSegmenter(
            model,
            processor,
            crop_size=_pair(self.inference_crop),
            stride=_pair(self.inference_stride),
            window_batch_size=self.inference_windows,
            scale_ratios=self.tta_ratios,
            flip=self.tta_flip,
        )


def evaluate_and_report(
    trainer: SegmentationTrainer,
    data: SegmentationData,
    split: str,
    arguments: SegmentationDataArguments,
    *,
    model_name: str,
    inference: InferenceArguments,
) -> dict[str, Any]:
    """Segment a split at the images' own size; write metrics and overlays to the output folder.

    Written are eval_results.json, eval_evaluation.json (with each class's IoU, and all that is needed to repeat it),
    eval_classes.png, and overlays/*.png of images spread evenly over the split. All processes call this; each takes its
    share.

    Args:
        trainer: with the model, its image processor and the output folder.
        data, split: validation of these data.
        arguments: names of the data.
        model_name: folder or repository of the model.
        inference: whole images or windows, and how many images are drawn.

    Returns: the evaluation as in eval_evaluation.json.
    """
    prefix, rows, names = EVALUATION_PREFIXES[split], getattr(data, split), data.label_names
    if trainer.is_fsdp_enabled and inference.inference == "slide":
        raise ValueError(
            "inference=slide needs as many windows in every process: evaluate the saved model without FSDP."
        )
    processor: Any = trainer.processing_class
    metric = load_metric_module(MEAN_IOU, num_labels=len(names))
    segmenter = inference.segmenter(trainer.model.eval(), processor)
    with trainer.evaluation_weights():
        seconds = _segment(trainer, rows, data.evaluation_transform(processor), segmenter, metric, names, inference)
    counts = torch.from_numpy(metric.counts).to(trainer.args.device)
    metric.counts = trainer.accelerator.reduce(counts, "sum").cpu().numpy()
    result = metric.compute()
    means = {name: value for name, value in result.items() if isinstance(value, float)}
    logged = {f"{prefix}_{name}": value for name, value in means.items()}
    trainer.save_metrics(prefix, logged)
    iou = [None if math.isnan(value) else value for value in result["iou"]]
    if trainer.is_world_process_zero():
        draw_classes(names, {"IoU": iou}, Path(str(trainer.args.output_dir), f"{prefix}_classes.png"))
    return report_evaluation(
        trainer,
        arguments,
        split,
        model_name=model_name,
        samples=len(rows),
        metrics=means,
        image_size=[processor.size["shortest_edge"], processor.size["longest_edge"]],
        batch_size=1,
        images_per_second=len(rows) / seconds,
        class_iou=dict(zip(names, iou, strict=True)),
        inference={name: getattr(inference, name) for name in _REPORTED_SETTINGS},
        **image_facts(data.reader),
    )


def _segment(
    trainer: SegmentationTrainer,
    rows: Dataset,
    transform: DatasetTransform,
    segmenter: SemanticSegmenter,
    metric: Any,
    names: list[str],
    inference: InferenceArguments,
) -> float:
    """Segment this process's share of the rows, add it to the metric, and draw some; return the seconds it took."""
    count, world = len(rows), trainer.args.world_size
    folder = Path(str(trainer.args.output_dir), "overlays")
    folder.mkdir(parents=True, exist_ok=True)
    drawn_rows = set(rows_to_draw(count, inference.overlays))
    seconds = 0.0
    # As many images in each process: a sharded model runs in all of them at once. The last ones come twice, uncounted.
    hidden = True if trainer.args.process_index else None  # None: in files and pipes
    for turn in tqdm(range(-(-count // world)), desc="evaluation", leave=False, disable=hidden):
        row = turn * world + trainer.args.process_index
        image, labels, _ = transform.read(rows[min(row, count - 1)])
        start = time.perf_counter()
        with trainer.accelerator.autocast():
            classes = segmenter(image).cpu().numpy()
        seconds += time.perf_counter() - start
        if row >= count:
            continue
        metric.add(classes, labels)
        if row in drawn_rows:
            draw_masks(image, labels, classes, names, folder / f"{row:05d}.png")
    return seconds


def _pair(values: list[int]) -> tuple[int, int] | None:
    return (values[0], values[-1]) if values else None


def publish(
    trainer: SegmentationTrainer,
    evaluation: dict[str, Any] | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write a card to the output folder, with the model, how to load it and its scores; push it if asked to.

    All processes have to call this.

    Args:
        trainer: after `save_full_model` into its output folder.
        evaluation: as `evaluate_and_report` returns it, for the card.
        base_model: folder or repository that the training started from; the card names a repository.
        license: SPDX identifier in lower case; not stated if None.
        notes: sentences on the images, for the card.
    """
    model, model_id = trainer.model, model_id_of(trainer.args, "internimage-segmentation")
    card = trained_card(
        model,
        model_id,
        task="semantic-segmentation",
        has_code=False,
        base_model=base_repository(base_model),
        license=license,
        evaluation=evaluation,
        training=training_facts(trainer),
    )
    publish_by_trainer(trainer, card, notes)


__all__ = ["InferenceArguments", "evaluate_and_report", "publish"]
