# SPDX-License-Identifier: MIT
"""A trained model's folder as a repository with its card; pushed if asked to."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainingArguments
from transformers.utils import logging

from ..hub import repository as hub
from .trainer import RecipeTrainer

logger = logging.get_logger(__name__)


def model_id_of(training: TrainingArguments, otherwise: str) -> str:
    """The repository that the arguments name, else the output folder's name as one, else another."""
    folder = Path(str(training.output_dir)).resolve().name
    return training.hub_model_id or re.sub(r"[^\w.-]+", "-", folder).strip("-.") or otherwise


def base_repository(began_with: str | None) -> str | None:
    """The repository on the Hub that a training began with; None if that was a folder, or nothing."""
    return None if began_with is None or Path(began_with).exists() else began_with


def publish_by_trainer(trainer: RecipeTrainer, card: ModelCard) -> None:
    """Give the output folder this card; push it by Trainer's own means if asked to. All processes have to call this."""
    if trainer.is_world_process_zero():
        Path(str(trainer.args.output_dir), "README.md").write_text(str(card), encoding="utf-8")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()  # by all processes


def write_repository(
    trainer: RecipeTrainer, auto_class: Any, model_id: str, make_card: Callable[[Any], ModelCard]
) -> None:
    """Make the output folder a repository that works without this package; push it if asked to.

    All processes may call this.

    Args:
        trainer: after `save_full_model` into its output folder.
        auto_class: what loads the model from there, where no process has it whole.
        model_id: repository on the Hub, or the name of the folder.
        make_card: of the whole model: its card.

    Raises:
        PushError: if the Hub does not take it; the folder keeps everything.
    """
    if not trainer.is_world_process_zero():
        return
    training, output = trainer.args, Path(str(trainer.args.output_dir))
    processor: Any = trainer.processing_class
    gathered = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    model: Any = auto_class.from_pretrained(output) if gathered else trainer.model
    card = make_card(model)
    if not training.push_to_hub:
        hub.save_for_hub(model, output, image_processor=processor, card=card)
        return
    commit = hub.push(
        model,
        model_id,
        image_processor=processor,
        card=card,
        private=training.hub_private_repo,
        token=training.hub_token,
        revision=training.hub_revision,
        folder=output,
    )
    logger.warning(f"Pushed to {commit.repo_url}.")


def card_data(tasks: Sequence[str], *, base_model: str | None, license: str | None) -> ModelCardData:
    """The head of a model card.

    Args:
        tasks: as tags of the Hub; the first is its pipeline.
        base_model: see `base_repository`.
        license: SPDX identifier in lower case; not stated if None.
    """
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=tasks[0],
        base_model=base_model,
        tags=["internimage", *tasks, "dcnv3", "vision"],
    )


def images_of(evaluation: Mapping[str, Any]) -> str:
    """How many images of what an evaluation (`results.evaluation_result`) is on, as Markdown."""
    source = str(evaluation["dataset"]["name"])
    where = f"a folder `{Path(source).name}`" if Path(source).exists() else f"`{source}`"
    return f"{evaluation['samples']:,} images of {where}"


def score_table(evaluation: Mapping[str, Any], names: Mapping[str, str], digits: int) -> str:
    """The measures of an evaluation as Markdown, in percent.

    Args:
        evaluation: as `results.evaluation_result` makes it.
        names: of a measure -> what it is, for people; those that were not measured are left out.
        digits: after the point.
    """
    metrics = evaluation["metrics"]
    rows = [f"| {what} | {100 * metrics[name]:.{digits}f} % |\n" for name, what in names.items() if name in metrics]
    return "".join(["| | |\n|---|---|\n", *rows])


__all__ = [
    "base_repository",
    "card_data",
    "images_of",
    "model_id_of",
    "publish_by_trainer",
    "score_table",
    "write_repository",
]
