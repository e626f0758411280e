# SPDX-License-Identifier: MIT
"""Checkpoint files in, model folders out: nothing in a file is run, and a folder appears complete or not at all."""

import os
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.image_processing_utils import BaseImageProcessor

from ..tensors import Shapes, check_tensors, shapes_of

_PICKLED = (".pth", ".pt", ".bin")
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


def _numpy_values() -> list[Any]:
    """What numpy's numbers and arrays of numbers are made of when pickled, by the names of numpy 1 and 2."""
    makers = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    named = [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, maker in makers.items()]
    return [*named, np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "?" + np.typecodes["AllInteger"] + "efd"}]


# Training runs store other things beside the weights, of which none is used but the names of the classes: upstream's
# classification its yacs configuration, which is a dict; mmcv its best score and palettes, which may be numpy's.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (OrderedDict, "yacs.config.CfgNode"),
    *_numpy_values(),
]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_checkpoint(path: Path) -> object:
    """What the file holds, on the CPU and mapped from disk where the format allows. Runs no code from the file.

    Raises:
        ValueError: for a file that cannot be read, is damaged, or holds Python objects.
    """
    if not path.is_file():
        raise ValueError("Not a file; give the path of one checkpoint file.")
    ending = path.suffix.lower()
    if ending not in (*_PICKLED, ".safetensors"):
        raise ValueError(f"Unknown ending {ending!r}; expected one of {', '.join(_PICKLED)}, .safetensors.")
    try:
        if ending == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            # Files in the format from before torch 1.6 cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ValueError(f"Cannot be read ({error.strerror or error}); check the file.") from error
    except Exception as error:  # damaged bytes can make the parsers raise anything
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused:
            raise ValueError(
                f"Not loaded: it holds the Python object {refused[1].rstrip('.')}, and unpickling such objects can run "
                "code; give a file with tensors only."
            ) from error
        raise ValueError(
            "Not a readable checkpoint (truncated, damaged or of another format); download or copy it again."
        ) from error


def read_text(path: Path) -> str:
    """The text of a small file in UTF-8.

    Raises:
        ValueError: if it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"Cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise ValueError("Not a text file in UTF-8; save it as such.") from error


def check_destination(path: Path) -> None:
    """Raise ValueError unless a folder can be made at `path`, or an empty one is there."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path}: Exists already and is not an empty folder; remove it or choose another DST.")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: Its parent folder does not exist; make it first.")


def file_shapes(model: PreTrainedModel) -> Shapes:
    """Name -> shape of the tensors that `save_pretrained` writes."""
    return shapes_of(revert_weight_conversion(model, model.state_dict()))


def write_folder(model: PreTrainedModel, processor: BaseImageProcessor, destination: Path, max_shard_size: str) -> None:
    """Save into a temporary folder beside the destination, which takes its name only when it is complete.

    Raises:
        ValueError: if the files hold other names or shapes than the model.
        OSError: if they cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        folder = Path(scratch, "model")
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        _check_written(folder, file_shapes(model))
        if destination.exists():
            destination.rmdir()  # empty; Windows does not replace folders
        os.replace(folder, destination)


def _check_written(folder: Path, expected: Shapes) -> None:
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    check_tensors(found, expected)


__all__ = [
    "check_destination",
    "file_shapes",
    "naming",
    "read_checkpoint",
    "read_text",
    "write_folder",
]
