# SPDX-License-Identifier: MIT
"""Feature maps as colours."""

import numpy as np
import torch


def feature_colours(features: torch.Tensor) -> np.ndarray:
    """Return feature maps (N, C, H, W) as colours (N, H, W, 3) from 0 to 1: their three principal components.

    The components are those of all pixels of all images, so that equal colours mean similar features. Each is scaled
    from its 1st to its 99th percentile.

    Raises:
        ValueError: for another shape, or fewer than 3 channels.
    """
    if features.dim() != 4 or features.shape[1] < 3:
        raise ValueError(f"features has shape {tuple(features.shape)}, expected (N, C, H, W) with at least 3 channels.")
    count, channels, height, width = features.shape
    pixels = features.detach().permute(0, 2, 3, 1).reshape(-1, channels).double().cpu()
    pixels = pixels - pixels.mean(0)
    directions = torch.linalg.eigh(pixels.T @ pixels).eigenvectors[:, -3:].flip(1)
    # The sign of a component is arbitrary; this one is the same on every machine.
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    components = (pixels @ (directions * signs)).numpy()
    low, high = np.percentile(components, [1, 99], axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled.reshape(count, height, width, 3)


__all__ = ["feature_colours"]
