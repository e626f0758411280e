# SPDX-License-Identifier: MIT
"""The Triton kernels on the CPU, by Triton's interpreter; test_dcnv3_triton.py runs this with TRITON_INTERPRET=1.

A program takes as long for thousands of pairs as for one, so that one usually does a whole image.
"""

import dataclasses
import functools
import math
import sys

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from hf_internimage.ops import dcnv3, fixed_point
from hf_internimage.ops.backends import dcnv3_triton
from hf_internimage.ops.registry import Call
from support.golden_data import operator_arguments
from support.loops import DRAWN, drawn_call
from support.operator_cases import (
    CASES,
    LAYOUTS,
    LOPSIDED,
    PAD_0_2,
    PLAIN,
    ROUNDING,
    TENSORS,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    away_from_pixel_lines,
    exactly,
    make_inputs,
    results,
)
from support.triton_tools import plan

planned = sys.modules["hf_internimage.ops.dcnv3"]._Planned
on_torch = functools.partial(dcnv3, backend="torch")
PARTS = ("output", "grad_input", "grad_offset", "grad_mask")


def on_triton(value, offset, mask, **arguments):
    return planned.apply(value, offset, mask, plan(value, offset, mask, **arguments))


@pytest.fixture(autouse=True)
def as_devices_do(monkeypatch):
    """Round to the nearest bfloat16, where the interpreter cuts bits off; the maximum of NaN and x is x, as of 3.9."""
    convert = interpreter._convert_float

    def rounded(data, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.tensor(data).bfloat16().view(torch.uint16).numpy()
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    patch_language = interpreter._patch_lang

    def patch_once(function):
        """Patch the language for a kernel, but not again for each function it calls, which takes half the time."""
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        patched = languages and not any(tl.core.is_builtin(language.load) for language in languages)
        return interpreter._LangPatchScope() if patched else patch_language(function)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_maxnumf", lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax))


@pytest.fixture(autouse=True)
def overflow(request, monkeypatch):
    """Whether the interpreter watches for integers that overflow, which takes it half its time; not, by default."""
    builder, watched = interpreter.interpreter_builder, getattr(request, "param", False)
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=watched))


@pytest.fixture
def fixed_sums(monkeypatch):
    """Deterministic algorithms; the dtypes of the sums that were finished."""
    seen, finish = [], fixed_point.finish
    monkeypatch.setattr(fixed_point, "finish", lambda total, *rest: (seen.append(total.dtype), finish(total, *rest))[1])
    torch.use_deterministic_algorithms(True)
    yield seen
    torch.use_deterministic_algorithms(False)


def golden(name, *parts, dtype):
    return [TENSORS[f"{name}/{part}"].to(dtype) for part in parts]


