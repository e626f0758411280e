# SPDX-License-Identifier: MIT
"""The base class of our configurations: misspelt fields and files that cannot be meant end in one line."""

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig
from transformers.generation.configuration_utils import GenerationConfig
from transformers.utils import logging

# A configuration holds a name for each label.
MOST_LABELS = 1_000_000
# Of features, channels, layers and whatever else is counted; their products are numbers of elements in PyTorch.
MOST = 100_000
_LARGEST = 3.4e38  # number that float32 can hold
_DEEPEST = 100  # lists and objects inside one another in a file
# Keys of files that transformers reads, has written in some release or drops, beside the fields of its base class.
_LIBRARY_KEYS = {
    *("add_cross_attention", "attn_implementation", "auto_map", "bos_token_id", "configuration_files"),
    *("cross_attention_hidden_size", "custom_pipelines", "decoder_start_token_id", "eos_token_id"),
    *("experts_implementation", "finetuning_task", "gradient_checkpointing", "is_decoder", "pad_token_id", "prefix"),
    *("pruned_heads", "quantization_config", "sep_token_id", "task_specific_params", "tf_legacy_loss"),
    *("tie_encoder_decoder", "tie_last_hidden_states", "tie_word_embeddings", "tokenizer_class", "torchscript"),
    *("transformers_weights", "use_bfloat16", "use_cache"),
}
_LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type")

logger = logging.get_logger(__name__)


class CheckedConfig(PreTrainedConfig):
    """Refuse fields that do not exist where they are typed, and keep them with a warning where a file has them."""

    # Names that `__post_init__` takes and that are no fields.
    _other_names: ClassVar[tuple[str, ...]] = ()

    def check_given(self, kwargs: Mapping[str, Any]) -> None:
        """Raise ValueError for names that are no fields, and for maps that are none: first in `__post_init__`."""
        check_fields(type(self), kwargs)
        for name in ("auto_map", "id2label", "label2id"):
            value = kwargs.get(name, getattr(self, name, None))
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{name} is {_short(value)}, expected a mapping.")

    @property
    def num_labels(self) -> int | None:
        """Return the number of labels, or None if there are no names of labels."""
        return len(self.id2label) if self.id2label is not None else None

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        PreTrainedConfig.num_labels.fset(self, check_label_count("num_labels", value))  # type: ignore[attr-defined]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration from the content of a file. Keys that no model reads survive, with a warning.

        Raises:
            ValueError: for a value that cannot work, for content that is nested too deep, and for an argument that is
                no field but nearly the name of one.
        """
        if _is_nested_deeper(config_dict, _DEEPEST):
            raise ValueError(f"The configuration is nested deeper than {_DEEPEST} levels; is the file damaged?")
        content = dict(config_dict)
        if isinstance(content.get("backbone_config"), dict):
            content["backbone_config"] = cls._read_backbone(content["backbone_config"])
        unknown = {name: kwargs.pop(name, content.pop(name)) for name in unknown_fields(cls, content)}
        for name in unknown:
            fate = "kept, but no model reads it" if is_settable(cls, name) else "ignored"
            logger.warning_once(f"{no_field(cls, name)} It is {fate}.")
        check_fields(cls, [name for name in unknown_fields(cls, kwargs) if _closest(cls, name)])
        result = super().from_dict(content, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for name, value in unknown.items():
            if is_settable(cls, name):
                setattr(config, name, value)
        return result

    @classmethod
    def _read_backbone(cls, backbone: dict[str, Any]) -> Any:
        """Return the `backbone_config` of a file; classes with a backbone keep its unknown keys, too."""
        return backbone

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """Make a configuration from a JSON file, as `from_dict`."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> Any:
        try:
            return super()._dict_from_json_file(json_file)
        except RecursionError:
            raise ValueError(f"{json_file} is nested too deep; is the file damaged?") from None


def check_fields(config_class: type[PreTrainedConfig], names: Iterable[str]) -> None:
    """Raise ValueError, with the closest names, for the first name that is no field of a configuration class."""
    for name in unknown_fields(config_class, names):
        raise ValueError(no_field(config_class, name))


def unknown_fields(config_class: type[PreTrainedConfig], names: Iterable[str]) -> list[str]:
    """Return those of the names that neither a configuration class nor transformers gives a meaning."""
    known = {name for name in (*dir(config_class), *config_class.attribute_map) if is_settable(config_class, name)}
    known |= {*getattr(config_class, "_other_names", ())}
    known |= {*_LIBRARY_KEYS, *vars(PreTrainedConfig()), *vars(GenerationConfig())}
    return [name for name in names if name not in known and not name.startswith("_")]


def is_settable(config_class: type[PreTrainedConfig], name: str) -> bool:
    """Return False for private names, and those of methods and of properties that follow from other fields."""
    if name.startswith("_"):
        return False
    attribute = getattr(config_class, config_class.attribute_map.get(name, name), None)
    return attribute.fset is not None if isinstance(attribute, property) else not callable(attribute)


def check_label_count(name: str, value: Any) -> int:
    """Return a number of labels.

    Raises:
        ValueError: for anything but an integer from 0 to `MOST_LABELS`.
    """
    if not is_integer(value) or not 0 <= value <= MOST_LABELS:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 0 and at most {MOST_LABELS}.")
    return int(value)


def is_integer(value: Any) -> bool:
    """Return True for an integer that is not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_count(value: Any, least: int = 1) -> bool:
    """Return True for an integer from `least` to `MOST`."""
    return is_integer(value) and least <= value <= MOST


def is_finite_number(value: Any) -> bool:
    """Return True for a real number that is not a bool, and is finite in float32."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= _LARGEST  # type: ignore[operator]


def no_field(config_class: type[PreTrainedConfig], name: str) -> str:
    """Return the sentence that a configuration class has no such field, with the closest names."""
    closest = " or ".join(map(repr, _closest(config_class, name)))
    hint = f"; did you mean {closest}?" if closest else "; its documentation lists them."
    return f"{config_class.__name__} has no field {name!r}{hint}"


def _closest(config_class: type[PreTrainedConfig], name: str) -> list[str]:
    general = set(PreTrainedConfig.__dataclass_fields__)
    own = set(getattr(config_class, "__dataclass_fields__", ())) - general
    names = {*own, *config_class.attribute_map, *getattr(config_class, "_other_names", ()), *_LABEL_FIELDS}
    return difflib.get_close_matches(name, sorted(field for field in names if is_settable(config_class, field)), n=2)


def _is_nested_deeper(value: Any, levels: int) -> bool:
    """Return True if lists and dicts are in one another in more than so many levels; without recursion."""
    containers = [value]
    for _ in range(levels + 1):
        children = (child for one in containers for child in (one.values() if isinstance(one, dict) else one))
        containers = [child for child in children if isinstance(child, (dict, list))]
    return bool(containers)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


__all__ = [
    "MOST",
    "CheckedConfig",
    "check_fields",
    "check_label_count",
    "is_count",
    "is_finite_number",
    "is_integer",
    "is_settable",
    "no_field",
    "unknown_fields",
]
