# SPDX-License-Identifier: MIT
"""What the user has asked of an export."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """The settings of an export that its target needs.

    Attributes:
        image_size: (height, width) in pixels.
        dynamic: whether the file takes any size and batch, else one image of `image_size`.
        image_processor: the model's, or None.
        masked: whether the file takes `pixel_mask` (N, H, W) as well.
        precision: "float32", "half" or "int8".
    """

    image_size: tuple[int, int]
    dynamic: bool = True
    image_processor: Any = None
    masked: bool = False
    precision: str = "float32"


__all__ = ["Options"]
