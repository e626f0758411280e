# SPDX-License-Identifier: MIT
"""Rename tensors by rules that must cover every tensor, so that none is lost or left at its initial value."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..tensors import listing

# A rule turns a matching name into a new one by a template for `re.Match.expand`, or into named tensors by a function.
Split = Callable[[re.Match[str], torch.Tensor], Mapping[str, torch.Tensor]]
Rule = tuple[str, str | Split]
Drop = tuple[str, str]

# mmdet's and mmcv's EMA hooks keep a second set of weights in buffers whose names have underscores for dots.
_EMA_COPY: Drop = (
    r"ema_\w+",
    "second set of weights of an EMA hook, which exchanges the two sets before a file is written",
)


@dataclass(frozen=True)
class Converted:
    """Tensors under the names of the target model's `state_dict`, and the tensors left out: source name -> reason."""

    tensors: dict[str, torch.Tensor]
    dropped: dict[str, str]


def rename(state_dict: Mapping[str, torch.Tensor], rules: Sequence[Rule], drops: Sequence[Drop] = ()) -> Converted:
    """Return the tensors under new names. Each whole name must match exactly one rule or drop.

    Args:
        state_dict: source tensors; a prefix `module.` (of DistributedDataParallel) is ignored.
        rules: pairs of a regular expression and a template such as `r"decoder.\\1.fc1"`, or a function from the match
            and the tensor to named tensors, where one tensor becomes several or changes shape.
        drops: pairs of a regular expression and the reason, shown to the user. Copies of an EMA hook (`ema_*`) are
            dropped without being listed here.

    Raises:
        ValueError: if names match nothing or several entries, or if two of them mean the same tensor.
    """
    compiled = [(re.compile(pattern), action) for pattern, action in rules]
    dropping = [(re.compile(pattern), reason) for pattern, reason in (*drops, _EMA_COPY)]
    converted = Converted({}, {})
    origin: dict[str, str] = {}
    unknown: list[str] = []
    for source, tensor in state_dict.items():
        name = source.removeprefix("module.")
        matched = [(match, action) for pattern, action in compiled if (match := pattern.fullmatch(name))]
        reasons = [reason for pattern, reason in dropping if pattern.fullmatch(name)]
        if len(matched) + len(reasons) > 1:
            raise ValueError(f"{source!r} matches {len(matched) + len(reasons)} renaming rules, expected one.")
        if reasons:
            converted.dropped[source] = reasons[0]
        elif not matched:
            unknown.append(source)
        else:
            match, action = matched[0]
            renamed = {match.expand(action): tensor} if isinstance(action, str) else action(match, tensor)
            for target, value in renamed.items():
                if target in converted.tensors:
                    raise ValueError(f"{origin[target]!r} and {source!r} both mean {target!r}; remove one of them.")
                converted.tensors[target], origin[target] = value, source
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors have names that this system does not have ({listing(unknown)}); give a file of "
            "the original release."
        )
    return converted


def split_in_three(*names: str) -> Split:
    """Return the function of a rule that splits a packed projection (3*F, ...) into query, key and value.

    Args:
        names: templates of the three names.
    """

    def split(match: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if not tensor.ndim or tensor.shape[0] % 3:
            raise ValueError(
                f"{match.string} has shape {tuple(tensor.shape)}, expected rows for query, key and value: three times "
                "the same number."
            )
        return {match.expand(name): part for name, part in zip(names, tensor.chunk(3), strict=True)}

    return split


__all__ = ["Converted", "Drop", "Rule", "Split", "rename", "split_in_three"]
