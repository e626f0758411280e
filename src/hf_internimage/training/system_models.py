# SPDX-License-Identifier: MIT
"""Which segmenter or detector a script trains: the arguments, and the fields they set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .command_line import UsageError, json_object


@dataclass
class DenseModelArguments:
    """A checkpoint, or a new head on a backbone. Scripts derive theirs, with the heads they know."""

    heads: ClassVar[Sequence[str]] = ()

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to start from, head included: a folder, or a repository on the Hub."}
    )
    head: str = field(default="", metadata={"help": "Without model_name_or_path: the new head."})
    backbone: str | None = field(
        default=None, metadata={"help": "Pretrained InternImage under the new head: a folder, or a repository."}
    )
    size: str | None = field(
        default=None, metadata={"help": "Without backbone: size of a new InternImage: t, s, b, l, xl, h or g."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Fields of the backbone\'s configuration, as JSON: {"layer_scale": 1.0}.'}
    )
    head_overrides: str | None = field(
        default=None, metadata={"help": 'Fields of the head\'s configuration, as JSON: {"num_queries": 300}.'}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "The backbone's; default: the model's."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})

    def __post_init__(self) -> None:
        if self.head not in self.heads:
            raise ValueError(f"head is {self.head!r}, expected one of {', '.join(self.heads)}.")
        given = [name for name in ("model_name_or_path", "backbone", "size") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are both set; choose one of them.")

    def overrides(self, label_names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of the backbone's configuration, and of the head's, with these classes.

        Raises:
            UsageError: for arguments that are no JSON objects.
        """
        of_backbone = json_object("config_overrides", self.config_overrides)
        if self.drop_path_rate is not None:
            of_backbone["drop_path_rate"] = self.drop_path_rate
        of_head = json_object("head_overrides", self.head_overrides) | {
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: index for index, name in enumerate(label_names)},
        }
        return of_backbone, of_head


def load_model(
    name: str,
    revision: str,
    of_backbone: dict[str, Any],
    of_head: dict[str, Any],
    auto_class: Callable[[PreTrainedConfig], Any],
) -> PreTrainedModel:
    """A model of transformers with these fields of its backbone's and its own configuration.

    Its classifier may be for other labels, and is then made anew.

    Args:
        name, revision: a folder, or a repository on the Hub.
        auto_class: of a configuration: what loads its model.

    Raises:
        UsageError: for fields of a backbone it does not have.
    """
    config = AutoConfig.from_pretrained(name, revision=revision)
    if of_backbone:
        inner = getattr(config, "backbone_config", None)
        if inner is None:
            raise UsageError(f"{name} has no backbone_config: leave out config_overrides and drop_path_rate.")
        inner.update(of_backbone)
    config.update(of_head)
    return auto_class(config).from_pretrained(name, revision=revision, config=config, ignore_mismatched_sizes=True)


__all__ = ["DenseModelArguments", "load_model"]
