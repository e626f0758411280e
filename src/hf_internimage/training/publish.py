# SPDX-License-Identifier: MIT
"""Make the folder of a trained model a repository with its card, and push it if asked to."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..hub import repository as hub
from .trainer import RecipeTrainer

logger = logging.get_logger(__name__)


def model_id_of(training: TrainingArguments, default: str) -> str:
    """Return the repository that the arguments name, else the output folder's name, else `default`."""
    folder = Path(str(training.output_dir)).resolve().name
    # The Hub takes these letters alone, and neither -- nor .. in a name.
    name = re.sub(r"([-.])[-.]+", r"\1", re.sub(r"[^A-Za-z0-9_.-]+", "-", folder))
    return training.hub_model_id or name.strip("-.") or default


def base_repository(base_model: str | None) -> str | None:
    """Return `base_model` if it is a repository on the Hub; None if it is a folder or there is none."""
    return None if base_model is None or Path(base_model).exists() else base_model


def add_notes(card: ModelCard, notes: Sequence[str]) -> None:
    """Add a section with these sentences to the end of a card; nothing if there are none."""
    if notes:
        items = "".join(f"- {note}\n" for note in notes)
        card.text = f"{card.text.rstrip()}\n\n## Images of the training and the evaluation\n\n{items}"


def publish_by_trainer(trainer: RecipeTrainer, card: ModelCard, notes: Sequence[str] = ()) -> None:
    """Write this card to the output folder; push by Trainer's own means if asked to. All processes must call this.

    `notes` are sentences to add to the card.
    """
    if trainer.is_world_process_zero():
        add_notes(card, notes)
        Path(str(trainer.args.output_dir), "README.md").write_text(str(card), encoding="utf-8")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()  # by all processes


def write_repository(
    trainer: RecipeTrainer,
    auto_class: Any,
    model_id: str,
    make_card: Callable[[Any], ModelCard],
    notes: Sequence[str] = (),
) -> None:
    """Make the output folder a repository that works without this package; push it if asked to.

    All processes may call this.

    Args:
        trainer: after `save_full_model` into its output folder.
        auto_class: loads the whole model from there if each process has a part of it only.
        model_id: repository on the Hub, or the name of the folder.
        make_card: whole model -> its card.
        notes: sentences to add to the card.

    Raises:
        PushError: if the Hub does not take it; the folder keeps everything.
    """
    if not trainer.is_world_process_zero():
        return
    training, output = trainer.args, Path(str(trainer.args.output_dir))
    processor: Any = trainer.processing_class
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if trainer.is_deepspeed_enabled:
        unset_hf_deepspeed_config()  # with ZeRO-3, a model is loaded by all processes together
    model: Any = auto_class.from_pretrained(output) if is_sharded else trainer.model
    card = make_card(model)
    add_notes(card, notes)
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


def training_facts(trainer: RecipeTrainer, **more: Any) -> dict[str, Any]:
    """Return the settings and the length of a training, for its model card; `more` may have further ones, or None."""
    training, recipe = trainer.args, trainer.recipe
    total = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    facts = {
        "Epochs": f"{trainer.state.epoch:g}" if trainer.state.epoch else None,
        "Steps": trainer.state.global_step,
        "Batch size": total,
        "Optimizer": OptimizerNames(training.optim).value,
        "Learning rate": f"{training.learning_rate * trainer.learning_rate_factor:g}",
        "Schedule": SchedulerType(training.lr_scheduler_type).value,
        "Layer decay": recipe.layer_decay if recipe.layer_decay != 1 else None,
        "Weight decay": training.weight_decay or None,
        "Label smoothing": training.label_smoothing_factor or None,
        **more,
        "Averaged weights": recipe.ema_decay or None,
        "Seed": training.seed,
    }
    return {name: value for name, value in facts.items() if value is not None}


__all__ = [
    "add_notes",
    "base_repository",
    "model_id_of",
    "publish_by_trainer",
    "training_facts",
    "write_repository",
]
