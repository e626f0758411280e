# SPDX-License-Identifier: MIT
"""Read the trainings' command lines and files of settings, and run the trainings with errors as text."""

import json
import os
import re
import sys
from argparse import Action, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from ..hub.repository import PushError
from ..hub.tokens import without_tokens
from ..image_files import BadImageError
from .trainer import accumulation_steps, last_complete_checkpoint

SETTINGS_ENDINGS = (".yaml", ".yml", ".json")
# Defaults of all tasks where they differ from transformers' own.
DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,  # the image's column is not an argument of the model
    "report_to": "tensorboard",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 20,
    "logging_nan_inf_filter": False,  # a loss that is not finite ends the training, and counts in an evaluation
    "load_best_model_at_end": True,
    "ddp_find_unused_parameters": False,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "hub_strategy": "end",
}
# Settings that choose a model: a later file, or the command line, that has one of the first replaces all of the second.
_CHOICES = (
    (
        ("model_name_or_path", "backbone", "size", "model_type"),
        ("model_name_or_path", "backbone", "size", "model_type", "config_overrides", "model_revision"),
    ),
    (("model_name_or_path", "head"), ("model_name_or_path", "head", "head_overrides")),
)
_LOST_PEER = re.compile(r"closed by peer|reset by peer|gloo|NCCL|timed? ?out|DistBackend", re.IGNORECASE)


class UsageError(Exception):
    """A mistake of the caller, shown as one line."""


class ScriptArguments(Protocol):
    """A dataclass of the dataclasses of arguments that a script takes, one of them transformers' own."""

    training: TrainingArguments


AnyArguments = TypeVar("AnyArguments", bound=ScriptArguments)


class SettingsHelpFormatter(RawDescriptionHelpFormatter):
    """Show one spelling of each option, that of files of settings; with hyphens it is taken as well."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy(action)
        shown.option_strings = [name for name in action.option_strings if "-" not in name.strip("-")]
        return super()._format_action_invocation(shown)


def parse(
    kind: type[AnyArguments], argv: list[str], command: str, description: str | None, defaults: Mapping[str, Any]
) -> AnyArguments:
    """Read the arguments from files of settings and the command line.

    Files (YAML or JSON) come first. A later file overrides an earlier one, and options override all files. A later
    choice of a model replaces the whole earlier one: type, size, checkpoint and overrides. Without do_train, do_eval
    and do_predict, a task trains and evaluates.

    Args:
        kind: dataclass whose fields are the dataclasses of arguments; one is `training`.
        argv: without the command's name.
        command: its name, for `--help` and errors.
        description: text of `--help`.
        defaults: values that differ from the dataclasses' and from `DEFAULTS`.

    Raises:
        UsageError: for a file that cannot be used, settings that do not fit together, and processes that would each
            train alone.
    """
    kinds = [group.type for group in fields(kind)]  # type: ignore[arg-type]
    parser = HfArgumentParser(
        kinds,  # type: ignore[arg-type]
        prog=command,
        usage="%(prog)s [SETTINGS.yaml ...] [options]",
        description=description,
        formatter_class=SettingsHelpFormatter,
    )
    parser.set_defaults(**{**DEFAULTS, **defaults})
    known = {action.dest for action in parser._actions}
    initial = {name: parser.get_default(name) for name in known}
    while argv and argv[0].endswith(SETTINGS_ENDINGS):
        path = Path(argv[0])
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UsageError(f"{path} cannot be read: {reason}") from error
        if not isinstance(settings, dict):
            raise UsageError(f"{path} holds no settings, expected lines such as `learning_rate: 1e-4`.")
        if unknown := sorted(set(settings) - known):
            raise UsageError(f"{path} has the unknown setting {unknown[0]!r}; --help_all lists all.")
        _forget_replaced(parser, {name for name, value in settings.items() if value is not None}, initial)
        # As text, so that the parser converts and checks them as it does the command line's.
        parser.set_defaults(**{name: _as_argument(value) for name, value in settings.items()})
        argv = argv[1:]
    _forget_replaced(parser, _given(parser, argv), initial)
    # Trainer's arguments turn do_eval on by themselves.
    actions = ("do_train", "do_eval", "do_predict")
    parser.set_defaults(**{name: parser.get_default(name) or None for name in actions})
    chosen, unknown_arguments = parser.parse_known_args(argv)
    for argument in unknown_arguments:
        if argument.endswith(SETTINGS_ENDINGS):
            raise UsageError(f"The settings file {argument} comes after an option; put settings files first.")
    if all(getattr(chosen, name) is None for name in actions):
        parser.set_defaults(do_train=True, do_eval=True)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(chosen, name) < 1:
            raise UsageError(f"{name} is {getattr(chosen, name)}, expected at least 1.")
    if chosen.do_train is not False and chosen.max_steps <= 0 and chosen.num_train_epochs <= 0:
        raise UsageError(f"num_train_epochs is {chosen.num_train_epochs:g}, expected more than 0.")
    try:
        if chosen.total_train_batch_size is not None:  # before the training arguments: DeepSpeed takes the number there
            steps = accumulation_steps(
                chosen.total_train_batch_size, chosen.per_device_train_batch_size, count_devices(chosen.use_cpu)
            )
            parser.set_defaults(gradient_accumulation_steps=steps)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and chosen.use_cpu:  # transformers would leave out the time-out
            time_out = timedelta(seconds=chosen.ddp_timeout)
            PartialState(cpu=True, backend=chosen.ddp_backend, timeout=time_out)
        arguments = kind(*parser.parse_args_into_dataclasses(args=argv))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.training.world_size < processes:
        raise UsageError(
            f"{processes} processes were started, but each would train alone: add --use_cpu true, which machines "
            "without GPUs need."
        )
    return arguments


def _given(parser: HfArgumentParser, argv: list[str]) -> set[str]:
    """Return the names of the options that a command line has."""
    absent = object()
    names = [action.dest for action in parser._actions]
    chosen = parser.parse_known_args(argv, Namespace(**dict.fromkeys(names, absent)))[0]
    return {name for name in names if getattr(chosen, name) is not absent}


def _forget_replaced(parser: HfArgumentParser, given: set[str], initial: Mapping[str, Any]) -> None:
    """Set the defaults back that earlier settings gave to the choice of a model, where these names make a new one."""
    for makers, members in _CHOICES:
        if given.intersection(makers):
            parser.set_defaults(**{name: initial[name] for name in members if name in initial and name not in given})


def count_devices(use_cpu: bool) -> int:
    """Return the number of devices of all processes: one each under a launcher, else all GPUs of this machine."""
    return int(os.environ.get("WORLD_SIZE", "0")) or (1 if use_cpu else max(1, torch.cuda.device_count()))


def _as_argument(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def json_object(name: str, text: str | None) -> dict[str, Any]:
    """Return the object that an argument holds as JSON; an empty one for no text.

    Raises:
        UsageError: naming the argument, if it holds anything else.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {text}, expected a JSON object.")
    return value


