# SPDX-License-Identifier: MIT
"""Files and folders that appear complete or not at all."""

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest

from hf_internimage.atomic_write import atomic_update, atomic_write


def test_a_file_is_replaced_at_the_end(tmp_path):
    destination = tmp_path / "result.json"
    destination.write_text("old")
    with atomic_write(destination) as path:
        path.write_text("new")
        assert destination.read_text() == "old"
    assert destination.read_text() == "new"
    assert list(tmp_path.iterdir()) == [destination]


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "empty"])
def test_a_folder_appears_at_the_end(exists, tmp_path):
    destination = tmp_path / "model"
    if exists:
        destination.mkdir()
    with atomic_write(destination) as path:
        path.mkdir()
        (path / "config.json").write_text("{}")
        assert destination.exists() == exists
    assert [file.name for file in destination.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [destination]


def test_after_an_error_everything_is_as_before(tmp_path):
    destination = tmp_path / "result.json"
    destination.write_text("old")

    def fail():
        with atomic_write(destination) as path:
            path.write_text("half")
            raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        fail()
    assert destination.read_text() == "old"
    assert list(tmp_path.iterdir()) == [destination]


def test_missing_parents_are_made_at_the_end(tmp_path):
    def write(fails):
        with atomic_write(tmp_path / "a" / "b" / "model") as path:
            path.mkdir()
            assert not (tmp_path / "a").exists()
            if fails:
                raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write(fails=True)
    assert list(tmp_path.iterdir()) == []
    write(fails=False)
    assert (tmp_path / "a" / "b" / "model").is_dir()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_missing_parents_of_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_write(Path("a/model")) as path:
        path.write_text("new")
    assert Path("a/model").read_text() == "new"


def test_a_folder_with_files_is_not_replaced(tmp_path):
    destination = tmp_path / "model"
    destination.mkdir()
    (destination / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="not empty"), atomic_write(destination) as path:
        path.mkdir()
    assert (destination / "mine.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [destination]


def test_the_temporary_path_is_beside_the_destination(tmp_path):
    """Elsewhere it might be on another file system, from which nothing can be renamed."""
    with atomic_write(tmp_path / "file") as new:
        assert new.parent.parent == tmp_path
        new.write_text("new")


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "there") as new:  # noqa: PT011  # the kind depends on the system
        new.write_text("content")
    assert (tmp_path / "there").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("content", ["file", "folder"])
def test_what_a_killed_process_left_is_removed(content, tmp_path, monkeypatch):
    destination = tmp_path / "result"

    def be_killed():
        with atomic_write(destination) as path:
            if content == "folder":
                path.mkdir()
                path /= "part"
            path.write_text("half")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder: None)  # a killed process does not clean up
        with pytest.raises(KeyboardInterrupt):
            be_killed()
    assert len(list(tmp_path.iterdir())) == 1
    assert not destination.exists()
    with atomic_write(destination) as path:
        path.write_text("new")
    assert list(tmp_path.iterdir()) == [destination]
    assert destination.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="there are fewer moves there")
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("move", range(1, 7))
def test_an_error_at_any_move_leaves_the_old_files(move, error, tmp_path, monkeypatch):
    """Also none that is new: a stays, b would be new, c would go."""
    for name in "ac":
        (tmp_path / name).write_text("old")
    moves, replace = [], os.replace

    def fail_once(*paths):
        moves.append(paths)
        if len(moves) == move:
            raise error("no space left")
        replace(*paths)

    def update():
        with atomic_update(tmp_path, lambda name: name == "c") as new:
            for name in "ab":
                (new / name).write_text("new")

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(error, match="no space left"):
        update()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "c": "old"}
    assert not any(path.is_symlink() for path in tmp_path.iterdir())


def test_files_of_an_existing_folder_are_updated_together(tmp_path):
    for name in ("kept", "replaced", "outdated"):
        (tmp_path / name).write_text("old")
    with atomic_update(tmp_path, lambda name: name == "outdated") as new:
        for name in ("replaced", "added"):
            (new / name).write_text("new")
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["kept", "outdated", "replaced"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "kept": "old",
        "replaced": "new",
        "added": "new",
    }


