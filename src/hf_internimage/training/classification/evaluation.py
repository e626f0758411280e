# SPDX-License-Identifier: MIT
"""Evaluate a trained classifier on a split, draw its mistakes, and publish it with its card."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification

from ...hub.cards import evaluated_card
from ...hub.trained_cards import trained_card
from ...image_files import decode_image
from ...models import auto
from ..bad_images import image_facts
from ..evaluation_results import EVALUATION_PREFIXES, report_evaluation
from ..images import target_size
from ..plots import draw_classes
from ..publish import base_repository, model_id_of, training_facts, write_repository
from .data import ClassificationData, ClassificationDataArguments
from .metrics import class_scores
from .plots import draw_confusions, draw_mistakes, worst_mistakes
from .trainer import ClassificationTrainer

_METRICS = ("accuracy", "top5_accuracy", "mean_average_precision", "f1", "loss")


def evaluate_and_report(
    trainer: ClassificationTrainer,
    data: ClassificationData,
    split: str,
    arguments: ClassificationDataArguments,
    *,
    model_name: str,
) -> dict[str, Any]:
    """Evaluate on a split; write its metrics, predictions and pictures to the output folder.

    The pictures show the precision and recall of the classes, and of models with one class an image what they confuse
    and their worst mistakes.

    All processes call this.

    Args:
        trainer: with the model, its image processor and the output folder.
        data, split: validation or test of these data.
        arguments: names of the data.
        model_name: folder or repository of the model.

    Returns: the evaluation as in eval_evaluation.json (of test: test_evaluation.json).
    """
    prefix, rows, processor = EVALUATION_PREFIXES[split], getattr(data, split), trainer.processing_class
    prediction = trainer.predict(rows.with_transform(data.evaluation_transform(processor)), metric_key_prefix=prefix)
    metrics: Any = prediction.metrics
    trainer.save_metrics(prefix, metrics)
    per_class = class_scores(prediction.predictions, prediction.label_ids, data.label_names)
    evaluation = report_evaluation(
        trainer,
        arguments,
        split,
        model_name=model_name,
        samples=len(rows),
        metrics={name: metrics[f"{prefix}_{name}"] for name in _METRICS if f"{prefix}_{name}" in metrics},
        image_size=target_size(processor),
        images_per_second=metrics[f"{prefix}_samples_per_second"],
        per_class=per_class,
        **image_facts(data.reader),
    )
    if trainer.is_world_process_zero():
        output = Path(str(trainer.args.output_dir))
        columns = {name: [row[name] for row in per_class] for name in ("recall", "precision")}
        draw_classes(data.label_names, columns, output / f"{prefix}_classes.png")
        if not data.multi_label:
            draw_predictions(prediction, rows, data, output, prefix)
    return evaluation


def draw_predictions(prediction: Any, rows: Any, data: ClassificationData, output: Path, prefix: str) -> None:
    """Write the predictions as a table, and draw the confusions and the mistakes with the highest scores.

    Args:
        prediction: of the trainer, with `metrics.keep_best` for its classes and scores.
        rows: of the split, of `data`.
        output, prefix: folder and beginning of the files' names.
    """
    (classes, scores), truth = prediction.predictions, prediction.label_ids
    names = data.label_names
    images = rows.select_columns([data.image_column])
    paths = images.flatten()[f"{data.image_column}.path"]
    with open(output / f"{prefix}_predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["row", "file", "label", "found", "score"])
        for row, (path, label) in enumerate(zip(paths, truth, strict=True)):
            table.writerow([row, path, names[label], names[classes[row, 0]], f"{scores[row, 0]:.6f}"])
    draw_confusions(truth, classes[:, 0], names, output / f"{prefix}_confusions.png")
    worst = worst_mistakes(truth, classes, scores)
    wrong = int((truth != classes[:, 0]).sum())
    draw_mistakes(
        [decode_image(images[row][data.image_column], data.reader.max_pixels) for row in worst],
        [Path(paths[row]).name if paths[row] else f"row {row}" for row in worst],
        truth[worst],
        classes[worst, 0],
        scores[worst, 0],
        names,
        output / f"{prefix}_mistakes.png",
        f"{wrong:,} of {len(truth):,} images are classified wrong"
        + (f"; the {len(worst)} with the highest scores:" if len(worst) < wrong else ":" if wrong else "."),
    )


def publish(
    trainer: ClassificationTrainer,
    evaluation: dict[str, Any] | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Make the output folder a repository that works without this package, with its card; push it if asked to.

    All processes have to call this. Models other than InternImage are pushed by Trainer's own means.

    Args:
        trainer: after `save_full_model` into its output folder.
        evaluation: as `evaluate_and_report` returns it, for the card.
        base_model: folder or repository that the training started from; the card names a repository.
        license: SPDX identifier in lower case; not stated if None.
        notes: sentences on the images, for the card.

    Raises:
        PushError: if the Hub does not take it; the folder keeps everything.
    """
    training = trainer.args
    if trainer.model.config.model_type not in auto.model_types("AutoModelForImageClassification"):
        if training.push_to_hub:
            trainer.push_to_hub()  # by all processes
        return
    model_id = model_id_of(training, "internimage")

    recipe = trainer.recipe
    mixing = f"{recipe.mixup_alpha:g}, {recipe.cutmix_alpha:g}" if recipe.mixup_alpha or recipe.cutmix_alpha else None
    facts = training_facts(trainer, **{"Mixup, CutMix": mixing})
    base, metrics = base_repository(base_model), {} if evaluation is None else evaluation["metrics"]

    def make_card(model: Any) -> ModelCard:
        if evaluation is not None and "top1" in metrics and math.isfinite(metrics.get("loss", math.nan)):
            options = {"base_model": base, "license": license, "training": facts, "model": model}
            return evaluated_card(evaluation, model_id=model_id, **options)
        return trained_card(
            model,
            model_id,
            task="image-classification",
            has_code=True,
            base_model=base,
            license=license,
            evaluation=None if "top1" in metrics else evaluation,
            training=facts,
        )

    write_repository(trainer, AutoModelForImageClassification, model_id, make_card, notes)


__all__ = ["evaluate_and_report", "publish"]