def run_script(
    read: Callable[[list[str]], AnyArguments], run: Callable[[AnyArguments], None], argv: list[str] | None
) -> int:
    """Read the arguments and run. Return 0, or 1 after the error has been written to stderr.

    With `log_level=debug`, errors are raised. A process that loses the others, and one that Ctrl-C stops (which returns
    130), names the checkpoint there is.
    """
    arguments = None
    try:
        arguments = read(sys.argv[1:] if argv is None else argv)
        logging.set_verbosity(arguments.training.get_process_log_level())
        run(arguments)
    except KeyboardInterrupt:
        if arguments is None or arguments.training.process_index == 0:
            sys.stderr.write(f"interrupted. {_how_to_go_on(arguments)}\n")
        return 130
    except ImportError as error:
        sys.stderr.write(f"error: {missing_extra(error)}\n")
        return 1
    except (UsageError, PushError, OSError, ValueError, FloatingPointError, SafetensorError) as error:
        if arguments is not None and arguments.training.log_level == "debug":
            raise
        token = None if arguments is None else arguments.training.hub_token
        sys.stderr.write(f"error: {error_text(error, token)}\n")
        return 1
    except RuntimeError as error:
        if "to be installed" in str(error):  # a logger of report_to
            names_its_command = "pip install" in str(error)
            sys.stderr.write(f"error: {' '.join(str(error).split()) if names_its_command else missing_extra(error)}\n")
            return 1
        if arguments is None or arguments.training.world_size == 1 or not _LOST_PEER.search(str(error)):
            raise
        sys.stderr.write(
            f"error: process {arguments.training.process_index} lost the others: one was killed, or its machine is "
            f"gone. {_how_to_go_on(arguments)}\n"
        )
        return 1
    return 0


def error_text(error: Exception, token: str | bool | None = None) -> str:
    """Return the message of an error for the terminal, without access tokens.

    The error of a worker process comes as its traceback, of which the last line is taken. That of an image names the
    option that leaves such images out.
    """
    lines = without_tokens(str(error), token).strip().splitlines() or [type(error).__name__]
    if "DataLoader worker" in lines[0]:
        lines = [re.sub(r"^[\w.]+: ", "", lines[-1])]  # without the name of the error's class
    if isinstance(error, BadImageError):
        lines[-1] = f"{lines[-1].rstrip('.')}, or leave out such images with --bad_images skip."
    return "\n".join(lines)


def missing_extra(error: Exception) -> str:
    """Return one line that names the package whose import failed, and the command that installs it."""
    name = getattr(error, "name", None)
    problem = f"{name} is missing" if isinstance(error, ModuleNotFoundError) and name else " ".join(str(error).split())
    return f'{problem}: pip install "hf-internimage[train]"'


def _how_to_go_on(arguments: Any) -> str:
    """Return a sentence that says how an interrupted training continues; an empty text if there was none."""
    if arguments is None or not arguments.training.do_train:
        return ""
    last = last_complete_checkpoint(str(arguments.training.output_dir))
    if last is None:
        return "There is no checkpoint yet: start again."
    anew = " without --overwrite_output_dir" if arguments.run.overwrite_output_dir else ""
    return f"The same command{anew} goes on from {last}."


__all__ = [
    "DEFAULTS",
    "AnyArguments",
    "ScriptArguments",
    "SettingsHelpFormatter",
    "UsageError",
    "count_devices",
    "error_text",
    "json_object",
    "missing_extra",
    "parse",
    "run_script",
]
