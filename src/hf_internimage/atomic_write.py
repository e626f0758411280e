# SPDX-License-Identifier: MIT
"""Write a file or a folder that appears complete or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(destination: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder, which is renamed to `destination` at the end of the block.

    The path is in a temporary folder beside `destination`. After an error in the block, `destination` is as it was; a
    `return` counts as the end of the block. A new file replaces an older one, and a new folder an empty one.

    Raises:
        OSError: if the temporary folder cannot be made, or the new file or folder cannot take its place.
    """
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        path = Path(scratch, destination.name)
        yield path
        if path.is_dir() and destination.is_dir():
            destination.rmdir()  # empty; Windows does not replace folders
        os.replace(path, destination)


__all__ = ["atomic_write"]
