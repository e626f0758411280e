# SPDX-License-Identifier: MIT
"""Learning rates by layer and by step, as in the original's recipes."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..models import auto

# The original's multiplier for the operator's learned geometry applies to parameters with these names.
_GEOMETRY = ("offset", "attention_weights", "center_feature_scale_proj", "alpha_beta")
# Prefixes that wrappers add to the names of parameters.
_WRAPPERS = re.compile(r"\b(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# Names of the parameters that give the sampling points of a detector's deformable attention.
_SAMPLING = ("sampling_offsets", "reference_points")
_BACKBONE_PARAMETER = re.compile(
    r"^(?:model\.)?(?:(?P<stem>patch_embed)|levels\.(?P<stage>\d+)\.(?:blocks\.(?P<block>\d+)|(?P<end>downsample|norm)))\."
)


def layer_from_the_end(name: str, depths: list[int]) -> int | None:
    """Return the layer number of a parameter, counted as in the original's classification: back from the last block, 0.

    The stem counts as the first block; a stage's downsampling and norm count as the next stage's first block. The
    result is None for parameters with the full rate: the head, the last stage's norm, and the norms between the third
    stage's blocks.

    Source: OpenGVLab/InternImage@31c962d, classification/optimizer.py.
    """
    match = _BACKBONE_PARAMETER.match(name)
    if match is None:
        return None
    if match["stem"]:
        index = 0
    else:
        stage = int(match["stage"])
        if match["end"]:
            if stage + 1 == len(depths):
                return None
            stage, block = stage + 1, 0
        else:
            block = int(match["block"])
        index = sum(depths[:stage]) + block
    return sum(depths) - 1 - index


def learning_rate_scale(name: str, depths: list[int], layer_decay: float, geometry_scale: float) -> float:
    """Return the factor of the learning rate of a parameter of InternImage, from its name in the model."""
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
    """Return groups for a torch optimizer, one for each learning rate with and without weight decay.

    Args:
        model: any model; with `layer_decay` or `geometry_scale`, one of InternImage's.
        learning_rate: of the last block and the head.
        weight_decay: of tensors with two or more dimensions that are not biases; others have none.
        layer_decay: factor of the learning rate from each block to the one before it.
        geometry_scale: factor of the learning rate of the projections to offsets and centre-feature scales (the
            original's DCN_LR_MUL, which there has no effect without layer decay).

    Returns:
        Dicts with `params`, `lr`, `weight_decay`, and `name` for logs.

    Raises:
        ValueError: for a scale other than 1 with a model that is not InternImage, or a scale outside (0, 1].

    Source: OpenGVLab/InternImage@31c962d, classification/optimizer.py.
    """
    scaled = layer_decay != 1 or geometry_scale != 1
    _check_scales(layer_decay=layer_decay, geometry_scale=geometry_scale)
    config: Any = getattr(model, "config", None)
    if scaled and getattr(config, "model_type", None) not in auto.model_types("AutoModelForImageClassification"):
        raise ValueError(
            f"layer_decay={layer_decay} and geometry_scale={geometry_scale} number InternImage's layers; for "
            f"{type(model).__name__} leave both at 1."
        )

    def scale(name: str) -> float:
        return learning_rate_scale(name, config.depths, layer_decay, geometry_scale) if scaled else 1.0

    def decayed(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1 and not name.endswith(".bias")

    return _grouped(model, learning_rate, weight_decay, scale, decayed)


def _check_scales(**scales: float) -> None:
    for name, value in scales.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}, expected more than 0 and at most 1.")


def _grouped(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    scale_of: Callable[[str], float],
    is_decayed: Callable[[str, nn.Parameter], bool],
) -> list[dict[str, Any]]:
    """Return one group for each learning rate and weight decay, the highest rate first."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = _WRAPPERS.sub("", name)
        scale, decayed = scale_of(name), is_decayed(name, parameter)
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
    # Logs show the rate of the first group: this should be the full rate, that of the head.
    return sorted(groups.values(), key=lambda group: -group["lr"])


def layer_from_the_start(name: str, depths: Sequence[int]) -> int | None:
    """Return the layer number of a backbone parameter as the original's segmentation and detection count.

    The stem is 0, the first block 1. A stage's downsampling and norm count as the next stage's first block; those of
    the last stage count as the last stage's first block. The norms between the third stage's blocks are counted by
    their own index, as if it were a block's. The result is None for parameters outside the layers of a backbone.

    Args:
        name: name in the backbone, such as `levels.0.blocks.0.norm1.0.weight`.

    Source: OpenGVLab/InternImage@31c962d, segmentation/mmcv_custom and detection/mmcv_custom.
    """
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return 0
    if parts[0] != "levels":
        return None
    stage = int(parts[1])
    if parts[2] in ("blocks", "post_norms"):
        return 1 + sum(depths[:stage]) + int(parts[3])
    return 1 + sum(depths[: min(stage + 1, len(depths) - 1)])


def system_parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    backbone_scale: float = 1.0,
    sampling_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Return groups for a torch optimizer, for a model for segmentation or detection.

    Args:
        model: any model; with `layer_decay`, one whose backbone is an InternImage or a composite of several.
        learning_rate: of everything outside the backbone.
        weight_decay: of tensors with two or more dimensions that belong neither to a bias nor to a norm.
        layer_decay: factor of the learning rate from each block of the backbone to the one before it. The last block
            is one factor below the head.
        backbone_scale: factor of the whole backbone's learning rate.
        sampling_scale: factor for the sampling points of deformable attention (`sampling_offsets` and
            `reference_points`): the original's offset_lr_scale, which does not apply to offsets of DCNv3.

    Returns:
        Dicts with `params`, `lr`, `weight_decay`, and `name` for logs.

    Raises:
        ValueError: for a backbone's scale other than 1 without an InternImage, or a scale outside (0, 1].

    Source: OpenGVLab/InternImage@31c962d, segmentation/mmcv_custom. One difference: there, queries and the class and
    mask predictors of Mask2Former have the stem's learning rate; here they have the full rate.
    """
    _check_scales(layer_decay=layer_decay, backbone_scale=backbone_scale, sampling_scale=sampling_scale)
    backbones = {
        _WRAPPERS.sub("", f"{name}." if name else ""): [len(stage.blocks) for stage in module.levels]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "levels", None), nn.ModuleList)
        and all(hasattr(stage, "blocks") for stage in module.levels)
    }
    if not backbones and (layer_decay != 1 or backbone_scale != 1):
        raise ValueError(
            f"layer_decay={layer_decay} and backbone_scale={backbone_scale} are for an InternImage backbone, which "
            f"{type(model).__name__} does not have; leave both at 1."
        )

    def scale(name: str) -> float:
        result = sampling_scale if any(part in name for part in _SAMPLING) else 1.0
        for prefix, depths in backbones.items():
            layer = layer_from_the_start(name.removeprefix(prefix), depths) if name.startswith(prefix) else None
            if layer is not None:
                result *= backbone_scale * layer_decay ** (sum(depths) + 1 - layer)
        return result

    def decayed(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1 and not name.endswith(".bias") and "norm" not in name

    return _grouped(model, learning_rate, weight_decay, scale, decayed)


def cosine_learning_rate(
    step: int, *, base: float, steps: int, warmup_steps: int, warmup_start: float, minimum: float
) -> float:
    """Return the learning rate of one group at an optimizer step, counted from 0.

    In the warm-up it is linear from `warmup_start`, the same for all groups, to `base`. Then it is on the cosine from
    `base` at step 0 to `minimum` at `steps`: as in timm, the cosine counts the steps of the warm-up, too.
    """
    if step < warmup_steps:
        return warmup_start + (base - warmup_start) * step / warmup_steps
    progress = min(step / max(steps, 1), 1.0)
    return minimum + (base - minimum) * (1 + math.cos(math.pi * progress)) / 2


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int, warmup_start: float, minimum: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a scheduler that applies `cosine_learning_rate` to every group of an optimizer, with its own base rate."""

    def factor(base: float) -> Any:
        def factor_at(step: int) -> float:
            if base == 0:
                return 0.0
            rate = cosine_learning_rate(
                step, base=base, steps=steps, warmup_steps=warmup_steps, warmup_start=warmup_start, minimum=minimum
            )
            return rate / base

        return factor_at

    bases: Iterable[float] = (group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(base) for base in bases])


def drop_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
    power: float = 0.0,
    drops: Sequence[float] = (),
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule of the original's segmentation (polynomial) or detection (drops to a tenth).

    The factor of every group's rate at step s is (1 - s / steps)^power, times 0.1 for each drop that has been passed.
    In the warm-up it is also multiplied by a factor that grows linearly from `warmup_start` to 1. As in mmcv, the
    polynomial begins with the warm-up, not after it.

    Args:
        steps: optimizer steps of the whole training.
        warmup_steps: steps of the warm-up, the first of them.
        warmup_start: factor at the first step.
        power: 1 for a straight line to 0; 0 for a constant.
        drops: points of the training at which the rate drops, as shares between 0 and 1.
    """

    def factor(step: int) -> float:
        progress = min(step / max(steps, 1), 1.0)
        regular = (1 - progress) ** power * 0.1 ** sum(progress >= drop for drop in drops)
        if step >= warmup_steps:
            return regular
        return regular * (warmup_start + (1 - warmup_start) * step / warmup_steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


__all__ = [
    "cosine_learning_rate",
    "cosine_schedule",
    "drop_schedule",
    "layer_from_the_end",
    "layer_from_the_start",
    "learning_rate_scale",
    "parameter_groups",
    "system_parameter_groups",
]
