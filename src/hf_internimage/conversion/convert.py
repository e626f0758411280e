# SPDX-License-Identifier: MIT
"""Convert a checkpoint of the original release into a model folder: the command `hf-internimage convert`."""

import os
from pathlib import Path

from .inputs import Options
from .output import check_destination, write_folder
from .prepare import prepare

_MAX_SHARD_SIZE = "5GB"


def convert(options: Options, destination: str | Path) -> list[str]:
    """Write the model and its image processor into a folder, which appears complete or not at all.

    Args:
        options: the checkpoint, and what it does not say itself.
        destination: folder to make; must not exist, or be empty.

    Returns: what the checkpoint is and what was left out, a line each.

    Raises:
        ValueError, OSError, SafetensorError: in one sentence, for files that cannot be read, used or written.
    """
    folder = Path(os.path.realpath(destination))  # `resolve` fails at loops of links
    check_destination(folder)
    prepared = prepare(options)
    write_folder(prepared.model, prepared.processor, folder, _MAX_SHARD_SIZE)
    return prepared.lines


__all__ = ["convert"]
