# SPDX-License-Identifier: MIT
"""Read the files that the options of a conversion name: checkpoint, configuration, class names and head map.

Each file is read once, by one function, whose errors begin with the path of the file. No code in a file is run.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..models import auto
from ..tensors import check_values, find_state_dict
from .systems import System, find_system

_OPTIONS_OF_SOME_SYSTEMS = ("size", "checkpoint", "image_size", "head_map", "num_labels")
_PICKLED = (".pth", ".pt", ".bin")
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Options:
    """Options of a conversion, as the command line gives them; None for an option that is not given."""

    source: Path
    size: str | None = None
    config: Path | None = None
    image_size: int | None = None
    labels: Path | None = None
    num_labels: int | None = None
    head_map: Path | None = None
    checkpoint: str | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Inputs:
    """Options of a conversion, and the content of the files that they name.

    Attributes:
        options: the options.
        system: the system that the tensors belong to.
        state_dict: tensors of the checkpoint, under the names of the file.
        class_names: names of the classes in the checkpoint's metadata, as mmcv writes them; empty if there are none.
        unused_entries: names of all other entries of the checkpoint, sorted.
        config: configuration in config.json, if one is given.
        config_fields: fields of that file as they are written; empty without a file.
        labels: class names in the file of labels, if one is given.
        head_rows: rows of the head that the head map keeps, if one is given.
    """

    options: Options
    system: System
    state_dict: dict[str, torch.Tensor]
    class_names: list[str]
    unused_entries: list[str]
    config: PreTrainedConfig | None
    config_fields: dict[str, Any]
    labels: list[str] | None
    head_rows: list[int] | None


class InputError(ValueError):
    """Report a problem with an input; the message names its file or option."""


@contextmanager
def errors_prefixed_with(path: Path) -> Iterator[None]:
    """Put the path of a file before the message of each ValueError raised inside.

    An InputError passes unchanged: it names its own file or option.

    Raises:
        InputError: in place of any other ValueError, and of the RecursionError of Python's parsers.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path}: Nested too deeply; give a file that was not changed.") from error


def read_inputs(options: Options) -> Inputs:
    """Read every file that the options name.

    Raises:
        InputError: for a file that cannot be read or used, and an option that the checkpoint's system does not have.
    """
    state_dict, system, other_entries = read_checkpoint(options.source)
    _check_options(options, system)
    fields, config = ({}, None) if options.config is None else read_config(options.config, system)
    return Inputs(
        options,
        system,
        state_dict,
        class_names=_class_names(other_entries.pop("meta", None)),
        unused_entries=sorted(map(str, other_entries)),
        config=config,
        config_fields=fields,
        labels=None if options.labels is None else read_labels(options.labels),
        head_rows=None if options.head_map is None else read_head_map(options.head_map),
    )


def _check_options(options: Options, system: System) -> None:
    """Raise InputError if an option is given that the system does not have."""
    for name in _OPTIONS_OF_SOME_SYSTEMS:
        if name not in system.options and getattr(options, name) is not None:
            raise InputError(f"--{name} is not for {system.title} checkpoints; leave it out.")


def _class_names(meta: object) -> list[str]:
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        return []
    return list(names)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], System, dict[str, object]]:
    """Read a checkpoint file onto the CPU, mapped from disk if the format allows it. Runs no code of the file.

    Returns: the tensors under the names of the file, the system that they belong to, and the other entries of the file.

    Raises:
        InputError: for a file that cannot be read, is damaged, holds Python objects or tensors without values, or
            belongs to no system.
    """
    with errors_prefixed_with(path):
        content = _load(path)
        state_dict = find_state_dict(content)
        check_values(state_dict)
        system = find_system(state_dict)
    entries = content if isinstance(content, Mapping) else {}
    used = {*state_dict, "model", "state_dict"}
    return state_dict, system, {name: value for name, value in entries.items() if name not in used}


def _load(path: Path) -> object:
    if not path.is_file():
        raise ValueError("Not a file; give the path of one checkpoint file.")
    ending = path.suffix.lower()
    if ending not in (*_PICKLED, ".safetensors"):
        raise ValueError(f"Unknown ending {ending!r}; expected one of {', '.join(_PICKLED)}, .safetensors.")
    try:
        if ending == ".safetensors":
            return load_file(path)
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            # Files in the format from before torch 1.6 cannot be mapped.
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            if is_zip:
                _check_storages(path)
            return content
    except OSError as error:
        raise ValueError(f"Cannot be read ({error.strerror or error}); check the file.") from error
    except _ArchiveError:
        raise
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


class _ArchiveError(ValueError):
    """Report an archive that is not as torch.save writes it."""


