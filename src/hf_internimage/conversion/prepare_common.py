# SPDX-License-Identifier: MIT
"""What the preparation of classifiers and of segmenters and detectors share: options, configurations, class names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..tensors import cast_weights, check_tensors, shapes_of
from .files import file_shapes, naming, read_text
from .labels import parse_labels
from .systems import System


@dataclass(frozen=True)
class Options:
    """What to convert and how, as the options of `scripts/convert_checkpoint.py` say it; None where nothing is said."""

    source: Path
    size: str | None = None
    config: Path | None = None
    image_size: int | None = None
    labels: Path | None = None
    num_labels: int | None = None
    head_map: Path | None = None
    checkpoint: str | None = None
    dtype: torch.dtype = torch.float32

    def refuse(self, system: System, *names: str) -> None:
        """Raise ValueError if one of these options is given, which `system` does not have."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is not for {system.title} checkpoints; leave it out.")


@dataclass(frozen=True)
class Prepared:
    """A model with its weights, its image processor, and lines that describe them."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    lines: list[str]


def read_fields(path: Path | None, system: System) -> dict[str, Any]:
    """The fields of a config.json of this system; none without a file.

    Raises:
        ValueError: for a file that is no configuration, or that of another system.
    """
    if path is None:
        return {}
    with naming(path):
        try:
            fields = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"Invalid JSON ({error}); give a config.json.") from error
        found = fields.get("model_type", system.model_type) if isinstance(fields, dict) else None
        if found != system.model_type:
            raise ValueError(
                f"Not a configuration of this checkpoint's system ({system.title}): model_type is {found!r}; give a "
                f"config.json with model_type {system.model_type!r}."
            )
        return fields


def stated_config(path: Path, fields: Mapping[str, Any], system: System) -> PreTrainedConfig:
    """The configuration that the fields of a config.json describe.

    Raises:
        ValueError: if they cannot be used.
    """
    with naming(path):
        try:
            config = CONFIG_MAPPING[system.model_type].from_dict(dict(fields))
        except (AttributeError, KeyError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"Not a usable configuration ({error}); correct it.") from error
        backbone = getattr(config, "backbone_config", config).model_type
        if backbone not in ("internimage", "cb_internimage"):
            raise ValueError(f"Its backbone is of type {backbone!r}; give a backbone_config of an InternImage.")
        return config


def read_labels(path: Path | None) -> list[str] | None:
    """The class names of a file, if one is given.

    Raises:
        ValueError: as `parse_labels`, and if the file cannot be read.
    """
    if path is None:
        return None
    with naming(path):
        return parse_labels(read_text(path), is_json=path.suffix.lower() == ".json")


def has_names(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a config.json name the classes; "LABEL_0" is what transformers writes where none did."""
    return any(name != f"LABEL_{index}" for index, name in dict(fields.get("id2label") or {}).items())


def set_labels(
    config: PreTrainedConfig,
    path: Path | None,
    labels: Sequence[str] | None,
    stated: bool,
    otherwise: Sequence[tuple[Sequence[str], str]] = (),
) -> str:
    """Put the class names into the configuration; returns where they are from.

    Args:
        config: changed in place.
        path: the file of `labels`, if any; these come first.
        labels: the names that the user gave.
        stated: whether the configuration has names of its own; these come next.
        otherwise: further names and their origin in words, of which the first that are as many as classes are taken.

    Raises:
        ValueError: if `labels` are not as many as classes.
    """
    classes = config.num_labels
    if labels is not None and len(labels) != classes:
        raise ValueError(f"{path}: Has {len(labels)} names for {classes} classes; give one name for each class.")
    if labels is None and stated:
        return "names of the configuration"
    origin = f"names of {path}"
    if labels is None:
        labels, origin = next(((names, where) for names, where in otherwise if len(names) == classes), (None, ""))
    if labels is None:
        return "no names"
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    return origin


def build_with(
    system: System, config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """The model of a configuration with these tensors, under the names that its files have, as its weights.

    The model is built without memory and takes the tensors as they are: those that already have the type stay where
    they are, which can be a file.

    Raises:
        ValueError: if names or shapes differ from the model's, and as `cast_weights`.
    """
    with torch.device("meta"):
        model = system.conversion.build_model(config)
    check_tensors(shapes_of(tensors), file_shapes(model))
    model.load_state_dict(cast_weights(tensors, dtype), strict=True, assign=True)
    return model


__all__ = [
    "Options",
    "Prepared",
    "build_with",
    "has_names",
    "read_fields",
    "read_labels",
    "set_labels",
    "stated_config",
]
