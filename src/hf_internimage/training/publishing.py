# SPDX-License-Identifier: MIT
"""A trained model's folder as a repository that works without this package; pushed if asked to."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import TrainingArguments
from transformers.utils import logging

from .. import hub
from .trainer import RecipeTrainer

logger = logging.get_logger(__name__)


def model_id_of(training: TrainingArguments, otherwise: str) -> str:
    """The repository that the arguments name, else the output folder's name as one, else another."""
    folder = Path(str(training.output_dir)).resolve().name
    return training.hub_model_id or re.sub(r"[^\w.-]+", "-", folder).strip("-.") or otherwise


def write_repository(
    trainer: RecipeTrainer, auto_class: Any, model_id: str, make_card: Callable[[Any], ModelCard]
) -> None:
    """Make the output folder a repository of the model; push it if asked to. All processes may call this.

    Args:
        trainer: after `save_whole` into its output folder.
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


__all__ = ["model_id_of", "write_repository"]
