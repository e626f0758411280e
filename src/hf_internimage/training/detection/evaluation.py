# SPDX-License-Identifier: MIT
"""Evaluate a trained detector by COCO's measure, draw its boxes, and publish it with its card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoModelForObjectDetection

from ...hub.trained_cards import trained_card
from ..bad_images import image_facts
from ..evaluation_results import EVALUATION_PREFIXES, report_evaluation
from ..plots import draw_classes
from ..publish import base_repository, model_id_of, publish_by_trainer, training_facts, write_repository
from .coco_map import CocoMap
from .data import DetectionData, DetectionDataArguments
from .plots import draw_overlays
from .trainer import DetectionTrainer


def evaluate_and_report(
    trainer: DetectionTrainer,
    data: DetectionData,
    split: str,
    arguments: DetectionDataArguments,
    *,
    model_name: str,
    overlays: int,
    overlay_threshold: float,
) -> dict[str, Any]:
    """Evaluate on a split; write its metrics and overlays to the output folder. All processes call this.

    Args:
        trainer: with the model, its image processor and the output folder.
        data, split: validation or test of these data.
        arguments: names of the data.
        model_name: folder or repository of the model.
        overlays: number of images to draw, evenly from the split.
        overlay_threshold: least score of a detection that is drawn.

    Returns: the evaluation as in eval_evaluation.json (of test: test_evaluation.json).
    """
    prefix, rows, processor = EVALUATION_PREFIXES[split], getattr(data, split), trainer.processing_class
    coco_map = CocoMap(rows, data.label_names)
    trainer.compute_metrics = coco_map
    prediction = trainer.predict(rows.with_transform(data.evaluation_transform(processor)), metric_key_prefix=prefix)
    metrics: Any = prediction.metrics
    trainer.save_metrics(prefix, metrics)
    detections: Any = prediction.predictions
    image_ids: Any = prediction.label_ids
    result = coco_map.evaluate(detections, image_ids)
    evaluation = report_evaluation(
        trainer,
        arguments,
        split,
        model_name=model_name,
        samples=len(rows),
        metrics={**result.metrics, "loss": metrics[f"{prefix}_loss"]},
        image_size=_sides(processor),
        images_per_second=metrics[f"{prefix}_samples_per_second"],
        map_per_class=result.per_class,
        **image_facts(data.reader),
    )
    if trainer.is_world_process_zero():
        output = Path(str(trainer.args.output_dir))
        columns = {"average precision": [result.per_class.get(name) for name in data.label_names]}
        draw_classes(data.label_names, columns, output / f"{prefix}_classes.png")
        draw_overlays(
            rows,
            dict(zip(image_ids.reshape(-1).tolist(), detections, strict=True)),
            data.label_names,
            output / "overlays",
            prefix=f"{prefix}_",
            count=overlays,
            threshold=overlay_threshold,
            reader=data.reader,
        )
    return evaluation


def curves(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return Trainer's log with those of COCO's twelve measures that a picture has room for."""
    hidden = ("eval_map_", "eval_mar_")
    shown = ("eval_map_50", "eval_map_75", "eval_mar_100")
    return [
        {name: value for name, value in entry.items() if name in shown or not name.startswith(hidden)}
        for entry in log_history
    ]


def _sides(processor: Any) -> list[int]:
    """Return the shortest and longest side of a processor's images, or their height and width."""
    size = dict(processor.size)
    names = ("height", "width") if size.get("height") else ("shortest_edge", "longest_edge")
    return [size[name] for name in names]


def publish(
    trainer: DetectionTrainer,
    evaluation: dict[str, Any] | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write a card to the output folder, and DINO's source files to work without this package; push it if asked to.

    All processes have to call this. Heads of transformers are pushed by Trainer's own means.

    Args:
        trainer: after `save_full_model` into its output folder.
        evaluation: as `evaluate_and_report` returns it, for the card.
        base_model: folder or repository that the training started from; the card names a repository.
        license: SPDX identifier in lower case; not stated if None.
        notes: sentences on the images, for the card.

    Raises:
        PushError: if the Hub does not take it; the folder keeps everything.
    """
    model_id = model_id_of(trainer.args, "detector")
    has_code = trainer.model.config.model_type == "internimage_dino"

    def make_card(model: Any) -> ModelCard:
        return trained_card(
            model,
            model_id,
            task="object-detection",
            has_code=has_code,
            base_model=base_repository(base_model),
            license=license,
            evaluation=evaluation,
            training=training_facts(trainer),
        )

    if has_code:
        write_repository(trainer, AutoModelForObjectDetection, model_id, make_card, notes)
    else:
        publish_by_trainer(trainer, make_card(trainer.model), notes)


__all__ = ["curves", "evaluate_and_report", "publish"]
