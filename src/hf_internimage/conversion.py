# SPDX-License-Identifier: MIT
"""Checkpoints of the original release in the layout of OpenGVLab's Hub repositories. Pure functions: no files.

Three layouts of one set of tensors:

- original: `levels.0.blocks.0.gamma1`, `head.weight`; usually under the key `model` of a `.pth` file
- Hub: `model.levels.0.blocks.0.layer_scale1`, `model.head.weight`; what `save_pretrained` writes
- module: as Hub, but with the head beside the trunk, `head.weight`; what `state_dict()` of the classifier says

Source: names in OpenGVLab/InternImage@31c962d, classification/models/intern_image.py, and in its Hub repositories.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from .configuration_internimage import SIZES, InternImageConfig

Shapes = Mapping[str, Sequence[int]]

_LISTED = 3  # names an error lists of each kind
_LAYER_SCALE = re.compile(r"^(levels\.\d+\.blocks\.\d+\.)gamma([12])$")
_BLOCK = re.compile(r"^model\.levels\.(\d+)\.blocks\.(\d+)\.")
_STEM = "model.patch_embed.conv2.weight"
_HEAD_WEIGHT, _HEAD_BIAS = "model.head.weight", "model.head.bias"


def find_state_dict(checkpoint: object) -> dict[str, torch.Tensor]:
    """The tensors of a loaded file: those under `model`, else those under `state_dict`, else the file itself.

    An exponential moving average beside them (`model_ema`) is left alone, as in the original's own conversion.

    Raises:
        ValueError: if there is no non-empty dict from names to tensors.
    """
    if isinstance(checkpoint, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        found = "an empty dict" if isinstance(checkpoint, Mapping) else f"a {type(checkpoint).__name__}"
        raise ValueError(
            f"Found {found} in place of a state dict; give a file with named tensors, flat or under the key 'model'."
        )
    for name, tensor in checkpoint.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"Entry {name!r} is a {type(tensor).__name__}, not a tensor; give a state dict, flat or under the key "
                "'model'."
            )
    return dict(checkpoint)


def hub_name(name: str) -> str:
    """The Hub's name of a tensor, from its name in any of the three layouts, with or without the prefix `module.`."""
    name = name.removeprefix("module.").removeprefix("model.")
    return "model." + _LAYER_SCALE.sub(r"\1layer_scale\2", name)


