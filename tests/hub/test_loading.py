# SPDX-License-Identifier: MIT
"""Loading a checkpoint for a training: notices that stay away, and the name of a repository that cannot be fetched."""

import logging

import pytest
from support.golden_data import tiny_config
from transformers import AutoModelForImageClassification

from hf_internimage import InternImageForImageClassification
from hf_internimage.hub.loading import check_folder, load_pretrained, loading

CLIENT, TABLE = (logging.getLogger(name) for name in ("huggingface_hub.utils._http", "transformers.modeling_utils"))


@pytest.fixture
def lines(monkeypatch):
    """Return the list of messages that reach the terminal from the Hub's client and from transformers."""
    written = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())
    for logger in (CLIENT, TABLE):
        logger.addHandler(handler)
    yield written
    for logger in (CLIENT, TABLE):
        logger.removeHandler(handler)


def test_tries_to_reach_the_hub_are_one_line_with_the_name(lines):
    with loading("me/model"):
        for number in range(5):
            CLIENT.warning("'%s' thrown while requesting HEAD", "no route")
            CLIENT.warning(f"Retrying in {number}s")
    assert lines == ["me/model cannot be reached on the Hub: trying for half a minute."]
    CLIENT.warning("again")
    assert lines[1:] == ["again"]


def test_an_error_names_the_repository(tmp_path):
    way = r"Without a network, give the folder of a copy of it \(docs/how-to/offline\.md\)\."
    said = rf"^me/model cannot be fetched from the Hub: no connection at all\. {way}\Z"
    with pytest.raises(OSError, match=said), loading("me/model"):
        raise OSError("no connection\nat all.")
    with pytest.raises(OSError, match=rf"^me/model is not there\. {way}\Z"), loading("me/model"):
        raise OSError("me/model is not there")
    for name, text in ((str(tmp_path), "damaged"), (None, "no disk")):
        with pytest.raises(OSError, match=f"^{text}$"), loading(name):
            raise OSError(text)


def test_levels_come_back(lines):
    before = TABLE.level
    with loading(None):
        TABLE.warning("a table")
    assert TABLE.level == before
    with loading("me/model", report_new_weights=True):
        TABLE.warning("another table")
    assert lines == ["another table"]


def test_new_modules_are_named_in_place_of_a_table(tmp_path, lines, caplog):
    InternImageForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    with loading(str(tmp_path)):
        same = load_pretrained(AutoModelForImageClassification, str(tmp_path))
        other = load_pretrained(AutoModelForImageClassification, str(tmp_path), id2label=dict(enumerate("abcde")))
    assert (same.new_modules, other.new_modules) == ([], ["head"])
    assert not lines
    assert not caplog.text


@pytest.mark.parametrize("name", ["nofolder", "./model", "/absent/model", "a/b/c"])
def test_names_of_neither_a_folder_nor_a_repository_are_refused_at_once(name):
    with pytest.raises(ValueError, match=rf"^{name} is no folder; give that of a saved model, or a repository"):
        check_folder(name)
