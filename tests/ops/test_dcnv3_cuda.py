# SPDX-License-Identifier: MIT
"""The cuda backend without a GPU: its kernels, compiled for the CPU, run by the backend's own plans (cuda_tools.py).

What the compiler makes of the kernels for GPUs is checked in test_nvrtc.py.
"""

import ctypes
import itertools
import math
import mmap
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import cuda_tools
from support.golden_data import operator_arguments
from support.loops import DRAWN, drawn_call
from support.native_library import declared, sanitizer_preload
from support.operator_cases import (
    CASES,
    LAYOUTS,
    LOPSIDED,
    PLAIN,
    ROUNDING,
    SHAPES,
    TENSORS,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    away_from_pixel_lines,
    exactly,
    in_a_wider_tensor,
    in_transposed_memory,
    make_inputs,
    tensors,
)
from support.paths import TESTS

from hf_internimage.models.dcnv3_reference import DCNv3Geometry, check_dcnv3
from hf_internimage.ops import cuda_driver, nvrtc
from hf_internimage.ops.backends import dcnv3_cuda
from hf_internimage.ops.registry import BackendError, Call

REASON = cuda_tools.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
SANITIZED = cuda_tools.SANITIZE_VARIABLE in os.environ
LIBRARY = cuda_driver._library  # NVIDIA's
WHAT = ("output", "grad_input", "grad_offset", "grad_mask")


every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    with cuda_tools.emulation(tmp_path_factory.mktemp("cuda")) as made:
        yield made


@pytest.fixture(autouse=True)
def _balanced(request):
    """Whatever happens in a test, the driver's stack of contexts is afterwards as it was before."""
    yield
    if "gpu" in request.fixturenames:
        log = request.getfixturevalue("gpu").log
        log.shuffled = 0
        assert log.pushed == log.popped


@pytest.fixture
def atomic(nan_memory, monkeypatch):
    """Sums of floating-point numbers, in memory that holds NaN at first."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)


@pytest.fixture(params=["atomic", "fixed"])
def sums(request, nan_memory, monkeypatch):
    """Both ways to sum the gradient of the value; new memory holds NaN."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: request.param == "fixed")
    return request.param


def run(inputs, grad_output=None, softmax=False, **arguments):
    """The output and the gradients of value, offset and mask."""
    inputs = [tensor.detach() for tensor in inputs]
    plan = dcnv3_cuda.Plan(check_dcnv3(*inputs, **arguments), softmax, *inputs)
    output = plan.forward(*inputs)
    grad_output = torch.ones_like(output) if grad_output is None else grad_output
    gradients = plan.backward(grad_output, *inputs)
    assert output.dtype == inputs[0].dtype
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)
        assert gradient.is_contiguous()
    return output, *gradients


def assert_close_slopes(found, exact, inputs, grad_output, softmax, side=8, **arguments):
    """The gradient of logits: a difference of slopes, whose size it need not have, for instance with a single tap."""
    ones = torch.ones_like(inputs[2])  # slopes do not depend on the mask
    *_, slopes = exactly([*inputs[:2], ones], grad_output, **arguments) if softmax else exact
    of_itself, of_largest = TOLERANCE[found[3].dtype]
    atol = of_largest * max(1, side / 8) * slopes.abs().max().item() if slopes.numel() else 0
    torch.testing.assert_close(found[3].double(), exact[3], rtol=of_itself, atol=atol)


# The original's numbers


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, "atol_grid64"), (torch.float32, "atol_float32_run")], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_matches_the_original(gpu, sums, name, dtype, tolerance):
    case = CASES[name]
    *inputs, grad_output = tensors(name, "input", "offset", "mask", "grad_output", dtype=dtype)
    found = dict(zip(WHAT, run(inputs, grad_output, **operator_arguments(case)), strict=True))
    if case["grad_offset"] == "skip":
        del found["grad_offset"]
    for what, got in found.items():
        expected = TENSORS[f"{name}/{what}_grid64"].to(dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=case[tolerance], msg=lambda text, w=what: f"{w}: {text}")


@pytest.mark.parametrize("seed", DRAWN)
def test_drawn_calls_match_loops(gpu, sums, seed):
    arguments, inputs, grad_output, expected = drawn_call(seed)
    for got, want in zip(run(inputs, grad_output, **arguments), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wide", [(), (1, 2), (1,), (2,)], ids=["same_dtype", "float32", "offsets", "masks"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_half_types_round_only_their_results(gpu, atomic, dtype, wide):
    """As in test_dcnv3_golden.py; `wide` are the inputs that are float32."""
    names = CASES if len(wide) != 1 else list(CASES)[::5]
    compared = total = 0
    for name in names:
        case, arguments = CASES[name], operator_arguments(CASES[name])
        *inputs, grad_output = tensors(name, "input", "offset", "mask", "grad_output", dtype=dtype)
        expected = exactly(inputs, grad_output, **arguments)
        inputs = [tensor.float() if index in wide else tensor for index, tensor in enumerate(inputs)]
        for what, got, want in zip(WHAT, run(inputs, grad_output, **arguments), expected, strict=True):
            picked = torch.ones(want.shape, dtype=torch.bool)
            if what == "grad_offset":
                picked = away_from_pixel_lines(inputs[1], arguments)
                compared, total = compared + picked.sum().item(), total + picked.numel()
            torch.testing.assert_close(
                got.double()[picked],
                want[picked],
                rtol=ROUNDING[dtype] if got.dtype == dtype else 0,
                atol=case["atol_float32_run"],
                msg=lambda text, n=name, w=what: f"{n}, {w}: {text}",
            )
    assert compared > 0.75 * total


# Channels, shapes and the kinds of kernels

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 30, 32, 48, 64, 71, 128)
KERNELS = (
    *SHAPES,
    (PLAIN | {"kernel_size": 1, "padding": 1}, (3, 4)),
    (PLAIN | {"kernel_size": (5, 3), "padding": (2, 0), "stride": (1, 2), "remove_center": True}, (6, 7)),
    (PLAIN | {"kernel_size": 4, "padding": (2, 1), "dilation": (1, 2), "offset_scale": 1.5}, (5, 9)),
    (PLAIN | {"kernel_size": 7, "padding": 3, "remove_center": True, "offset_scale": 1.5}, (5, 4)),
    (PLAIN | {"kernel_size": 2, "padding": (0, 3), "stride": (3, 2), "remove_center": True}, (8, 5)),
    (PLAIN | {"kernel_size": (9, 1), "padding": (4, 0), "remove_center": True}, (8, 3)),
)


