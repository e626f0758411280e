# SPDX-License-Identifier: MIT
"""Record to which data, model and settings a checkpoint belongs, and refuse to go on with others."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .command_line import UsageError
from .json_files import json_text
from .sources import listed
from .trainer import CHECKPOINT_FILES, RECORD_NAME

logger = logging.get_logger(__name__)

# Of transformers' training arguments, those that decide the result. num_train_epochs and max_steps are not among them:
# more of them continue a training.
_TRAINING = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha",
    "bf16", "fp16", "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last", "metric_for_best_model",
    "greater_is_better",
)  # fmt: skip
# Arguments of the scripts that do not decide the result, and those that the model's configuration or the number of
# images a step stands for.
_FREE = {
    "train_dir", "validation_dir", "test_dir", "train_annotations", "validation_annotations", "test_annotations",
    "test_split_name", "data_cache_dir", "label_names_file", "num_classes", "bad_images", "check_data",
    "total_train_batch_size",
    "size", "config_overrides", "head", "head_overrides", "drop_path_rate", "model_type", "trust_remote_code",
    "early_stopping_patience", "license", "overlays", "overlay_threshold",
    "overwrite_output_dir", "ignore_data_changes", "save_on_interrupt",
}  # fmt: skip
_PLACES = ("model_name_or_path", "backbone", "dataset_name")  # folders or repositories
_NOT_ARCHITECTURE = {
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "id2label", "label2id", "num_labels",
    "transformers_version",
}  # fmt: skip


def run_record(arguments: Any, data: Any, config: Any) -> dict[str, Any]:
    """Return what a checkpoint belongs to, as it is written beside it.

    Args:
        arguments: the ScriptArguments of a task.
        data: of the task, with `train`, `validation` and `label_names`.
        config: configuration of the model.

    Returns: `classes`, their names; `data`, the numbers of examples and how they were chosen; `model`, the fields of
        the configuration; `settings`, those that decide the result.
    """
    training = arguments.training
    record = {
        "classes": list(data.label_names),
        "data": {
            **{f"{split} examples": _count(getattr(data, split)) for split in ("train", "validation")},
            **_arguments(arguments.data),
        },
        "model": _architecture(config.to_dict()),
        "settings": {
            **_arguments(arguments.model, arguments.augmentation, arguments.recipe, arguments.run),
            **{name: getattr(training, name, None) for name in _TRAINING},
            "images a step": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        },
    }
    return json.loads(json_text(_plain(record)))


def refuse_other_run(record: Mapping[str, Any], folder: Path, ignore_data_changes: bool) -> None:
    """Raise UsageError, naming what differs, unless a checkpoint or the folder of a finished model has this record.

    Args:
        record: of the training that is to start.
        folder: with the record of an earlier training; without one, nothing is compared.
        ignore_data_changes: allow other examples, but no other classes.
    """
    try:
        earlier = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        if not isinstance(earlier, dict) or not earlier.keys() >= record.keys():
            raise ValueError(f"it lacks some of {', '.join(record)}")
    except FileNotFoundError:
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            logger.warning(f"{folder} has no {RECORD_NAME}: it may belong to other data, or another model.")
        return
    except ValueError as error:
        raise UsageError(f"{folder / RECORD_NAME} cannot be read ({error}): choose another checkpoint.") from error
    anew = "start anew with --overwrite_output_dir, or choose another output_dir"
    if earlier["classes"] != record["classes"]:
        changed = _class_changes(earlier["classes"], record["classes"])
        raise UsageError(
            f"{folder} belongs to a training with other classes ({changed}): go on with its own classes, {anew}."
        )
    data = _differences(earlier["data"], record["data"])
    if data and not ignore_data_changes:
        raise UsageError(
            f"{folder} belongs to a training with other data ({listed(data, 3)}): add --ignore_data_changes to go on, "
            f"{anew}."
        )
    for part, name in (("model", "another model"), ("settings", "other settings")):
        if changes := _differences(earlier[part], record[part]):
            raise UsageError(
                f"{folder} belongs to a training with {name} ({listed(changes, 3)}): set this back to go on, {anew}."
            )


def remove_earlier_run(output: Path) -> None:
    """Remove the checkpoints and the record of an earlier training from an output folder.

    Folders of such names that no training wrote stay, and so do links.
    """
    for folder in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        is_numbered = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit()
        if is_numbered and not folder.is_symlink() and any((folder / name).exists() for name in CHECKPOINT_FILES):
            shutil.rmtree(folder)
    (output / RECORD_NAME).unlink(missing_ok=True)


class RemoveEarlierRunCallback(TrainerCallback):
    """Remove an earlier training from the output folder after the first step of the new one, which may fail before."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._is_done = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._is_done:
            if self.trainer.is_world_process_zero():
                remove_earlier_run(Path(args.output_dir))
            self.trainer.accelerator.wait_for_everyone()
        self._is_done = True


def _arguments(*groups: Any) -> dict[str, Any]:
    values = {field.name: getattr(group, field.name) for group in groups for field in fields(group)}
    for name in _PLACES:  # a folder may have moved
        if values.get(name) is not None and Path(values[name]).exists():
            values[name] = Path(values[name]).resolve().name
    return {name: value for name, value in values.items() if name not in _FREE}


def _count(split: Any) -> int | None:
    return len(split) if isinstance(split, Dataset) else None


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration, and of those within it, without names and versions."""
    return {
        name: _architecture(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _NOT_ARCHITECTURE
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _class_changes(earlier: Sequence[str], now: Sequence[str]) -> str:
    gone = [name for name in earlier if name not in now]
    new = [name for name in now if name not in earlier]
    changes = [f"{word}: {listed(names)}" for word, names in (("gone", gone), ("new", new)) if names]
    return "; ".join(changes) or "the same names in another order"


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "name is value, there value" for each field of both that differs."""
    changes = []
    for name in now:
        if name not in earlier or earlier[name] == now[name]:
            continue
        if isinstance(earlier[name], Mapping) and isinstance(now[name], Mapping):
            changes += _differences(earlier[name], now[name], f"{prefix}{name}.")
        else:
            changes.append(f"{prefix}{name} is {_short(now[name])}, there {_short(earlier[name])}")
    return changes


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["RemoveEarlierRunCallback", "refuse_other_run", "remove_earlier_run", "run_record"]
