# SPDX-License-Identifier: MIT
"""The systems whose checkpoints can be converted, in one ordered table, and which of them a file belongs to."""

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..tensors import Shapes, listing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from .renaming import Converted


class Conversion(Protocol):
    """What the module of a system has."""

    def matches(self, names: Collection[str]) -> bool:
        """Whether a file with these names, without the prefix `module.`, belongs to the system."""

    def guess_config(self, shapes: Shapes) -> "PreTrainedConfig":
        """The configuration of the released model with these shapes; ValueError naming what is odd."""

    def convert(self, state_dict: "Mapping[str, torch.Tensor]", config: Any) -> "Converted":
        """The tensors under the names of the files that `save_pretrained` writes."""

    def build_model(self, config: Any) -> "PreTrainedModel":
        """The model of a configuration."""


@dataclass(frozen=True)
class System:
    """One system of the paper.

    Attributes:
        name: its name in code and in `dense_checkpoints`.
        title: its name in sentences.
        task: what it does, as in `dense_checkpoints`.
        module: module of this package that converts it.
        model_type: that of its configurations.
        marker: start of a name that tells it from another system of the same module.
    """

    name: str
    title: str
    task: str
    module: str
    model_type: str
    marker: str = ""

    @property
    def conversion(self) -> Conversion:
        """The functions that convert it, imported at the first use."""
        return cast(Conversion, importlib.import_module(f".{self.module}", __package__))

    def matches(self, names: Collection[str]) -> bool:
        """Whether a file with these names, without the prefix `module.`, belongs to the system."""
        return any(name.startswith(self.marker) for name in names) and self.conversion.matches(names)


SYSTEMS = (
    System("upernet", "UperNet", "semantic-segmentation", "upernet", "upernet"),
    System("mask2former", "Mask2Former", "semantic-segmentation", "mask2former", "mask2former"),
    System("cb_dino", "CB-DINO", "object-detection", "dino", "internimage_dino", "backbone.cb_modules."),
    System("dino", "DINO", "object-detection", "dino", "internimage_dino"),
    System(
        "cascade_rcnn",
        "Cascade Mask R-CNN",
        "instance-segmentation",
        "rcnn",
        "internimage_mask_rcnn",
        "roi_head.bbox_head.0.",
    ),
    System("mask_rcnn", "Mask R-CNN", "instance-segmentation", "rcnn", "internimage_mask_rcnn"),
    System("classification", "image classifier", "image-classification", "classification", "internimage"),
)


def find_system(names: Collection[str]) -> System:
    """The system whose tensors have these names.

    Raises:
        ValueError: if there is none; says what the file seems to be.
    """
    plain = [name.removeprefix("module.") for name in names]
    for system in SYSTEMS:
        if system.matches(plain):
            return system
    parts = {name.split(".")[0] for name in plain}
    known = ", ".join(system.title for system in SYSTEMS)
    if "backbone" not in parts:
        raise ValueError(
            f"Its {len(plain)} tensors ({listing(sorted(plain))}) are not those of an InternImage; give a checkpoint "
            f"of one of these systems: {known}."
        )
    if any(name.startswith("decode_head.fusion_conv.") for name in plain):
        kind = "a segmentation checkpoint with a SegFormer head"
    elif parts & {"decode_head", "auxiliary_head"}:
        kind = "a segmentation checkpoint"
    elif parts & {"bbox_head", "roi_head", "rpn_head"}:
        kind = "a detection checkpoint"
    else:
        kind = "a detection or segmentation checkpoint"
    listed = ", ".join(f"{part}.*" for part in sorted(parts)[:5])
    raise ValueError(
        f"This is {kind} (its tensors are {listed}), which cannot be converted; give a complete checkpoint of one of "
        f"these systems: {known}."
    )


__all__ = ["SYSTEMS", "Conversion", "System", "find_system"]
