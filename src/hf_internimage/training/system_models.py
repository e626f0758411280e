# SPDX-License-Identifier: MIT
"""Choose and load the segmenter or detector to train: the arguments, and the fields of configurations they set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedConfig, PreTrainedModel

from ..heads import did_you_mean
from ..hub.loading import load_pretrained
from ..models import auto
from ..models.configuration_internimage import InternImageConfig
from .command_line import UsageError, json_object
from .overrides import refuse_contradictions
from .run import label_fields


@dataclass
class SystemModelArguments:
    """Name a checkpoint, or a new head on a backbone. Each task derives its own, with the heads it knows."""

    heads: ClassVar[Sequence[str]] = ()
    trust_remote_code: ClassVar[bool] = False  # no option of these scripts

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
            raise ValueError(f"head is {self.head!r}{did_you_mean(self.head, self.heads)}")
        sources = [name for name in ("model_name_or_path", "backbone", "size") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"{sources[0]} and {sources[1]} are both set; choose one of them.")
        if self.size is not None:
            InternImageConfig.from_size(self.size)  # refuses a wrong one before data are read

    @property
    def base_model(self) -> str | None:
        """The folder or repository that the training starts from; None for new weights."""
        return self.model_name_or_path or self.backbone

    def overrides(self, label_names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields to set in the backbone's configuration and in the head's, with these classes.

        Raises:
            UsageError: for arguments that are no JSON objects.
        """
        backbone_fields = json_object("config_overrides", self.config_overrides)
        if self.drop_path_rate is not None:
            backbone_fields["drop_path_rate"] = self.drop_path_rate
        head_fields = json_object("head_overrides", self.head_overrides) | label_fields(label_names)
        return backbone_fields, head_fields


def load_model(
    arguments: SystemModelArguments,
    backbone_fields: dict[str, Any],
    head_fields: dict[str, Any],
    auto_class_of: Callable[[PreTrainedConfig], Any],
) -> PreTrainedModel:
    """Load the checkpoint that the arguments name, with these fields of its backbone's and its own configuration.

    Its classifier may be for other labels, and is then made anew.

    Args:
        auto_class_of: configuration -> the Auto class that loads its model.

    Raises:
        UsageError: for fields of a backbone that the model does not have, or that contradict its trained weights.
    """
    name, revision = str(arguments.model_name_or_path), arguments.model_revision
    config = auto.load_config(name, revision=revision)
    if backbone_fields:
        backbone = getattr(config, "backbone_config", None)
        if backbone is None:
            raise UsageError(f"{name} has no backbone_config: leave out config_overrides and drop_path_rate.")
        refuse_contradictions("config_overrides", name, backbone, backbone_fields)
        backbone.update(backbone_fields)
    overrides = json_object("head_overrides", arguments.head_overrides)
    refuse_contradictions("head_overrides", name, config, overrides)
    config.update(head_fields)
    return load_pretrained(auto_class_of(config), name, revision=revision, config=config)


__all__ = ["SystemModelArguments", "load_model"]
