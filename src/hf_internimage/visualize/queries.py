# SPDX-License-Identifier: MIT
"""Where the queries of a DINO detector sample."""

from typing import Any

import torch
from torch import nn

from ..models.modeling_internimage_dino import InternImageDinoForObjectDetection, InternImageDinoSampling
from .blocks import run
from .sampling import SamplingPoints


def query_points(
    model: InternImageDinoForObjectDetection, pixel_values: torch.Tensor, *, query: int | None = None, layer: int = -1
) -> SamplingPoints:
    """Return where a query of DINO's decoder samples the feature maps: for each head, points of all levels.

    `centre` is that of the query's box after the last layer, `positions` are (heads, levels * points, 2), and `weights`
    sum to 1 in each head.

    Args:
        model: the detector.
        pixel_values: one image as the model takes it, (1, C, H, W).
        query: row of the model's logits; None for the one with the highest score.
        layer: of the decoder, from 0; -1 is the last.

    Raises:
        ValueError: for another model, or a query or layer that is not there.
    """
    if not isinstance(model, InternImageDinoForObjectDetection):
        raise ValueError(f"{type(model).__name__} is no InternImageDinoForObjectDetection.")
    layers = model.decoder.layers
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer is {layer}, expected 0 to {len(layers) - 1}.")
    sampling = next(part for part in layers[layer].modules() if isinstance(part, InternImageDinoSampling))
    kept: dict[str, Any] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept["locations"], kept["weights"] = inputs[4:6]

    handles = [
        sampling.register_forward_pre_hook(keep),
        model.register_forward_hook(lambda module, inputs, output: kept.update(output=output)),
    ]
    try:
        run(model, pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    logits, boxes = kept["output"].logits[0], kept["output"].pred_boxes[0]
    chosen = int(logits.amax(-1).argmax()) if query is None else query
    if not 0 <= chosen < len(logits):
        raise ValueError(f"query is {query}, expected 0 to {len(logits) - 1}.")
    height, width = pixel_values.shape[2:]
    size = torch.tensor([width, height], dtype=torch.float64)
    # (heads, levels, points, 2), as parts of the image; a pixel's centre is whole.
    positions = kept["locations"][0, chosen].double().cpu().flatten(1, 2) * size - 0.5
    x, y = (boxes[chosen, :2].double().cpu() * size - 0.5).tolist()
    weights = kept["weights"][0, chosen].double().cpu().flatten(1)
    return SamplingPoints((x, y), positions.numpy(), weights.numpy(), 1, (height, width))


__all__ = ["query_points"]
