# SPDX-License-Identifier: MIT
"""Convert an InternImage checkpoint of the original release into a folder that `from_pretrained` loads.

Reads the original's .pth files of every system (image classifiers, UperNet, Mask2Former, DINO, CB-DINO, Mask R-CNN and
Cascade Mask R-CNN), files from upstream training, and classifiers already in the Hub's layout. Which one a file is is
found from its tensors, and the test settings from its name. Every tensor's name and shape is checked before anything is
written, and the folder appears complete or not at all.

    python scripts/convert_checkpoint.py internimage_t_1k_224.pth internimage-t
    python scripts/convert_checkpoint.py internimage_l_22k_192to384.pth internimage-l-1k --head-map map22kto1k.txt
    python scripts/convert_checkpoint.py upernet_internimage_t_512_160k_ade20k.pth upernet-internimage-t
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from hf_internimage import conversion
from hf_internimage.conversion.files import check_destination, write_folder
from hf_internimage.conversion.prepare import prepare
from hf_internimage.conversion.prepare_common import Options

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MAX_SHARD_SIZE = "5GB"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Convert a checkpoint of the original InternImage into a folder that from_pretrained loads.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint: .pth, .pt, .bin or .safetensors")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to make; must not exist, or be empty")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument(
        "--size",
        type=str.lower,
        choices=conversion.SIZES,
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 after one sentence on stderr; wrong arguments exit with 2."""
    args = vars(_parser().parse_args(argv))
    shown = args.pop("destination")
    logging.disable_progress_bar()
    try:
        destination = shown.resolve()
        check_destination(destination)
        prepared = prepare(Options(**{**args, "dtype": _DTYPES[args["dtype"]]}))
        write_folder(prepared.model, prepared.processor, destination, _MAX_SHARD_SIZE)
    except (ImportError, ValueError, OSError, SafetensorError) as error:
        print("convert_checkpoint.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    print("\n".join([*prepared.lines, f"written to {shown}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
