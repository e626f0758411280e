# SPDX-License-Identifier: MIT
"""The scripts that are commands: each hands its arguments on to the command line."""

import sys

import pytest
from support.golden_data import load_module
from support.paths import SCRIPTS

import hf_internimage_cli.main

COMMANDS = {
    "run_image_classification": ["train", "classification"],
    "run_semantic_segmentation": ["train", "segmentation"],
    "run_object_detection": ["train", "detection"],
    "evaluate": ["evaluate"],
    "convert_checkpoint": ["convert"],
    "push_to_hub": ["push"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_script_runs_its_command(name, monkeypatch, capsys):
    """The folder of those that train comes off the path, where evaluate.py would hide the package `evaluate`."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    script = load_module(SCRIPTS / f"{name}.py")
    assert script.main is hf_internimage_cli.main.main
    assert (str(SCRIPTS) in sys.path) == (name in ("convert_checkpoint", "push_to_hub"))
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    monkeypatch.setitem(vars(script), "__name__", "__main__")
    source = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        exec(compile(source, name, "exec"), vars(script))
    usage = "usage: hf-internimage " + " ".join(COMMANDS[name])
    assert capsys.readouterr().out.startswith(usage)
