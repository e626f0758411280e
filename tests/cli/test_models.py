# SPDX-License-Identifier: MIT
"""`hf-internimage models`: tables and JSON of models and recipes."""

import json

import pytest
from support.loading import run_python

from hf_internimage import list_models
from hf_internimage_cli.main import main


def run(capsys, *arguments):
    assert main(["models", *arguments]) == 0
    return capsys.readouterr().out


def test_models_need_no_torch():
    code = """
import contextlib, io, sys
from hf_internimage_cli.main import main

with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main(["models"]) == 0
print({"hf_internimage", "torch", "transformers"} & set(sys.modules))
print(out.getvalue(), end="")
"""
    first, *table = run_python(code, fork=False).splitlines()
    assert first == "set()"
    assert sum(line.split()[:1] == [model.name] for model in list_models() for line in table) == len(list_models())


def test_table(capsys):
    lines = run(capsys, "--task", "segmentation", "--size", "t").splitlines()
    assert [line for line in lines if line.endswith("segmentation")] == [
        "semantic-segmentation",
        "instance-segmentation",
    ]
    names = [model.name for model in list_models(task="segmentation", size="t")]
    assert [line.split()[0] for line in lines if "_internimage_t_" in line] == names
    (row,) = (line for line in lines if line.startswith("upernet_internimage_t_512_160k_ade20k"))
    assert row.split()[1:] == "t 512 to 2048 59 M ADE20K mIoU 47.9, multi-scale 48.1 mit".split()


def test_every_row_and_unknown_scores(capsys):
    lines = run(capsys).splitlines()
    for model in list_models():
        assert sum(line.split()[:1] == [model.name] for line in lines) == 1
    (row,) = (line for line in lines if line.startswith("internimage_l_22k_384 "))
    assert row.split()[-2:] == ["none", "mit"]
    (row,) = (line for line in lines if line.startswith("dino_4scale_internimage_g_objects365_coco_ss"))
    assert row.endswith("no published file")
    (row,) = (line for line in lines if line.startswith("dino_4scale_cbinternimage_h_objects365_coco "))
    assert "box AP 64.5, multi-scale val 65.0, multi-scale test-dev 65.4" in row


def test_json(capsys):
    rows = json.loads(run(capsys, "--json", "--task", "classification"))
    assert [row["name"] for row in rows] == [model.name for model in list_models(task="classification")]
    assert rows[0]["scores"] == [{"metric": "top-1", "value": 83.5, "views": "single-scale", "split": ""}]
    assert rows[0]["licence"] == "mit"


def test_recipes(capsys):
    lines = run(capsys, "--recipes", "--task", "detection").splitlines()
    assert lines[0].split() == ["task", "recipe", "description"]
    assert {line.split()[0] for line in lines[1:]} == {"detection"}
    rows = json.loads(run(capsys, "--recipes", "--json"))
    assert {row["task"] for row in rows} == {"classification", "segmentation", "detection"}
    assert all(row["recipe"] and row["description"] for row in rows)


@pytest.mark.parametrize("arguments", [["--task", "depth"], ["--size", "xxl"], ["--recipes", "--size", "t"]])
def test_usage_errors(arguments, capsys):
    assert main(["models", *arguments]) == 2
    assert capsys.readouterr().err.startswith("hf-internimage models: error: ")
