# SPDX-License-Identifier: MIT
"""`hf-internimage reproduce`: measure published checkpoints and compare with the scores that the authors report."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .usage import UsageError, positive_integer

HELP = "measure a published checkpoint and compare with the score that the authors report"
_EPILOG = """\
data sets, in DIR or in DIR/imagenet, DIR/ade20k, DIR/cityscapes and DIR/coco:
  ImageNet-1K  val/n01440764/*.JPEG, ... (all 1000 classes)
  ADE20K       images/validation, annotations/validation
  Cityscapes   leftImg8bit/val, gtFine/val (with *_gtFine_labelTrainIds.png)
  COCO         val2017, annotations/instances_val2017.json

examples:
  hf-internimage reproduce internimage_t_1k_224 --data imagenet --batch_size 64 --workers 8 --output t.json
  hf-internimage reproduce upernet_internimage_t_512_160k_ade20k --data ADEChallengeData2016 --multi_scale
  hf-internimage reproduce dino_4scale_internimage_t_1x_coco --data coco --file dino_4scale_internimage_t_1x_coco.pth
  hf-internimage reproduce --all --data datasets --file checkpoints --output all.json

The exit status is 1 if a score differs by more than its tolerance. `hf-internimage models` lists the names.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to measure, on which data, and how."""
    parser.epilog = _EPILOG
    what = parser.add_argument_group("what to measure")
    what.add_argument("name", nargs="?", metavar="NAME", help="published checkpoint, such as internimage_t_1k_224")
    what.add_argument("--all", action="store_true", help="all checkpoints whose files and data are there")
    what.add_argument("--multi_scale", action="store_true", help="mIoU with several scales and mirror images")
    source = parser.add_argument_group("data and files")
    source.add_argument("--data", type=Path, metavar="DIR", required=True, help="folder of the data set")
    source.add_argument(
        "--file",
        type=Path,
        metavar="CHECKPOINT",
        help="the authors' file, or a folder that it was converted into; with --all the folder of the files NAME.pth."
        " Without it the file is fetched from the Hub (with --all taken from its cache)",
    )
    source.add_argument("--sha256", metavar="HEX", help="hash of the file; if not given, the one the Hub states")
    source.add_argument("--output", type=Path, metavar="JSON", help="file for the result, which model cards quote")
    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=positive_integer, default=1, metavar="N", help="images at a time")
    run.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")
    run.add_argument("--cpu", action="store_true", help="do not use a GPU")
    run.add_argument("--limit", type=positive_integer, metavar="N", help="only N images, to try the command")


def run(args: argparse.Namespace) -> int:
    """Measure one checkpoint or all."""
    if (args.name is None) != args.all:
        raise UsageError("give the NAME of a checkpoint, or --all")
    if not args.data.is_dir():
        raise UsageError(f"--data is {args.data}, which is no folder")
    if args.file is not None and not args.file.exists():
        raise UsageError(f"--file is {args.file}, which does not exist")
    if args.all and args.sha256:
        raise UsageError("--sha256 is of one file; leave it out with --all")
    if args.all and args.file is not None and not args.file.is_dir():
        raise UsageError(f"--file is {args.file}; with --all give the folder of the files NAME.pth")
    if args.output is not None and not args.output.resolve().parent.is_dir():
        raise UsageError(f"the folder of --output {args.output} does not exist; make it first")
    from hf_internimage.reproduction.command import reproduce_all, reproduce_one
    from hf_internimage.reproduction.measure import Settings

    settings = Settings(batch_size=args.batch_size, workers=args.workers, cpu=args.cpu, limit=args.limit)

    def report(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    options: Any = {"multi_scale": args.multi_scale, "output": args.output, "settings": settings, "report": report}
    if args.all:
        return reproduce_all(args.data, args.file, **options)
    return reproduce_one(args.name, args.data, args.file, sha256=args.sha256, **options)
