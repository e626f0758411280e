# SPDX-License-Identifier: MIT
"""Tools of the tests of checkpoint conversion."""

import json

import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForImageClassification

from hf_internimage import InternImageForImageClassification
from hf_internimage_cli.main import main
from support.golden_data import model_case, model_input


def original_name(name):
    """Return the original's name of a tensor, from the Hub's: no prefix, and gamma for layer_scale."""
    return name.removeprefix("model.").replace("layer_scale", "gamma")


def original(weights):
    return {original_name(name): tensor for name, tensor in weights.items()}


def save_config(path, name, **changes):
    path.write_text(json.dumps({**model_case(name)[0]["config"], **changes}))
    return path


def convert(*args):
    """Run the command line of the conversion in this process. Returns its exit status."""
    return main(["convert", *map(str, args)])


def assert_written(folder, weights):
    """Check that the weight file holds exactly these tensors, bit for bit."""
    written = load_file(folder / "model.safetensors")
    assert sorted(written) == sorted(weights)
    for name, tensor in weights.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name


def load(folder):
    """Load the model of a folder through the Auto class, with no tensor missing or left over."""
    model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert type(model) is InternImageForImageClassification
    assert {key: value for key, value in report.items() if value} == {}
    return model.eval()


@torch.no_grad()
def assert_logits(model, name, classes=slice(None)):
    case, expected = model_case(name)
    for which in case["inputs"]:
        logits = model(model_input(name, which)).logits
        expected_logits = expected["logits" if which == "plain" else f"{which}/logits"][:, classes]
        assert_close(logits, expected_logits, rtol=0, atol=case["atol_float32"])


def write_safetensors(path, weights):
    save_file(weights, path)
