# SPDX-License-Identifier: MIT
"""Which parts of an image speak for a class."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .blocks import find_stage, find_trunk


def class_activation_map(
    model: nn.Module, pixel_values: torch.Tensor, *, label: int | None = None, stage: int = 4
) -> np.ndarray:
    """Return where a stage's features speak for a class, (N, H, W), not negative: Grad-CAM.

    Args:
        model: an InternImage classifier in evaluation mode.
        pixel_values: (N, C, H, W).
        label: class; None for the one that the model predicts for each image.
        stage: from 1.

    Source: Selvaraju et al., "Grad-CAM", 2017.

    Raises:
        ValueError: for a stage or class that is not there.
    """
    kept: list[torch.Tensor] = []
    handle = find_stage(find_trunk(model), stage).register_forward_hook(
        lambda module, inputs, output: kept.append(output[0])
    )
    try:
        with torch.enable_grad():
            logits = model(pixel_values.detach().requires_grad_()).logits
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, _labels(logits, label)).sum(), kept[0])
    activation = (kept[0] * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    return F.interpolate(activation, pixel_values.shape[2:], mode="bilinear")[:, 0].detach().cpu().numpy()


def attribution(
    model: nn.Module, pixel_values: torch.Tensor, *, label: int | None = None, steps: int = 32
) -> np.ndarray:
    """Return how much each pixel adds to a class's score, (N, H, W): integrated gradients from black, colours summed.

    Args:
        model: a classifier in evaluation mode.
        pixel_values: (N, C, H, W).
        label: class; None for the one that the model predicts for each image.
        steps: of the integral.

    Raises:
        ImportError: without captum.
        ValueError: for a class that is not there.
    """
    from captum.attr import IntegratedGradients

    def scores(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixels).logits

    with torch.no_grad():
        target = _labels(scores(pixel_values), label).squeeze(1)
    values = IntegratedGradients(scores).attribute(
        pixel_values, target=target, n_steps=steps, internal_batch_size=pixel_values.shape[0]
    )
    return values.sum(1).detach().cpu().numpy()


def _labels(logits: torch.Tensor, label: int | None) -> torch.Tensor:
    """Return the class of each image, (N, 1)."""
    if label is None:
        return logits.argmax(1, keepdim=True)
    if not 0 <= label < logits.shape[1]:
        raise ValueError(f"label is {label}, expected 0 to {logits.shape[1] - 1}.")
    return torch.full_like(logits[:, :1], label, dtype=torch.int64)


__all__ = ["attribution", "class_activation_map"]
