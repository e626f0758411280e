# SPDX-License-Identifier: MIT
"""Image classifiers: from the tensors of a file to a model with its weights and its image processor."""

from collections.abc import Mapping
from typing import Any

import torch

from ..checkpoints.classifiers import CHECKPOINTS, imagenet_1k_labels
from ..hub.repository import image_processor_for
from ..models.configuration_internimage import InternImageConfig
from ..tensors import Shapes, shapes_of
from .classification import convert, count_labels, guess_size, map_head
from .files import naming, read_text
from .labels import parse_indices
from .prepare_common import (
    Options,
    Prepared,
    build_with,
    has_names,
    read_fields,
    read_labels,
    set_labels,
    stated_config,
)
from .systems import System


def prepare_classifier(options: Options, system: System, state_dict: Mapping[str, torch.Tensor]) -> Prepared:
    """The classifier of a file's tensors.

    Raises:
        ValueError: for tensors that do not fit, and options that cannot work.
    """
    options.refuse(system, "checkpoint", "num_labels")
    fields = read_fields(options.config, system)
    labels = read_labels(options.labels)
    with naming(options.source):
        tensors = convert(state_dict, InternImageConfig()).tensors
        shapes = shapes_of(tensors)
        size = _guess_size(shapes) if options.config else options.size or guess_size(shapes)
        trained_classes = count_labels(shapes)
    classes = _stated_classes(fields)
    if options.head_map:
        classes = classes if classes is not None else len(labels or ()) or 1000
        with naming(options.head_map):
            tensors = map_head(tensors, parse_indices(read_text(options.head_map)), count=classes)
    elif classes is None:
        classes = trained_classes

    if options.config:
        fields = fields if fields.get("id2label") else {**fields, "num_labels": classes}
        config = stated_config(options.config, fields, system)
    else:
        config = InternImageConfig.from_size(str(size), num_labels=classes)
    wanted = options.image_size
    if wanted is None and fields.get("image_size") is None:
        wanted = published_image_size(size, trained_classes)
    height, width = _set_image_size(config, wanted)
    known = (imagenet_1k_labels(), "ImageNet-1K names")
    origin = set_labels(config, options.labels, labels, has_names(fields), (known,))
    with naming(options.source):
        model = build_with(system, config, tensors, options.dtype)
    name = f"InternImage-{size.upper()}" if size else "InternImage"
    lines = [
        f"{name}, {classes} classes ({origin}), {height}x{width} pixels, {str(options.dtype).removeprefix('torch.')}",
        f"{len(tensors)} tensors, {model.num_parameters():,} parameters",
    ]
    return Prepared(model, image_processor_for(height, width), lines)


def published_image_size(size: str | None, classes: int) -> int | None:
    """Resolution of the published checkpoint of this size and head; H has 384 with 22K classes and 640 with 1K."""
    sizes = [found.image_size for found in CHECKPOINTS if (found.size, found.num_labels) == (size, classes)]
    return sizes[0] if sizes else None


def _stated_classes(fields: Mapping[str, Any]) -> int | None:
    """The number of classes a config.json states, if it does."""
    for name in ("num_labels", "num_classes"):
        if fields.get(name) is not None:
            return fields[name]
    return len(fields["id2label"]) if fields.get("id2label") else None


def _guess_size(shapes: Shapes) -> str | None:
    try:
        return guess_size(shapes)
    except ValueError:
        return None


def _set_image_size(config: Any, wanted: int | None) -> tuple[int, int]:
    """Put the wanted size into the configuration, if any; returns its height and width, which the head can take."""
    config.image_size = config.image_size if wanted is None else wanted
    sides = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    height, width = sides[0], sides[-1]
    # The stage before the last has a stride of 16.
    if config.use_clip_projector and any(-(-side // 16) % 2 for side in (height, width)):
        raise ValueError(
            f"The image size is {height}x{width}, which the head of this model cannot take; choose an --image-size that"
            " is a multiple of 32."
        )
    return height, width


__all__ = ["prepare_classifier", "published_image_size"]
