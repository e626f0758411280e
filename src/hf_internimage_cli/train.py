# SPDX-License-Identifier: MIT
"""`hf-internimage train`: train a model for one of the tasks.

Each task has a parser of its usual options, for `--help` and for errors at once. The task's own parser in
`hf_internimage.training`, which knows all of them (`--help_all`), then reads the same command line.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .names import HEADS, SIZES, TASKS
from .recipes import find_recipe, list_recipes
from .settings import SETTINGS_ENDINGS, check_data, check_model, check_names, option_values, read_settings
from .usage import Parser, UsageError, boolean, positive_integer

HELP = "train or fine-tune a model on your own images, or by a recipe of the authors"
_DESCRIPTIONS = {
    "classification": "train or fine-tune an image classifier",
    "segmentation": "train or fine-tune a model for semantic segmentation",
    "detection": "train or fine-tune an object detector",
}
_SETTINGS = """Settings come from recipes, then files (YAML or JSON), then options; later ones override earlier
ones. The same command again goes on from the last checkpoint."""
_FOLDERS = {
    "classification": "folder of training data: a folder of images for each class, or images with a metadata.csv",
    "segmentation": "folder of training data: images/, and masks/ with maps of the same names",
    "detection": "folder of training data: images, and annotations.json in COCO's format",
}
_EXAMPLES = {
    "classification": """
  hf-internimage train classification --recipe finetune --train_dir photos --output_dir out
  hf-internimage train classification --recipe scratch --train_dir photos --num_train_epochs 50
  torchrun --nproc-per-node 8 -m hf_internimage train classification --recipe t --dataset_name ILSVRC/imagenet-1k""",
    "segmentation": """
  hf-internimage train segmentation --recipe finetune --train_dir photos --label_names_file classes.txt
  hf-internimage train segmentation --recipe upernet_t --train_dir ade20k/training \\
      --validation_dir ade20k/validation --label_names_file ade20k/classes.txt""",
    "detection": """
  hf-internimage train detection --recipe dino_t --train_dir coco/train2017 \\
      --train_annotations coco/annotations/instances_train2017.json
  hf-internimage train detection --recipe scenes --train_dir scenes/train --validation_dir scenes/validation""",
}
_BATCH_SIZES = {"classification": 8, "segmentation": 2, "detection": 2}
_OUTPUTS = {
    "classification": "image_classification_output",
    "segmentation": "semantic_segmentation_output",
    "detection": "object_detection_output",
}
_SET_BY_RECIPES = ("head", "num_train_epochs", "per_device_train_batch_size", "learning_rate")
# Any of them says what to train, or that nothing is.
_CHOICES = {"backbone", "config_overrides", "do_eval", "do_predict", "head", "model_name_or_path", "model_type", "size"}


def add_arguments(parser: Parser) -> None:
    """Add a command for each task."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", dest="task", required=True)
    for task in TASKS:
        task_parser = tasks.add_parser(
            task,
            help=_DESCRIPTIONS[task],
            usage=f"{parser.prog} {task} [SETTINGS.yaml ...] [--recipe NAME] [options]",
            description=f"{_DESCRIPTIONS[task].capitalize()}.\n\n{_SETTINGS}",
            epilog=f"recipes:{_recipe_lines(task)}\n\nexamples:{_EXAMPLES[task]}",
        )
        task_parser.forwards = True
        task_parser.set_defaults(prog=task_parser.prog)
        _add_options(task_parser, task)


def _recipe_lines(task: str) -> str:
    return "".join(f"\n  {name:20}{line}" for name, line in list_recipes(task))