def _check_archive(path: Path) -> None:
    """Check the checksum of each part of an archive that torch.save wrote, which torch.load does not.

    Raises:
        _ArchiveError: for a wrong checksum, and for parts that are larger than the file, or compressed.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if (
            any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts)
            or sum(part.file_size for part in parts) > path.stat().st_size
        ):
            raise _ArchiveError(
                "Its parts are compressed or overlap, which torch.save never does; save it with torch.save."
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise _ArchiveError(f"Damaged, the checksum of {damaged!r} is wrong; download or copy it again.")


class _Nothing(dict):
    """Stand for any object of a pickle: made, called, filled or given a state, it stays empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def ignore(self, *args: Any) -> "_Nothing":
        return self

    __call__ = __setitem__ = __setstate__ = append = extend = add = ignore  # type: ignore[assignment]
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Storages(pickle.Unpickler):
    """Read the bytes that each storage of a pickle of torch.save must have, and nothing else: no object is made."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Nothing,), {})

    def persistent_load(self, pid: Any) -> None:
        _, kind, key, _, count = pid
        storage: Any = getattr(torch, kind.__name__, torch.UntypedStorage)
        self.sizes[key] = count * (1 if storage is torch.UntypedStorage else storage.dtype.itemsize)


def _check_storages(path: Path) -> None:
    """Check that the parts of an archive with values have the sizes of their tensors, which torch.load does not.

    Raises:
        _ArchiveError: for a part of another size.
    """
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename.partition("/")[2]: part for part in archive.infolist()}
        with archive.open(parts["data.pkl"]) as file:
            storages = _Storages(file)
            storages.load()
    for key, size in storages.sizes.items():
        part = parts.get(f"data/{key}")  # none for a tensor without values
        if part is not None and part.file_size != size:
            raise _ArchiveError(
                f"Damaged, {part.filename!r} has {part.file_size} bytes, expected {size}; download or copy it again."
            )


def _numpy_values() -> list[Any]:
    """Return the functions and classes in pickles of numpy's numbers and arrays, by the names of numpy 1 and 2."""
    makers = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    named = [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, maker in makers.items()]
    return [*named, np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "?" + np.typecodes["AllInteger"] + "efd"}]


# Training runs store more than weights: upstream's classification stores its yacs configuration, which is a dict; mmcv
# stores its best score and palettes, which may be numpy's. Of all this, only the names of the classes are used.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (OrderedDict, "yacs.config.CfgNode"),
    *_numpy_values(),
]


def read_config(path: Path, system: System) -> tuple[dict[str, Any], PreTrainedConfig]:
    """Read a config.json of this system. Returns its fields, and the configuration that they describe.

    Raises:
        InputError: for a file that is not a configuration, is that of another system, or cannot be used.
    """
    with errors_prefixed_with(path):
        try:
            fields = json.loads(_read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"Invalid JSON ({error}); give a config.json.") from error
        model_type = fields.get("model_type", system.model_type) if isinstance(fields, dict) else None
        if model_type != system.model_type:
            raise ValueError(
                f"Not a configuration of this checkpoint's system ({system.title}): model_type is {model_type!r}; give "
                f"a config.json with model_type {system.model_type!r}."
            )
        try:
            config = CONFIG_MAPPING[system.model_type].from_dict(dict(fields))
        except (AttributeError, KeyError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"Not a usable configuration ({error}); correct it.") from error
        backbone_type = getattr(config, "backbone_config", config).model_type
        if backbone_type not in auto.model_types("AutoBackbone"):
            raise ValueError(f"Its backbone is of type {backbone_type!r}; give a backbone_config of an InternImage.")
        return fields, config


def read_labels(path: Path) -> list[str]:
    """Read the class names in a file: JSON if its name ends in .json, else text with one name a line.

    Raises:
        InputError: for a file that cannot be read, and as `parse_labels`.
    """
    with errors_prefixed_with(path):
        return parse_labels(_read_text(path), is_json=path.suffix.lower() == ".json")


def parse_labels(text: str, is_json: bool) -> list[str]:
    """Parse class names, in the order of the model's outputs.

    Args:
        text: one name a line or, with `is_json`, a list of names or an object {"0": name, ...}.
        is_json: True if the text is JSON.

    Raises:
        ValueError: for invalid JSON, an entry that is not a name, or ids that are not 0 to n-1.
    """
    if not is_json:
        names: list[object] = [line.strip() for line in text.rstrip().splitlines()]
    else:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Invalid JSON ({error}); give a list of names or an object from id to name.") from None
        if isinstance(data, dict):
            ids = [str(index) for index in range(len(data))]
            if set(data) != set(ids):
                raise ValueError(f"The {len(data)} ids are not 0 to {len(data) - 1}; give one name for each class.")
            data = [data[index] for index in ids]
        if not isinstance(data, list):
            raise ValueError(f"Found a {type(data).__name__}, expected a list of names or an object from id to name.")
        names = data
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"The name of class {index} is {name!r}, expected text.")
    return [str(name) for name in names]


def read_head_map(path: Path) -> list[int]:
    """Read the indices in a head map, a text file with one index a line.

    Raises:
        InputError: for a file that cannot be read, and a line that is not an integer.
    """
    with errors_prefixed_with(path):
        return parse_indices(_read_text(path))


def parse_indices(text: str) -> list[int]:
    """Parse the integers of a head map, one a line; blank lines at the end are allowed.

    Raises:
        ValueError: for a line that is not an integer.
    """
    indices = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        try:
            indices.append(int(line))
        except ValueError:
            raise ValueError(f"Line {number} is {line[:40]!r}, expected one integer on each line.") from None
    return indices


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("Not a file; give the path of one text file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"Cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise ValueError("Not a text file in UTF-8; save it as such.") from error


__all__ = [
    "InputError",
    "Inputs",
    "Options",
    "errors_prefixed_with",
    "parse_indices",
    "parse_labels",
    "read_checkpoint",
    "read_config",
    "read_head_map",
    "read_inputs",
    "read_labels",
]
