# SPDX-License-Identifier: MIT
"""`hf-internimage models`: list the published models, or the recipes to train with."""

import argparse
import sys
from typing import Any

from .library import import_alone
from .names import SIZES, TASKS

HELP = "list the published models, or the recipes to train with"
_EXAMPLES = """\
examples:
  hf-internimage models --task classification
  hf-internimage models --task segmentation --size t --json
  hf-internimage models --recipes

The scores are those that the authors report. In Python: hf_internimage.list_models(task="detection").
"""
_AFTER_TABLE = """
Inputs are in pixels; of segmenters and detectors they are the limits of the short and the long side. InternImage's
classifiers are repositories, OpenGVLab/NAME, which from_pretrained loads. `hf-internimage convert` turns the files of
the others into folders that from_pretrained loads; --json has their addresses.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the filters and the form of the list."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--task", choices=TASKS, help="only this task; models with boxes and masks are of two tasks")
    parser.add_argument("--size", type=str.lower, choices=SIZES, help="only models with a backbone of this size")
    parser.add_argument("--recipes", action="store_true", help="list the recipes of `hf-internimage train` instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    if args.recipes:
        _print_recipes(args)
    else:
        _print_models(args)
    return 0


def _print_recipes(args: argparse.Namespace) -> None:
    from .recipes import list_recipes
    from .usage import UsageError

    if args.size is not None:
        raise UsageError("--size is for models; leave it out with --recipes")
    columns = ("task", "recipe", "description")
    tasks = TASKS if args.task is None else (args.task,)
    rows = [(task, *recipe) for task in tasks for recipe in list_recipes(task)]
    if args.json:
        _print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(2)]
    for task, recipe, description in [columns, *rows]:
        sys.stdout.write(f"{task:{widths[0]}}  {recipe:{widths[1]}}  {description}\n")


def _print_models(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    models = import_alone("checkpoints").list_models(task=args.task, size=args.size)
    if args.json:
        _print_json([asdict(model) for model in models])
        return
    text_table = import_alone("plain_text").text_table
    columns = ("name", "size", "input", "parameters", "trained on", "reported, %", "licence", "note")
    for task in dict.fromkeys(model.task for model in models):
        rows = [_row(model) for model in models if model.task == task]
        sys.stdout.write(f"{task}\n{text_table(columns, rows, right=('parameters',))}\n\n")
    sys.stdout.write(f"{len(models)} model{'s' if len(models) != 1 else ''}.{_AFTER_TABLE}")


def _row(model: Any) -> tuple[str, ...]:
    first, second = model.image_size
    return (
        model.name,
        model.size,
        f"{first}x{second}" if model.task == "image-classification" else f"{first} to {second}",
        f"{model.parameters / 1e6:,.0f} M",
        ", ".join(data.partition(" of ")[0] for data in model.data),
        _scores(model.scores) or "none",
        model.licence,
        model.note,
    )


def _scores(scores: Any) -> str:
    """Return the scores in one line, such as "mIoU 47.9, multi-scale 48.1"."""
    parts, last = [], None
    for score in scores:
        words = [score.metric if score.metric != last else "", "" if score.views == "single-scale" else score.views]
        parts.append(" ".join(filter(None, [*words, score.split, str(score.value)])))
        last = score.metric
    return ", ".join(parts)


def _print_json(value: Any) -> None:
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")
