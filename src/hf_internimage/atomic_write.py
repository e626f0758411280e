# SPDX-License-Identifier: MIT
"""Write a file or a folder that appears complete or not at all, or replace several files of a folder at once."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".hf_internimage.unfinished"


def is_free(destination: Path) -> bool:
    """Return True if a new folder can take this place: there is nothing, or an empty folder."""
    if destination.is_dir():
        return not any(destination.iterdir())
    return not (destination.exists() or destination.is_symlink())


@contextmanager
def atomic_write(destination: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder, which is renamed to `destination` at the end of the block.

    The path is in a temporary folder beside `destination`, whose name is always the same: what a killed process left
    there is removed by the next one. After an error in the block, `destination` is as it was; a `return` counts as the
    end of the block. A new file replaces an older one, and a new folder an empty one. Missing parents of `destination`
    are made at the end; the temporary folder is beside the first of them then.

    Raises:
        OSError: if the temporary folder cannot be made, or the new file or folder cannot take its place.
    """
    beside = destination
    while not os.path.lexists(beside.parent):
        beside = beside.parent
    scratch = beside.with_name(f".{destination.name}{_UNFINISHED}")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    try:
        path = scratch / destination.name
        yield path
        if path.is_dir() and destination.is_dir():
            destination.rmdir()  # empty; Windows does not replace folders
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)
    finally:
        shutil.rmtree(scratch)


@contextmanager
def atomic_update(folder: Path, is_outdated: Callable[[str], bool]) -> Iterator[Path]:
    """Yield a temporary folder, whose files replace those of an existing folder at once, at the end of the block.

    A process that is killed at any time leaves all old files or all new ones; the next update removes what it left.
    Files cannot be renamed together. Therefore each one becomes a symbolic link through one and the same link to a
    folder, `current`; a single rename turns that link from the old files to the new ones. Then the new files are
    renamed to their places. A file that is new, or is to go, is a link to nothing while the others are used. On
    Windows, and wherever there are no symbolic links, files are replaced one after another.

    An error leaves the folder as it was. Only one process may update a folder at a time.

    Args:
        folder: an existing folder. Its files of other names stay.
        is_outdated: file name -> whether such a file is removed if there is no new one.

    Raises:
        OSError: if the files cannot be written, or cannot take their places.
    """
    scratch = folder / _UNFINISHED
    _finish(folder, scratch)
    for part in ("new", "old"):
        (scratch / part).mkdir(parents=True)
    try:
        yield scratch / "new"
        _replace_files(folder, scratch, is_outdated)
    finally:
        _finish(folder, scratch)


def _replace_files(folder: Path, scratch: Path, is_outdated: Callable[[str], bool]) -> None:
    """Move the files of `new` to the folder, and remove outdated ones; after an error, restore the files of `old`."""
    new, old = scratch / "new", scratch / "old"
    names = {path.name for path in new.iterdir()}
    older = {path.name for path in folder.iterdir() if path.name in names or is_outdated(path.name)}
    for name in names:
        with open(new / name, "rb+") as file:
            os.fsync(file.fileno())
    for name in older:
        _keep(folder / name, old / name)
    try:
        _switch_by_links(folder, scratch, names | older)
        for name in names:
            os.replace(new / name, folder / name)
        for name in older - names:
            os.unlink(folder / name)
    except BaseException:
        for name in older:
            os.replace(old / name, folder / name)
        for name in names - older:
            (folder / name).unlink(missing_ok=True)
        raise


def _keep(path: Path, copy: Path) -> None:
    """Make `copy` the same file as `path`, or a copy where the file system has no hard links."""
    if path.is_symlink():
        os.symlink(path.resolve(), copy)
        return
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)


def _switch_by_links(folder: Path, scratch: Path, names: set[str]) -> None:
    """Make links of all files and turn them from the old to the new ones; do nothing where there are no links."""
    current, temporary = scratch / "current", scratch / "link"
    if os.name == "nt":
        return
    try:
        os.symlink("old", current)
    except OSError:
        return
    for name in names:
        os.symlink(f"{scratch.name}/current/{name}", temporary)
        os.replace(temporary, folder / name)
    os.symlink("new", temporary)
    os.replace(temporary, current)


def _finish(folder: Path, scratch: Path) -> None:
    """Put the files that links of an update lead to in the links' places, and remove the temporary folder."""
    if not scratch.exists():
        return
    for path in folder.iterdir():
        if path.is_symlink() and os.readlink(path).startswith(f"{scratch.name}/"):
            # Not `resolve`: the file may itself be a link, to a place that is not ours.
            file = scratch / os.readlink(scratch / "current") / path.name
            if os.path.lexists(file):
                os.replace(file, path)
            else:
                os.unlink(path)
    shutil.rmtree(scratch)


__all__ = ["atomic_update", "atomic_write", "is_free"]
