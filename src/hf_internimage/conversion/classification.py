# SPDX-License-Identifier: MIT
"""Image classifiers of the original release in the layout of OpenGVLab's Hub repositories.

The same tensors have names in three layouts:

- original: `levels.0.blocks.0.gamma1`, `head.weight`; usually under the key `model` of a `.pth` file
- Hub: `model.levels.0.blocks.0.layer_scale1`, `model.head.weight`; the files that `save_pretrained` writes
- module: as Hub, but with the head beside the trunk, `head.weight`; the classifier's `state_dict()`

Source: names in OpenGVLab/InternImage@31c962d, classification/models/intern_image.py, and in its Hub repositories.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import torch

from ..models.configuration_internimage import SIZES, InternImageConfig
from ..models.modeling_internimage import InternImageForImageClassification
from ..tensors import Shapes, shapes_of
from .backbone import released_size
from .renaming import Converted

_LAYER_SCALE = re.compile(r"^(levels\.\d+\.blocks\.\d+\.)gamma([12])$")
_HEAD_WEIGHT, _HEAD_BIAS = "model.head.weight", "model.head.bias"


def hub_name(name: str) -> str:
    """Return the Hub's name of a tensor from its name in any of the three layouts; a prefix `module.` is ignored."""
    name = name.removeprefix("module.").removeprefix("model.")
    return "model." + _LAYER_SCALE.sub(r"\1layer_scale\2", name)


def to_hub_layout(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors under the Hub's names.

    Raises:
        ValueError: for two names that mean the same tensor.
    """
    renamed: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in state_dict.items():
        target = hub_name(name)
        if target in renamed:
            raise ValueError(f"{origin[target]!r} and {name!r} both mean {target!r}; remove one of them.")
        renamed[target], origin[target] = tensor, name
    return renamed


def count_labels(shapes: Shapes) -> int:
    """Return the number of classes: the rows of the head's weight, in Hub layout.

    Raises:
        ValueError: if that weight is missing or is not a matrix.
    """
    shape = tuple(shapes.get(_HEAD_WEIGHT, ()))
    if len(shape) != 2:
        raise ValueError(
            f"{_HEAD_WEIGHT} is {shape if _HEAD_WEIGHT in shapes else 'missing'}, expected (classes, features); give a "
            "complete InternImage classification checkpoint."
        )
    return shape[0]


def guess_size(shapes: Shapes) -> str:
    """Return the released size ("t" to "g") that has the channels and depths of these tensors, in Hub layout.

    Raises:
        ValueError: as `released_size`.
    """
    return released_size(shapes, "model.")


def guess_config(shapes: Shapes) -> InternImageConfig:
    """Return the configuration of the released size of these tensors, in Hub layout, with as many labels as their head.

    Only channels, depths and the head are read; `check_tensors` compares everything else.

    Raises:
        ValueError: as `guess_size` and `count_labels`.
    """
    return InternImageConfig.from_size(guess_size(shapes), num_labels=count_labels(shapes))


def map_head(
    state_dict: Mapping[str, torch.Tensor], indices: Sequence[int], count: int = 1000, max_repeats: int = 1
) -> dict[str, torch.Tensor]:
    """Return the tensors with other rows of the head: class i becomes class `indices[i]` of the old head.

    The original's list, classification/meta_data/map22kto1k.txt, turns an ImageNet-22K classifier into an ImageNet-1K
    one. That list names row 11136 twice, for the teapot and for the teddy bear, which ImageNet-22K does not have;
    therefore one repeat is allowed.

    Args:
        state_dict: tensors in Hub layout.
        indices: rows of the old head, 0-based, in the order of the new classes.
        count: expected number of indices.
        max_repeats: number of indices that may be repeats of others.

    Raises:
        ValueError: for another number of indices, a row that the head does not have, more repeats, or no head.

    Source: OpenGVLab/InternImage@31c962d, classification/meta_data.
    """
    rows = count_labels(shapes_of(state_dict))
    if tuple(state_dict[_HEAD_BIAS].shape if _HEAD_BIAS in state_dict else ()) != (rows,):
        raise ValueError(f"{_HEAD_BIAS} does not have the {rows} values of {_HEAD_WEIGHT}; give a complete checkpoint.")
    if len(indices) != count:
        raise ValueError(f"The head map has {len(indices)} indices, expected {count}, one for each new class.")
    outside = [index for index in indices if not 0 <= index < rows]
    if outside:
        raise ValueError(
            f"The head map has index {outside[0]}, but the head has rows 0 to {rows - 1}; give a map made for {rows} "
            "classes."
        )
    repeats = len(indices) - len(set(indices))
    if repeats > max_repeats:
        raise ValueError(f"The head map repeats {repeats} indices, expected at most {max_repeats}; correct the list.")
    picked = torch.tensor(list(indices), dtype=torch.long, device=state_dict[_HEAD_WEIGHT].device)
    return {**state_dict, **{name: state_dict[name].index_select(0, picked) for name in (_HEAD_WEIGHT, _HEAD_BIAS)}}


def matches(names: Collection[str]) -> bool:
    """Return True for names of an InternImage or FlashInternImage classifier, in any of the three layouts."""
    return any(hub_name(name).startswith(("model.patch_embed.", "model.levels.")) for name in names)


def convert(state_dict: Mapping[str, torch.Tensor], config: InternImageConfig) -> Converted:
    """Return all tensors in Hub layout, which the classifier's `load_state_dict` takes too.

    Raises:
        ValueError: as `to_hub_layout`.
    """
    return Converted(to_hub_layout(state_dict), {})


def build_model(config: InternImageConfig) -> InternImageForImageClassification:
    """Build the classifier of a configuration."""
    return InternImageForImageClassification(config)


__all__ = [
    "SIZES",
    "build_model",
    "convert",
    "count_labels",
    "guess_config",
    "guess_size",
    "hub_name",
    "map_head",
    "matches",
    "to_hub_layout",
]
