# SPDX-License-Identifier: MIT
"""`hf-internimage convert`: make a model folder of a checkpoint of the original release."""

import argparse
from pathlib import Path

from .names import DTYPES, SIZES
from .usage import positive_integer

HELP = "convert a checkpoint of the original InternImage into a folder that from_pretrained loads"
INTERRUPTED = "; nothing was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two paths and the options."""
    parser.epilog = f"""The tensors tell the architecture, and the name of the file tells the test settings.
Every tensor's name and shape is checked before anything is written, and the folder
appears complete or not at all.

examples:
  {parser.prog} internimage_t_1k_224.pth internimage-t
  {parser.prog} internimage_l_22k_192to384.pth internimage-l-1k --head_map map22kto1k.txt
  {parser.prog} upernet_internimage_t_512_160k_ade20k.pth upernet-internimage-t"""
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint: .pth, .pt, .bin or .safetensors")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to make; must not exist, or be empty")
    model = parser.add_argument_group("model").add_mutually_exclusive_group()
    size_help = f"size of the InternImage: {', '.join(SIZES)}; default: found from the tensors"
    model.add_argument("--size", type=str.lower, choices=SIZES, metavar="SIZE", help=size_help)
    model.add_argument("--config", type=Path, metavar="FILE", help="config.json of a model of another size")
    classes = parser.add_argument_group("classes")
    labels_help = (
        "class names: .json (list, or object from id to name) or text, one name a line; default: those in the file, "
        "and 1000 image classes get the names of ImageNet-1K"
    )
    classes.add_argument("--labels", type=Path, metavar="FILE", help=labels_help)
    number_help = "UperNet: keep only the first N classes, such as 19 of the 150 rows of the Cityscapes checkpoints"
    classes.add_argument("--num_labels", type=positive_integer, metavar="N", help=number_help)
    map_help = "classifiers: rows of the head to keep, one index a line, such as the original's map22kto1k.txt"
    classes.add_argument("--head_map", type=Path, metavar="FILE", help=map_help)
    images = parser.add_argument_group("image processor")
    size_help = "classifiers: height and width in pixels; default: the published checkpoint's, or the configuration's"
    images.add_argument("--image_size", type=positive_integer, metavar="N", help=size_help)
    checkpoint_help = (
        "segmentation and detection: the published checkpoint whose test settings it gets; default: that of the "
        "file's name"
    )
    images.add_argument("--checkpoint", metavar="NAME", help=checkpoint_help)
    output = parser.add_argument_group("output")
    output.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights written")


def run(args: argparse.Namespace) -> int:
    """Convert, and print what the checkpoint is."""
    from transformers.utils import logging

    from hf_internimage.conversion.convert import convert
    from hf_internimage.conversion.inputs import Options
    from hf_internimage.devices import DTYPES

    logging.disable_progress_bar()
    options = Options(
        args.source,
        size=args.size,
        config=args.config,
        image_size=args.image_size,
        labels=args.labels,
        num_labels=args.num_labels,
        head_map=args.head_map,
        checkpoint=args.checkpoint,
        dtype=DTYPES[args.dtype],
    )
    print("\n".join([*convert(options, args.destination), f"written to {args.destination}"]))
    return 0
