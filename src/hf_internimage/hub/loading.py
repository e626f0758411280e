# SPDX-License-Identifier: MIT
"""Load checkpoints without transformers' notices, which commands replace by their own lines; name what is missing."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..models.loading_report import mismatched_modules

_NEW_WEIGHTS = ("hf_internimage.models.loading_report", "transformers.modeling_utils")
# Write that an image processor runs on Pillow without torchvision, that no layer is divided among devices, and that
# transformers does not know a head's backbone.
_NOTICES = (
    "transformers.distributed.tensor_parallel",
    "transformers.models.auto.image_processing_auto",
    "transformers.utils.import_utils",
    "transformers.models.mask2former.configuration_mask2former",
    "transformers.models.maskformer.configuration_maskformer",
)
_COPY = "Without a network, give the folder of a copy of it (docs/how-to/offline.md)."
_HUB_CLIENT = "huggingface_hub.utils._http"  # writes two lines for each of its tries


class _OneLine(logging.Filter):
    """Let one line through, which names the repository, in place of the lines about every try to reach it."""

    def __init__(self, repository: str) -> None:
        super().__init__()
        self.repository, self.is_told = repository, False

    def filter(self, record: logging.LogRecord) -> bool:
        is_told, self.is_told = self.is_told, True
        record.msg, record.args = f"{self.repository} cannot be reached on the Hub: trying for half a minute.", ()
        return not is_told


@contextlib.contextmanager
def loading(name: str | None, *, report_new_weights: bool = False) -> Iterator[None]:
    """Keep notices about loading `name` off the terminal; a repository that cannot be fetched is named in one line.

    Args:
        name: folder or repository; None if nothing is loaded.
        report_new_weights: leave the table of the weights that the checkpoint lacks.

    Raises:
        OSError: in place of one without the name of the repository.
    """
    names = _NOTICES if report_new_weights else (*_NOTICES, *_NEW_WEIGHTS)
    loggers = {logger: logger.level for logger in map(logging.getLogger, names)}
    client, one_line = logging.getLogger(_HUB_CLIENT), _OneLine(str(name))
    client.addFilter(one_line)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except OSError as error:
        if name is None or Path(name).exists():
            raise
        text = " ".join(str(error).split()).rstrip(".")
        what = "" if name in text else f"{name} cannot be fetched from the Hub: "
        raise OSError(f"{what}{text}. {_COPY}") from error
    finally:
        client.removeFilter(one_line)
        for logger, level in loggers.items():
            logger.setLevel(level)


def load_pretrained(auto_class: Any, name: str, **options: Any) -> Any:
    """Load a checkpoint whose classifier may be for other labels, and is then made anew.

    Args:
        auto_class: the Auto class of the model.
        name: folder or repository.
        options: of `from_pretrained`.

    Returns: the model; its attribute `new_modules` is the list of the modules with newly initialised weights.
    """
    model, info = auto_class.from_pretrained(name, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    model.new_modules = mismatched_modules({"mismatched_keys": [*info["missing_keys"], *info["mismatched_keys"]]})
    return model


def check_folder(name: str) -> None:
    """Check that a name is that of a folder with a model, or may be one of a repository: owner/name.

    Raises: ValueError that says which folder to give instead.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"{name} is a file; give the folder it lies in.")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ValueError(f"{name} is no folder; give that of a saved model, or a repository on the Hub, owner/name.")
    if not path.is_dir() or (path / "config.json").exists():
        return
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in path.glob("checkpoint-*")}
    checkpoints = [folder for folder, step in steps.items() if step.isdigit()]
    hint = "give the folder of a saved model"
    if checkpoints:
        hint = f"give one of the checkpoints in it, such as {max(checkpoints, key=lambda folder: int(steps[folder]))}"
    raise ValueError(f"{name} has no config.json; {hint}.")


__all__ = ["check_folder", "load_pretrained", "loading"]
