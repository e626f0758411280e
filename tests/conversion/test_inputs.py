# SPDX-License-Identifier: MIT
"""What is read of the files that the options of a conversion name."""

import json

import pytest
import torch

from hf_internimage.conversion.inputs import (
    InputError,
    Options,
    errors_prefixed_with,
    parse_indices,
    read_checkpoint,
    read_config,
    read_head_map,
    read_inputs,
    read_labels,
)
from hf_internimage.conversion.systems import SYSTEMS


def test_a_byte_order_mark_is_no_text(tmp_path):
    """As editors on Windows write text files: in UTF-8 with a mark at the start."""
    (tmp_path / "labels.txt").write_text("owl\r\neagle\r\n", encoding="utf-8-sig", newline="")
    (tmp_path / "labels.json").write_text(json.dumps(["owl", "eagle"]), encoding="utf-8-sig")
    (tmp_path / "map.txt").write_text("3\r\n1\r\n", encoding="utf-8-sig", newline="")
    (tmp_path / "config.json").write_text(json.dumps({"channels": 32}), encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.txt") == read_labels(tmp_path / "labels.json") == ["owl", "eagle"]
    assert read_head_map(tmp_path / "map.txt") == [3, 1]
    (system,) = (system for system in SYSTEMS if system.name == "classification")
    assert read_config(tmp_path / "config.json", system)[0] == {"channels": 32}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"CLASSES": ("owl", "newt")}, ["owl", "newt"]), ({"CLASSES": ["owl"]}, ["owl"]), ({"CLASSES": []}, []),
        ({"CLASSES": None}, []), ({"CLASSES": "owl"}, []), ({"CLASSES": ["owl", ""]}, []),
        ({"CLASSES": ["owl", 3]}, []), ({}, []), (["CLASSES"], []), (None, []),
    ],
)  # fmt: skip
def test_names_of_the_classes_are_those_of_mmcv(meta, expected, tiny_t):
    content = torch.load(tiny_t / "good.pth")
    torch.save({**content, "meta": meta, "zeta": 1, "epoch": 2, 3: 4}, tiny_t / "named.PTH")
    inputs = read_inputs(Options(tiny_t / "named.PTH"))
    assert inputs.class_names == expected
    assert inputs.unused_entries == ["3", "epoch", "zeta"]  # sorted, without the names
    assert (inputs.config, inputs.config_fields, inputs.labels, inputs.head_rows) == (None, {}, None, None)


def test_tensors_are_no_unused_entries(tiny_t):
    weights = torch.load(tiny_t / "good.pth")["model"]
    for content in ({"state_dict": weights, "model": "a name"}, {"model": weights, "state_dict": None}, weights):
        torch.save(content, tiny_t / "other.pth")
        read, system, others = read_checkpoint(tiny_t / "other.pth")
        assert (read.keys(), system.name, others) == (weights.keys(), "classification", {})


def test_endings_may_have_capitals(tmp_path):
    (tmp_path / "labels.JSON").write_text('["owl", "eagle"]')
    assert read_labels(tmp_path / "labels.JSON") == ["owl", "eagle"]
    (tmp_path / "labels.names").write_text("owl\neagle\n\n\n")
    assert read_labels(tmp_path / "labels.names") == ["owl", "eagle"]


@pytest.mark.parametrize("text", ["1\n\n2", "1\n 2 x", "1.0", "1" * 50 + "x"])
def test_lines_of_a_head_map_are_integers(text):
    assert parse_indices(" 1\n-2 \n+3\n\n") == [1, -2, 3]
    assert parse_indices("") == []
    with pytest.raises(ValueError, match=r"Line [12] is '[^']{0,40}', expected one integer on each line"):
        parse_indices(text)


def test_errors_name_the_file_once(tmp_path):
    def raising(error):
        with errors_prefixed_with(tmp_path / "outer"):
            raise error

    with pytest.raises(InputError, match=f"^{tmp_path / 'outer'}: Wrong$"):
        raising(ValueError("Wrong"))
    with pytest.raises(InputError, match=r"^inner: Wrong$"):
        raising(InputError("inner: Wrong"))
    with pytest.raises(InputError, match=f"^{tmp_path / 'outer'}: Nested too deeply"):
        raising(RecursionError("maximum recursion depth"))
    with pytest.raises(KeyError):
        raising(KeyError("wrong"))
    with pytest.raises(InputError, match="Not a file; give the path of one text file"):
        read_labels(tmp_path)
