# SPDX-License-Identifier: MIT
"""See where a model samples, what it reads, and what it has learned: numbers as arrays, pictures as figures."""

from .activation import attribution, class_activation_map
from .features import feature_colours
from .figures import (
    draw_map,
    draw_offset_statistics,
    draw_receptive_fields,
    draw_sampling_points,
    to_images,
)
from .offset_statistics import BlockOffsets, offset_statistics
from .queries import query_points
from .receptive_field import ReceptiveField, effective_receptive_field
from .sampling import SamplingPoints, sampling_points

__all__ = [
    "BlockOffsets",
    "ReceptiveField",
    "SamplingPoints",
    "attribution",
    "class_activation_map",
    "draw_map",
    "draw_offset_statistics",
    "draw_receptive_fields",
    "draw_sampling_points",
    "effective_receptive_field",
    "feature_colours",
    "offset_statistics",
    "query_points",
    "sampling_points",
    "to_images",
]
