# SPDX-License-Identifier: MIT
"""`hf-internimage predict`: classify, segment or detect in images, whatever the model is for."""

import argparse
import glob
import math
from pathlib import Path

from .names import BACKENDS, DTYPES
from .settings import check_model_name, check_new_folder
from .usage import UsageError, positive_integer

HELP = "classify, segment or detect in images and videos, and write tables and pictures"
INTERRUPTED = "; what was predicted until then is in the output folder"
_SETTINGS = (
    *("top_k", "threshold", "batch_size", "device", "dtype", "backend", "segmentation", "crop_size", "stride"),
    *("scale_ratios", "flip", "every", "max_image_pixels", "revision"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the images and the options."""
    parser.usage = f"{parser.prog} MODEL INPUT [INPUT ...] [options]"
    parser.epilog = f"""what is written, by the task of the model:
  classification  predictions.csv, predictions.json, contact_sheet.jpg
  segmentation    label_maps/*.png (each pixel is a class number), overlays/*.jpg, legend.png, predictions.json
  detection       predictions.json (COCO results), images.json (their images and categories), boxes/*.jpg

A file that cannot be used is named and left out, and the exit status is then 1.

examples:
  {parser.prog} out photos/
  {parser.prog} out "photos/**/*.jpg" --output_dir results --batch_size 32 --device cuda --dtype float16
  {parser.prog} upernet-t street.jpg --crop_size 1024 --stride 512
  {parser.prog} dino-t traffic.mp4 --every 30 --threshold 0.4"""
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or a repository on the Hub")
    inputs_help = 'images, videos, folders (with all folders in them), and patterns such as "photos/*.jpg"'
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=inputs_help)
    output = parser.add_argument_group("output")
    output_help = "new or empty folder to write to; default: predictions, or predictions-2, ... where there is one"
    output.add_argument("--output_dir", metavar="DIR", help=output_help)
    top_help = "most classes of an image (default: 5), or most objects (default: as the image processor says)"
    output.add_argument("--top_k", type=positive_integer, metavar="N", help=top_help)
    threshold_help = "least probability of a class (default: 0), score of an object (0.3) or of a segment (0.5)"
    output.add_argument("--threshold", type=_share, metavar="P", help=threshold_help)
    computation = parser.add_argument_group("computation")
    batch_help = "images at a time, in segmentation windows; default: 8 for classification, 1 for others"
    computation.add_argument("--batch_size", type=positive_integer, metavar="N", help=batch_help)
    computation.add_argument("--device", metavar="NAME", help="such as cpu or cuda:1; default: the best there is")
    computation.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the computation")
    computation.add_argument("--backend", choices=BACKENDS, help="demand this backend of InternImage's operator")
    segmentation = parser.add_argument_group("segmentation")
    kind_help = "instance, panoptic: for a model such as Mask2Former that was trained for it"
    segmentation.add_argument(
        "--segmentation", choices=("semantic", "instance", "panoptic"), default="semantic", help=kind_help
    )
    crop_help = "see images through windows of this side in pixels; needs --stride"
    segmentation.add_argument("--crop_size", type=positive_integer, metavar="N", help=crop_help)
    segmentation.add_argument("--stride", type=positive_integer, metavar="N", help="pixels from window to window")
    scales_help = "average over these multiples of the image's size; default: 1"
    segmentation.add_argument("--scale_ratios", type=_positive_number, nargs="+", metavar="R", help=scales_help)
    segmentation.add_argument("--flip", action="store_true", help="average over each image and its mirror image")
    reading = parser.add_argument_group("reading")
    every_help = "of a video, take every so many frames"
    reading.add_argument("--every", type=positive_integer, metavar="N", default=1, help=every_help)
    pixels_help = "a larger JPEG is read at a reduced size, other larger images are left out; default: 178956970"
    reading.add_argument("--max_image_pixels", type=positive_integer, metavar="N", help=pixels_help)
    reading.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a repository on the Hub")


def run(args: argparse.Namespace) -> int:
    """Check what can be checked without torch, and predict."""
    check_model_name(args.model)
    for name in args.inputs:
        if not name:
            raise UsageError("an INPUT is an empty text; give images, folders or patterns.")
        if not Path(name).exists() and not (glob.has_magic(name) and glob.glob(name, recursive=True)):
            raise UsageError(f"{name}: there is no such file or folder, and no file of such a pattern.")
    if args.output_dir is not None:
        check_new_folder(Path(args.output_dir), "--output_dir")
    if (args.crop_size is None) != (args.stride is None):
        raise UsageError("sliding windows need both --crop_size and --stride.")
    from hf_internimage.prediction.command import predict_to_folder

    settings = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    return predict_to_folder(args.model, args.inputs, args.output_dir, **settings)


def _positive_number(text: str) -> float:
    """Return the number above 0 that an argument names."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _share(text: str) -> float:
    """Return the number from 0 to 1 that an argument names."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
