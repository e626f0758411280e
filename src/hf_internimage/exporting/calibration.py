# SPDX-License-Identifier: MIT
"""Images that tell the range of a model's numbers, for 8-bit files."""

from pathlib import Path
from typing import Any

import torch

from ..prediction.sources import list_inputs, read_sources


def read_calibration(folder: str | Path, image_processor: Any) -> tuple[torch.Tensor, ...]:
    """Return the pixels (1, C, H, W) of each image in a folder, as an image processor prepares them.

    Raises:
        ValueError: if there is no image processor, no such folder or no image in it, or one that cannot be read.
    """
    if image_processor is None:
        raise ValueError(
            "Calibration needs the model's image processor: give image_processor, or a folder that has one."
        )
    pixels = []
    for source in read_sources(list_inputs(folder)):
        if source.image is None:
            raise ValueError(f"{source.problem} Remove it from the folder of calibration.")
        pixels.append(image_processor(images=source.image, return_tensors="pt")["pixel_values"])
    return tuple(pixels)


__all__ = ["read_calibration"]
