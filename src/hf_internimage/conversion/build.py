# SPDX-License-Identifier: MIT
"""Build a model: class names into its configuration, converted tensors as its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.image_processing_utils import BaseImageProcessor

from ..tensors import Shapes, cast_weights, check_tensors, shapes_of
from .inputs import InputError
from .systems import System


@dataclass(frozen=True)
class Prepared:
    """A model with its weights, its image processor, and lines of text that describe both."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    lines: list[str]


def set_labels(
    config: PreTrainedConfig,
    labels: Sequence[str] | None,
    path: Path | None,
    fallback: Sequence[str],
    fallback_origin: str,
) -> str:
    """Put class names into the configuration: the user's, else its own, else the fallback. Returns their origin.

    Args:
        config: changed in place.
        labels: names that the user gives, if any.
        path: file of `labels`.
        fallback: further names, which are used only if there is one for each class.
        fallback_origin: origin of `fallback`, in words.

    Raises:
        InputError: if there is not one of `labels` for each class.
    """
    classes = config.num_labels
    if labels is not None:
        if len(labels) != classes:
            raise InputError(f"{path}: Has {len(labels)} names for {classes} classes; give one name for each class.")
        names, origin = labels, f"names of {path}"
    elif _has_names(config):
        return "names of the configuration"
    elif len(fallback) == classes:
        names, origin = fallback, fallback_origin
    else:
        return "no names"
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    return origin


def _has_names(config: PreTrainedConfig) -> bool:
    """Return True if the configuration names its classes; transformers writes "LABEL_0" for a class without a name."""
    return any(name != f"LABEL_{index}" for index, name in (config.id2label or {}).items())


def build_model(
    system: System, config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Build the model of a configuration, with these tensors as its weights.

    The model is built without memory and takes the tensors over: tensors that already have the type are not copied, and
    may stay mapped from a file.

    Args:
        system: the system of the model.
        config: its configuration.
        tensors: weights under the names in files that `save_pretrained` writes.
        dtype: type of the model's weights.

    Raises:
        ValueError: if names or shapes differ from the model's, and as `cast_weights`.
    """
    with torch.device("meta"):
        model = system.conversion.build_model(config)
    check_tensors(shapes_of(tensors), file_shapes(model))
    model.load_state_dict(cast_weights(tensors, dtype), strict=True, assign=True)
    return model


def file_shapes(model: PreTrainedModel) -> Shapes:
    """Return name -> shape of the tensors that `save_pretrained` writes."""
    return shapes_of(revert_weight_conversion(model, model.state_dict()))


__all__ = ["Prepared", "build_model", "file_shapes", "set_labels"]
