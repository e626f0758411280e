# SPDX-License-Identifier: MIT
"""Train image classifiers by the original's recipe: its cosine, mixing, label smoothing, class weights."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..optimization import cosine_schedule, parameter_groups
from ..trainer import RecipeArguments, RecipeTrainer
from .mixing import MixingArguments, mix


@dataclass
class ClassificationRecipe(RecipeArguments, MixingArguments):
    """Settings of the original's recipe for classification beside transformers' training arguments."""

    warmup_learning_rate: float = field(default=0.0, metadata={"help": "Learning rate at the warm-up's first step."})
    minimum_learning_rate: float = field(default=0.0, metadata={"help": "Learning rate at the end of the cosine."})
    geometry_lr_scale: float = field(
        default=1.0,
        metadata={"help": "Factor of the learning rate of offsets and centre scales (the original's DCN_LR_MUL)."},
    )

    def __post_init__(self) -> None:
        RecipeArguments.__post_init__(self)
        MixingArguments.__post_init__(self)


class ClassificationTrainer(RecipeTrainer):
    """Train InternImage and any other image classifier by the original's recipe.

    With `lr_scheduler_type="cosine"` (set it: transformers' default is linear) the rates follow
    `optimization.cosine_learning_rate`.

    Args:
        recipe: see `ClassificationRecipe`.
        class_weights: weight of each class in the training loss, (classes,), or None.
        Everything else is Trainer's.
    """

    recipe: ClassificationRecipe

    def __init__(
        self, *args: Any, recipe: ClassificationRecipe, class_weights: torch.Tensor | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, recipe=recipe, **kwargs)
        self.class_weights = None if class_weights is None else class_weights.to(self.args.device)
        config = getattr(self.model, "config", None)
        self.multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
        self.label_smoother = None  # ours is part of compute_loss

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return parameter_groups(
            model,
            learning_rate,
            self.args.weight_decay,
            layer_decay=self.recipe.layer_decay,
            geometry_scale=self.recipe.geometry_lr_scale,
        )

    def recipe_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
        if self.args.lr_scheduler_type != "cosine":
            return None
        return cosine_schedule(
            optimizer,
            steps=steps,
            warmup_steps=self.args.get_warmup_steps(steps),
            warmup_start=self.recipe.warmup_learning_rate * self.learning_rate_factor,
            minimum=self.recipe.minimum_learning_rate * self.learning_rate_factor,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the recipe's loss on mixed images in training, the model's own loss in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        classes = self.model.config.num_labels
        if self.recipe.mixup_alpha or self.recipe.cutmix_alpha:
            targets = labels.float() if self.multi_label else F.one_hot(labels, classes).float()
            inputs["pixel_values"], labels = mix(inputs["pixel_values"], targets, self.recipe)
        outputs = model(**inputs)
        weights = self.class_weights
        logits = outputs.logits.float()
        if self.multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float(), weight=weights)
        else:
            loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.args.label_smoothing_factor)
        return (loss, outputs) if return_outputs else loss


__all__ = ["ClassificationRecipe", "ClassificationTrainer"]
