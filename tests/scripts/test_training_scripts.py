# SPDX-License-Identifier: MIT
"""The scripts that train and evaluate: each runs the main function of its task."""

import importlib
import sys

import pytest
from support.golden_data import load_module
from support.paths import SCRIPTS

TASKS = {
    "run_image_classification": "classification.main",
    "run_semantic_segmentation": "segmentation.main",
    "run_object_detection": "detection.main",
    "evaluate": "classification.evaluate_checkpoint",
}


@pytest.mark.parametrize("name", TASKS)
def test_each_script_runs_the_main_function_of_its_task(name, monkeypatch):
    """Its own folder comes off the path, where evaluate.py would hide the package `evaluate`."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    script = load_module(SCRIPTS / f"{name}.py")
    assert script.main is importlib.import_module(f"hf_internimage.training.{TASKS[name]}").main
    assert str(SCRIPTS) not in sys.path
