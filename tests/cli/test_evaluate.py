# SPDX-License-Identifier: MIT
"""`hf-internimage evaluate`: the task of a model, and what its own parser gets."""

import importlib
import json
import os

import pytest

from hf_internimage_cli.main import main
from hf_internimage_cli.names import TASKS

CLASSES = {
    "InternImageForImageClassification": "classification",
    "UperNetForSemanticSegmentation": "segmentation",
    "Mask2FormerForUniversalSegmentation": "segmentation",
    "InternImageDinoForObjectDetection": "detection",
}


@pytest.fixture
def handed_on(monkeypatch, tmp_path):
    """What each task is called with; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND", raising=False)
    calls = []
    for task in TASKS:
        name = "evaluate_checkpoint" if task == "classification" else "main"
        module = importlib.import_module(f"hf_internimage.training.{task}.{name}")
        monkeypatch.setattr(module, "main", lambda argv, task=task: calls.append((task, argv)) or 0)
    return calls


def write_config(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_the_task_is_that_of_the_configuration(name, handed_on, tmp_path):
    write_config(tmp_path / "model", architectures=[name])
    assert main(["evaluate", "model", "--validation_dir", "."]) == 0
    assert handed_on[0][0] == CLASSES[name]


def test_the_authors_configurations_are_of_classifiers(handed_on, tmp_path, capsys):
    write_config(tmp_path / "official", architectures=["InternImageModel"], model_type="internimage")
    write_config(tmp_path / "other", model_type="vit")
    assert main(["evaluate", "--model=official", "--validation_dir=."]) == 0
    assert handed_on[0][0] == "classification"
    assert main(["evaluate", "other", "--validation_dir=."]) == 2
    assert "the configuration of other names no task that can be evaluated; give --task" in capsys.readouterr().err
    assert main(["evaluate", "other", "--validation_dir=.", "--task=detection"]) == 0
    assert handed_on[1][0] == "detection"


def test_options_of_a_classifier(handed_on, tmp_path):
    options = ["--validation_dir=.", "--batch-size=7", "--dtype=bfloat16", "--device=cpu", "--backend=torch"]
    assert main(["evaluate", "me/model", "--task=classification", *options, "--match_labels", "index"]) == 0
    [(_, argv)] = handed_on
    assert sorted(argv[:-2]) == [
        *("--batch_size=7", "--device=cpu", "--dtype=bfloat16", "--model=me/model"),
        *("--output=evaluation/eval_evaluation.json", "--validation_dir=."),
    ]
    assert argv[-2:] == ["--match_labels", "index"]
    assert (tmp_path / "evaluation").is_dir()
    assert os.environ.pop("HF_INTERNIMAGE_BACKEND") == "torch"
    options = ["--validation_dir=.", "--model=me/model", "--task=classification", "--output", "scores"]
    assert main(["evaluate", *options]) == 0
    assert {"--model=me/model", "--output=scores/eval_evaluation.json"} <= set(handed_on[1][1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_options_of_other_tasks(dtype, handed_on):
    options = ["--validation_dir=.", "--batch_size=3", f"--dtype={dtype}", "--device=cpu", "--output_dir=scores"]
    assert main(["evaluate", "me/model", "--task=segmentation", *options, "--tta_ratios", "0.75", "1.0"]) == 0
    [(_, argv)] = handed_on
    expected = ["--do_eval", "--model_name_or_path=me/model", "--output_dir=scores", "--per_device_eval_batch_size=3"]
    expected += ["--use_cpu=true", "--validation_dir=."]
    expected += {"float32": [], "bfloat16": ["--bf16=true"], "float16": ["--fp16=true"]}[dtype]
    assert sorted(argv[:-3]) == sorted(expected)
    assert argv[-3:] == ["--tta_ratios", "0.75", "1.0"]


def test_help_all(capsys):
    assert main(["evaluate", "--task=segmentation", "--help-all"]) == 0
    assert "--tta_ratios" in capsys.readouterr().out
