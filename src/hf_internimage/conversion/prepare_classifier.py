# SPDX-License-Identifier: MIT
"""Image classifiers: from the tensors of a file to a model with its weights and its image processor."""

from collections.abc import Mapping
from typing import Any

from ..checkpoints.classifiers import CHECKPOINTS, FLASH_CHECKPOINTS, imagenet_1k_labels
from ..models import auto
from ..models.image_processing_pil_internimage import image_processor_for
from ..tensors import Shapes, shapes_of
from .build import Prepared, build_model, set_labels
from .classification import count_labels, guess_size, map_head, to_hub_layout
from .inputs import InputError, Inputs, errors_prefixed_with


def prepare_classifier(inputs: Inputs) -> Prepared:
    """Convert the tensors of a classifier and build its model and image processor.

    Raises:
        ValueError: for tensors that do not fit, and options that cannot work.
    """
    options, fields = inputs.options, inputs.config_fields
    tensors = to_hub_layout(inputs.state_dict)
    shapes = shapes_of(tensors)
    size = _guess_size(shapes) if inputs.config else options.size or guess_size(shapes)
    trained_classes = count_labels(shapes)
    classes = _stated_classes(fields)
    if options.head_map and inputs.head_rows is not None:
        classes = classes if classes is not None else len(inputs.labels or ()) or 1000
        with errors_prefixed_with(options.head_map):
            tensors = map_head(tensors, inputs.head_rows, count=classes)
    elif classes is None:
        classes = trained_classes

    model_type = inputs.system.model_type
    config_class: Any = auto.load(auto.MODELS[model_type].config)
    config: Any = inputs.config or config_class.from_size(str(size), num_labels=classes)
    if not fields.get("id2label"):
        config.num_labels = classes
    image_size = options.image_size
    if image_size is None and fields.get("image_size") is None:
        image_size = published_image_size(size, trained_classes, model_type)
    height, width = _set_image_size(config, image_size)
    origin = set_labels(config, inputs.labels, options.labels, imagenet_1k_labels(), "ImageNet-1K names")
    model = build_model(inputs.system, config, tensors, options.dtype)
    family = config_class.__name__.removesuffix("Config")
    title = f"{family}-{size.upper()}" if size else family
    lines = [
        f"{title}, {classes} classes ({origin}), {height}x{width} pixels, {str(options.dtype).removeprefix('torch.')}",
        f"{len(tensors)} tensors, {model.num_parameters():,} parameters",
    ]
    return Prepared(model, image_processor_for(height, width), lines)


def published_image_size(size: str | None, classes: int, model_type: str = "internimage") -> int | None:
    """Return the resolution of the published classifier of this size and number of classes, None if there is none.

    H, for example, has 384 pixels with 21841 classes and 640 with 1000.
    """
    for checkpoint in (*CHECKPOINTS, *FLASH_CHECKPOINTS):
        if (checkpoint.model_type, checkpoint.size, checkpoint.num_labels) == (model_type, size, classes):
            return checkpoint.image_size
    return None


def _stated_classes(fields: Mapping[str, Any]) -> int | None:
    """Return the number of classes that a config.json states, None if it states none."""
    for name in ("num_labels", "num_classes"):
        if fields.get(name) is not None:
            return fields[name]
    return len(fields["id2label"]) if fields.get("id2label") else None


def _guess_size(shapes: Shapes) -> str | None:
    try:
        return guess_size(shapes)
    except ValueError:
        return None


def _set_image_size(config: Any, image_size: int | None) -> tuple[int, int]:
    """Put the image size into the configuration unless it is None. Returns the configured height and width.

    Raises:
        InputError: if the head of the model cannot take images of this size.
    """
    config.image_size = config.image_size if image_size is None else image_size
    sides = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    height, width = sides[0], sides[-1]
    # The stage before the last has a stride of 16.
    if config.use_clip_projector and any(-(-side // 16) % 2 for side in (height, width)):
        raise InputError(
            f"The image size is {height}x{width}, which the head of this model cannot take; choose an --image_size that"
            " is a multiple of 32."
        )
    return height, width


__all__ = ["prepare_classifier", "published_image_size"]
