# SPDX-License-Identifier: MIT
"""What an evaluation says of its data and of the operator that ran."""

import pytest
import torch
from support.golden_data import tiny_config
from torch import nn

from hf_internimage import InternImageBackbone
from hf_internimage.training.evaluation_results import evaluation_result
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
