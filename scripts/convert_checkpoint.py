# SPDX-License-Identifier: MIT
"""Convert an InternImage classification checkpoint into a folder that `from_pretrained` loads.

Reads the original release (.pth), files from upstream training, and files already in the Hub's layout. Every tensor's
name and shape is checked before anything is written, and the folder appears complete or not at all.

    python scripts/convert_checkpoint.py internimage_t_1k_224.pth internimage-t
    python scripts/convert_checkpoint.py internimage_l_22k_192to384.pth internimage-l-1k --head-map map22kto1k.txt
"""

import argparse
import json
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers.utils import logging

from hf_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    conversion,
    hub,
)
from hf_internimage.checkpoints import CHECKPOINTS, imagenet_1k_labels

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MAX_SHARD_SIZE = "5GB"
_PICKLED = (".pth", ".pt", ".bin")
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
# Upstream's training runs store their yacs configuration beside the weights. It is a dict; nothing of it is used.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(OrderedDict, "yacs.config.CfgNode")]


def _pixels(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number of pixels")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Convert an InternImage classification checkpoint into a folder that from_pretrained loads.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint: .pth, .pt, .bin or .safetensors")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to make; must not exist, or be empty")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument(
        "--size", type=str.lower, choices=conversion.SIZES, help="released size; found from the tensors if not given"
    )
    architecture.add_argument("--config", type=Path, metavar="FILE", help="config.json of a model of another size")
    parser.add_argument(
        "--image-size",
        type=_pixels,
        metavar="N",
        help="input height and width in pixels; if not given, that of the configuration or of the published checkpoint",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="class names: .json (list, or object from id to name) or text, one name a line; if not given, 1000 classes"
        " get the names of ImageNet-1K",
    )
    parser.add_argument(
        "--head-map",
        type=Path,
        metavar="FILE",
        help="rows of the head to keep, one index a line, such as the original's map22kto1k.txt",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="type of the weights written (default: float32)"
    )
    return parser


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_checkpoint(path: Path) -> object:
    """What the file holds, on the CPU and mapped from disk where the format allows. Runs no code from the file."""
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


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"Cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise ValueError("Not a text file in UTF-8; save it as such.") from error


def _read_config(path: Path) -> dict[str, Any]:
    with _naming(path):
        text = _read_text(path)
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Invalid JSON ({error}); give a config.json.") from error
        if not isinstance(fields, dict) or fields.get("model_type", "internimage") != "internimage":
            raise ValueError("Not an InternImage configuration; give a config.json with model_type 'internimage'.")
        return fields


def _read_labels(path: Path) -> list[str]:
    with _naming(path):
        return conversion.parse_labels(_read_text(path), is_json=path.suffix.lower() == ".json")


def _stated_classes(fields: dict[str, Any]) -> int | None:
    """The number of classes a config.json states, if it does."""
    for name in ("num_labels", "num_classes"):
        if fields.get(name) is not None:
            return fields[name]
    return len(fields["id2label"]) if fields.get("id2label") else None


def _configuration(path: Path, fields: dict[str, Any], classes: int) -> InternImageConfig:
    """The configuration a config.json describes; `classes` counts where the file has no names."""
    with _naming(path):
        try:
            return InternImageConfig.from_dict(fields if fields.get("id2label") else {**fields, "num_labels": classes})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Not a usable configuration ({error}); correct it.") from error


def _guess_size(shapes: conversion.Shapes) -> str | None:
    try:
        return conversion.guess_size(shapes)
    except ValueError:
        return None


def _published_image_size(size: str | None, classes: int) -> int | None:
    """Resolution of the published checkpoint of this size and head; H has 384 with 22K classes and 640 with 1K."""
    sizes = [found.image_size for found in CHECKPOINTS if (found.size, found.num_labels) == (size, classes)]
    return sizes[0] if sizes else None


