# SPDX-License-Identifier: MIT
"""The effective receptive field: how much each pixel of the image moves the centre of a feature map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .blocks import evaluating, find_stage, trunk_in


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of a feature pixel, averaged over images.

    Attributes:
        energy: (H, W), not negative; the sum is 1.
        centre: (x, y) of the feature pixel in the image, in pixels.
    """

    energy: np.ndarray
    centre: tuple[float, float]

    def share_within(self, radius: float) -> float:
        """Return the share of the energy at a distance of at most `radius` pixels from the centre."""
        return float(self.energy[self._distances() <= radius].sum())

    def radius_of(self, share: float) -> float:
        """Return the least radius in pixels within which that share of the energy lies.

        Raises:
            ValueError: for a share that is not between 0 and 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, expected a number above 0, at most 1.")
        distances = self._distances().ravel()
        order = np.argsort(distances, kind="stable")
        sums = np.cumsum(self.energy.ravel()[order])
        return float(distances[order][min(np.searchsorted(sums, share * sums[-1]), len(sums) - 1)])

    def _distances(self) -> np.ndarray:
        height, width = self.energy.shape
        lines, columns = np.mgrid[:height, :width]
        return np.hypot(columns - self.centre[0], lines - self.centre[1])


def effective_receptive_field(
    model: nn.Module | Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    *,
    stage: int = 4,
    batch_size: int = 1,
    mixtures: int = 4,
) -> ReceptiveField:
    """Return how much each pixel moves the feature pixel at the centre of a stage.

    That is the size of the derivative of the feature pixel's channels with respect to a pixel: the root of the sum of
    squares over channels and colours, estimated from random mixtures of the channels, and averaged over images. (The
    plain sum of the channels would not do: after a LayerNorm it is constant.)

    Args:
        model: a model with an InternImage in it; another model whose output has the `hidden_states` of the stem and the
            stages, (N, C, h, w) each, such as ConvNeXt; or a function from pixels to a feature map.
        pixel_values: images, (N, C, H, W). Random pixels show the architecture, real images what it does with them.
        stage: from 1; ignored for a function.
        batch_size: images at a time.
        mixtures: of the channels, which are the same at each call.

    The centre is where an InternImage's feature pixel lies, and the middle of the patch for other models.

    Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016.

    Raises:
        ValueError: for a stage that is not there, or a model without feature maps.

    >>> field = effective_receptive_field(model, torch.randn(8, 3, 224, 224), stage=3)  # doctest: +SKIP
    >>> field.radius_of(0.5)  # doctest: +SKIP
    """
    features_of = _features_of(model, stage) if isinstance(model, nn.Module) else model
    energy = np.zeros(pixel_values.shape[2:])
    size = (1, 1)
    with torch.enable_grad(), evaluating(model):
        for pixels in pixel_values.split(batch_size):
            leaf = pixels.detach().clone().requires_grad_()
            features = features_of(leaf)
            size = (features.shape[2], features.shape[3])
            channels = features[:, :, size[0] // 2, size[1] // 2]
            squares = torch.zeros_like(leaf[:, 0])
            for mixture in _mixtures(channels, mixtures):
                (gradient,) = torch.autograd.grad((channels * mixture).sum(), leaf, retain_graph=True)
                squares += gradient.square().sum(1)
            energy += squares.sqrt().sum(0).double().cpu().numpy()
    return ReceptiveField(energy / max(energy.sum(), 1e-300), _centre(model, energy.shape, size))


def _mixtures(channels: torch.Tensor, count: int) -> torch.Tensor:
    """Return weights of the channels (N, C), normal and always the same: (count, C)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels.shape[1], generator=generator).to(channels)


def _centre(model: Any, image_size: Sequence[int], size: tuple[int, int]) -> tuple[float, float]:
    """Return the (x, y) of the image over which the feature pixel at the centre of a map lies."""
    y, x = (_position(count // 2, side / count, model) for count, side in zip(size, image_size, strict=True))
    return x, y


def _position(index: int, pixels: float, model: Any) -> float:
    stride = 2 ** round(np.log2(pixels)) if pixels > 1 else 1  # the map's size may be rounded up
    if trunk_in(model) is not None:
        return float(index * stride)  # by its 3x3 convolutions of stride 2 and padding 1
    return index * stride + (stride - 1) / 2  # the middle of the patch of `stride` pixels


def _features_of(model: nn.Module, stage: int) -> Callable[[torch.Tensor], torch.Tensor]:
    trunk = trunk_in(model)
    if trunk is not None:
        find_stage(trunk, stage)  # raises for another one
        return lambda pixels: trunk.encode(pixels)[stage]

    def features(pixels: torch.Tensor) -> torch.Tensor:
        states = model(pixels, output_hidden_states=True, return_dict=True).get("hidden_states")
        if not states or any(state.dim() != 4 for state in states):
            raise ValueError(f"{type(model).__name__} returns no feature maps (N, C, h, w) as `hidden_states`.")
        if not 1 <= stage < len(states):
            raise ValueError(f"stage is {stage}, expected 1 to {len(states) - 1}.")
        return states[stage]

    return features


__all__ = ["ReceptiveField", "effective_receptive_field"]
