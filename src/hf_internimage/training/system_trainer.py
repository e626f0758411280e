# SPDX-License-Identifier: MIT
"""Train segmenters and detectors by the original's recipes: rates by layer, polynomial or dropping schedule."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, TrainingArguments

from ..heads import gradient_checkpointing
from .optimization import drop_schedule, system_parameter_groups
from .trainer import RecipeArguments, RecipeTrainer


@dataclass
class SystemRecipe(RecipeArguments):
    """Settings of the original's recipes for segmentation and detection beside transformers' training arguments."""

    backbone_lr_scale: float = field(default=1.0, metadata={"help": "Factor of the backbone's learning rate."})
    sampling_lr_scale: float = field(
        default=1.0,
        metadata={"help": "Factor of the learning rate of deformable attention's sampling points (offset_lr_scale)."},
    )
    warmup_start_ratio: float = field(
        default=1e-6, metadata={"help": "Learning rate at the warm-up's first step, as a share."}
    )
    polynomial_power: float = field(
        default=1.0, metadata={"help": "Power of lr_scheduler_type=polynomial; 1 is a straight line to 0."}
    )
    lr_drops: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of the training after which lr_scheduler_type=constant_with_warmup drops to a tenth, such "
            "as 0.917 for the eleventh of twelve epochs."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.lr_drops, (int, float)):  # one of them, in a file of settings
            self.lr_drops = [float(self.lr_drops)]
        if not 0 <= self.warmup_start_ratio <= 1:
            raise ValueError(f"warmup_start_ratio is {self.warmup_start_ratio}, expected a number between 0 and 1.")
        if self.polynomial_power < 0:
            raise ValueError(f"polynomial_power is {self.polynomial_power}, expected 0 or more.")
        if any(not 0 < drop < 1 for drop in self.lr_drops):
            raise ValueError(f"lr_drops is {self.lr_drops}, expected shares of the training between 0 and 1.")


class SystemTrainer(RecipeTrainer):
    """Train any model that computes its own loss by the original's recipes for segmentation and detection.

    With `lr_scheduler_type="polynomial"` or `"constant_with_warmup"` the rates follow `optimization.drop_schedule`.

    Args:
        recipe: see `SystemRecipe`.
        Everything else is Trainer's.
    """

    recipe: SystemRecipe

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return system_parameter_groups(
            model,
            learning_rate,
            self.args.weight_decay,
            layer_decay=self.recipe.layer_decay,
            backbone_scale=self.recipe.backbone_lr_scale,
            sampling_scale=self.recipe.sampling_lr_scale,
        )

    def recipe_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
        kind = self.args.lr_scheduler_type
        if kind not in ("polynomial", "constant_with_warmup"):
            return None
        return drop_schedule(
            optimizer,
            steps=steps,
            warmup_steps=self.args.get_warmup_steps(steps),
            warmup_start=self.recipe.warmup_start_ratio,
            power=self.recipe.polynomial_power if kind == "polynomial" else 0.0,
            drops=self.recipe.lr_drops if kind == "constant_with_warmup" else (),
        )

    def refuse_data_parallel(self) -> None:
        """Raise ValueError where Trainer would split a batch over several GPUs, which labels in lists do not allow."""
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs, over which it cannot split labels that are lists: start "
                f"with torchrun --nproc-per-node {self.args.n_gpu}, or set CUDA_VISIBLE_DEVICES to one of them."
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keep the card that is there, since Trainer's own does not say how to load such a model."""
        if not Path(str(self.args.output_dir), "README.md").exists():
            super().create_model_card(*args, **kwargs)


def checkpoint_backbone(model: PreTrainedModel, training: TrainingArguments) -> None:
    """Switch gradient checkpointing on in the InternImage of a model whose head has none, if `training` asks for it.

    `training` then asks for it no more. In models that support it themselves, Trainer switches it on, also in their
    backbone.

    Raises: ValueError if neither the head has it nor there is an InternImage in `model`.
    """
    if not training.gradient_checkpointing or model.supports_gradient_checkpointing:
        return
    gradient_checkpointing(model)
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # transformers 5.23 renamed it
        setattr(training, name, False)


__all__ = ["SystemRecipe", "SystemTrainer", "checkpoint_backbone"]
