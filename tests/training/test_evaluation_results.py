# SPDX-License-Identifier: MIT
"""What an evaluation says of its data and of the operator that ran."""

import json
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import torch
import transformers
from support.golden_data import tiny_config
from torch import nn

import hf_internimage
from hf_internimage import InternImageBackbone
from hf_internimage.training import evaluation_results
from hf_internimage.training.evaluation_results import evaluation_result, report_evaluation
from hf_internimage.training.sources import SourceArguments


def described(split, model=None, **data):
    return evaluation_result(
        model or nn.Linear(2, 2),
        "model",
        SourceArguments(**data),
        split,
        samples=3,
        metrics={"accuracy": 0.5, "loss": 1.0},
        image_size=(32, 64),
        batch_size=2,
        dtype="float32",
        device=torch.device("cpu"),
        images_per_second=1.239,
    )


@pytest.mark.parametrize(
    ("split", "data", "name", "split_name"),
    [
        ("validation", {"train_dir": "a", "validation_dir": "b"}, "b", "validation"),
        ("validation", {"train_dir": "a"}, "a", "validation"),  # a share of it was held out
        ("validation", {"dataset_name": "me/data", "validation_split_name": "dev"}, "me/data", "dev"),
        ("train", {"train_dir": "a", "validation_dir": "b"}, "a", "train"),
    ],
)
def test_data_are_named(split, data, name, split_name):
    result = described(split, **data)
    assert (result["dataset"]["name"], result["dataset"]["split"]) == (name, split_name)
    assert (result["metrics"], result["image_size"]) == ({"top1": 0.5, "loss": 1.0}, [32, 64])


def test_the_backend_is_the_one_that_runs(monkeypatch):
    model = nn.Sequential(InternImageBackbone(tiny_config()))
    assert described("train", train_dir="a")["backend"] is None
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    assert described("train", model, train_dir="a")["backend"] == "torch"


def test_everything_to_repeat_an_evaluation():
    data = {"dataset_name": "me/data", "dataset_config_name": "small", "dataset_revision": "v2"}
    result = described("validation", **data, validation_split_name="dev")
    assert result["dataset"] == {"name": "me/data", "config": "small", "split": "dev", "revision": "v2"}
    expected = {"model": "model", "model_type": None, "samples": 3, "batch_size": 2, "dtype": "float32"}
    expected |= {"device": "cpu", "images_per_second": 1.24}
    assert {name: result[name] for name in expected} == expected
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    assert result["versions"] == {**versions, "hf_internimage": hf_internimage.__version__}
    age = datetime.now(timezone.utc) - datetime.fromisoformat(result["date"])
    assert -timedelta(seconds=1) <= age < timedelta(minutes=5)
    assert result["date"].endswith("+00:00")
    assert "." not in result["date"]
    model = InternImageBackbone(tiny_config())
    assert described("train", model, train_dir="a")["model_type"] == "internimage"


def test_metrics_have_the_names_of_results():
    metrics = {"accuracy": 0.5, "top5_accuracy": 0.75, "map": 0.25}
    arguments = {"samples": 1, "image_size": (1, 1), "batch_size": 1, "dtype": "float32", "images_per_second": 1.0}
    data, device = SourceArguments(train_dir="a"), torch.device("cpu")
    result = evaluation_result(nn.Linear(2, 2), "m", data, "train", metrics=metrics, device=device, more=5, **arguments)
    assert result["metrics"] == {"top1": 0.5, "top5": 0.75, "map": 0.25}
    assert result["more"] == 5


@pytest.mark.parametrize(
    ("bf16", "fp16", "dtype"), [(True, False, "bfloat16"), (False, True, "float16"), (False, False, "float32")]
)
@pytest.mark.parametrize(("split", "name"), [("validation", "eval_evaluation.json"), ("test", "test_evaluation.json")])
@pytest.mark.parametrize("main_process", [True, False])
def test_a_report_is_of_the_trainer(bf16, fp16, dtype, split, name, main_process, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_results, "has_operator", lambda model: True)
    monkeypatch.setattr(evaluation_results, "backend_for", lambda device, dtype: f"on {device} in {dtype}")
    training = SimpleNamespace(
        bf16=bf16, fp16=fp16, device=torch.device("cpu"), world_size=3, eval_batch_size=4, output_dir=str(tmp_path)
    )
    trainer = SimpleNamespace(model=nn.Linear(2, 2), args=training, is_world_process_zero=lambda: main_process)
    arguments = {"model_name": "me/model", "samples": 2, "metrics": {"loss": float("nan")}, "image_size": (1, 2)}
    data = SourceArguments(train_dir="a")
    if split == "test":
        data.test_dir = data.test_split_name = None
    result = report_evaluation(trainer, data, split, images_per_second=1.0, **arguments)
    expected = {"model": "me/model", "dtype": dtype, "processes": 3, "batch_size": 4, "backend": f"on cpu in {dtype}"}
    assert {name: result[name] for name in expected} == expected
    assert report_evaluation(trainer, data, split, images_per_second=1.0, batch_size=1, **arguments)["batch_size"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ([name] if main_process else [])
    if main_process:
        assert json.loads((tmp_path / name).read_text())["metrics"] == {"loss": None}