def compare_with_golden(name, dtype, tolerance):
    case = CASES[name]
    *inputs, grad_output = golden(name, "input", "offset", "mask", "grad_output", dtype=dtype)
    found = dict(zip(PARTS, results(on_triton, inputs, grad_output, **operator_arguments(case)), strict=True))
    if case["grad_offset"] == "skip":
        del found["grad_offset"]
    for part, got in found.items():
        (expected,) = golden(name, f"{part}_grid64", dtype=dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=case[tolerance], msg=lambda text, p=part: f"{p}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_matches_the_original_in_float32(name):
    compare_with_golden(name, torch.float32, "atol_float32_run")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("nan_memory")
def test_matches_the_original_in_float64(name, fixed_sums):
    """Gradients of value are summed in fixed point."""
    compare_with_golden(name, torch.float64, "atol_grid64")
    assert fixed_sums == [torch.int64]


@pytest.mark.parametrize("seed", DRAWN[::5])
@pytest.mark.usefixtures("nan_memory")
def test_drawn_calls_match_loops(seed):
    """A part of them: the interpreter is slow."""
    arguments, inputs, grad_output, expected = drawn_call(seed)
    for got, want in zip(results(on_triton, inputs, grad_output, **arguments), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_half_types_round_only_their_results(index):
    """Against float64 on the same rounded inputs, as in test_dcnv3_golden.py; the cases take turns in dtypes."""
    name, case = list(CASES.items())[index]
    dtype, wide = (torch.bfloat16, torch.float16)[index % 2], index // 2 % 4
    arguments = operator_arguments(case)
    *inputs, grad_output = golden(name, "input", "offset", "mask", "grad_output", dtype=dtype)
    expected = exactly(inputs, grad_output, **arguments)
    for place in (1, 2):
        if wide & place:
            inputs[place] = inputs[place].float()
    found = results(on_triton, inputs, grad_output, **arguments)
    assert found[0].dtype == dtype
    assert [gradient.dtype for gradient in found[1:]] == [tensor.dtype for tensor in inputs]
    for part, got, want in zip(PARTS, found, expected, strict=True):
        picked = torch.ones_like(want, dtype=torch.bool)
        if part == "grad_offset":
            picked = away_from_pixel_lines(inputs[1], arguments)
        torch.testing.assert_close(
            got.double()[picked],
            want[picked],
            rtol=ROUNDING[dtype] if got.dtype == dtype else 0,
            atol=case["atol_float32_run"],
            msg=lambda text, p=part: f"{p}: {text}",
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("arguments", "size", "depth"),
    [
        (LOPSIDED | {"groups": 3}, (7, 6), 5),
        (PLAIN | {"offset_scale": 0.3}, (5, 4), 16),
        (PAD_0_2, (4, 3), 20),
        (PLAIN | {"kernel_size": (1, 4), "padding": (0, 2)}, (1, 9), 1),
    ],
    ids=str,
)
@pytest.mark.usefixtures("nan_memory")
def test_softmax(arguments, size, depth, dtype):
    inputs = make_inputs(arguments | {"offset_scale": 1.0}, 2, size, depth, dtype)
    grad_output = torch.randn(*inputs[1].shape[:3], arguments["groups"] * depth).to(dtype)
    found = results(on_triton, inputs, grad_output, **arguments, softmax=True)
    assert_close(found, exactly(inputs, grad_output, **arguments, softmax=True))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.usefixtures("nan_memory")
def test_more_taps_than_are_unrolled(softmax, monkeypatch):
    monkeypatch.setattr(dcnv3_triton, "_MOST_UNROLLED", 5)
    arguments = PAD_0_2 | {"softmax": softmax}
    inputs = make_inputs(PAD_0_2, depth=4, dtype=torch.float32)
    grad_output = torch.randn(*inputs[1].shape[:3], 8)
    assert_close(results(on_triton, inputs, grad_output, **arguments), exactly(inputs, grad_output, **arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bad_offsets_count_as_outside(dtype):
    value, offset, mask = make_inputs(LOPSIDED, dtype=dtype)
    clean = offset.clone()
    places = [(0, 1, 2, 5), (1, 0, 0, 0), (1, 2, 3, 22), (0, 0, 0, 3), (0, 2, 1, 14)]
    for place, bad in zip(places, (math.nan, math.inf, -math.inf, 1e30, -1e30), strict=True):
        offset[place], clean[place] = bad, 1000.0
    found, expected = (results(on_triton, (value, candidate, mask), **LOPSIDED) for candidate in (offset, clean))
    assert_same_bits(found, expected)
    assert all(tensor.isfinite().all() for tensor in found)
    assert all(found[2][place] == 0 for place in places)


def test_outside_samples_do_not_read_the_image():
    """Not the pixels at its border, nor those of its neighbours."""
    value, offset, mask = make_inputs(LOPSIDED)
    value[:, 0] = value[:, :, 0] = value[:, -1] = value[:, :, -1] = math.inf
    for far in (1000, -1000):
        assert (on_triton(value, offset + far, mask, **LOPSIDED) == 0).all()


@pytest.mark.parametrize("logits", [(-1e30, 1e30), (1e38, 2e38), (-3e38, -2e38)], ids=str)
def test_extreme_mask_logits(logits):
    value, offset, mask = make_inputs(LOPSIDED, dtype=torch.float32)
    inputs = value, offset, torch.rand(mask.shape) * (logits[1] - logits[0]) + logits[0]
    assert_close(results(on_triton, inputs, **LOPSIDED, softmax=True), exactly(inputs, **LOPSIDED, softmax=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_mask_logits_that_are_no_numbers_do_as_in_torch_softmax(bad):
    value, offset, logits = make_inputs(LOPSIDED, dtype=torch.float32)
    logits[0, 1, 2, (0, 5)] = bad
    logits[1, 0, 1] = -math.inf
    got, expected = (run(value, offset, logits, **LOPSIDED, softmax=True) for run in (on_triton, on_torch))
    assert expected.isnan().any()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_strides(layout):
    inputs = [layout(tensor) for tensor in make_inputs(LOPSIDED, depth=4, dtype=torch.float32)]
    grad_output = layout(torch.randn(*inputs[1].shape[:3], 8))
    dense = [tensor.contiguous() for tensor in inputs]
    found = results(on_triton, inputs, grad_output, **LOPSIDED, softmax=True)
    assert all(gradient.is_contiguous() for gradient in found)
    assert_close(found, exactly(dense, grad_output, **LOPSIDED, softmax=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_offsets_and_masks_cut_from_one_tensor(dtype):
    """As a fused linear layer gives them, also where they start at odd places."""
    value, offset, mask = make_inputs(LOPSIDED, depth=4, dtype=dtype)
    expected = results(on_triton, [value, offset, mask], **LOPSIDED)
    for pad in (0, 1):
        parts = (offset.new_full((*offset.shape[:3], pad), math.nan), offset, mask)
        _, *cut = torch.cat(parts, -1).split([part.shape[3] for part in parts], -1)
        assert_same_bits(results(on_triton, [value, *cut], **LOPSIDED), expected)


def test_saved_tensors_that_were_moved():
    inputs = make_inputs(LOPSIDED)
    prepared = plan(*inputs, **LOPSIDED)
    gradient = torch.randn_like(prepared.forward(*inputs))
    moved = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs]
    assert_same_bits(prepared.backward(gradient, *moved), prepared.backward(gradient, *inputs))


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 3), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_to_read(shape, deterministic):
    arguments = PLAIN | {"kernel_size": 1}
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = results(on_triton, make_inputs(arguments, shape[0], shape[1:]), **arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all((tensor == 0).all() for tensor in found)


def test_no_taps():
    arguments = PLAIN | {"kernel_size": 1, "padding": 0, "remove_center": True}
    for softmax in (False, True):
        found = results(on_triton, make_inputs(arguments), **arguments, softmax=softmax)
        assert found[2].shape == (2, 7, 6, 0)
        assert all((tensor == 0).all() for tensor in found)


@pytest.mark.parametrize("overflow", [True], indirect=True, ids=["watched"])
@pytest.mark.parametrize("large", [False, True])
def test_several_programs_an_image(large, monkeypatch, fixed_sums):
    """The sizes of programs change no bit of fixed-point sums; large images are counted in 64-bit integers."""
    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    expected = results(on_triton, inputs, **LOPSIDED, softmax=True)
    monkeypatch.setattr(dcnv3_triton, "_PAIRS_INTERPRETED", 16)
    if large:
        monkeypatch.setattr(dcnv3_triton, "_INT32_PLACES", 0)
    assert_same_bits(results(on_triton, inputs, **LOPSIDED, softmax=True), expected)
    assert fixed_sums == [torch.int64] * 2
    torch.use_deterministic_algorithms(False)
    assert_close(results(on_triton, inputs, **LOPSIDED, softmax=True), exactly(inputs, **LOPSIDED, softmax=True))


@pytest.mark.usefixtures("fixed_sums")
def test_fixed_point_says_nan_where_gradients_are_not_finite():
    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    gradient = torch.ones(*inputs[1].shape[:3], 6)
    gradient[0, 0, 0, 0] = math.inf
    _, grad_value, _, grad_mask = results(on_triton, inputs, gradient, **LOPSIDED)
    assert grad_value.isnan().all()
    assert grad_mask[1].isfinite().all()
    gradient[0, 0, 0, 0] = 1
    logits = inputs[2]
    logits[0, 1, 2, 3] = -math.inf
    assert results(on_triton, inputs, gradient, **LOPSIDED, softmax=True)[1].isfinite().all()
    logits[0, 1, 2] = -math.inf
    _, grad_value, _, grad_mask = results(on_triton, inputs, gradient, **LOPSIDED, softmax=True)
    assert grad_value.isnan().all()
    assert grad_mask[1].isfinite().all()


def test_runs_on_the_cpu_because_it_is_interpreted():
    assert dcnv3_triton.why_not(Call("cpu", "bfloat16")) is None
    assert "not int8" in dcnv3_triton.why_not(Call("cpu", "int8"))
