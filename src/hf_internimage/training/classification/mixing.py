# SPDX-License-Identifier: MIT
"""Mixup and CutMix of a batch, with soft targets."""

from dataclasses import dataclass, field

import torch


@dataclass
class MixingArguments:
    """Settings of Mixup and CutMix for the images of a training batch. Both are off by default."""

    mixup_alpha: float = field(default=0.0, metadata={"help": "Mixup: parameter of its Beta distribution; 0 is off."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "CutMix: parameter of its Beta distribution; 0 is off."})
    mixing_probability: float = field(default=1.0, metadata={"help": "Probability of mixing a batch at all."})
    cutmix_share: float = field(default=0.5, metadata={"help": "Probability of CutMix if both are on."})

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 (off) or more.")
        for name in ("mixing_probability", "cutmix_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number between 0 and 1.")


def mix(
    pixel_values: torch.Tensor, targets: torch.Tensor, arguments: MixingArguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image with the image at its place in the reversed batch, by one share for the whole batch.

    Draws from torch's global generator on the CPU, whose state Trainer saves and restores.

    Args:
        pixel_values: (N, C, H, W).
        targets: probabilities, or zeros and ones for several classes an image, (N, classes).

    Returns:
        New pixel values and targets of the same shapes; the inputs themselves if nothing is mixed.

    Source: arXiv:1710.09412, arXiv:1905.04899; batch mode with one share a batch as in InternImage's recipe (timm's).
    """
    both = arguments.mixup_alpha > 0 and arguments.cutmix_alpha > 0
    if not (arguments.mixup_alpha or arguments.cutmix_alpha) or torch.rand(()) >= arguments.mixing_probability:
        return pixel_values, targets
    use_cutmix = bool(torch.rand(()) < arguments.cutmix_share) if both else arguments.cutmix_alpha > 0
    alpha = torch.tensor(arguments.cutmix_alpha if use_cutmix else arguments.mixup_alpha, dtype=torch.float64)
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    partner = pixel_values.flip(0)
    if use_cutmix:
        height, width = pixel_values.shape[-2:]
        top, bottom, left, right = _box(height, width, share)
        mixed = pixel_values.clone()
        mixed[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # of the box within the image
    else:
        mixed = torch.lerp(partner, pixel_values, share)
    return mixed, torch.lerp(targets.flip(0), targets, share)


def _box(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """Draw top, bottom, left, right of a rectangle of about 1 - share of the area, cut off at the image's border."""
    side = (1 - share) ** 0.5
    edges = []
    for length in (height, width):
        centre, half = int(torch.randint(length, ())), int(length * side) // 2
        edges += [max(centre - half, 0), min(centre + half, length)]
    return edges[0], edges[1], edges[2], edges[3]


__all__ = ["MixingArguments", "mix"]
