# SPDX-License-Identifier: MIT
"""Segmenters and detectors: from the tensors of a file to a model with its weights and its image processor."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from ..checkpoints.systems import SEMANTIC_SEGMENTATION, SYSTEM_CHECKPOINTS, SystemCheckpoint, find_checkpoint
from ..models.image_processing_internimage_detection import InternImageDetectionImageProcessor
from ..models.image_processing_internimage_segmentation import InternImageSegmentationImageProcessor
from ..tensors import listing, shapes_of
from .backbone import size_of
from .files import naming
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
from .upernet import keep_labels


def prepare_dense(
    options: Options, system: System, state_dict: Mapping[str, torch.Tensor], others: Mapping[str, object]
) -> Prepared:
    """The segmenter or detector of a file's tensors.

    Args:
        options: what the user wants.
        system: the one that the tensors belong to.
        state_dict: the tensors under the names of the file.
        others: what the file holds besides; mmcv's `meta` has the names of the classes.

    Raises:
        ValueError: for tensors that do not fit, and options that cannot work.
        ImportError: if the model needs a package that is not installed.
    """
    options.refuse(system, "image_size", "head_map")
    if system.name != "upernet":
        options.refuse(system, "num_labels")
    fields = read_fields(options.config, system)
    labels = read_labels(options.labels)
    with naming(options.source):
        if options.num_labels is not None:
            state_dict = keep_labels(state_dict, options.num_labels)
        if options.config is None:
            plain = {name.removeprefix("module."): shape for name, shape in shapes_of(state_dict).items()}
            config = system.conversion.guess_config(plain)
    if options.config is not None:
        config = stated_config(options.config, fields, system)
    size = backbone_size(config)
    what = f"{system.title} with {f'InternImage-{size.upper()}' if size else 'an InternImage'}"
    with naming(options.source):
        if options.size not in (None, size):
            raise ValueError(
                f"This is {what} by its channels and depths, not a model of size {options.size!r}; leave --size out."
            )
        published = _published(options, system, size, config.num_labels or 0)
        converted = system.conversion.convert(state_dict, config)
    names = _class_names(others)
    origin = set_labels(config, options.labels, labels, has_names(fields), ((names, "names of the file"),))
    with naming(options.source):
        try:
            model = build_with(system, config, converted.tensors, options.dtype)
        except ValueError as error:
            raise ValueError(f"This seems to be {what}. {error}") from error
    processor = image_processor(system, published)
    lines = [
        f"{what}, {config.num_labels} classes ({origin}), {str(options.dtype).removeprefix('torch.')}",
        f"{len(converted.tensors)} tensors, {model.num_parameters():,} parameters",
        *_test_lines(processor, published),
    ]
    if names and origin == "no names":
        lines.append(f"the file names {len(names)} classes, the classifier has {config.num_labels}: names not taken")
    by_reason: dict[str, list[str]] = {}
    for name, reason in converted.dropped.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"left out: {len(found)} tensors ({listing(found)}): {reason}" for reason, found in by_reason.items()]
    if unused := sorted(others.keys() - {"meta"}):
        lines.append(f"not part of the model: {', '.join(unused)}")
    return Prepared(model, processor, lines)


def backbone_size(config: PreTrainedConfig) -> str | None:
    """The released size of the InternImage inside a configuration, if it has one."""
    backbone = getattr(config, "backbone_config", None)
    return None if backbone is None else size_of(backbone.channels, backbone.depths)


def image_processor(system: System, published: SystemCheckpoint | None) -> BaseImageProcessor:
    """That of a published checkpoint's test settings; with default sizes if it is none."""
    segments = system.task == SEMANTIC_SEGMENTATION
    build: Any = InternImageSegmentationImageProcessor if segments else InternImageDetectionImageProcessor
    if published is None:
        return build()
    return build(
        size={"shortest_edge": published.shortest_edge, "longest_edge": published.longest_edge},
        size_divisor=published.size_divisor,
        **({"do_reduce_labels": published.reduce_labels} if segments else {"top_k": published.max_detections}),
    )


def _published(options: Options, system: System, size: str | None, num_labels: int) -> SystemCheckpoint | None:
    """The published checkpoint that is named, or that the file is named after and can be."""
    row = find_checkpoint(options.checkpoint or options.source.name)
    if row is None and options.checkpoint is not None:
        near = get_close_matches(options.checkpoint, [row.name for row in SYSTEM_CHECKPOINTS], cutoff=0)
        raise ValueError(
            f"--checkpoint is {options.checkpoint!r}, which is no published checkpoint; give one such as "
            f"{', '.join(near)}."
        )
    if row is None:
        return None
    if (row.system, row.size) == (system.name, size) and num_labels in (row.num_labels, row.real_labels):
        return row
    if options.checkpoint is None:
        return None
    raise ValueError(
        f"--checkpoint is {row.name}, which is {row.system} with size {row.size!r} and {row.num_labels} classes, but "
        f"the file has {system.name} with size {size!r} and {num_labels} classes; name another or none."
    )


def _class_names(others: Mapping[str, object]) -> list[str]:
    meta = others.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        return []
    return list(names)


def _test_lines(processor: Any, published: SystemCheckpoint | None) -> list[str]:
    size = f"images: shorter side {processor.size['shortest_edge']}, longer at most {processor.size['longest_edge']}"
    if published is None:
        return [f"{size} pixels (the default; name the published checkpoint by --checkpoint if it is one)"]
    lines = [f"{size} pixels, as tested by the authors ({published.name})"]
    if published.mode == "slide":
        lines.append(f"tested with sliding windows of {published.crop_size} pixels every {published.stride}")
    return lines


__all__ = ["backbone_size", "image_processor", "prepare_dense"]
