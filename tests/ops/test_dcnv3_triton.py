# SPDX-License-Identifier: MIT
"""The Triton backend without a GPU: interpreted, and what it compiles to."""

import math
import os
import subprocess
import sys

import pytest
import torch
from support.operator_cases import PLAIN, in_channels_first_memory, make_inputs
from support.paths import TESTS
from support.triton_tools import compilations, machine_code, needs_triton, run_both_ways  # noqa: F401

from hf_internimage.ops import fixed_point
from hf_internimage.ops.backends import dcnv3_triton
from hf_internimage.ops.registry import Call

STAGE = PLAIN | {"groups": 4, "softmax": True}  # as in InternImage-T


def stage_inputs(dtype=torch.bfloat16, depth=16, groups=4, batch=1, size=(8, 8)):
    return make_inputs(PLAIN | {"groups": groups}, batch, size, depth, dtype)


@needs_triton
@pytest.mark.parametrize("which", ["original", "not original"])
@pytest.mark.slow
def test_interpreted(which):
    """Triton looks at TRITON_INTERPRET when it is imported: hence another process."""
    tests = TESTS / "support" / "triton_interpreted.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(tests),
        "-k",
        which,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tests.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.parametrize(
    ("architecture", "dtype", "depth"),
    [
        (80, torch.bfloat16, 16),
        (90, torch.bfloat16, 16),
        (100, torch.bfloat16, 16),
        (120, torch.bfloat16, 16),
        (90, torch.float16, 16),
        (90, torch.float32, 16),
        (90, torch.bfloat16, 32),
    ],
    ids=str,
)
@pytest.mark.slow
def test_machine_code(architecture, dtype, depth, compilations, tmp_path, monkeypatch):  # noqa: F811
    """Whole vectors of channels, and all else in registers: no memory of a lane's own, none shared, no barriers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run_both_ways(stage_inputs(dtype, depth), **STAGE)
    forward, backward = compilations
    counts, registers, local = machine_code(*forward, architecture, tmp_path)
    assert counts["LDG.E.128"] == 4 * 9
    assert counts["STG.E.128"] == 1
    assert registers <= 96
    assert local <= 8  # Triton 3.6 spills two registers for sm_80
    assert not counts.keys() & {"BAR", "LDS", "STS", "CALL"}

    counts, registers, local = machine_code(*backward, architecture, tmp_path)
    assert counts["LDG.E.128" if dtype == torch.float32 else "LDG.E.64"] == 4 * 9 + 1
    assert not local
    assert "CALL" not in counts
    if architecture == 80:  # which adds single numbers: lanes exchange theirs first, to add side by side
        assert counts["RED"] == 4 * 4 * 9
        assert counts["BAR"] <= 4 * 9
        assert registers <= 128
    else:
        assert counts["REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU"] == 4 * 9
        assert not counts.keys() & {"BAR", "LDS", "STS"}
        assert registers <= 96


@needs_triton
@pytest.mark.slow
def test_machine_code_of_fixed_point(compilations, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    torch.use_deterministic_algorithms(True)
    try:
        run_both_ways(stage_inputs(), **STAGE)
    finally:
        torch.use_deterministic_algorithms(False)
    counts, registers, local = machine_code(*compilations[1], 90, tmp_path)
    assert counts["REDG.E.ADD.64.STRONG.GPU"] == 2 * 4 * 9
    assert registers <= 128
    assert not local
    assert not counts.keys() & {"BAR", "LDS", "STS", "CALL"}


@needs_triton
def test_kernels_serve_all_sizes(compilations):  # noqa: F811
    """Of images, batches and groups; also strided tensors, as long as their memory is aligned alike."""
    for groups, batch, size in ((4, 1, (8, 8)), (8, 2, (16, 1)), (1, 3, (7, 9)), (16, 1, (1, 1)), (32, 16, (5, 32))):
        inputs = stage_inputs(groups=groups, batch=batch, size=size)
        run_both_ways(inputs, **STAGE | {"groups": groups})
    value, offset, mask = stage_inputs()
    _, *cut = torch.cat((offset[..., :8], offset, mask), -1).split((8, 72, 36), -1)
    run_both_ways((value.transpose(1, 2).contiguous().transpose(1, 2), *cut), **STAGE)
    assert [source.name for source, _ in compilations] == ["forward_kernel", "backward_kernel"]


@needs_triton
def test_value_that_allows_no_vectors(compilations):  # noqa: F811
    """Starting within a 32-bit word, or in lines of odd length; channels that lie apart are copied."""
    value, offset, mask = stage_inputs()
    shifted = torch.cat((value.new_empty(1), value.flatten()))[1:].view(value.shape)
    odd = torch.cat((value, value[..., :1]), -1)[..., :-1]
    single = value.as_strided(value.shape, (1, *value.stride()[1:]))  # a stride without meaning
    for some in (value, shifted, odd, single, in_channels_first_memory(value)):
        run_both_ways((some, offset, mask), **STAGE)
    found = []
    for source, _ in compilations[::2]:
        constants = {source.fn.arg_names[place]: constant for (place,), constant in source.constants.items()}
        found.append((constants["VECTOR"], constants["WORDS"]))
    assert found == [(8, True), (8, False), (1, False)]


@needs_triton
def test_says_why_not(monkeypatch):
    dcnv3_triton._why_not_on.cache_clear()
    dcnv3_triton._kernels.cache_clear()
    try:
        assert dcnv3_triton.why_not(Call("cpu", "float32")) == "needs tensors on a GPU, got cpu"
        assert dcnv3_triton.why_not(Call("cuda", "int8")) == "computes float32, float64, bfloat16, float16, not int8"
        if not torch.cuda.is_available():
            assert "cannot compile here" in dcnv3_triton.why_not(Call("cuda", "float32"))
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "hf_internimage.ops.backends.dcnv3_triton_kernels")
        monkeypatch.delattr("hf_internimage.ops.backends.dcnv3_triton_kernels")
        dcnv3_triton._why_not_on.cache_clear()
        dcnv3_triton._kernels.cache_clear()
        assert "finds no working Triton" in dcnv3_triton.why_not(Call("cuda", "float32"))
    finally:
        dcnv3_triton._why_not_on.cache_clear()
        dcnv3_triton._kernels.cache_clear()


@pytest.mark.parametrize("factor", [0.0, 1e-250, 1e-30, 1.0, 3.7, 1e30], ids=str)
@pytest.mark.parametrize("softmax", [False, True])
def test_fixed_point_sums(factor, softmax):
    """Sums of the largest summands fit, and lose nothing that float64 keeps."""
    terms = 1000
    gradient = torch.rand(terms, dtype=torch.float64) * factor - factor / 2
    mask = torch.full((), 2.0, dtype=torch.float64)
    scale = fixed_point.scale(gradient, mask, softmax, terms)
    assert (scale.shape, scale.dtype) == ((), torch.float64)
    assert scale == 2.0 ** round(math.log2(scale))
    for summands in (gradient, torch.full_like(gradient, gradient.abs().max().item())):
        summands = summands if softmax else summands * mask
        total = torch.round(summands * scale).long()
        found = fixed_point.finish(total.sum(), scale, torch.float64)
        torch.testing.assert_close(found, summands.sum(), rtol=0, atol=1e-15 * terms * factor)
        assert torch.equal(found, fixed_point.finish(total.flip(0).sum(), scale, torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_fixed_point_without_a_bound(bad):
    good, with_bad = torch.ones(5), torch.tensor([1.0, bad])
    for gradient, mask in ((with_bad, good), (good, with_bad)):
        scale = fixed_point.scale(gradient, mask, False, 3)
        assert fixed_point.finish(torch.zeros(4, dtype=torch.int64), scale, torch.bfloat16).isnan().all()
    assert fixed_point.scale(good, with_bad, True, 3).isfinite()
    assert fixed_point.scale(good, good[:0], False, 3) == fixed_point.scale(good[:0], good, True, 3) == 1


def test_fixed_point_copies_no_large_tensor_to_the_host():
    """Nothing asks for a number: the meta device has none."""
    gradient, mask = torch.empty(2, 3, device="meta"), torch.empty(4, device="meta")
    scale = fixed_point.scale(gradient, mask, False, 7)
    assert fixed_point.finish(torch.empty(5, device="meta", dtype=torch.int64), scale, torch.float32).shape == (5,)


def test_sizes_of_programs():
    """Two lanes or more for each pair, a vector or less for each lane."""
    for depth in (1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 37, 64, 1000, 5000):
        for itemsize in (2, 4, 8):
            for warps in (1, 4):
                size = dcnv3_triton.tile(depth, itemsize, warps)
                assert size["CHANNELS"] >= depth
                assert size["CHANNELS"] == 1 << (size["CHANNELS"] - 1).bit_length()
                assert size["BLOCK"] == 1 or 2 * size["BLOCK"] <= 32 * warps
                assert size["BLOCK"] == 1 or size["BLOCK"] * size["CHANNELS"] <= 32 * warps * 16 // itemsize
