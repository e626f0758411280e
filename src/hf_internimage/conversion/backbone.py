# SPDX-License-Identifier: MIT
"""The InternImage in a segmentation or detection checkpoint: its size, its configuration and its tensors' names."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

from ..models.configuration_flash_internimage import FlashInternImageConfig
from ..models.configuration_internimage import SIZES, InternImageConfig
from ..tensors import Shapes
from .renaming import Rule

ALL_STAGES = ("stage1", "stage2", "stage3", "stage4")


def is_flash(names: Collection[str]) -> bool:
    """Return True for names of a FlashInternImage, whose operator takes offsets and weights from one layer.

    Channels and depths of the released sizes are those of InternImage, and tell nothing.
    """
    return any(name.endswith(".dcn.offset_mask.weight") for name in names)


def released_size(shapes: Shapes, prefix: str = "backbone.") -> str:
    """Return the released size ("t" to "g") that has the channels and depths of the tensors under `prefix`.

    Raises:
        ValueError: if the tensors are not those of an InternImage, or not of a released size.
    """
    stem = tuple(shapes.get(f"{prefix}patch_embed.conv2.weight", ()))
    block = re.compile(rf"{re.escape(prefix)}levels\.(\d+)\.blocks\.(\d+)\.")
    blocks = {(int(match[1]), int(match[2])) for match in map(block.match, shapes) if match}
    count = Counter(level for level, _ in blocks)
    if not stem or not count:
        raise ValueError(
            f"Its {len(shapes)} tensors have no InternImage, which has {prefix}patch_embed.conv2.weight and "
            f"{prefix}levels.*.blocks.*; give an InternImage checkpoint."
        )
    channels = stem[0]
    depths = [count[level] for level in sorted(count)]
    size = size_of(channels, depths)
    if size is None:
        raise ValueError(
            f"channels={channels} and depths={depths} are those of no released size ({', '.join(SIZES)}); give the "
            "model's own configuration, or a complete file."
        )
    return size


def size_of(channels: int, depths: Sequence[int]) -> str | None:
    """Return the released size with these channels and depths, None if there is none."""
    for size in SIZES:
        config = InternImageConfig.from_size(size)
        if config.channels == channels and list(config.depths) == list(depths):
            return size
    return None


def backbone_config(
    shapes: Shapes, prefix: str = "backbone.", out_features: Sequence[str] = ALL_STAGES
) -> InternImageConfig:
    """Return the configuration of the backbone under `prefix`: its family and released size, without a head.

    A T in segmentation and detection has layer scale, unlike the T of classification; the names of the tensors tell.

    Raises:
        ValueError: as `released_size`.
    """
    scaled = f"{prefix}levels.0.blocks.0.gamma1" in shapes
    config_class = FlashInternImageConfig if is_flash(shapes) else InternImageConfig
    return config_class.from_size(
        released_size(shapes, prefix),
        num_labels=0,
        layer_scale=1.0 if scaled else None,
        use_clip_projector=False,
        out_features=list(out_features),
    )


def backbone_rules(prefix: str = "backbone.", target: str = "backbone.") -> list[Rule]:
    """Return rules for `rename`: from the original's names under `prefix` to names of an `InternImageBackbone`."""
    start = re.escape(prefix)
    return [
        (rf"{start}(levels\.\d+\.blocks\.\d+\.)gamma([12])", rf"{target}\1layer_scale\2"),
        (rf"{start}((?:patch_embed|levels)\.(?:(?!gamma[12]$).)+)", rf"{target}\1"),
    ]


__all__ = ["ALL_STAGES", "backbone_config", "backbone_rules", "is_flash", "released_size", "size_of"]
