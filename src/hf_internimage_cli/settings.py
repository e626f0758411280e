# SPDX-License-Identifier: MIT
"""Check the settings of trainings and evaluations before torch is imported.

The tasks check everything again, and completely, when they read their arguments.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .library import LIBRARY, import_alone, source_folder
from .names import SIZES
from .usage import UsageError, did_you_mean

SETTINGS_ENDINGS = (".yaml", ".yml", ".json")
_MODEL_SOURCES = ("model_name_or_path", "backbone", "size")
_EVALUATION = "evaluate_checkpoint.py"  # a classifier's evaluation has a parser of its own
# Short names that other programs have.
_SHORT_NAMES = {"lr": "learning_rate", "wd": "weight_decay", "batch_size": "per_device_train_batch_size"}


def setting_names(task: str, *, evaluates: bool = False) -> set[str]:
    """Return the names of all settings of a task: the fields of dataclasses in the sources that have a help text.

    Those of a classifier's evaluation, which a training does not take, are among them only if `evaluates`.
    """
    sources = [source_folder("transformers") / "training_args.py"]
    training = source_folder(LIBRARY) / "training"
    sources += [*training.glob("*.py"), *(training / task).glob("*.py")]
    if task == "classification":
        sources = [source for source in sources if not source.name.startswith("system_")]
    if not evaluates:
        sources = [source for source in sources if source.name != _EVALUATION]
    return {name for source in sources for name in _fields(ast.parse(source.read_text(encoding="utf-8")))}


def _fields(tree: ast.Module) -> Iterator[str]:
    """Yield the names that are assigned `field(..., metadata=...)` in classes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        if isinstance(node.target, ast.Name) and any(part.arg == "metadata" for part in node.value.keywords):
            yield node.target.id


def check_names(
    names: Sequence[str], task: str, *, where: str = "", usual: Sequence[str] = (), evaluates: bool = False
) -> None:
    """Raise UsageError for the first name that is no setting of the task.

    Args:
        names: as in files of settings, or options such as --learning_rate.
        where: what has them, for the message.
        usual: names of the command's own options, which may be meant.
        evaluates: see `setting_names`.
    """
    usual = [name.removeprefix("--") for name in usual]
    known = setting_names(task, evaluates=evaluates) if names else set()
    for name in names:
        setting = name.removeprefix("--").replace("-", "_")
        if setting in known or (setting.startswith("no_") and setting[3:] in known):
            continue
        dashes = "--" if name.startswith("--") else ""
        possible = {*known, *usual}
        meant = _SHORT_NAMES.get(setting)
        guess = f"did you mean {dashes}{meant}?" if meant in possible else ""
        guess = guess or did_you_mean(dashes + setting, [dashes + name for name in possible])
        raise UsageError(f"{where}{name} is no setting of {task}; {guess}{' ' if guess else ''}--help_all lists all.")


def read_settings(path: str | Path, task: str) -> dict[str, Any]:
    """Return the settings in a file; an empty object for what only the task itself can refuse.

    Raises:
        UsageError: for a file that is missing, and a name that is no setting.
    """
    import yaml

    if not Path(path).is_file():
        raise UsageError(f"there is no file of settings {path}.")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(settings, dict):
        return {}
    check_names([str(name) for name in settings], task, where=f"{path}: ")
    return settings


def check_model(settings: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a wrong size, two sources of one model, and a folder that is not there.

    Args:
        settings: those of one file, or of the command line.
        where: what has them, for the message.
    """
    size = settings.get("size")
    if size is not None and str(size).lower() not in SIZES:
        raise UsageError(f"{where}size is {size!r}, expected one of {', '.join(SIZES)}.")
    sources = [name for name in _MODEL_SOURCES if settings.get(name) is not None]
    if len(sources) > 1:
        raise UsageError(f"{where}{sources[0]} and {sources[1]} are both set; choose one of them.")
    for name in ("model_name_or_path", "backbone"):
        check_model_name(settings.get(name), where=f"{where}{name} ")


def check_model_name(name: Any, where: str = "") -> None:
    """Raise UsageError for a name that is neither that of a folder or file here, nor owner/name, as on the Hub."""
    if not isinstance(name, str) or (name and Path(name).exists()):
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or name.endswith("/") or "\\" in name:
        names = [path.name for path in Path().iterdir() if path.is_dir()]
        names += [f"OpenGVLab/{checkpoint.name}" for checkpoint in import_alone("checkpoints").CHECKPOINTS]
        guess = did_you_mean(name, names)
        advice = guess or "give that of a saved model, or a repository on the Hub, owner/name."
        raise UsageError(f"{where}{name or repr(name)} is no folder; {advice}")


def check_new_folder(path: Path, option: str) -> None:
    """Raise UsageError for a folder to write to that holds something, or that cannot be made."""
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{option} {path} is not an empty folder; name a new one, or remove it first.")
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise UsageError(f"{option} {path} cannot be a folder: {part} is a file; name another one.")


def check_data(settings: Mapping[str, Any], folders_of: str = "--train_dir DIR (and --validation_dir DIR)") -> None:
    """Raise UsageError for settings without data, or with a folder or file that is not there.

    Args:
        settings: those of all files and the command line.
        folders_of: the command's options for folders, for the message.
    """
    folders = [f"{split}_dir" for split in ("train", "validation", "test") if settings.get(f"{split}_dir") is not None]
    dataset = settings.get("dataset_name")
    if dataset is None and not folders:
        raise UsageError(f"there are no data: give {folders_of}, or --dataset_name NAME.")
    if dataset is not None and folders:
        raise UsageError(f"dataset_name and {folders[0]} are both set; choose one of them.")
    for name in folders:
        if not Path(str(settings[name])).is_dir():
            raise UsageError(f"{name} is {settings[name]}, which is not a folder.")
    for name in ("train_annotations", "validation_annotations", "test_annotations", "label_names_file"):
        if settings.get(name) is not None and not Path(str(settings[name])).is_file():
            raise UsageError(f"{name} is {settings[name]}, which is not a file.")


def option_values(arguments: Sequence[str]) -> dict[str, str]:
    """Return name -> value of the options in arguments, as `--name value` or `--name=value`; "" for a flag."""
    values = {}
    for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            values[name.replace("-", "_")] = value if equals or after.startswith("--") else after
    return values


__all__ = [
    "SETTINGS_ENDINGS",
    "check_data",
    "check_model",
    "check_model_name",
    "check_names",
    "check_new_folder",
    "option_values",
    "read_settings",
    "setting_names",
]
