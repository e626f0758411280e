# SPDX-License-Identifier: MIT
"""Check the fields of configurations that the scripts' options `config_overrides` and `head_overrides` set."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..heads import FREE_FIELDS
from ..models import auto
from ..models.checked_configuration import is_settable, no_field
from .command_line import UsageError

# Free in a new model, but new tensors beside trained ones in a checkpoint.
_SHAPES = {"layer_scale", "num_channels"}
# Fields that all configurations have: names of labels, kinds of outputs, dtype ...
_GENERAL = {*vars(PreTrainedConfig()), "model_type", "num_labels", "num_classes"}
# Parts of the names of fields that matter in training only, in configurations of transformers.
_TRAINING_WORDS = (
    "aux",
    "coefficient",
    "cost",
    "drop",
    "focal",
    "init",
    "loss",
    "noise",
    "noising",
    "sample",
    "weight",
)


def check_overrides(option: str, config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """Raise UsageError for a field that the configuration does not have, or that is not of the architecture."""
    for name in fields:
        if not hasattr(config, name) or not is_settable(type(config), name):
            raise UsageError(f"{option}: {no_field(type(config), name)}")
        if name in _GENERAL:
            raise UsageError(f"{option} has {name}, which the script sets from the data and its other options.")


def refuse_contradictions(option: str, checkpoint: str, config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """Raise UsageError for a field that says what a checkpoint's trained weights are for, and says something else.

    Fields of the training may differ, and those of the part of a classifier that is then made anew.

    Args:
        option: name of the option with the fields.
        checkpoint: folder or repository, for the message.
        config: the configuration there, or that of its backbone.
    """
    check_overrides(option, config, fields)
    is_ours = config.model_type in auto.model_types("AutoBackbone")
    for name, value in fields.items():
        name = type(config).attribute_map.get(name, name)
        is_free = name in FREE_FIELDS - _SHAPES if is_ours else any(word in name for word in _TRAINING_WORDS)
        old = getattr(config, name)
        if not is_free and _plain(old) != _plain(value):
            raise UsageError(
                f"{option} has {name}={value!r}, but {checkpoint} was trained with {old!r}: leave it out, or train a "
                "new model without the checkpoint."
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


__all__ = ["check_overrides", "refuse_contradictions"]
