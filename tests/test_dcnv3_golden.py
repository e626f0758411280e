# SPDX-License-Identifier: MIT
"""The operator against the original's numbers (39 cases, forward and all gradients)."""

import pytest
import torch
from golden_data import operator_arguments, operator_cases

from hf_internimage import dcnv3_reference
from hf_internimage.ops import dcnv3

CASES, TENSORS = operator_cases()


def in_one_piece(value, offset, mask, **arguments):
    """The path of other devices and of compilers, on the CPU."""
    geometry = dcnv3_reference.check_dcnv3(value, offset, mask, **arguments)
    return dcnv3_reference._sample(value, offset, mask, geometry, False, False)


def test_there_are_39_cases():
    assert len(CASES) == 39


@pytest.mark.parametrize("operator", [dcnv3, in_one_piece], ids=["dcnv3", "in_one_piece"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, "atol_grid64"), (torch.float32, "atol_float32_run")], ids=str
)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("nan_memory")
def test_matches_the_original(name, dtype, tolerance, operator):
    case = CASES[name]
    inputs = [TENSORS[f"{name}/{what}"].to(dtype).requires_grad_() for what in ("input", "offset", "mask")]
    output = operator(*inputs, **operator_arguments(case))
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output, inputs, TENSORS[f"{name}/grad_output"].to(dtype))
    for what, got in zip(("output", "grad_input", "grad_offset", "grad_mask"), (output, *gradients), strict=True):
        if what == "grad_offset" and case["grad_offset"] == "skip":
            continue  # samples lie on pixels, where this gradient jumps; nothing is stored
        expected = TENSORS[f"{name}/{what}_grid64"].to(dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=case[tolerance], msg=lambda text, w=what: f"{w}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_matches_the_original_as_it_is(name):
    """Upstream's own float64 results, with its float32 sampling grid, within the error that grid makes."""
    case = CASES[name]
    inputs = [TENSORS[f"{name}/{what}"] for what in ("input", "offset", "mask")]
    output = dcnv3(*inputs, **operator_arguments(case), backend="torch")
    torch.testing.assert_close(output, TENSORS[f"{name}/output"], rtol=0, atol=case["atol"])
