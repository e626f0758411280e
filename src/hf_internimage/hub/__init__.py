# SPDX-License-Identifier: MIT
"""Model repositories and model cards: saved in a folder or pushed to the Hugging Face Hub."""

from .repository import (
    AUTO_MAPS,
    MAX_SHARD_SIZE,
    PushError,
    default_image_processor,
    image_processor_for,
    push,
    save_for_hub,
    short_card,
)

__all__ = [
    "AUTO_MAPS",
    "MAX_SHARD_SIZE",
    "PushError",
    "default_image_processor",
    "image_processor_for",
    "push",
    "save_for_hub",
    "short_card",
]
