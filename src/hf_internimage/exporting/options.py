# SPDX-License-Identifier: MIT
"""What the user has asked of an export."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The settings of an export that its target needs.

    Attributes:
        image_size: (height, width) in pixels.
        dynamic: whether the file takes any size and batch, else one image of `image_size`.
    """

    image_size: tuple[int, int]
    dynamic: bool = True


__all__ = ["Options"]
