# SPDX-License-Identifier: MIT
"""Which GPU backends tests run on: those of a CUDA device that is here, and those HF_INTERNIMAGE_TEST_BACKENDS names.

A backend named there ("cuda,triton") that cannot run fails the tests that need it; others are skipped.
"""

import os

import pytest
import torch

from hf_internimage import ops
from hf_internimage.ops.dcnv3 import DCNV3
from hf_internimage.ops.registry import Call

REQUIRED = [name for name in os.environ.get("HF_INTERNIMAGE_TEST_BACKENDS", "").split(",") if name]
NAMES = [name for name in ("cuda", "triton") if name in REQUIRED or torch.cuda.is_available()]


def need(backend, dtype=torch.float32):
    """Ends the test, as skipped or failed, if a backend cannot run here."""
    if reason := DCNV3.backends[backend].why_not(Call("cuda", str(dtype).removeprefix("torch."))):
        (pytest.fail if backend in REQUIRED else pytest.skip)(f"{backend}: {reason}")


def on_gpu(backend, deterministic):
    """The operator by a GPU backend, for tensors of the CPU; gradients flow back to them."""

    def run(value, offset, mask, **arguments):
        need(backend, value.dtype)
        torch.use_deterministic_algorithms(deterministic)
        tensors = [tensor.to("cuda") for tensor in (value, offset, mask)]
        return ops.dcnv3(*tensors, **arguments, backend=backend).to("cpu")

    return run


PATHS_IN_SUMS, PATHS_IN_FIXED_POINT = (
    [pytest.param(on_gpu(name, deterministic), id=f"{name}_{word}", marks=pytest.mark.gpu) for name in NAMES]
    for deterministic, word in ((False, "sums"), (True, "fixed_point"))
)
PATHS = [*PATHS_IN_SUMS, *PATHS_IN_FIXED_POINT]
