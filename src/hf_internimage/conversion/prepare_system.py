# SPDX-License-Identifier: MIT
"""Segmenters and detectors: from the tensors of a file to a model with its weights and its image processor."""

from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from ..checkpoints.systems import SEMANTIC_SEGMENTATION, SYSTEM_CHECKPOINTS, SystemCheckpoint, find_checkpoint
from ..models.configuration_flash_internimage import FlashInternImageConfig
from ..models.image_processing_internimage_detection import InternImageDetectionImageProcessor
from ..models.image_processing_internimage_segmentation import InternImageSegmentationImageProcessor
from ..tensors import listing, shapes_of
from .backbone import size_of
from .build import Prepared, build_model, set_labels
from .inputs import Inputs
from .renaming import Converted
from .systems import System
from .upernet import keep_labels


def prepare_system(inputs: Inputs) -> Prepared:
    """Convert the tensors of a segmenter or detector and build its model and image processor.

    Raises:
        ValueError: for tensors that do not fit, and options that cannot work.
        ImportError: if the model needs a package that is not installed.
    """
    options, system, state_dict = inputs.options, inputs.system, inputs.state_dict
    if options.num_labels is not None:
        state_dict = keep_labels(state_dict, options.num_labels)
    config = inputs.config
    if config is None:
        shapes = {name.removeprefix("module."): shape for name, shape in shapes_of(state_dict).items()}
        config = system.conversion.guess_config(shapes)
    size = _backbone_size(config)
    is_flash = config.backbone_config.model_type == FlashInternImageConfig.model_type
    family = "FlashInternImage" if is_flash else "InternImage"
    title = f"{system.title} with {f'{family}-{size.upper()}' if size else f'an {family}'}"
    if options.size not in (None, size):
        raise ValueError(
            f"This is {title} by its channels and depths, not a model of size {options.size!r}; leave --size out."
        )
    if is_flash and options.checkpoint is not None:
        raise ValueError(f"This is {title}, and --checkpoint names published files of InternImage; leave it out.")
    published = None if is_flash else _find_published(inputs, size, config.num_labels or 0)
    converted = system.conversion.convert(state_dict, config)
    origin = set_labels(config, inputs.labels, options.labels, inputs.class_names, "names of the file")
    try:
        model = build_model(system, config, converted.tensors, options.dtype)
    except ValueError as error:
        raise ValueError(f"This seems to be {title}. {error}") from error
    processor = image_processor(system, published)
    lines = [
        f"{title}, {config.num_labels} classes ({origin}), {str(options.dtype).removeprefix('torch.')}",
        f"{len(converted.tensors)} tensors, {model.num_parameters():,} parameters",
        *_test_lines(processor, published),
        *_unused_lines(inputs, converted, origin, config.num_labels or 0),
    ]
    return Prepared(model, processor, lines)


def _backbone_size(config: PreTrainedConfig) -> str | None:
    """Return the released size of the InternImage inside a configuration, None for another size."""
    backbone = getattr(config, "backbone_config", None)
    return None if backbone is None else size_of(backbone.channels, backbone.depths)


def _find_published(inputs: Inputs, size: str | None, num_labels: int) -> SystemCheckpoint | None:
    """Return the published checkpoint of `--checkpoint`, or that of the file's name if system, size and classes agree.

    Raises:
        ValueError: if `--checkpoint` names no published checkpoint, or one that the file cannot be.
    """
    name, system = inputs.options.checkpoint, inputs.system
    row = find_checkpoint(name or inputs.options.source.name)
    if row is None and name is not None:
        similar = get_close_matches(name, [row.name for row in SYSTEM_CHECKPOINTS], cutoff=0)
        raise ValueError(
            f"--checkpoint is {name!r}, which is no published checkpoint; give one such as {', '.join(similar)}."
        )
    if row is None:
        return None
    if (row.system, row.size) == (system.name, size) and num_labels in (row.num_labels, row.real_labels):
        return row
    if name is None:
        return None
    raise ValueError(
        f"--checkpoint is {row.name}, which is {row.system} with size {row.size!r} and {row.num_labels} classes, but "
        f"the file has {system.name} with size {size!r} and {num_labels} classes; name another or none."
    )


def image_processor(system: System, published: SystemCheckpoint | None) -> BaseImageProcessor:
    """Build the image processor with the test settings of a published checkpoint, or with default sizes if None."""
    segments = system.task == SEMANTIC_SEGMENTATION
    build: Any = InternImageSegmentationImageProcessor if segments else InternImageDetectionImageProcessor
    if published is None:
        return build()
    return build(
        size={"shortest_edge": published.shortest_edge, "longest_edge": published.longest_edge},
        size_divisor=published.size_divisor,
        **({"do_reduce_labels": published.reduce_labels} if segments else {"top_k": published.max_detections}),
    )


def _test_lines(processor: Any, published: SystemCheckpoint | None) -> list[str]:
    """Return lines that describe the image size, and how the authors tested the published checkpoint."""
    size = f"images: shorter side {processor.size['shortest_edge']}, longer at most {processor.size['longest_edge']}"
    if published is None:
        return [f"{size} pixels (the default; name the published checkpoint by --checkpoint if it is one)"]
    lines = [f"{size} pixels, as tested by the authors ({published.name})"]
    if published.mode == "slide":
        lines.append(f"tested with sliding windows of {published.crop_size} pixels every {published.stride}")
    return lines


def _unused_lines(inputs: Inputs, converted: Converted, origin: str, num_labels: int) -> list[str]:
    """Return lines that name the parts of the file which the model does not have."""
    lines = []
    if inputs.class_names and origin == "no names":
        lines.append(
            f"the file names {len(inputs.class_names)} classes, the classifier has {num_labels}: names not taken"
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in converted.dropped.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"left out: {len(names)} tensors ({listing(names)}): {reason}" for reason, names in by_reason.items()]
    if inputs.unused_entries:
        lines.append(f"not part of the model: {', '.join(inputs.unused_entries)}")
    return lines


__all__ = ["image_processor", "prepare_system"]
