# SPDX-License-Identifier: MIT
"""Command line of the conversion: `scripts/convert_checkpoint.py`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from .classification import SIZES
from .inputs import Options
from .output import check_destination, write_folder
from .prepare import prepare

_PROGRAM = "convert_checkpoint.py"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MAX_SHARD_SIZE = "5GB"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 (Ctrl-C: 130) after one sentence on stderr; wrong arguments exit with 2."""
    args = vars(_parser().parse_args(argv))
    destination = args.pop("destination")
    logging.disable_progress_bar()
    try:
        folder = Path(os.path.realpath(destination))  # `resolve` fails at loops of links
        check_destination(folder)
        prepared = prepare(Options(**{**args, "dtype": _DTYPES[args["dtype"]]}))
        write_folder(prepared.model, prepared.processor, folder, _MAX_SHARD_SIZE)
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted; nothing was written.", file=sys.stderr)
        return 130
    except (ImportError, ValueError, OSError, SafetensorError) as error:
        print(f"{_PROGRAM}: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    print("\n".join([*prepared.lines, f"written to {destination}"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Convert a checkpoint of the original InternImage into a folder that from_pretrained loads.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint: .pth, .pt, .bin or .safetensors")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to make; must not exist, or be empty")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument(
        "--size",
        type=str.lower,
        choices=SIZES,
        help="released size of the InternImage; found from the tensors if not given",
    )
    architecture.add_argument("--config", type=Path, metavar="FILE", help="config.json of a model of another size")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="segmentation and detection: the published checkpoint whose test settings the image processor gets; if not"
        " given, that of the file's name",
    )
    parser.add_argument(
        "--image-size",
        type=_positive,
        metavar="N",
        help="classifiers: input height and width in pixels; if not given, that of the configuration or of the"
        " published checkpoint",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="class names: .json (list, or object from id to name) or text, one name a line; if not given, those in the"
        " file, and 1000 image classes get the names of ImageNet-1K",
    )
    parser.add_argument(
        "--num-labels",
        type=_positive,
        metavar="N",
        help="UperNet: keep only the first N classes, such as 19 of the 150 rows of the Cityscapes checkpoints",
    )
    parser.add_argument(
        "--head-map",
        type=Path,
        metavar="FILE",
        help="classifiers: rows of the head to keep, one index a line, such as the original's map22kto1k.txt",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="type of the weights written (default: float32)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


__all__ = ["main"]
