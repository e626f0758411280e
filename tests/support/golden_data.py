# SPDX-License-Identifier: MIT
"""The original's numbers (tests/golden) as tensors."""

import gzip
import importlib.util
import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_internimage import InternImageConfig, InternImageForImageClassification
from support.paths import GOLDEN

TINY = ("tiny_t", "tiny_b", "tiny_l", "tiny_h", "tiny_g", "tiny_rc")
MANIFESTS = sorted(path.name.removesuffix(".json.gz") for path in (GOLDEN / "manifests").glob("*.json.gz"))


def load_module(path):
    """The module of a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def fill():
    """The module that makes weights and inputs from names; fails if this numpy draws other numbers."""
    module = load_module(GOLDEN / "fill.py")
    module.selfcheck()
    return module


@cache
def operator_cases():
    """{name: description} and {"name/what": tensor} of the operator's cases."""
    return json.loads((GOLDEN / "op_cases.json").read_text())["cases"], load_file(GOLDEN / "op_cases.safetensors")


def operator_arguments(case):
    return {
        "groups": case["group"],
        "kernel_size": (case["kernel_h"], case["kernel_w"]),
        "stride": (case["stride_h"], case["stride_w"]),
        "padding": (case["pad_h"], case["pad_w"]),
        "dilation": (case["dilation_h"], case["dilation_w"]),
        "offset_scale": case["offset_scale"],
        "remove_center": case["remove_center"],
    }


@cache
def manifest(name):
    with gzip.open(GOLDEN / "manifests" / f"{name}.json.gz", "rt") as file:
        return json.load(file)


@cache
def model_case(name):
    """Description and expected tensors of a golden model."""
    description = json.loads((GOLDEN / "models" / f"{name}.json").read_text())
    return description, load_file(GOLDEN / "models" / f"{name}.safetensors")


@cache
def golden_weights(name):
    """Weights of a golden model under the Hub's names; callers leave them as they are."""
    description, _ = model_case(name)
    weights = fill().fill_state_dict(description["keys"])
    assert f"{fill().crc(weights):08x}" == description["weights_crc32"]
    return weights


def model_input(name, which="plain", dtype=torch.float32):
    spec = model_case(name)[0]["inputs"][which]
    return torch.from_numpy(fill().pixels(spec["fill_key"], spec["shape"])).to(dtype)


def write_official_folder(name, folder):
    """A folder as in the official repositories: config.json, preprocessor_config.json, model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description, _ = model_case(name)
    (folder / "config.json").write_text(json.dumps(description["config"]))
    preprocessor = manifest("internimage_t_1k_224")["preprocessor_config"]
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    save_file(golden_weights(name), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def golden_model(name, dtype=torch.float32):
    """The golden model in evaluation mode, with its weights renamed to ours in the open (no loading code involved)."""
    model = InternImageForImageClassification(InternImageConfig(**model_case(name)[0]["config"]))
    ours = set(model.state_dict())
    weights = {key if key in ours else key.removeprefix("model."): value for key, value in golden_weights(name).items()}
    model.load_state_dict(weights, strict=True)
    return model.to(dtype).eval()


def tiny_config(**fields):
    """A configuration small enough for tests about mechanics; offsets and masks are random, not golden."""
    return InternImageConfig(
        **{"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8], "num_labels": 5, **fields}
    )


def awaken(model):
    """Give layers that start at zero (offsets, masks, centre scales) values, so that they matter in comparisons."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.05, generator=generator))
    return model
