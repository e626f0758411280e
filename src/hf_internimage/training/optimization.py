# SPDX-License-Identifier: MIT
"""Learning rates: one for each layer and step, as in the original's recipe."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Names that the original's multiplier for the operator's learned geometry applies to.
_GEOMETRY = ("offset", "attention_weights", "center_feature_scale_proj", "alpha_beta")
# What wrappers put into the names of parameters.
_WRAPPERS = re.compile(r"\b(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PLACE = re.compile(
    r"^(?:model\.)?(?:(?P<stem>patch_embed)|levels\.(?P<stage>\d+)\.(?:blocks\.(?P<block>\d+)|(?P<end>downsample|norm)))\."
)


def layer_from_the_end(name: str, depths: list[int]) -> int | None:
    """The number of a parameter's layer as the original counts: 0 for the last block, one more for each before it.

    The stem counts as the first block; a stage's downsampling and norm as the next stage's first block. None for what
    the original leaves at the full rate: the head, the last stage's norm, and the norms between the third stage's
    blocks.

    Source: OpenGVLab/InternImage@31c962d, classification/optimizer.py.
    """
    place = _PLACE.match(name)
    if place is None:
        return None
    if place["stem"]:
        index = 0
    else:
        stage = int(place["stage"])
        if place["end"]:
            if stage + 1 == len(depths):
                return None
            stage, block = stage + 1, 0
        else:
            block = int(place["block"])
        index = sum(depths[:stage]) + block
    return sum(depths) - 1 - index


def learning_rate_scale(name: str, depths: list[int], layer_decay: float, geometry_scale: float) -> float:
    """What the learning rate of a parameter of InternImage is multiplied by, from its name in the model."""
    layer = layer_from_the_end(name, depths)
    scale = 1.0 if layer is None else layer_decay**layer
    return scale * geometry_scale if any(part in name for part in _GEOMETRY) else scale


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    geometry_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, one for each learning rate with and without weight decay.

    Args:
        model: any model; with `layer_decay` or `geometry_scale`, one of InternImage's.
        learning_rate: of the last block and the head.
        weight_decay: of tensors with two or more dimensions that are no bias. Biases, norms and layer scales have none.
        layer_decay: factor of the learning rate from each block to the one before it.
        geometry_scale: factor of the learning rate of the projections to offsets and centre-feature scales (the
            original's DCN_LR_MUL, which there has no effect without layer decay).

    Returns:
        Dicts with `params`, `lr`, `weight_decay`, and `name` for logs.

    Raises:
        ValueError: for a scale with a model that is not InternImage, or no positive scale.

    Source: OpenGVLab/InternImage@31c962d, classification/optimizer.py.
    """
    scaled = layer_decay != 1 or geometry_scale != 1
    for name, value in (("layer_decay", layer_decay), ("geometry_scale", geometry_scale)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}, expected more than 0 and at most 1.")
    config: Any = getattr(model, "config", None)
    if scaled and getattr(config, "model_type", None) != "internimage":
        raise ValueError(
            f"layer_decay={layer_decay} and geometry_scale={geometry_scale} number InternImage's layers; for "
            f"{type(model).__name__} leave both at 1."
        )
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = _WRAPPERS.sub("", name)
        scale = learning_rate_scale(name, config.depths, layer_decay, geometry_scale) if scaled else 1.0
        decayed = parameter.dim() > 1 and not name.endswith(".bias")
        group = groups.setdefault(
            (scale, decayed),
            {
                "params": [],
                "lr": learning_rate * scale,
                "weight_decay": weight_decay if decayed else 0.0,
                "name": f"{scale:.3g}{'' if decayed else ' no decay'}",
            },
        )
        group["params"].append(parameter)
    # The last group has the full rate, from the head: the one that logs show should be the first.
    return sorted(groups.values(), key=lambda group: -group["lr"])


def cosine_learning_rate(
    step: int, *, base: float, steps: int, warmup_steps: int, warmup_start: float, minimum: float
) -> float:
    """The learning rate of one group at an optimizer step, counted from 0.

    Linear from `warmup_start`, the same for all groups, to `base` within the warm-up. Then on the cosine from `base` at
    step 0 to `minimum` at `steps`, which is so joined `warmup_steps` late, not at its top (timm's definition).
    """
    if step < warmup_steps:
        return warmup_start + (base - warmup_start) * step / warmup_steps
    progress = min(step / max(steps, 1), 1.0)
    return minimum + (base - minimum) * (1 + math.cos(math.pi * progress)) / 2


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int, warmup_start: float, minimum: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """`cosine_learning_rate` for every group of an optimizer, each from its own rate."""

    def factor(base: float) -> Any:
        def at(step: int) -> float:
            if base == 0:
                return 0.0
            rate = cosine_learning_rate(
                step, base=base, steps=steps, warmup_steps=warmup_steps, warmup_start=warmup_start, minimum=minimum
            )
            return rate / base

        return at

    bases: Iterable[float] = (group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(base) for base in bases])


__all__ = [
    "cosine_learning_rate",
    "cosine_schedule",
    "layer_from_the_end",
    "learning_rate_scale",
    "parameter_groups",
]
