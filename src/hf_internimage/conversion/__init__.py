# SPDX-License-Identifier: MIT
"""Conversion of checkpoints of the original release, of every system, into models of transformers.

`convert` does it all. `inputs` reads the files that its options name, `prepare` makes a model and its image
processor of them, and `output` writes both. `systems` is the table of systems; each system has a module of functions on
names, shapes and tensors. The functions exported here are those of the image classifier and those that all systems use.
"""

from ..tensors import Shapes, cast_weights, check_tensors, find_state_dict, shapes_of
from .classification import SIZES, count_labels, guess_config, guess_size, hub_name, map_head, to_hub_layout
from .inputs import parse_indices, parse_labels

__all__ = [
    "SIZES",
    "Shapes",
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
