# SPDX-License-Identifier: MIT
"""Files and folders that appear complete or not at all."""

import pytest

from hf_internimage.atomic_write import atomic_write


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


def test_a_folder_with_files_is_not_replaced(tmp_path):
    destination = tmp_path / "model"
    destination.mkdir()
    (destination / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="not empty"), atomic_write(destination) as path:
        path.mkdir()
    assert (destination / "mine.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [destination]
