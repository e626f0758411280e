# SPDX-License-Identifier: MIT
"""The original's recipes for segmentation and detection: rates by layer, polynomial or dropping schedule."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .optimization import dense_parameter_groups, drop_schedule
from .trainer import RecipeArguments, RecipeTrainer


@dataclass
class DenseRecipe(RecipeArguments):
    """What the original's recipes for segmentation and detection add to transformers' training arguments."""

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
        if not 0 <= self.warmup_start_ratio <= 1:
            raise ValueError(f"warmup_start_ratio is {self.warmup_start_ratio}, expected a number between 0 and 1.")
        if self.polynomial_power < 0:
            raise ValueError(f"polynomial_power is {self.polynomial_power}, expected 0 or more.")
        if any(not 0 < drop < 1 for drop in self.lr_drops):
            raise ValueError(f"lr_drops is {self.lr_drops}, expected shares of the training between 0 and 1.")


class DenseTrainer(RecipeTrainer):
    """Trains by the original's recipes for segmentation and detection, any model that computes its own loss.

    With `lr_scheduler_type="polynomial"` or `"constant_with_warmup"` the rates follow `optimization.drop_schedule`.

    Args:
        recipe: see `DenseRecipe`.
        Everything else is Trainer's.
    """

    recipe: DenseRecipe

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return dense_parameter_groups(
            model,
            learning_rate,
            self.args.weight_decay,
            layer_decay=self.recipe.layer_decay,
            backbone_scale=self.recipe.backbone_lr_scale,
            sampling_scale=self.recipe.sampling_lr_scale,
        )

    def learning_rates(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
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


__all__ = ["DenseRecipe", "DenseTrainer"]