@pytest.mark.skipif(os.name == "nt", reason="files are replaced one after another there")
@pytest.mark.parametrize("killed_after", range(1, 7))
def test_a_link_to_a_file_elsewhere_stays_one_after_a_kill(killed_after, tmp_path, monkeypatch):
    """As in folders whose weights are shared: the next update must not move them from their place."""
    shared, folder = tmp_path / "shared", tmp_path / "folder"
    for path in (shared, folder):
        path.mkdir()
    (shared / "weights").write_text("shared")
    (folder / "weights").symlink_to(shared / "weights")
    (folder / "config").write_text("old")
    steps, replace = itertools.count(1), os.replace

    def die_later(source, target):
        replace(source, target)
        if next(steps) == killed_after:
            os._exit(9)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(os, "replace", die_later)
        with atomic_update(folder, lambda name: name == "weights") as new:
            (new / "weights").write_text("new")
            (new / "config").write_text("new")
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ValueError, match="not today"), atomic_update(folder, lambda name: False):
        raise ValueError("not today")
    assert (shared / "weights").read_text() == "shared"
    contents = [(folder / name).read_text() for name in ("weights", "config")]
    assert contents in (["shared", "old"], ["new", "new"])
    assert (folder / "weights").is_symlink() == (contents[0] == "shared")


def update_two(folder):
    with atomic_update(folder, lambda name: False) as new:
        for name in ("first", "second"):
            (new / name).write_text("new")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_relative_link_can_be_read_at_any_time(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "weights").write_text("old")
    (folder / "first").symlink_to("../weights")
    seen, replace = [], os.replace

    def look(*paths):
        replace(*paths)
        seen.append((folder / "first").read_text())

    monkeypatch.setattr(os, "replace", look)
    update_two(folder)
    assert seen[0] == "old"
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == "new"
    assert (tmp_path / "weights").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="files are replaced one after another there")
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_link_to_nothing_stays_one_after_a_kill(killed_after, tmp_path, monkeypatch):
    """Such as one to a disk that is not there today."""
    (tmp_path / "first").symlink_to("/nowhere/first")
    steps, replace = itertools.count(1), os.replace

    def die_later(*paths):
        replace(*paths)
        if next(steps) == killed_after:
            os._exit(9)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(os, "replace", die_later)
        update_two(tmp_path)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ValueError, match="not today"), atomic_update(tmp_path, lambda name: False):
        raise ValueError("not today")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert os.readlink(tmp_path / "first") == "/nowhere/first"


def test_new_files_are_on_the_disk_before_old_ones_go(tmp_path, monkeypatch):
    (tmp_path / "first").write_text("old")
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append("synced") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("moved") or replace(*paths))
    update_two(tmp_path)
    assert events[:2] == ["synced"] * 2
    assert "synced" not in events[2:]


@pytest.mark.parametrize("fails", [False, True])
def test_file_systems_without_links(fails, tmp_path, monkeypatch):
    """Files are copied and replaced one after another, and come back with their times after an error."""

    def no_links(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "no links here")

    (tmp_path / "first").write_text("old")
    os.utime(tmp_path / "first", (10**9, 10**9))
    moves, replace = [], os.replace

    def replace_or_fail(*paths):
        moves.append(paths)
        if fails and len(moves) == 2:
            raise OSError("no space left")
        replace(*paths)

    for name, function in (("link", no_links), ("symlink", no_links), ("replace", replace_or_fail)):
        monkeypatch.setattr(os, name, function)
    if not fails:
        update_two(tmp_path)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "new", "second": "new"}
        return
    with pytest.raises(OSError, match="no space left"):
        update_two(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert (tmp_path / "first").read_text() == "old"
    assert (tmp_path / "first").stat().st_mtime == 10**9
