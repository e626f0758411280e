# SPDX-License-Identifier: MIT
"""The original's segmentation and detection numbers (tests/golden/heads): descriptions, weights, inputs, results."""

import json
import sys
from functools import cache
from unittest import mock

import torch
from safetensors.torch import load_file

from hf_internimage import InternImageConfig
from support.golden_data import GOLDEN, fill, load_module

HEADS = GOLDEN / "heads"
TOLERANCES = {torch.float32: "atol_float32", torch.float64: "atol_float64"}


@cache
def fill_heads():
    """The module that makes weights from the original's names."""
    with mock.patch.dict(sys.modules, {"fill": fill()}), mock.patch.object(sys, "path", list(sys.path)):
        return load_module(HEADS / "fill_heads.py")


@cache
def document(name):
    """What a file describes: configuration, names and shapes, inputs, noise."""
    return json.loads((HEADS / f"{name}.json").read_text())


@cache
def wanted(name):
    """The original's results; names with the prefix "float64/" are from its float64 run."""
    return load_file(HEADS / f"{name}.safetensors")


@cache
def weights(name):
    """The state dict of a released file, in the original's names; callers leave the tensors as they are."""
    filled = fill_heads().fill_state_dict(document(name)["keys"])
    assert f"{fill().crc(filled):08x}" == document(name)["weights_crc32"]
    return filled


def pixel_values(name, which="input", dtype=torch.float32):
    """The input images (N, 3, H, W) described under `which`."""
    described = document(name)[which]
    return torch.from_numpy(fill().pixels(described["fill_key"], described["shape"])).to(dtype)


def expected(name, what, dtype=torch.float32):
    """(result of the original, absolute tolerance) of one tensor in one precision."""
    if dtype is torch.float64:
        return wanted(name)[f"float64/{what}"], document(name)["atol_float64"]
    return wanted(name)[what], document(name)["float32_noise"][what]["atol"]


def backbone_fields(upstream):
    """The fields of InternImageConfig that an upstream `backbone` states, but for `out_indices`: its 0 is stage 1."""
    names = set(upstream) & set(InternImageConfig().to_dict()) - {"out_indices"}
    return {name: upstream[name] for name in names}
