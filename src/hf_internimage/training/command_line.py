# SPDX-License-Identifier: MIT
"""What the training scripts' command lines share: settings from files, the checkpoint to go on from, errors as text."""

import json
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml
from transformers import AutoConfig, HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..hub.repository import PushError
from .trainer import accumulation_steps, last_complete_checkpoint

# Where all scripts differ from transformers' own.
DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,  # the image's column is not an argument of the model
    "report_to": "tensorboard",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 20,
    "load_best_model_at_end": True,
    "ddp_find_unused_parameters": False,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "hub_strategy": "end",
}
logger = logging.get_logger(__name__)
_LOST_PEER = re.compile(r"closed by peer|reset by peer|gloo|NCCL|timed? ?out|DistBackend", re.IGNORECASE)


class UsageError(Exception):
    """A mistake of the caller: shown as one line."""


class Parts(Protocol):
    """A dataclass of the dataclasses of arguments a script takes, one of them transformers' own."""

    training: TrainingArguments


AnyParts = TypeVar("AnyParts", bound=Parts)


def parse(kind: type[AnyParts], argv: list[str], description: str | None, defaults: Mapping[str, Any]) -> AnyParts:
    """The arguments, from files of settings and the command line.

    Files (YAML or JSON) come first, later ones and then the command line win. Asked for neither training nor evaluation
    nor prediction, a script trains and evaluates.

    Args:
        kind: dataclass whose fields are the dataclasses of arguments; one is `training`.
        argv: without the script's name.
        description: what `--help` says.
        defaults: where they differ from the dataclasses' and from `DEFAULTS`.

    Raises:
        UsageError: for a file that cannot be used, and settings that do not fit together.
    """
    kinds = [part.type for part in fields(kind)]  # type: ignore[arg-type]
    parser = HfArgumentParser(
        kinds,  # type: ignore[arg-type]
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(**{**DEFAULTS, **defaults})
    known = {action.dest for action in parser._actions}
    while argv and argv[0].endswith((".yaml", ".yml", ".json")):
        path = Path(argv[0])
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        if not isinstance(settings, dict):
            raise UsageError(f"{path} holds no settings, expected lines such as `learning_rate: 1e-4`.")
        if unknown := sorted(set(settings) - known):
            raise UsageError(f"{path} has the unknown setting {unknown[0]!r}; --help lists all.")
        # As text, so that the parser converts and checks them as it does the command line's.
        parser.set_defaults(**{name: _as_argument(value) for name, value in settings.items()})
        argv = argv[1:]
    # Trainer's arguments turn do_eval on by themselves.
    actions = ("do_train", "do_eval", "do_predict")
    parser.set_defaults(**{name: parser.get_default(name) or None for name in actions})
    chosen, _ = parser.parse_known_args(argv)
    if all(getattr(chosen, name) is None for name in actions):
        parser.set_defaults(do_train=True, do_eval=True)
    try:
        if chosen.total_train_batch_size is not None:  # before the training arguments: DeepSpeed takes the number there
            steps = accumulation_steps(
                chosen.total_train_batch_size, chosen.per_device_train_batch_size, count_devices(chosen.use_cpu)
            )
            parser.set_defaults(gradient_accumulation_steps=steps)
        return kind(*parser.parse_args_into_dataclasses(args=argv))
    except ValueError as error:
        raise UsageError(str(error)) from error


def count_devices(use_cpu: bool) -> int:
    """Devices of all processes together: one each under a launcher, else all GPUs of this machine."""
    return int(os.environ.get("WORLD_SIZE", "0")) or (1 if use_cpu else max(1, torch.cuda.device_count()))


def _as_argument(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def json_object(name: str, text: str | None) -> dict[str, Any]:
    """The object that an argument holds as JSON; empty without one.

    Raises:
        UsageError: naming the argument, if it holds anything else.
    """
    try:
        value = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise UsageError(f"{name} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {text}, expected a JSON object.")
    return value


def find_checkpoint(training: TrainingArguments) -> Path | None:
    """The checkpoint to go on from: the one named, or the last complete one of the output folder.

    Raises:
        UsageError: if it is not there, or training anew would overwrite what an earlier run left.
    """
    named = training.resume_from_checkpoint
    last = last_complete_checkpoint(str(training.output_dir))
    if named in (None, True, "true", "True"):
        return last
    if named in (False, "false", "False"):
        if last is not None:
            raise UsageError(f"{last} is of an earlier training: choose another output_dir, or go on from it.")
        return None
    if not Path(named, "trainer_state.json").is_file():
        raise UsageError(f"resume_from_checkpoint={named} holds no complete checkpoint: trainer_state.json is missing.")
    return Path(named)


def checkpoint_labels(name: str | None, revision: str, trust_remote_code: bool = False) -> list[str]:
    """Before an evaluation without training: the checkpoint's class names, in the order of their numbers.

    Args:
        name, revision: a folder, or a repository on the Hub.
        trust_remote_code: run its code.

    Raises:
        UsageError: if there is no checkpoint.
    """
    if name is None:
        raise UsageError("Without training there has to be a checkpoint: set model_name_or_path, or do_train.")
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    return [config.id2label[index] for index in sorted(config.id2label)]


def are_unnamed(labels: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to classes without one."""
    return list(labels) == [f"LABEL_{index}" for index in range(len(labels))]


def wanted_splits(training: TrainingArguments) -> list[str]:
    """The splits that these actions read."""
    wanted = {
        "train": training.do_train,
        "validation": training.do_train or training.do_eval,
        "test": training.do_predict,
    }
    return [split for split in wanted if wanted[split]]


def keep_last_model(training: TrainingArguments) -> None:
    """Where there are no validation data: train without evaluation, and keep the last model."""
    if training.eval_strategy != "no":
        logger.warning("There are no validation data: the last model is kept, without evaluation.")
    training.eval_strategy = IntervalStrategy.NO
    training.load_best_model_at_end = False


def run_script(read: Callable[[list[str]], AnyParts], run: Callable[[AnyParts], None], argv: list[str] | None) -> int:
    """Read the arguments and run. Returns 0, or 1 after what was wrong has been said on stderr.

    With `log_level=debug`, errors are raised. A process that loses the others says what checkpoint there is.
    """
    parts = None
    try:
        parts = read(sys.argv[1:] if argv is None else argv)
        logging.set_verbosity(parts.training.get_process_log_level())
        run(parts)
    except (UsageError, PushError, OSError, ValueError) as error:
        if parts is not None and parts.training.log_level == "debug":
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # What a worker process raised comes as its traceback, whose last line says what happened.
        sys.stderr.write(f"error: {lines[-1] if 'DataLoader worker' in lines[0] else chr(10).join(lines)}\n")
        return 1
    except RuntimeError as error:
        if parts is None or parts.training.world_size == 1 or not _LOST_PEER.search(str(error)):
            raise
        last = last_complete_checkpoint(str(parts.training.output_dir))
        sys.stderr.write(
            f"error: process {parts.training.process_index} lost the others: one was killed, or its machine is gone. "
            + (f"The same command goes on from {last}.\n" if last else "There is no checkpoint yet: start again.\n")
        )
        return 1
    return 0


__all__ = [
    "DEFAULTS",
    "UsageError",
    "are_unnamed",
    "checkpoint_labels",
    "count_devices",
    "find_checkpoint",
    "json_object",
    "keep_last_model",
    "parse",
    "run_script",
    "wanted_splits",
]
