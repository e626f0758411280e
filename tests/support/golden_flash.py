# SPDX-License-Identifier: MIT
"""The numbers of DCNv4 and FlashInternImage (tests/golden/flash) as tensors."""

import gzip
import json
import sys
from functools import cache

import torch
from safetensors.torch import load_file

from hf_internimage import FlashInternImageConfig, FlashInternImageForImageClassification
from support.golden_data import fill, load_module
from support.paths import GOLDEN

FLASH = GOLDEN / "flash"
TINY = ("tiny_t", "tiny_t_dense", "tiny_b", "tiny_l")


@cache
def fill_flash():
    """The module that makes weights and inputs from names."""
    sys.modules.setdefault("fill", fill())
    return load_module(FLASH / "fill_flash.py")


@cache
def load(name):
    """Description and tensors of `name`.json and `name`.safetensors."""
    return json.loads((FLASH / f"{name}.json").read_text()), load_file(FLASH / f"{name}.safetensors")


@cache
def weights(name):
    """Weights of a golden model under the names of the original's files; callers leave them as they are."""
    description, _ = load(f"models/{name}")
    filled = fill_flash().fill_state_dict(description["keys"])
    assert f"{fill_flash().crc(filled):08x}" == description["weights_crc32"]
    return filled


def model_input(name, which="plain", dtype=torch.float32):
    spec = load(f"models/{name}")[0]["inputs"][which]
    return torch.from_numpy(fill_flash().pixels(spec["fill_key"], spec["shape"])).to(dtype)


def config(name):
    """The configuration of a golden model; the original reads from its yaml whether there are biases."""
    return FlashInternImageConfig(**load(f"models/{name}")[0]["config"])


def model(name, dtype=torch.float32):
    """The golden model in evaluation mode, with its weights renamed to ours in the open (no loading code involved)."""
    built = FlashInternImageForImageClassification(config(name))
    ours = set(built.state_dict())
    renamed = {key.replace("gamma", "layer_scale"): value for key, value in weights(name).items()}
    named = {key if key in ours else f"model.{key}": value for key, value in renamed.items()}
    built.load_state_dict(named, strict=True)
    return built.to(dtype).eval()


def modules():
    """Descriptions of the original's modules by name."""
    return load("modules")[0]["cases"]


def check_module(name, module, call):
    """Compare a module with a case in float64, output and gradients; `call` runs it, (N, L, C) -> (N, L, C)."""
    (description, expected), case = load("modules"), modules()[name]
    prefix = f"module.{name}."
    filled = fill_flash().fill_state_dict({f"{prefix}{key}": shape for key, shape in case["keys"].items()})
    module.double().load_state_dict({key.removeprefix(prefix): value for key, value in filled.items()}, strict=True)
    drawn = (fill_flash().normal(case[key], case["shape"]) for key in ("input_key", "grad_output_key"))
    states, grad_output = (torch.from_numpy(array).double() for array in drawn)
    output = call(states.requires_grad_())
    output.backward(grad_output)
    for what, got in (("output", output), ("grad_input", states.grad)):
        torch.testing.assert_close(got, expected[f"{name}/{what}"], rtol=0, atol=description["atol_float64"])
    assert case["grad_norms"].keys() == case["keys"].keys()
    for key, norm in case["grad_norms"].items():
        got = module.get_parameter(key).grad.norm().item()
        assert abs(got - norm) <= description["rtol_grad_norm"] * norm, key


@cache
def manifest(name):
    """Configuration, names and shapes of a published classifier."""
    with gzip.open(FLASH / "manifests" / f"{name}.json.gz", "rt") as file:
        return json.load(file)