@every_dtype
def test_any_number_of_channels(gpu, sums, dtype):
    """Each has its own share of vectors and lanes."""
    for index, depth in enumerate(DEPTHS):
        arguments = LOPSIDED | {"kernel_size": 3, "groups": 1 + index % 4}
        inputs = make_inputs(arguments, 2, (7, 6), depth, dtype)
        if dtype.itemsize == 2 and index % 2:
            inputs[1:] = [tensor.float() for tensor in inputs[1:]]
        grad_output = torch.randn(*inputs[1].shape[:3], inputs[0].shape[3]).to(dtype)
        for softmax in (True, False):
            found = run(inputs, grad_output, softmax, **arguments)
            exact = exactly(inputs, grad_output, **arguments, softmax=softmax)
            assert_close(found, exact, f"depth {depth}, softmax {softmax}")


@pytest.mark.parametrize("most_vectors", [4, 0], ids=["channels_known", "any_channels"])
@pytest.mark.parametrize("most_taps", [9, 0], ids=["taps_known", "any_taps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_kernel_size(gpu, sums, monkeypatch, dtype, most_taps, most_vectors):
    """With the kernels made for these channels and taps, and with those that take them as they come."""
    if sums == "fixed" and dtype != torch.float32:
        pytest.skip("sums are those of float32")
    monkeypatch.setattr(dcnv3_cuda, "_MOST_TAPS", most_taps)
    monkeypatch.setattr(dcnv3_cuda, "_MOST_VECTORS", most_vectors)
    for index, (arguments, size) in enumerate(KERNELS):
        depth, groups = (16, 12, 5)[index % 3], 1 + index % 3
        if not most_vectors:
            depth = (20, 7)[index % 2]  # more and fewer than the lanes
        arguments = arguments | {"groups": groups}
        inputs = make_inputs(arguments, 2, size, depth, dtype)
        grad_output = torch.randn(*inputs[1].shape[:3], depth * groups).to(dtype)
        kind = dcnv3_cuda.Kind.of("forward", dtype, dtype, torch.float32, depth, check_dcnv3(*inputs, **arguments))
        taps = inputs[2].shape[3] // groups
        assert (kind.channels == 0) == (not most_vectors or depth == 5)  # whose vectors hold one number
        assert (kind.kernel_size == (0, 0)) == (taps + arguments["remove_center"] > most_taps)
        for softmax in (True, False):
            found = run(inputs, grad_output, softmax, **arguments)
            exact = exactly(inputs, grad_output, **arguments, softmax=softmax)
            assert_close(found[:3], exact, f"{arguments}, softmax {softmax}", side=max(size))
            assert_close_slopes(found, exact, inputs, grad_output, softmax, side=max(size), **arguments)


@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_more_images_than_the_grid_takes(gpu, sums, monkeypatch, images):
    arguments = PLAIN | {"groups": 3}
    inputs = make_inputs(arguments, 7, (5, 3), 4, torch.float32)
    expected = run(inputs, softmax=True, **arguments)
    assert (gpu.log.grid_x, gpu.log.grid_y) == (1, 7)
    assert_close(expected, exactly(inputs, **arguments, softmax=True))
    monkeypatch.setattr(dcnv3_cuda, "_MOST_IMAGES", images)
    assert_same_bits(run(inputs, softmax=True, **arguments), expected)
    assert gpu.log.grid_y == images


@pytest.mark.parametrize("depth", [4, 16, 5])
def test_blocks_that_are_not_full(gpu, sums, depth):
    """One pair of a pixel and a group fewer than fit into blocks, as many, and one more."""
    lanes = dcnv3_cuda.Kind.of(
        "backward",
        torch.float32,
        torch.float32,
        torch.float32,
        depth,
        DCNv3Geometry(1, (1, 1), *[(1, 1)] * 3, 1, False),
    ).lanes()
    fit = dcnv3_cuda._THREADS // lanes
    arguments = PLAIN | {"groups": 1, "kernel_size": (1, 3), "padding": (0, 1)}
    for pairs in (1, fit - 1, fit, fit + 1, 3 * fit + 1):
        inputs = make_inputs(arguments, 1, (1, pairs), depth, torch.float32)
        found = run(inputs, softmax=True, **arguments)
        assert gpu.log.grid_x == -(-pairs // fit)
        assert gpu.log.grid_x * gpu.log.block_x >= pairs * lanes
        assert_close(found, exactly(inputs, **arguments, softmax=True), side=pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_image(gpu, atomic, dtype):
    inputs = make_inputs(PLAIN, 1, (41, 67), 16, dtype, spread=9)
    grad_output = torch.randn(1, 41, 67, 32).to(dtype)
    found = run(inputs, grad_output, True, **PLAIN)
    assert_close(found, exactly(inputs, grad_output, **PLAIN, softmax=True), side=67)


def test_search(gpu, sums):
    """Geometries drawn at random, for a few kinds of kernels."""
    generator = torch.Generator().manual_seed(11)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    seen = 0
    while seen < 120:
        (kernel, remove), depth = draw(((3, 3), False), ((3, 3), True), ((4, 3), False)), draw(4, 6)
        arguments = {
            "groups": draw(1, 2, 3),
            "kernel_size": kernel,
            "stride": (draw(1, 2, 3), draw(1, 2, 3)),
            "padding": (draw(0, 1, 2, 5), draw(0, 1, 2, 5)),
            "dilation": (draw(1, 2, 3), draw(1, 2, 3)),
            "offset_scale": draw(1.0, 1.5),
            "remove_center": remove,
        }
        size = draw(*range(12)), draw(*range(12))
        if min(DCNv3Geometry(**arguments).output_size(*size)) < 1:
            continue
        seen += 1
        inputs = make_inputs(arguments, draw(1, 2, 3), size, depth, torch.float64, spread=draw(0.5, 4.0), seed=seen)
        inputs = [draw(lambda tensor: tensor, *LAYOUTS)(tensor) for tensor in inputs]
        grad_output = torch.randn(*inputs[1].shape[:3], inputs[0].shape[3], dtype=torch.float64)
        softmax = draw(True, False)
        found = run(inputs, grad_output, softmax, **arguments)
        exact = exactly(inputs, grad_output, **arguments, softmax=softmax)
        assert_close(found, exact, f"{arguments}, {size}, {softmax}", side=64)


def test_vectors_and_lanes_are_those_of_the_kernels(gpu):
    """Python says how many threads to start and how data must be aligned; the kernels decide the same by themselves."""
    depths = [*range(1, 300), *range(300, 2100, 20)]
    rows = "".join(f"{{{', '.join(f'ROW({depth}, {most})' for most in (2, 4, 8))}}},\n" for depth in (0, *depths))
    row = "hfi::Deal<D, MOST>::V, hfi::Deal<D, MOST>::LANES, hfi::Deal<D, MOST>::COUNT"
    text = f"extern const int hfi_deals[][9]; const int hfi_deals[][9] = {{{rows}}};"
    text = f'#include "dcnv3.cuh"\n#define ROW(D, MOST) {row}\nextern "C" {{ {text} }}'
    library = ctypes.CDLL(str(gpu.library(text, dcnv3_cuda.sources(), ("--std=c++17",))))
    deals = (ctypes.c_int * 9 * (len(depths) + 1)).in_dll(library, "hfi_deals")
    by_depth = dict(zip((0, *depths), deals, strict=True))
    geometry = DCNv3Geometry(1, (3, 3), (1, 1), (1, 1), (1, 1), 1.0, False)
    general = set()
    for depth, dtype in itertools.product(depths, TOLERANCE):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        kinds = [
            dcnv3_cuda.Kind.of(*call, depth, geometry)
            for call in (("forward", dtype, dtype, wide), ("backward", dtype, dtype, wide))
        ]
        for kind, most in zip(kinds, (16 // dtype.itemsize, 16 // wide.itemsize), strict=True):
            vector, lanes, count = by_depth[kind.channels][most.bit_length() * 3 - 6 : most.bit_length() * 3 - 3]
            assert (kind.vector(), kind.lanes()) == (vector, lanes), (depth, kind)
            assert dcnv3_cuda._THREADS % lanes == 0
            assert 32 % lanes == 0
            if kind.channels:
                assert vector * lanes * count == depth
                assert count <= dcnv3_cuda._MOST_VECTORS
            else:
                general.add(depth)
        # Plans look at the alignment that the forward pass needs.
        assert kinds[0].vector() % kinds[1].vector() == 0, (depth, dtype)
    assert 71 in general
    assert not general & {4, 8, 12, 16, 24, 32, 48, 64, 128, 256}


# Positions and numbers that are none

BAD = [math.nan, math.inf, -math.inf, 1e30, -1e30]
BAD += [sign * (2.0**power + more) for power in (31, 32, 24) for sign in (1, -1) for more in (0, -1, 256)]


@pytest.mark.parametrize("depth", [4, 5])
@pytest.mark.parametrize("most_taps", [9, 0], ids=["taps_known", "any_taps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_bad_offsets_count_as_outside(gpu, sums, monkeypatch, dtype, most_taps, depth):
    monkeypatch.setattr(dcnv3_cuda, "_MOST_TAPS", most_taps)
    value, offset, mask = make_inputs(LOPSIDED, depth=depth, dtype=dtype)
    places = torch.arange(len(BAD)) * 11 % offset.numel()
    bad, clean = offset.clone(), offset.clone()
    bad.view(-1)[places] = torch.tensor(BAD, dtype=torch.float64).to(dtype)
    clean.view(-1)[places] = 1000.0
    for softmax in (True, False):
        found = run([value, bad, mask], softmax=softmax, **LOPSIDED)
        for got, want in zip(found, run([value, clean, mask], softmax=softmax, **LOPSIDED), strict=True):
            assert got.isfinite().all()
            assert torch.equal(got, want)
        assert (found[2].view(-1)[places] == 0).all()
        assert_close(found, exactly([value, clean, mask], **LOPSIDED, softmax=softmax))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("depth", [4, 5])
def test_values_that_are_no_numbers_stay_where_they_are_sampled(gpu, sums, bad, depth):
    value, offset, mask = make_inputs(PLAIN, 2, (9, 8), depth, torch.float32)
    for index in (5, 222, 400, value.numel() - 1):
        value.view(-1)[index] = bad
    found, exact = (f([value, offset, mask], softmax=True, **PLAIN) for f in (run, exactly))
    for got, want in zip(found, exact, strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())
    assert not found[0].isfinite().all()
    assert found[0].isfinite().any()
    assert found[1].isfinite().all()  # the gradient of the value does not depend on the value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("most_taps", [9, 0], ids=["taps_known", "any_taps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_logits_that_are_no_numbers_do_as_in_torch_softmax(gpu, atomic, monkeypatch, bad, most_taps, dtype):
    monkeypatch.setattr(dcnv3_cuda, "_MOST_TAPS", most_taps)
    value, offset, logits = make_inputs(LOPSIDED, dtype=dtype)
    offset = torch.zeros_like(offset) + 0.25
    for place in (0, 5, 9):
        logits[0, 1, 2, place] = bad
        logits[1, 0, place % 4] = -math.inf  # nothing but -inf is NaN, too
    found, exact = (f([value, offset, logits], softmax=True, **LOPSIDED) for f in (run, exactly))
    assert exact[0].isnan().any()
    assert exact[0].isfinite().any()
    for got, want in zip(found, exact, strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())
    assert_close([tensor.nan_to_num(0) for tensor in found], [tensor.nan_to_num(0) for tensor in exact])


@pytest.mark.parametrize("most_taps", [9, 0], ids=["taps_known", "any_taps"])
def test_extreme_logits(gpu, sums, monkeypatch, most_taps):
    monkeypatch.setattr(dcnv3_cuda, "_MOST_TAPS", most_taps)
    value, offset, _ = make_inputs(LOPSIDED, dtype=torch.float32)
    shape = (*offset.shape[:3], offset.shape[3] // 2)
    for low, high in ((-1e30, 1e30), (-200.0, 200.0), (1e38, 2e38), (-3e38, 3e38), (-90.0, -1.0)):
        logits = torch.rand(shape) * high + torch.rand(shape) * low
        found = run([value, offset, logits], softmax=True, **LOPSIDED)
        exact = exactly([value, offset, logits], **LOPSIDED, softmax=True)
        assert_close(found[:3], exact, f"{low} to {high}")
        assert_close_slopes(found, exact, [value, offset, logits], None, True, **LOPSIDED)


def test_gradients_beyond_float16_are_infinite(gpu, sums):
    inputs = make_inputs(LOPSIDED, depth=4, dtype=torch.float16)
    grad_output = torch.full((2, 3, 5, 8), 6e4, dtype=torch.float16)
    found, exact = (f(inputs, grad_output, **LOPSIDED) for f in (run, exactly))
    infinite = exact[1].abs() > 65600
    assert 0 < infinite.sum() < infinite.numel()
    assert torch.equal(found[1][infinite], exact[1][infinite].sign().half() * math.inf)


# Memory


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_any_strides(gpu, sums, dtype, layout):
    inputs = make_inputs(LOPSIDED, depth=8, dtype=dtype)
    grad_output = torch.randn(*inputs[1].shape[:3], 16).to(dtype)
    for changed in ((0,), (1,), (2,), (0, 1, 2)):
        strided = [layout(tensor) if index in changed else tensor for index, tensor in enumerate(inputs)]
        dense = [tensor.contiguous() for tensor in strided]
        found = run(strided, grad_output, True, **LOPSIDED)
        assert_same_bits(found, run(dense, grad_output, True, **LOPSIDED))
        assert_close(found, exactly(dense, grad_output, **LOPSIDED, softmax=True), str(changed))
    strided = layout(grad_output)
    assert not strided.is_contiguous()
    assert_same_bits(run(inputs, strided, **LOPSIDED), run(inputs, strided.contiguous(), **LOPSIDED))


def shifted(tensor, by):
    """The same numbers, so many of them behind where memory is aligned; NaN around."""
    room = torch.full((tensor.numel() + by + 8,), math.nan, dtype=tensor.dtype)
    return room[by : by + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("by", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("depth", [8, 6])
@every_dtype
def test_memory_that_is_not_aligned(gpu, sums, dtype, depth, by):
    inputs = make_inputs(LOPSIDED, depth=depth, dtype=dtype)
    grad_output = torch.randn(*inputs[1].shape[:3], 2 * depth).to(dtype)
    expected = run(inputs, grad_output, True, **LOPSIDED)
    for changed in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
        before = gpu.log.launched
        moved = [shifted(t, by) if i in changed else t for i, t in enumerate((*inputs, grad_output))]
        assert_same_bits(run(moved[:3], moved[3], True, **LOPSIDED), expected)
        assert gpu.log.launched == before + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("between", [0, 1, 2])
@pytest.mark.parametrize("before", [0, 1, 2, 4])
def test_parts_of_one_tensor(gpu, sums, dtype, before, between):
    """Offset and mask as a fused linear layer gives them, at even and odd places; the value beside them or not."""
    inputs = make_inputs(LOPSIDED, depth=8, dtype=dtype)
    expected = run(inputs, softmax=True, **LOPSIDED)
    value, offset, mask = inputs
    gap = torch.full((*offset.shape[:3], 4), math.nan, dtype=dtype)
    both = torch.cat((gap[..., :before], offset, gap[..., :between], mask), -1)
    parts = [both[..., before : before + 24], both[..., -12:]]
    assert_same_bits(run([value, *parts], softmax=True, **LOPSIDED), expected)
    assert_same_bits(run([in_a_wider_tensor(value), *parts], softmax=True, **LOPSIDED), expected)


def test_what_is_ready_is_not_copied(gpu, monkeypatch):
    """Views of one tensor go to the kernels as they are."""
    both = torch.randn(2, 7, 6, 2 * 9 * 3)
    inputs = [torch.randn(2, 9, 8, 3 * 32)[:, 1:8, 1:7, 32:64], *both.split([36, 18], -1)]
    plan = dcnv3_cuda.Plan(check_dcnv3(*inputs, **PLAIN), True, *inputs)
    seen = []
    monkeypatch.setattr(cuda_driver, "launch", lambda *arguments: seen.append(arguments[-1]))
    plan.forward(*inputs)
    for view, tensor in zip((seen[0].value, seen[0].offset, seen[0].mask), inputs, strict=True):
        assert view.data == tensor.data_ptr()
        assert (view.stride_n, view.stride_h, view.stride_w) == tensor.stride()[:3]


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("depth", [4, 5])
def test_places_in_images_count_in_32_bits_where_they_fit(gpu, sums, depth, more):
    """One pixel, whose neighbours would lie far off: up to where 32 bits end, and beyond."""
    value, offset, mask = make_inputs(PLAIN, 2, (1, 1), depth, torch.float32)
    expected = run([value, offset, mask], softmax=True, **PLAIN)
    stride = (2**31 - 2 * depth - 1) // 10 // 4 * 4 + 4 * more
    far = value.as_strided(value.shape, (2 * depth, stride, stride, 1))
    plan = dcnv3_cuda.Plan(check_dcnv3(far, offset, mask, **PLAIN), True, far, offset, mask)
    assert {kind.places for kind in plan._kinds.values()} == {torch.int64 if more else torch.int32}
    assert_same_bits(run([far, offset, mask], softmax=True, **PLAIN), expected)


@pytest.mark.skipif(SANITIZED, reason="would fill the memory")
def test_images_beyond_32_bits(gpu, monkeypatch):
    """Lines so far apart that places do not fit; only the pages that hold numbers take memory."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    value, offset, mask = make_inputs(PLAIN, 1, (10, 3), 4, torch.bfloat16, spread=4)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = torch.frombuffer(mmap.mmap(-1, 5 * 2**30, flags=flags), dtype=torch.bfloat16)
    far = room.as_strided(value.shape, (room.numel(), 2**28, 8, 1)).copy_(value)
    assert far[0, 9].storage_offset() > 2**31
    assert_same_bits(*(run([some, offset, mask], softmax=True, **PLAIN) for some in (far, value)))


def test_hooks_that_move_saved_tensors(gpu, sums):
    inputs = [in_transposed_memory(tensor) for tensor in make_inputs(LOPSIDED, depth=4)]
    plan = dcnv3_cuda.Plan(check_dcnv3(*inputs, **LOPSIDED), True, *inputs)
    grad_output = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    expected = plan.backward(grad_output, *inputs)
    for moved in ([t.contiguous() for t in inputs], [shifted(t, 1) for t in inputs]):
        assert_same_bits(plan.backward(grad_output, *moved), expected)
    shifted_views = [shifted(t.transpose(1, 2), 1).transpose(1, 2) for t in inputs]
    assert [t.stride() for t in shifted_views] == [t.stride() for t in inputs]
    assert_same_bits(plan.backward(grad_output, *shifted_views), expected)


def test_gradients_of_the_output_in_any_memory(gpu, sums):
    inputs = make_inputs(LOPSIDED, depth=4, dtype=torch.float32)
    one = torch.ones(()).expand(2, 3, 5, 8)
    assert_same_bits(run(inputs, one, **LOPSIDED), run(inputs, one.contiguous(), **LOPSIDED))
    grad_output = torch.randn(2, 3, 5, 8)
    negated = torch.complex(grad_output, -grad_output).conj().imag
    assert negated.is_neg()
    assert_same_bits(run(inputs, negated, **LOPSIDED), run(inputs, grad_output, **LOPSIDED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_edges(gpu, sums, dtype):
    """No images, no pixels, no taps; single ones."""
    one = PLAIN | {"kernel_size": 1}
    before = gpu.log.launched
    for tensor in run(make_inputs(PLAIN, 0, (7, 6), 4, dtype), **PLAIN):
        assert tensor.numel() == 0
    assert gpu.log.launched == before
    for size in ((0, 5), (5, 0), (0, 0)):
        inputs = make_inputs(one, 2, size, 4, dtype)
        for softmax in (True, False):
            for tensor in run(inputs, softmax=softmax, **one):
                assert (tensor == 0).all()
    for size, softmax in itertools.product(((4, 3), (1, 1)), (True, False)):
        inputs = make_inputs(one | {"remove_center": True}, 2, size, 4, dtype)
        assert inputs[1].shape[3] == inputs[2].shape[3] == 0
        output, grad_value, *_ = run(inputs, softmax=softmax, **one | {"remove_center": True})
        assert (output == 0).all()
        assert (grad_value == 0).all()
    inputs = make_inputs(one | {"groups": 1}, 1, (1, 1), 1, dtype)
    assert_close(run(inputs, **one | {"groups": 1}), exactly(inputs, **one | {"groups": 1}))


@pytest.mark.skipif(SANITIZED, reason="runs in the process with sanitizers")
def test_sanitizers_find_nothing(gpu):
    """Reads and writes out of bounds, and undefined operations, end the process that runs the tests above."""
    runtime = sanitizer_preload(cuda_tools.compiler()[0])
    if runtime is None:
        pytest.skip(f"{cuda_tools.compiler()[0][0]} has no libasan.so")
    environment = {
        **os.environ,
        cuda_tools.SANITIZE_VARIABLE: "1",
        "LD_PRELOAD": runtime,
        # New memory holds 0xff, which is NaN in every dtype.
        "ASAN_OPTIONS": "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join(map(str, (Path(dcnv3_cuda.__file__).parents[3], TESTS))),
        "OMP_NUM_THREADS": "1",
    }
    chosen = "edges or not_full or 32_bits or beyond_memory or wrong_kernels or lanes_exchange"
    chosen += (
        " or (bad_offsets and bfloat16) or (parts_of and float32 and 1-) or (any_kernel_size and bfloat16-any_taps)"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--durations=9",
        "--capture=sys",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
    ]
    done = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 50


# Sums in fixed point


@every_dtype
@pytest.mark.parametrize("depth", [5, 16])
def test_the_order_of_threads_changes_no_bit_of_sums_in_fixed_point(gpu, nan_memory, monkeypatch, dtype, depth):
    """And it does change sums of floating-point numbers, or this would prove nothing."""
    inputs = make_inputs(PLAIN, 2, (9, 8), depth, dtype, spread=4)
    grad_output = torch.randn(2, 9, 8, 2 * depth).to(dtype)
    found = {}
    for order in (0, 1, 7, 123457):
        gpu.log.shuffled = order
        for fixed in (True, False):
            monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda fixed=fixed: fixed)
            found[fixed, order] = run(inputs, grad_output, True, **PLAIN)
    exact = exactly(inputs, grad_output, **PLAIN, softmax=True)
    for (fixed, _), results in found.items():
        assert_close(results, exact)
        assert_same_bits(results[2:] + results[:1], found[fixed, 0][2:] + found[fixed, 0][:1])
        if fixed:
            assert torch.equal(results[1], found[True, 0][1])
    if dtype in (torch.float32, torch.float64):
        assert any(not torch.equal(found[False, order][1], found[False, 0][1]) for order in (1, 7, 123457))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("size", [1e-280, 1e-30, 1.0, 1e30, 1e300])
def test_sums_in_fixed_point_of_any_size(gpu, nan_memory, size, softmax):
    inputs = make_inputs(PLAIN, 1, (6, 5), 4)
    grad_output = torch.randn(1, 6, 5, 8, dtype=torch.float64)
    (_, expected, *_), (_, got, *_) = (run(inputs, grad_output * by, softmax, **PLAIN) for by in (1, size))
    torch.testing.assert_close(got / size, expected, rtol=1e-12, atol=1e-13)


def test_the_largest_sums_in_fixed_point(gpu, nan_memory):
    """All samples of an image meet one pixel, with the largest of weights and gradients."""
    for dtype, softmax in itertools.product((torch.float64, torch.float32, torch.float16), (True, False)):
        arguments = PLAIN | {"groups": 1}
        _, _, mask = make_inputs(arguments, 1, (9, 7), 4, dtype)
        steps = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(9), indexing="xy"), -1)  # (9, 7, 2): x, y
        taps = torch.tensor(DCNv3Geometry(1, (3, 3), (1, 1), (1, 1), (1, 1), 1.0, False).taps()) - 1
        offset = (torch.tensor([3, 4]) - steps[:, :, None] - taps).flatten(2)[None].to(dtype)
        value = torch.randn(1, 9, 7, 4).to(dtype)
        mask = torch.full_like(mask, 1.875)
        grad_output = torch.full((1, 9, 7, 4), 1.875, dtype=dtype)
        found = run([value, offset, mask], grad_output, softmax, **arguments)
        assert_close(found[:2], exactly([value, offset, mask], grad_output, **arguments, softmax=softmax)[:2])
        assert (found[1] != 0).sum() == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_sums_in_fixed_point_without_bounds_are_nan(gpu, nan_memory, bad):
    value, offset, mask = make_inputs(PLAIN, 1, (6, 5), 4, torch.float32)
    grad_output = torch.randn(1, 6, 5, 8)
    grad_output[0, 2, 3, 4] = bad
    for softmax in (True, False):
        assert run([value, offset, mask], grad_output, softmax, **PLAIN)[1].isnan().all()
    mask[0, 2, 3, 4] = bad
    assert run([value, offset, mask], None, False, **PLAIN)[1].isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_logits_that_are_no_numbers_in_fixed_point(gpu, nan_memory, bad):
    """Test that gradients (of every element) are NaN if torch.softmax is NaN; a single -inf is a weight of 0."""
    value, offset, mask = make_inputs(PLAIN, 1, (6, 5), 4, torch.float32)
    mask[0, 2, 3, 4] = bad
    found, exact = (f([value, offset, mask], softmax=True, **PLAIN)[1] for f in (run, exactly))
    assert exact.isfinite().all() == (bad == -math.inf)
    if bad == -math.inf:
        assert_close([found], [exact])
    else:
        assert found.isnan().all()
    mask[0, 2, 3, :9] = -math.inf
    assert run([value, offset, mask], softmax=True, **PLAIN)[1].isnan().all()


# Between Python and the kernels


def test_structures_are_those_of_the_kernels(gpu):
    fields = [name for name, _ in dcnv3_cuda._Call._fields_]
    views = [name for name, _ in dcnv3_cuda._View._fields_]
    numbers = ["sizeof(hfi::Call)", *(f"__builtin_offsetof(hfi::Call, {name})" for name in fields)]
    numbers += ["sizeof(hfi::View)", *(f"__builtin_offsetof(hfi::View, {name})" for name in views)]
    text = f"extern const unsigned hfi_layout[]; const unsigned hfi_layout[] = {{{', '.join(numbers)}}};"
    text = f'#include "dcnv3.cuh"\nextern "C" {{ {text} }}'
    library = ctypes.CDLL(str(gpu.library(text, dcnv3_cuda.sources(), ("--std=c++17",))))
    expected = []
    for structure, names in ((dcnv3_cuda._Call, fields), (dcnv3_cuda._View, views)):
        expected += [ctypes.sizeof(structure), *(getattr(structure, name).offset for name in names)]
    assert list((ctypes.c_uint * len(expected)).in_dll(library, "hfi_layout")) == expected
    # Offsets and sizes do not tell numbers of one size apart.
    source = re.sub(r"\b(const )?(double|void)\* ?", "void *", dcnv3_cuda.sources()["dcnv3.cuh"])
    names = {ctypes.c_int64: "i64", ctypes.c_double: "double", dcnv3_cuda._View: "View", ctypes.c_void_p: "void"}
    for structure, name in ((dcnv3_cuda._Call, "Call"), (dcnv3_cuda._View, "View")):
        ours = [(names[kind], field) for field, kind in structure._fields_]
        theirs = [(kind, field.lstrip("*")) for kind, field in declared(source, name)]
        assert theirs == ours


def test_the_device_and_stream_of_a_launch(gpu, monkeypatch):
    inputs = make_inputs(PLAIN, depth=4, dtype=torch.float32)
    run(inputs, **PLAIN)
    assert (gpu.log.device, gpu.log.stream, gpu.log.block_x) == (0, 1000, dcnv3_cuda._THREADS)
    loaded = gpu.log.loaded
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    run(inputs, **PLAIN)
    assert (gpu.log.device, gpu.log.stream) == (1, 1001)
    assert gpu.log.loaded == loaded + 2  # each GPU has its own
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    run(inputs, **PLAIN)
    assert gpu.log.loaded == loaded + 2


def test_python_threads_at_once(gpu, atomic):
    """One plan serves them all."""
    inputs = [make_inputs(PLAIN, 2, (9, 8), 16, torch.float32, seed=seed) for seed in range(4)]
    plan = dcnv3_cuda.Plan(check_dcnv3(*inputs[0], **PLAIN), True, *inputs[0])
    grad_output = torch.randn(2, 9, 8, 32)
    expected = [(plan.forward(*some), *plan.backward(grad_output, *some)) for some in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = pool.map(lambda some: (plan.forward(*some), *plan.backward(grad_output, *some)), inputs)
            for got, want in zip(found, expected, strict=True):
                assert_same_bits(got, want)


# What is refused


def planned(*shapes, **changes):
    """A plan for tensors without memory."""
    arguments = PLAIN | {"groups": 1, "kernel_size": 1, "padding": 0} | changes
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    return dcnv3_cuda.Plan(check_dcnv3(*inputs, **arguments), False, *inputs)


def test_counts_that_are_too_large(gpu):
    side, limit = 2**15, "takes up to 1073741823 pixels and groups"
    for height, channels in ((side, 1), (side - 1, 1)):
        shapes = [(1, height, side, features) for features in (channels, 2, 1)]
        if height < side:
            planned(*shapes)
            continue
        with pytest.raises(BackendError, match=limit) as error:
            planned(*shapes)
        assert "backend='torch'" in str(error.value)
    small = [(1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 1)]
    planned(*small)
    with pytest.raises(BackendError, match=limit):
        planned((1, 1, 2**30, 1), (1, 1, 1, 2), (1, 1, 1, 1), stride=(1, 2**30))
    with pytest.raises(BackendError, match=limit):
        planned((1, 1, 1, 1), (1, 3, 3, 2), (1, 3, 3, 1), stride=2**29, padding=2**29)
    far = torch.empty_strided((1, 2, 2, 1), (2**30, 2**30, 1, 1), device="meta")
    others = [torch.empty(1, 2, 2, features, device="meta") for features in (2, 1)]
    arguments = PLAIN | {"groups": 1, "kernel_size": 1, "padding": 0}
    with pytest.raises(BackendError, match=limit):
        dcnv3_cuda.Plan(check_dcnv3(far, *others, **arguments), False, far, *others)


def test_errors_of_the_driver(gpu):
    with pytest.raises(cuda_driver.DriverError, match=r"^cuModuleLoadData: device kernel image is invalid \(200\)$"):
        cuda_driver.load(b"no image", "probe", 0)
    with pytest.raises(cuda_driver.DriverError, match=r"^cuDeviceGet: invalid device ordinal \(101\)$"):
        cuda_driver.load(b"no image", "probe", 7)
    image = gpu.build('extern "C" __global__ void probe() {}', {}, (), (9, 0))
    with pytest.raises(cuda_driver.DriverError, match=r"^cuModuleGetFunction: named symbol not found \(500\)$"):
        cuda_driver.load(image, "prob", 0)
    function = cuda_driver.load(image, "probe", 0)
    cuda_driver.launch(function, 0, (1, 1), 32, dcnv3_cuda._View())
    for grid in ((0, 1), (1, 0), (1, 65536)):
        with pytest.raises(cuda_driver.DriverError, match=r"^cuLaunchKernel: invalid argument \(1\)$"):
            cuda_driver.launch(function, 0, grid, 32, dcnv3_cuda._View())
    with pytest.raises(cuda_driver.DriverError, match=r"^cuLaunchKernel: invalid device context \(201\)$"):
        cuda_driver.launch(function, 1, (1, 1), 32, dcnv3_cuda._View())


def test_a_driver_without_words(gpu, monkeypatch):
    class Wordless:
        cuInit = staticmethod(lambda *_: 999)  # noqa: N815
        cuGetErrorString = staticmethod(lambda *_: 1)  # noqa: N815

    monkeypatch.setattr(cuda_driver, "_library", Wordless)
    with pytest.raises(cuda_driver.DriverError, match=r"^cuInit: unknown error \(999\)$"):
        cuda_driver._Device(0)


def test_no_driver(monkeypatch):
    def nothing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", nothing)
    with pytest.raises(cuda_driver.DriverError, match=r"cannot load NVIDIA's driver: .*cuda"):
        LIBRARY.__wrapped__()


@pytest.fixture
def capable(monkeypatch):
    """As if PyTorch was built with CUDA and found a GPU."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "why_not", lambda: None)
    cuda_tools.forget()
    yield monkeypatch
    cuda_tools.forget()


def test_why_not(gpu, capable):
    call = Call("cuda", "float32")
    for dtype in TOLERANCE:
        assert dcnv3_cuda.why_not(Call("cuda", str(dtype).removeprefix("torch."))) is None
    assert (
        dcnv3_cuda.why_not(Call("cuda", "float8_e5m2"))
        == "computes float32, float64, bfloat16, float16, not float8_e5m2"
    )
    assert "not int64" in dcnv3_cuda.why_not(Call("cuda", "int64"))

    def refuse(error):
        def raising(*_):
            raise error

        return raising

    for target, name, replacement, reason in (
        (nvrtc, "why_not", lambda: "finds no NVRTC", "finds no NVRTC"),
        (torch.cuda, "is_available", lambda: False, "needs a GPU, and PyTorch finds none"),
        (torch.version, "cuda", None, "needs a PyTorch built with CUDA"),
        (torch.version, "hip", "7.0", "is for NVIDIA's GPUs, and this PyTorch is built for ROCm"),
        (nvrtc, "build", refuse(nvrtc.CompileError("no luck")), "cannot compile or load a kernel: no luck"),
        (
            cuda_driver,
            "load",
            refuse(cuda_driver.DriverError("cuInit: no (3)")),
            "cannot compile or load a kernel: cuInit",
        ),
        (
            nvrtc,
            "build",
            lambda *_: b"rubbish",
            "cannot compile or load a kernel: cuModuleLoadData: device kernel image",
        ),
        (
            dcnv3_cuda,
            "sources",
            refuse(BackendError("sources are missing")),
            "cannot compile or load a kernel: sources",
        ),
    ):
        with capable.context() as patch:
            patch.setattr(target, name, replacement)
            dcnv3_cuda._why_not.cache_clear()
            assert dcnv3_cuda.why_not(call).startswith(reason)
    dcnv3_cuda._why_not.cache_clear()
    assert dcnv3_cuda.why_not(call) is None


def test_sources_that_are_missing(monkeypatch, tmp_path):
    assert set(dcnv3_cuda.sources()) == {"nvrtc.cu", "dcnv3.cuh", "types.cuh"}
    monkeypatch.setattr(dcnv3_cuda, "__file__", str(tmp_path / "src" / "package" / "ops" / "backends" / "module.py"))
    with pytest.raises(BackendError, match=r"sources are missing, install hf-internimage again: .*nvrtc\.cu"):
        dcnv3_cuda.sources()


def test_compile_errors_reach_the_caller(gpu, monkeypatch):
    inputs = make_inputs(PLAIN, depth=4, dtype=torch.float32)
    plan = dcnv3_cuda.Plan(check_dcnv3(*inputs, **PLAIN), True, *inputs)
    dcnv3_cuda._kernel.cache_clear()
    broken = {**dcnv3_cuda.sources(), "nvrtc.cu": '#include "nothing.cuh"'}
    monkeypatch.setattr(dcnv3_cuda, "sources", lambda: broken)
    with pytest.raises(nvrtc.CompileError, match=r"nothing\.cuh"):
        plan.forward(*inputs)
    monkeypatch.undo()
    plan.forward(*inputs)  # and are not kept


# The emulation itself


def test_the_emulations_numbers(gpu):
    """CUDA's conversions and functions as the kernels' sources use them."""
    text = """
    #include "types.cuh"
    extern "C" {
    void widen(const unsigned short* from, float* to, int n) {
        for (int i = 0; i < n; ++i) to[i] = hfi::half_to_float(from[i]);
    }
    void narrow(const float* from, unsigned short* half, unsigned short* bfloat, int n) {
        for (int i = 0; i < n; ++i) half[i] = hfi::float_to_half(from[i]), bfloat[i] = hfi::float_to_bfloat(from[i]);
    }
    void round(const double* from, long long* to, int n) {
        for (int i = 0; i < n; ++i) to[i] = __double2ll_rn(from[i]);
    }
    void power(const float* from, float* to, int n) {
        for (int i = 0; i < n; ++i) to[i] = hfi::power_of_e(from[i]);
    }
    }
    """
    library = ctypes.CDLL(str(gpu.library(text, dcnv3_cuda.sources(), ("--std=c++17",))))

    def call(name, *tensors):
        getattr(library, name)(*(ctypes.c_void_p(t.data_ptr()) for t in tensors), tensors[0].numel())

    halves = torch.arange(65536).to(torch.uint16)
    floats = torch.empty(65536)
    call("widen", halves, floats)
    assert torch.equal(floats.nan_to_num(7e7), halves.view(torch.float16).float().nan_to_num(7e7))
    # Each half number, what lies half way to the next, and their neighbours; then any bits at all.
    finite = floats[floats.isfinite()].sort().values
    middle = (finite[1:] + finite[:-1]) / 2
    around = torch.cat((finite, middle, torch.tensor([65519.99, 65520.0, 1e30, math.inf, math.nan, -math.inf])))
    numbers = torch.cat(
        (
            around,
            torch.nextafter(around, torch.tensor(math.inf)),
            torch.nextafter(around, torch.tensor(-math.inf)),
            torch.randint(-(2**31), 2**31, (10**6,), dtype=torch.int64).to(torch.int32).view(torch.float32),
        )
    )
    for dtype, got in zip(
        (torch.float16, torch.bfloat16), torch.empty(2, numbers.numel()).to(torch.uint16), strict=True
    ):
        outputs = [got, torch.empty_like(got)]
        call("narrow", numbers, *(outputs if dtype == torch.float16 else outputs[::-1]))
        want = numbers.to(dtype)
        same = (got.view(dtype) == want) | (got.view(dtype).isnan() & want.isnan())
        assert same.all(), numbers[~same][:5]
        zero = want == 0
        assert torch.equal(got.view(dtype)[zero].signbit(), want[zero].signbit())
    doubles = torch.tensor([0.5, 1.5, -0.5, -2.5, 1e300, -1e300, math.nan, 2.0**62, -(2.0**63)], dtype=torch.float64)
    integers = torch.empty(9, dtype=torch.int64)
    call("round", doubles, integers)
    low = -(2**63)
    assert integers.tolist() == [0, 2, 0, -2, 2**63 - 1, low, low, 2**62, low]
    exponents = torch.tensor([0.0, -1, 1, -10, -87, -100, -math.inf, math.inf, math.nan])
    powers = torch.empty(9)
    call("power", exponents, powers)
    torch.testing.assert_close(powers[:5], exponents[:5].exp(), rtol=1e-5, atol=0)
    assert powers[5:8].tolist() == [0, 0, math.inf]
    assert powers[8].isnan()


WRONG = {
    "a lane ended where others exchange values": "if (threadIdx.x == 3) return; __shfl_xor_sync(0xffffffff, 1.f, 1);",
    "lanes exchange values with different partners": "__shfl_xor_sync(0xffffffff, 1.f, threadIdx.x == 5 ? 2 : 1);",
    "a lane exchanges values with none": "__shfl_xor_sync(0xffffffff, 1.f, 32);",
    "lanes exchange values of different sizes": "if (threadIdx.x) __shfl_xor_sync(0xffffffff, 1., 1);"
    "else __shfl_xor_sync(0xffffffff, 1.f, 1);",
    "a shuffle among some lanes": "__shfl_xor_sync(0x0000ffff, 1.f, 1);",
    "misaligned address": "float x[9]; hfi::reduce(x + 1 + ((unsigned long long)x % 8 / 4), 1, 2, 3, 4, true);"
    "hfi::reduce(x + 2, 1, 2, 3, 4, true); hfi::reduce(x + 3, 1, 2, 3, 4, true);",
}


@pytest.mark.parametrize("why", WRONG)
def test_wrong_kernels_are_noticed(gpu, why):
    source = f'#include "types.cuh"\nextern "C" __global__ void wrong() {{ {WRONG[why]} }}'
    function = cuda_driver.load(gpu.build(source, dcnv3_cuda.sources(), ("--std=c++17",), (9, 0)), "wrong", 0)
    with pytest.raises(cuda_driver.DriverError, match=rf"cuLaunchKernel: {why}.* \(719\)"):
        cuda_driver.launch(function, 0, (2, 1), 64, dcnv3_cuda._View())
    inputs = make_inputs(PLAIN, depth=4, dtype=torch.float32)
    assert_close(run(inputs, **PLAIN), exactly(inputs, **PLAIN))  # the driver is well again


def test_lanes_exchange_values(gpu):
    """Each adds up the numbers of all lanes, in any order of threads."""
    source = """
    #include "dcnv3.cuh"
    extern "C" __global__ void sums(const hfi::View view) {
        const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
        ((double*)view.data)[thread] = hfi::over_lanes<8>((double)thread) + hfi::over_lanes<2>((float)(thread * 1000));
    }
    """
    function = cuda_driver.load(gpu.build(source, dcnv3_cuda.sources(), ("--std=c++17",), (9, 0)), "sums", 0)
    threads = torch.arange(3 * 64, dtype=torch.float64)
    for order in (0, 1, 5, 1234567):
        gpu.log.shuffled = order
        found = torch.full((3 * 64,), math.nan, dtype=torch.float64)
        cuda_driver.launch(function, 0, (3, 1), 64, dcnv3_cuda._View(found.data_ptr(), 0, 0, 0))
        eight, two = threads.view(-1, 8).sum(1), threads.view(-1, 2).sum(1) * 1000
        assert torch.equal(found, eight.repeat_interleave(8) + two.repeat_interleave(2))


@pytest.mark.skipif(not SANITIZED, reason="in a process with sanitizers only")
@pytest.mark.parametrize("place", [-1, 0, 15, 16])
def test_sanitizers_notice_what_is_beyond_memory(gpu, place):
    """In a child, which the sanitizer ends."""
    source = """
    #include "types.cuh"
    extern "C" __global__ void more(const hfi::i64 at) { hfi::put((float*)at, hfi::get((float*)at) + 1); }
    """
    image = gpu.build(source, dcnv3_cuda.sources(), ("--std=c++17",), (9, 0))
    function = cuda_driver.load(image, "more", 0)
    memory = torch.zeros(16)

    class Address(ctypes.Structure):
        _fields_ = [("address", ctypes.c_longlong)]

    child = os.fork()
    if not child:
        cuda_driver.launch(function, 0, (1, 1), 1, Address(memory.data_ptr() + 4 * place))
        os._exit(0)
    assert (os.waitpid(child, 0)[1] == 0) == (0 <= place < 16)
