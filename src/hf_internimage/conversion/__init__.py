# SPDX-License-Identifier: MIT
"""Checkpoints of the original release, of every system, turned into models of transformers.

`systems` finds the system a file belongs to; each system has a module of its own, of functions that touch no files.
`prepare` goes from a file to a model with its image processor, `files` reads and writes. The functions exported here
are those of the image classifier and what all systems share.
"""

from ..tensors import Shapes, cast_weights, check_tensors, find_state_dict, shapes_of
from .classification import SIZES, count_labels, guess_config, guess_size, hub_name, map_head, to_hub_layout
from .labels import parse_indices, parse_labels

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