def _add_options(parser: argparse.ArgumentParser, task: str) -> None:
    parser.add_argument("--help_all", action="store_true", help="show all settings, those of transformers included")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME", help="settings by name, see below")

    data = _Group(parser, "data")
    data.add("train_dir", metavar="DIR", help=_FOLDERS[task])
    if task == "detection":
        data.add("train_annotations", metavar="FILE", help="its annotations, if they are not in it")
    data.add("validation_dir", metavar="DIR", help="folder of the same kind; default: a share of the training data")
    if task == "detection":
        data.add("validation_annotations", metavar="FILE", help="its annotations, if they are not in it")
    if task == "segmentation":
        data.add("label_names_file", metavar="FILE", help="names of the classes, in the order of their numbers")
    data.add("dataset_name", metavar="NAME", help="data set on the Hugging Face Hub instead of folders")

    model = _Group(parser, "model")
    model.add("model_name_or_path", metavar="MODEL", help="model to start from: a folder, or a repository on the Hub")
    if task != "classification":
        heads = HEADS[task]
        model.add("head", heads[0], choices=heads, metavar="NAME", help=f"new head, one of {', '.join(heads)}")
        model.add("backbone", metavar="MODEL", help="pretrained InternImage under a new head")
    size_help = f"size of a new InternImage with random weights: {', '.join(SIZES)}"
    model.add("size", type=str.lower, choices=SIZES, metavar="SIZE", help=size_help)
    if task == "classification":
        model.add(
            "image_size", type=positive_integer, metavar="PIXELS", help="side of the images; default: the model's"
        )
    elif task == "detection":
        edge_help = "short side of the images; default: the model's"
        model.add("shortest_edge", type=positive_integer, metavar="PIXELS", help=edge_help)

    training = _Group(parser, "training")
    training.add("num_train_epochs", 3, type=float, metavar="N", help="passes over the training data")
    batch_help = "images at a time on each device"
    batch_size = _BATCH_SIZES[task]
    training.add("per_device_train_batch_size", batch_size, type=positive_integer, metavar="N", help=batch_help)
    training.add("learning_rate", 5e-5, type=float, metavar="RATE", help="highest learning rate")
    training.add_flag("bf16", "compute in bfloat16, on GPUs that can")
    training.add_flag("use_cpu", "train on the CPU where there is a GPU, too")

    output = _Group(parser, "output")
    output_help = "folder for the model, its card, checkpoints, scores and pictures"
    output.add("output_dir", _OUTPUTS[task], metavar="DIR", help=output_help)
    output.add_flag("overwrite_output_dir", "start anew where the folder holds an earlier training")
    output.add_flag("push_to_hub", "upload the model to the Hugging Face Hub at the end")


class _Group:
    """A group of options that are absent from the parsed command line unless they are given."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self.group = parser.add_argument_group(title)

    def add(self, name: str, default: Any = None, *, help: str, **options: Any) -> None:
        if default is not None:
            help += f" (default{' without a recipe' if name in _SET_BY_RECIPES else ''}: {default})"
        self.group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=help, **options)

    def add_flag(self, name: str, help: str) -> None:
        self.add(name, nargs="?", const=True, type=boolean, metavar="true|false", help=help)


def run(args: argparse.Namespace) -> int:
    """Check the command line as far as that goes without torch, and hand it on to the task."""
    if args.help_all:
        argv = ["--help"]
    else:
        files, options = _split(args)
        _check(args, files)
        argv = [*map(str, files), *options]
    return int(import_module(f"hf_internimage.training.{args.task}.main").main(argv))


def _split(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """Return the files of settings, recipes first, and the options behind them.

    Raises:
        UsageError: for an unknown recipe, and an argument that is neither a file of settings nor an option.
    """
    files = [find_recipe(args.task, name) for name in args.recipe]
    recipes = Parser(add_help=False)
    recipes.forwards = True
    recipes.add_argument("--recipe", action="append")
    options = recipes.parse_args(args.argv).rest
    while options and options[0].endswith(SETTINGS_ENDINGS):
        files.append(Path(options.pop(0)))
    if options and not options[0].startswith("-"):
        raise UsageError(
            f"{options[0]} is no file of settings ({', '.join(SETTINGS_ENDINGS)}); give data as --train_dir DIR."
        )
    return files, options


def _check(args: argparse.Namespace, files: Sequence[Path]) -> None:
    """Raise UsageError for settings that cannot be right."""
    further = option_values(args.rest)
    given = {**further, **{name: value for name, value in vars(args).items() if name in option_values(args.argv)}}
    merged: dict[str, Any] = {}
    for file in files:
        settings = read_settings(file, args.task)
        check_model(settings, f"{file}: ")
        merged |= settings
    check_names([f"--{name}" for name in further], args.task, usual=args.usual)
    check_model(given, "")
    if not files and not _CHOICES & given.keys():
        names = ", ".join(name for name, _ in list_recipes(args.task))
        raise UsageError(
            f"choose what to train: --recipe NAME ({names}), --model_name_or_path MODEL, or --size SIZE for a new one."
        )
    check_data({**merged, **given})
