# SPDX-License-Identifier: MIT
"""The operator against the original's numbers (39 cases, forward and all gradients), on each backend."""

import functools

import pytest
import torch
from support import gpu_backends
from support.golden_data import operator_arguments
from support.operator_cases import CASES, CPU_BACKENDS, ROUNDING, TENSORS, away_from_pixel_lines, tensors

from hf_internimage import ops
from hf_internimage.models import dcnv3_reference


def in_one_piece(value, offset, mask, **arguments):
    """The path of other devices and of torch.func, on the CPU."""
    geometry = dcnv3_reference.check_dcnv3(value, offset, mask, **arguments)
    return dcnv3_reference._sample(value, offset, mask, geometry, False, plain=False)


def registered(value, offset, mask, **arguments):
    """The operator as compilers see it."""
    geometry = dcnv3_reference.check_dcnv3(value, offset, mask, **arguments)
    return torch.ops.hf_internimage.dcnv3(value, offset, mask, *geometry.numbers(), False)


def on_each_backend(parameter):
    """The operator on a backend, as a parameter of tests."""
    name = parameter if isinstance(parameter, str) else parameter.values[0]
    return pytest.param(functools.partial(ops.dcnv3, backend=name), id=name, marks=getattr(parameter, "marks", ()))


PATHS = [
    *map(on_each_backend, CPU_BACKENDS),
    pytest.param(registered, id="registered"),
    pytest.param(in_one_piece, id="in_one_piece"),
]


def results(operator, inputs, grad_output, arguments):
    """{what: tensor} of the output and the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = operator(*leaves, **arguments)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in inputs]
    return dict(zip(("output", "grad_input", "grad_offset", "grad_mask"), (output.detach(), *gradients), strict=True))


def test_there_are_39_cases():
    assert len(CASES) == 39


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.gpu
def test_gpu_backends_run_here(backend):
    """Says in every report whether the GPU's backends were among the paths below."""
    gpu_backends.need(backend)
    assert backend in gpu_backends.NAMES


@pytest.mark.parametrize("operator", [*PATHS, *gpu_backends.PATHS])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, "atol_grid64"), (torch.float32, "atol_float32_run")], ids=str
)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("nan_memory")
def test_matches_the_original(name, dtype, tolerance, operator):
    case = CASES[name]
    *inputs, grad_output = tensors(name, "input", "offset", "mask", "grad_output", dtype=dtype)
    found = results(operator, inputs, grad_output, operator_arguments(case))
    assert found["output"].dtype == dtype
    if case["grad_offset"] == "skip":
        del found["grad_offset"]  # samples lie on pixels, where this gradient jumps; nothing is stored
    for what, got in found.items():
        (expected,) = tensors(name, f"{what}_grid64", dtype=dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=case[tolerance], msg=lambda text, w=what: f"{w}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_matches_the_original_as_it_is(name):
    """Upstream's own float64 results, with its float32 sampling grid, within the error that grid makes."""
    case = CASES[name]
    output = ops.dcnv3(*tensors(name, "input", "offset", "mask"), **operator_arguments(case), backend="torch")
    torch.testing.assert_close(output, TENSORS[f"{name}/output"], rtol=0, atol=case["atol"])


@pytest.mark.parametrize("operator", [*PATHS[:3], *gpu_backends.PATHS_IN_SUMS])
@pytest.mark.parametrize("wide", [False, True], ids=["same_dtype", "float32_offsets"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("nan_memory")
def test_half_types_round_only_their_results(name, dtype, wide, operator):
    """Against float64 on the same rounded inputs: off by the rounding of each element, and by the noise of float32
    in positions and sums, for which the golden file has a tolerance."""
    case = CASES[name]
    arguments = operator_arguments(case)
    *inputs, grad_output = tensors(name, "input", "offset", "mask", "grad_output", dtype=dtype)
    exact = [tensor.double() for tensor in (*inputs, grad_output)]
    expected = results(functools.partial(ops.dcnv3, backend="torch"), exact[:3], exact[3], arguments)
    safe = away_from_pixel_lines(inputs[1], arguments)
    if wide:
        inputs[1:] = [tensor.float() for tensor in inputs[1:]]
    found = results(operator, inputs, grad_output, arguments)
    assert found["output"].dtype == dtype
    for what, got in found.items():
        picked = safe if what == "grad_offset" else torch.ones(got.shape, dtype=torch.bool)
        torch.testing.assert_close(
            got.double()[picked],
            expected[what][picked],
            rtol=ROUNDING[dtype] if got.dtype == dtype else 0,
            atol=case["atol_float32_run"],
            msg=lambda text, w=what: f"{w}: {text}",
        )


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_most_gradients_of_offsets_are_compared(dtype):
    """Few samples lie on pixel lines, where half types are not compared."""
    safe = [
        away_from_pixel_lines(tensors(name, "offset", dtype=dtype)[0], operator_arguments(case)).flatten()
        for name, case in CASES.items()
    ]
    assert torch.cat(safe).double().mean() > 0.8
