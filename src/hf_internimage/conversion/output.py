# SPDX-License-Identifier: MIT
"""Write the folder of a converted model, which appears complete or not at all."""

from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..atomic_write import atomic_write, is_free
from ..tensors import Shapes, check_tensors, writing
from .build import file_shapes


def check_destination(path: Path) -> None:
    """Raise ValueError unless a folder can be made at `path`, or an empty one is there."""
    if not is_free(path):
        raise ValueError(f"{path}: Exists already and is not an empty folder; remove it or choose another DST.")
    if not path.exists() and not path.parent.is_dir():
        raise ValueError(f"{path}: Its parent folder does not exist; make it first.")


def write_folder(model: PreTrainedModel, processor: BaseImageProcessor, destination: Path, max_shard_size: str) -> None:
    """Save a model and its image processor, and check the written tensors before the folder appears.

    Raises:
        ValueError: if the files hold other names or shapes than the model.
        OSError: if they cannot be written.
    """
    with atomic_write(destination) as folder:
        with writing(destination):
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        _check_written(folder, file_shapes(model))


def _check_written(folder: Path, expected: Shapes) -> None:
    written: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            written.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    check_tensors(written, expected)


__all__ = ["check_destination", "write_folder"]