def to_hub_layout(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the Hub's names.

    Raises:
        ValueError: for a detection or segmentation checkpoint, and for two names that mean the same tensor.
    """
    _refuse_dense_prediction(state_dict)
    renamed: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in state_dict.items():
        target = hub_name(name)
        if target in renamed:
            raise ValueError(f"{origin[target]!r} and {name!r} both mean {target!r}; remove one of them.")
        renamed[target], origin[target] = tensor, name
    return renamed


def _refuse_dense_prediction(names: Iterable[str]) -> None:
    parts = {name.removeprefix("module.").split(".")[0] for name in names}
    if "backbone" not in parts:
        return
    if parts & {"decode_head", "auxiliary_head"}:
        kind = "a segmentation checkpoint"
    elif parts & {"bbox_head", "roi_head", "rpn_head"}:
        kind = "a detection checkpoint"
    else:
        kind = "a detection or segmentation checkpoint"
    listed = ", ".join(f"{part}.*" for part in sorted(parts)[:5])
    raise ValueError(
        f"This is {kind} (its tensors are {listed}), which has no image classifier; give a classification checkpoint."
    )


def shapes_of(state_dict: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def count_labels(shapes: Shapes) -> int:
    """Number of classes: rows of the head's weight, in Hub layout.

    Raises:
        ValueError: if there is no such matrix.
    """
    shape = tuple(shapes.get(_HEAD_WEIGHT, ()))
    if len(shape) != 2:
        raise ValueError(
            f"{_HEAD_WEIGHT} is {shape if _HEAD_WEIGHT in shapes else 'missing'}, expected (classes, features); give a "
            "complete InternImage classification checkpoint."
        )
    return shape[0]


def guess_size(shapes: Shapes) -> str:
    """The released size ("t" to "g") whose channels and depths these tensors, in Hub layout, have.

    Raises:
        ValueError: if they are not of an InternImage, or of one that was not released.
    """
    stem = tuple(shapes.get(_STEM, ()))
    blocks = {(int(match[1]), int(match[2])) for match in map(_BLOCK.match, shapes) if match}
    count = Counter(level for level, _ in blocks)
    if not stem or not count:
        raise ValueError(
            f"Its {len(shapes)} tensors are not those of an InternImage classifier, which has {_STEM} and "
            "model.levels.*.blocks.*; give an InternImage checkpoint."
        )
    channels = stem[0]
    depths = [count[level] for level in sorted(count)]
    for size in SIZES:
        config = InternImageConfig.from_size(size)
        if config.channels == channels and list(config.depths) == depths:
            return size
    raise ValueError(
        f"channels={channels} and depths={depths} are those of no released size ({', '.join(SIZES)}); give the model's "
        "own configuration, or a complete file."
    )


def guess_config(shapes: Shapes) -> InternImageConfig:
    """Configuration of the released size that the tensors, in Hub layout, belong to, with as many labels as they have.

    Only channels and depths are looked at; `check_tensors` says whether everything else fits too.

    Raises:
        ValueError: as `guess_size` and `count_labels`.
    """
    return InternImageConfig.from_size(guess_size(shapes), num_labels=count_labels(shapes))


def check_tensors(found: Shapes, expected: Shapes) -> None:
    """Raise ValueError unless names and shapes agree exactly; it counts and lists what does not."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{len(names)} {kind} ({_listing(names)})" for kind, names in kinds if names]
    if problems:
        raise ValueError(
            f"The tensors do not fit the model: {', '.join(problems)}; give a complete file, or the configuration it "
            "was trained with."
        )


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def map_head(
    state_dict: Mapping[str, torch.Tensor], indices: Sequence[int], count: int = 1000, max_repeats: int = 1
) -> dict[str, torch.Tensor]:
    """The same tensors, in Hub layout, with rows of the head picked: class i of the result is `indices[i]` of the old.

    Turns an ImageNet-22K classifier into an ImageNet-1K one with the original's list,
    classification/meta_data/map22kto1k.txt. That list names row 11136 twice, for the teapot and for the teddy bear,
    which ImageNet-22K does not have; hence one repeat is allowed.

    Args:
        state_dict: tensors in Hub layout.
        indices: rows to pick, 0-based, in the order of the new classes.
        count: how many there must be.
        max_repeats: how many of them may be there already.

    Raises:
        ValueError: for another count, a row the head does not have, more repeats, or no head.

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


def cast_weights(state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The same tensors as `dtype`, contiguous, each with memory of its own; `num_batches_tracked` stays an integer.

    Raises:
        ValueError: for a weight that is not a dense floating-point tensor, is not finite, or is too large for `dtype`.
    """
    taken: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        if not name.endswith("num_batches_tracked"):
            if tensor.layout is not torch.strided or not tensor.is_floating_point():
                raise ValueError(
                    f"{name} is {tensor.dtype} with layout {tensor.layout}, expected dense floating-point values; give "
                    "a checkpoint that is not quantised."
                )
            source, tensor = tensor, tensor.to(dtype)
            if not _is_finite(tensor):
                raise ValueError(
                    f"{name} has values that are too large for {dtype}; choose bfloat16 or float32."
                    if _is_finite(source.double())
                    else f"{name} has values that are not finite; give an undamaged checkpoint."
                )
        tensor = tensor.contiguous()
        # Views of one buffer would be refused as tied weights when saved.
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.numel() or all(math.isfinite(bound) for bound in tensor.aminmax())  # NaN is both bounds


def parse_indices(text: str) -> list[int]:
    """The integers of a head map, one a line, blank lines at the end allowed.

    Raises:
        ValueError: for a line that is no integer.
    """
    indices = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        try:
            indices.append(int(line))
        except ValueError:
            raise ValueError(f"Line {number} is {line[:40]!r}, expected one integer on each line.") from None
    return indices


def parse_labels(text: str, is_json: bool) -> list[str]:
    """Class names in the order of the outputs: one a line, or a JSON list of names or object {"0": name, ...}.

    Raises:
        ValueError: for invalid JSON, an entry that is no name, or ids that are not 0 to n-1.
    """
    if not is_json:
        names: list[object] = [line.strip() for line in text.rstrip().splitlines()]
    else:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Invalid JSON ({error}); give a list of names or an object from id to name.") from None
        if isinstance(data, dict):
            ids = [str(index) for index in range(len(data))]
            if set(data) != set(ids):
                raise ValueError(f"The {len(data)} ids are not 0 to {len(data) - 1}; give one name for each class.")
            data = [data[index] for index in ids]
        if not isinstance(data, list):
            raise ValueError(f"Found a {type(data).__name__}, expected a list of names or an object from id to name.")
        names = data
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"The name of class {index} is {name!r}, expected text.")
    return [str(name) for name in names]


__all__ = [
    "SIZES",
    "cast_weights",
    "check_tensors",
    "count_labels",
    "find_state_dict",
    "guess_config",
    "guess_size",
    "hub_name",
    "map_head",
    "parse_indices",
    "parse_labels",
    "shapes_of",
    "to_hub_layout",
]
