# SPDX-License-Identifier: MIT
"""`hf-internimage benchmark`: its table, JSON and errors."""

import json

import pytest
from support.golden_data import write_official_folder

from hf_internimage_cli.main import main

FAST = ["--seconds", "0.01", "--device", "cpu"]


@pytest.fixture
def model(tmp_path):
    return str(write_official_folder("tiny_t", tmp_path / "model"))


def test_table(model, capsys):
    options = ["--batch-size", "1", "2", "--image-size", "32", "64", "--backend", "torch"]
    assert main(["benchmark", model, *options, *FAST]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{model}, 32x64 pixels, float32, on cpu, ")
    assert lines[1].split() == "batch size backend milliseconds spread images/s peak memory".split()
    assert [line.split()[:2] for line in lines[2:]] == [["1", "torch"], ["2", "torch"]]


def test_json(model, capsys):
    assert main(["benchmark", model, "--image-size", "32", "--dtype", "bfloat16", "--json", *FAST]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["dtype"], row["image_size"]) == (model, "bfloat16", [32, 32])
    assert row["images_per_second"] > 0


def test_errors(model, capsys):
    assert main(["benchmark", model, "--image-size", "1", "2", "3"]) == 2
    assert "--image_size has 3 numbers; give one side, or height and width" in capsys.readouterr().err
    assert main(["benchmark", model, "--batch-size", "0"]) == 2
    for seconds in ("nan", "0", "-1", "inf", "x"):
        assert main(["benchmark", model, f"--seconds={seconds}"]) == 2
    assert "'x' is not a positive number" in capsys.readouterr().err
    assert main(["benchmark", model, "--backend", "triton", *FAST]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert main(["benchmark", "absent/absent", *FAST]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
