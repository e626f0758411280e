# SPDX-License-Identifier: MIT
"""`hf-internimage evaluate`: measure a model on a data set, by the task of the model."""

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from .names import BACKENDS, DTYPES, TASKS
from .settings import check_data, check_model_name, check_names, option_values
from .usage import Parser, UsageError, positive_integer

HELP = "measure the accuracy, mIoU or mAP of a model on a data set"
_BACKEND_VARIABLE = "HF_INTERNIMAGE_BACKEND"
_RESULT = "eval_evaluation.json"  # the name that trainings give it, too
_DATA = ("validation_dir", "validation_annotations", "dataset_name", "max_eval_samples")
# Ends of the names of model classes.
_TASK_OF_CLASS = {
    "ForImageClassification": "classification",
    "ForSemanticSegmentation": "segmentation",
    "ForUniversalSegmentation": "segmentation",
    "ForObjectDetection": "detection",
}


def add_arguments(parser: Parser) -> None:
    """Add the options that are usual for all tasks; others are handed on to the task."""
    parser.forwards = True
    parser.usage = f"{parser.prog} MODEL (--validation_dir DIR | --dataset_name NAME) [options]"
    parser.epilog = f"""results:
  {_RESULT} in the output folder holds the scores and all that is needed to repeat the evaluation;
  `hf-internimage push --result` takes it for the model's card.

examples:
  {parser.prog} out --validation_dir photos/validation
  {parser.prog} OpenGVLab/internimage_t_1k_224 --dataset_name ILSVRC/imagenet-1k --dtype bfloat16
  {parser.prog} upernet-t --validation_dir ade20k/validation --tta_ratios 0.75 1.0 1.25 --tta_flip
  {parser.prog} dino-t --validation_dir coco/val2017 --validation_annotations coco/instances_val2017.json"""
    # MODEL is no argument of this parser, which would take the values of options that it does not know for it.
    parser.description = "Measure a MODEL, a folder or a repository on the Hub, on a data set. MODEL comes first."
    parser.add_argument("--model", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--help_all", action="store_true", help="show all settings of the model's task")
    parser.add_argument("--task", choices=TASKS, help="what the model is for; default: what its configuration says")
    data = parser.add_argument_group("data")
    data.add_argument("--validation_dir", metavar="DIR", help="folder of images, as in training")
    data.add_argument("--validation_annotations", metavar="FILE", help="detection: annotations of its images")
    data.add_argument("--dataset_name", metavar="NAME", help="data set on the Hugging Face Hub instead of a folder")
    data.add_argument("--max_eval_samples", type=positive_integer, metavar="N", help="take this many images only")
    run = parser.add_argument_group("computation")
    batch_help = "images at a time; default: 32 for classification, 1 for segmentation, 2 for detection"
    run.add_argument("--batch_size", type=positive_integer, metavar="N", help=batch_help)
    device_help = "such as cpu or cuda:1; segmentation and detection: cpu; default: the best there is"
    run.add_argument("--device", metavar="NAME", help=device_help)
    run.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the computation")
    run.add_argument("--backend", choices=BACKENDS, help="demand this backend of InternImage's operator")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", metavar="DIR", default="evaluation", help="folder for scores and pictures")


def run(args: argparse.Namespace) -> int:
    """Check the command line as far as that goes without torch, and hand it on to the task."""
    if args.model is None and args.rest and not args.rest[0].startswith("-"):
        args.model = args.rest.pop(0)
    model = args.model
    if model is None and not (args.help_all and args.task):
        raise UsageError("give a MODEL first: a folder, or a repository on the Hub.")
    check_model_name(model)
    task = args.task or _find_task(model)
    if args.help_all:
        argv = ["--help"]
    else:
        _check(args, task)
        argv = _arguments(args, task, model)
    if args.backend is not None:
        os.environ[_BACKEND_VARIABLE] = args.backend
    name = "evaluate_checkpoint" if task == "classification" else "main"
    return int(import_module(f"hf_internimage.training.{task}.{name}").main(argv))


def _find_task(model: str) -> str:
    """Return the task that a model's configuration names.

    Raises:
        UsageError: if it names none of them, or there is no configuration in the folder.
    """
    path = Path(model, "config.json")
    if path.is_file():
        try:
            config: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
    elif Path(model).exists():
        raise UsageError(f"{model} has no config.json; give the folder of a saved model.")
    else:
        from transformers import PreTrainedConfig

        config = PreTrainedConfig.get_config_dict(model)[0]
    for name in config.get("architectures") or []:
        for ending, task in _TASK_OF_CLASS.items():
            if name.endswith(ending):
                return task
    if config.get("model_type") == "internimage":  # the authors' repositories name no class with a head
        return "classification"
    raise UsageError(f"the configuration of {model} names no task that can be evaluated; give --task.")


def _check(args: argparse.Namespace, task: str) -> None:
    """Raise UsageError for unknown settings, missing data, and a device that the task does not know."""
    further = option_values(args.rest)
    if args.rest and not args.rest[0].startswith("-"):
        raise UsageError(f"{args.rest[0]} is one argument too many; give data as --validation_dir DIR.")
    check_names([f"--{name}" for name in further], task, usual=args.usual, evaluates=True)
    given = {name: value for name, value in vars(args).items() if value is not None}
    check_data({**further, **given}, "--validation_dir DIR")
    names_file = Path(args.output_dir).suffix == ".json"  # `--output FILE.json`, as classifiers always took it
    if (names_file and task != "classification") or (not names_file and Path(args.output_dir).is_file()):
        raise UsageError(f"--output_dir {args.output_dir} is a file; give a folder, for {_RESULT} and pictures.")
    if task != "classification" and args.device not in (None, "cpu"):
        raise UsageError(f"--device {args.device}: for {task}, set CUDA_VISIBLE_DEVICES to the GPU instead.")
    if task != "detection" and args.validation_annotations is not None:
        raise UsageError("--validation_annotations is for detection.")


def _arguments(args: argparse.Namespace, task: str, model: str) -> list[str]:
    """Return the arguments of the task's own parser."""
    argv = [f"--{name}={value}" for name in _DATA if (value := getattr(args, name)) is not None]
    if task == "classification":
        argv += [f"--model={model}", f"--dtype={args.dtype}"]
        argv += [f"--{name}={value}" for name in ("batch_size", "device") if (value := getattr(args, name)) is not None]
        output = Path(args.output_dir)
        if output.suffix != ".json":
            output.mkdir(parents=True, exist_ok=True)
            output /= _RESULT
        argv.append(f"--output={output}")
        return [*argv, *args.rest]
    argv += ["--do_eval", f"--model_name_or_path={model}", f"--output_dir={args.output_dir}"]
    if args.batch_size is not None:
        argv.append(f"--per_device_eval_batch_size={args.batch_size}")
    if args.device == "cpu":
        argv.append("--use_cpu=true")
    if args.dtype != "float32":
        argv.append("--bf16=true" if args.dtype == "bfloat16" else "--fp16=true")
    return [*argv, *args.rest]
