# SPDX-License-Identifier: MIT
"""The end of a training: judged on data, saved as a repository, pushed."""

import csv
import math
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification
from transformers.training_args import OptimizerNames

from ...hub import cards
from ...hub import repository as hub
from ..evaluation_results import evaluation_result, precision, write_json
from ..images import decode_image, target_size
from ..plots import draw_confusions, draw_mistakes, worst_mistakes
from ..publish import base_repository, model_id_of, write_repository
from .data import DataArguments, LoadedData
from .trainer import ClassificationTrainer


def judge(
    trainer: ClassificationTrainer, split: Any, prefix: str, arguments: DataArguments, loaded: LoadedData
) -> dict[str, Any]:
    """Evaluate on a split; write its metrics, confusions, worst mistakes and predictions to the output folder.

    Returns: the evaluation as `cards.evaluated_card` takes it.
    """
    processor = trainer.processing_class
    prediction = trainer.predict(split.with_transform(loaded.evaluation_transform(processor)), metric_key_prefix=prefix)
    found: Any = prediction.metrics
    trainer.log_metrics(prefix, found)
    trainer.save_metrics(prefix, found)
    measured = {
        name: found[f"{prefix}_{name}"]
        for name in ("accuracy", "top5_accuracy", "mean_average_precision", "f1", "loss")
        if f"{prefix}_{name}" in found
    }
    training = trainer.args
    evaluation = evaluation_result(
        trainer.model,
        training.hub_model_id or str(training.output_dir),
        arguments,
        "test" if prefix == "test" else "validation",
        samples=len(split),
        metrics=measured,
        image_size=target_size(processor),
        batch_size=training.eval_batch_size,
        dtype=precision(training),
        device=training.device,
        images_per_second=found[f"{prefix}_samples_per_second"],
        processes=training.world_size,
    )
    if trainer.is_world_process_zero():
        output = Path(str(training.output_dir))
        write_json(evaluation, output / f"{prefix}_evaluation.json")
        if not loaded.multi_label:
            draw_predictions(prediction, split, loaded, output, prefix)
    return evaluation


def draw_predictions(prediction: Any, split: Any, loaded: LoadedData, output: Path, prefix: str) -> None:
    """The predictions as a table, the confusions, and the mistakes made with most confidence."""
    (classes, scores), truth = prediction.predictions, prediction.label_ids
    names = loaded.label_names
    files = split.select_columns([loaded.image_column])
    paths = files.flatten()[f"{loaded.image_column}.path"]
    with open(output / f"{prefix}_predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["row", "file", "label", "found", "score"])
        found = zip(paths, truth, classes[:, 0], scores[:, 0], strict=True)
        for row, (path, right, best, score) in enumerate(found):
            table.writerow([row, path, names[right], names[best], f"{score:.6f}"])
    draw_confusions(truth, classes[:, 0], names, output / f"{prefix}_confusions.png")
    worst = worst_mistakes(truth, classes, scores)
    wrong = int((truth != classes[:, 0]).sum())
    draw_mistakes(
        [decode_image(files[row][loaded.image_column], loaded.max_pixels) for row in worst],
        truth[worst],
        classes[worst, 0],
        scores[worst, 0],
        names,
        output / f"{prefix}_mistakes.png",
        f"{wrong:,} of {len(truth):,} images are classified wrong"
        + (f"; the {len(worst)} with the highest scores:" if worst else "."),
    )


def publish(
    trainer: ClassificationTrainer,
    evaluation: dict[str, Any] | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
) -> None:
    """Make the output folder a repository that works without this package, with its card; push it if asked to.

    All processes have to call this. Models other than InternImage are pushed by Trainer's own means.

    Args:
        trainer: after `save_full_model` into its output folder.
        evaluation: what `judge` returned, for the card.
        base_model: what the training began with: a folder, or a repository on the Hub, which the card names.
        license: SPDX identifier in lower case; not stated if None.

    Raises:
        PushError: if the Hub does not take it; the folder keeps everything.
    """
    training = trainer.args
    if trainer.model.config.model_type != "internimage":
        if training.push_to_hub:
            trainer.push_to_hub()  # by all processes
        return
    model_id = model_id_of(training, "internimage")

    def make_card(model: Any) -> ModelCard:
        if (
            evaluation is None
            or not {"top1", "loss"} <= set(evaluation["metrics"])
            or not math.isfinite(evaluation["metrics"]["loss"])
        ):
            return hub.short_card(model, model_id, license=license)
        return cards.evaluated_card(
            evaluation,
            model_id=model_id,
            base_model=base_repository(base_model),
            license=license,
            training=training_facts(trainer),
        )

    write_repository(trainer, AutoModelForImageClassification, model_id, make_card)


def training_facts(trainer: ClassificationTrainer) -> dict[str, Any]:
    """What a model card says about the training."""
    training, recipe = trainer.args, trainer.recipe
    total = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    facts = {
        "Epochs": f"{trainer.state.epoch:g}" if trainer.state.epoch else None,
        "Steps": trainer.state.global_step,
        "Batch size": total,
        "Optimizer": OptimizerNames(training.optim).value,
        "Learning rate": f"{training.learning_rate * trainer.learning_rate_factor:g}",
        "Layer decay": recipe.layer_decay if recipe.layer_decay != 1 else None,
        "Weight decay": training.weight_decay or None,
        "Label smoothing": training.label_smoothing_factor or None,
        "Mixup, CutMix": f"{recipe.mixup_alpha:g}, {recipe.cutmix_alpha:g}"
        if recipe.mixup_alpha or recipe.cutmix_alpha
        else None,
        "Averaged weights": recipe.ema_decay or None,
        "Seed": training.seed,
    }
    return {name: value for name, value in facts.items() if value is not None}


__all__ = ["judge", "publish"]