def _set_image_size(config: InternImageConfig, wanted: int | None) -> tuple[int, int]:
    """Put the wanted size into the configuration, if any; returns its height and width, which the head can take."""
    config.image_size = config.image_size if wanted is None else wanted
    sides = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    height, width = sides[0], sides[-1]
    # The stage before the last has a stride of 16.
    if config.use_clip_projector and any(-(-side // 16) % 2 for side in (height, width)):
        raise ValueError(
            f"The image size is {height}x{width}, which the head of this model cannot take; choose an --image-size that"
            " is a multiple of 32."
        )
    return height, width


def _set_labels(config: InternImageConfig, path: Path | None, labels: Sequence[str] | None, stated: bool) -> str:
    """Put the class names into the configuration; returns where they are from."""
    classes = config.num_labels
    if labels is not None and len(labels) != classes:
        raise ValueError(f"{path}: Has {len(labels)} names for {classes} classes; give one name for each class.")
    if labels is None and stated:
        return "names of the configuration"
    source = f"names of {path}"
    if labels is None and classes == 1000:
        labels, source = imagenet_1k_labels(), "ImageNet-1K names"
    if labels is None:
        return "no names"
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    return source


def _hub_shapes(model: InternImageForImageClassification) -> dict[str, tuple[int, ...]]:
    return {conversion.hub_name(name): shape for name, shape in conversion.shapes_of(model.state_dict()).items()}


def _prepare(
    args: argparse.Namespace,
) -> tuple[InternImageForImageClassification, InternImageImageProcessorPil, list[str]]:
    """The model with its weights, its image processor and the lines that describe them. Writes nothing."""
    fields: dict[str, Any] = _read_config(args.config) if args.config else {}
    labels = _read_labels(args.labels) if args.labels else None
    with _naming(args.source):
        state_dict = conversion.to_hub_layout(conversion.find_state_dict(_read_checkpoint(args.source)))
        shapes = conversion.shapes_of(state_dict)
        size = _guess_size(shapes) if args.config else args.size or conversion.guess_size(shapes)
        trained_classes = conversion.count_labels(shapes)
    classes = _stated_classes(fields)
    if args.head_map:
        classes = classes if classes is not None else len(labels or ()) or 1000
        with _naming(args.head_map):
            state_dict = conversion.map_head(
                state_dict, conversion.parse_indices(_read_text(args.head_map)), count=classes
            )
    elif classes is None:
        classes = trained_classes

    if args.config:
        config = _configuration(args.config, fields, classes)
    else:
        config = InternImageConfig.from_size(str(size), num_labels=classes)
    wanted = args.image_size
    if wanted is None and fields.get("image_size") is None:
        wanted = _published_image_size(size, trained_classes)
    height, width = _set_image_size(config, wanted)
    origin = _set_labels(config, args.labels, labels, stated=bool(fields.get("id2label")))

    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    with _naming(args.source):
        conversion.check_tensors(conversion.shapes_of(state_dict), _hub_shapes(model))
        weights = conversion.cast_weights(state_dict, _DTYPES[args.dtype])
    model.load_state_dict(weights, strict=True, assign=True)

    processor = hub.image_processor_for(height, width)
    name = f"InternImage-{size.upper()}" if size else "InternImage"
    summary = [
        f"{name}, {classes} classes ({origin}), {height}x{width} pixels, {args.dtype}",
        f"{len(weights)} tensors, {model.num_parameters():,} parameters",
    ]
    return model, processor, summary


def _check_destination(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path}: Exists already and is not an empty folder; remove it or choose another DST.")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: Its parent folder does not exist; make it first.")


def _check_written(folder: Path, expected: conversion.Shapes) -> None:
    """Names and shapes of what lies in the weight files, which must be the official ones."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    conversion.check_tensors(found, expected)


def _write(
    model: InternImageForImageClassification, processor: InternImageImageProcessorPil, destination: Path
) -> None:
    """Save into a temporary folder beside the destination, which takes its name only when it is complete."""
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        folder = Path(scratch, "model")
        model.save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)
        processor.save_pretrained(folder)
        _check_written(folder, _hub_shapes(model))
        if destination.exists():
            destination.rmdir()  # empty; Windows does not replace folders
        os.replace(folder, destination)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 after one sentence on stderr; wrong arguments exit with 2."""
    args = _parser().parse_args(argv)
    logging.disable_progress_bar()
    try:
        destination = args.destination.resolve()
        _check_destination(destination)
        model, processor, summary = _prepare(args)
        _write(model, processor, destination)
    except (ValueError, OSError, SafetensorError) as error:
        print("convert_checkpoint.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    print("\n".join([*summary, f"written to {args.destination}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
