# SPDX-License-Identifier: MIT
"""Table of the systems whose checkpoints can be converted; `find_system` finds the system of a file."""

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
    """Functions that the module of a system has."""

    def matches(self, names: Collection[str]) -> bool:
        """Return True if a file with these names, without the prefix `module.`, belongs to the system."""

    def guess_config(self, shapes: Shapes) -> "PreTrainedConfig":
        """Return the configuration of the released model with these shapes; ValueError if there is none."""

    def convert(self, state_dict: "Mapping[str, torch.Tensor]", config: Any) -> "Converted":
        """Return the tensors under the names in the files that `save_pretrained` writes."""

    def build_model(self, config: Any) -> "PreTrainedModel":
        """Build the model of a configuration."""


@dataclass(frozen=True)
class System:
    """One system of the paper.

    Attributes:
        name: its name in code and in `hf_internimage.checkpoints.systems`.
        title: its name in sentences.
        task: its task, as in `hf_internimage.checkpoints.systems`.
        module: module of this package that converts it.
        model_type: `model_type` of its configurations.
        marker: start of tensor names that only this one of the module's systems has; "" for any names.
        options: options of the conversion that it takes, besides those that every system takes.
    """

    name: str
    title: str
    task: str
    module: str
    model_type: str
    marker: str = ""
    options: tuple[str, ...] = ("size", "checkpoint")

    @property
    def conversion(self) -> Conversion:
        """Return the module that converts the system; it is imported at the first use."""
        return cast(Conversion, importlib.import_module(f".{self.module}", __package__))

    def matches(self, names: Collection[str]) -> bool:
        """Return True if a file with these names, without the prefix `module.`, belongs to the system."""
        return any(name.startswith(self.marker) for name in names) and self.conversion.matches(names)


SYSTEMS = (
    System(
        "upernet",
        "UperNet",
        "semantic-segmentation",
        "upernet",
        "upernet",
        options=("size", "checkpoint", "num_labels"),
    ),
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
    System(
        "flash_classification",
        "FlashInternImage classifier",
        "image-classification",
        "flash_classification",
        "flash_internimage",
        options=("size", "image_size", "head_map"),
    ),
    System(
        "classification",
        "image classifier",
        "image-classification",
        "classification",
        "internimage",
        options=("size", "image_size", "head_map"),
    ),
)


def find_system(names: Collection[str]) -> System:
    """Return the system that has tensors of these names.

    Raises:
        ValueError: if there is none; the message says what kind of checkpoint the file seems to be.
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
