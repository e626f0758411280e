# SPDX-License-Identifier: MIT
"""DCNv4 against the original's numbers (28 cases, forward and all gradients) on each backend, and its checks."""

import functools

import pytest
import torch
from support import golden_flash, gpu_backends
from support.operator_cases import CPU_BACKENDS, Seen

from hf_internimage.models.dcnv4_layout import split_offset_mask
from hf_internimage.ops import dcnv4

DESCRIPTION, TENSORS = golden_flash.load("op_cases")
CASES = DESCRIPTION["cases"]
# Where the original differs by intention; see the tests that name them.
EXCEPTIONS = ("k3_zero_offset", "nonfinite_mask")
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, "atol_float64"), (torch.float32, "atol_float32_run")], ids=str
)
BACKENDS = pytest.mark.parametrize(
    "backend", [*CPU_BACKENDS, *(pytest.param(name, marks=pytest.mark.gpu) for name in gpu_backends.NAMES)]
)


def arguments_of(case):
    return {
        "groups": case["group"],
        **{name: tuple(case[name]) for name in ("kernel_size", "stride", "padding", "dilation")},
        "offset_scale": case["offset_scale"],
        "remove_center": case["remove_center"],
    }


def run(name, dtype, backend):
    """{what: tensor} of the output and the gradients of a case."""
    device = "cuda" if backend in gpu_backends.NAMES else "cpu"
    if device == "cuda":
        gpu_backends.need(backend, dtype)
    value, offset_mask, grad_output = (
        TENSORS[f"{name}/{part}"].to(device, dtype, copy=True) for part in ("input", "offset_mask", "grad_output")
    )
    leaves = value.requires_grad_(), offset_mask.requires_grad_()
    output = dcnv4(*leaves, **arguments_of(CASES[name]), backend=backend)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    results = dict(zip(("output", "grad_input", "grad_offset_mask"), (output.detach(), *gradients), strict=True))
    assert {result.dtype for result in results.values()} == {dtype}
    return {what: result.cpu() for what, result in results.items()}


def compare(name, what, found, tolerance, picked=...):
    """Compare a result with the original's; NaN and infinities must be at the same places."""
    atol = CASES[name][tolerance]
    expected = TENSORS[f"{name}/{what}"].to(found.dtype)
    torch.testing.assert_close(
        found[picked],
        expected[picked],
        rtol=0,
        atol=atol[what] if isinstance(atol, dict) else atol,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def taps_of(name):
    """Positions (N, H, W, G, P, 2), as (x, y), and weights (N, H, W, G, P) of a case with kernel 3 and padding 1."""
    case = CASES[name]
    assert (case["kernel_size"], case["padding"], case["offset_scale"]) == ([3, 3], [1, 1], 1)
    offset, mask = split_offset_mask(TENSORS[f"{name}/offset_mask"].double(), case["group"], 9)
    height, width = case["output_size"]
    columns = torch.arange(width)[None, :, None, None] - 1 + torch.arange(9) // 3
    rows = torch.arange(height)[:, None, None, None] - 1 + torch.arange(9) % 3
    grid = torch.stack(torch.broadcast_tensors(columns, rows), -1)  # (H, W, 1, P, 2)
    return grid + offset.unflatten(-1, (case["group"], 9, 2)), mask.unflatten(-1, (case["group"], 9))


def test_there_are_28_cases():
    assert len(CASES) == 28


@BACKENDS
@DTYPES
@pytest.mark.parametrize("name", [name for name in CASES if name not in EXCEPTIONS])
@pytest.mark.usefixtures("nan_memory")
def test_matches_the_original(name, dtype, tolerance, backend):
    found = run(name, dtype, backend)
    for what in CASES[name]["compare"]:
        compare(name, what, found[what], tolerance)
    used = CASES[name]["used_columns"]
    assert found["grad_offset_mask"].shape[-1] == CASES[name]["columns"]
    assert not found["grad_offset_mask"][..., used:].any()


@BACKENDS
@DTYPES
def test_samples_exactly_at_the_border(dtype, tolerance, backend):
    """At -1 the original leaves a sample out, so that its offset has no gradient; here it has the one-sided one."""
    name = "k3_zero_offset"
    found = run(name, dtype, backend)
    compare(name, "output", found["output"], tolerance)
    compare(name, "grad_input", found["grad_input"], tolerance)
    positions, mask = taps_of(name)
    at_border = (positions == -1).any(-1)
    by_tap = at_border.unsqueeze(-1).expand_as(positions)
    same = torch.cat([~by_tap.flatten(-2), torch.ones_like(mask, dtype=torch.bool)], -1).flatten(-2)
    picked = torch.nn.functional.pad(same, (0, 2), value=True)  # 54 columns of 56
    compare(name, "grad_offset_mask", found["grad_offset_mask"], tolerance, picked)
    expected = TENSORS[f"{name}/grad_offset_mask"]
    assert not expected[~picked].any()
    assert found["grad_offset_mask"][~picked].isfinite().all()
    assert found["grad_offset_mask"][~picked].unflatten(0, (-1, 2)).any(-1).sum() == 46


@BACKENDS
@DTYPES
def test_weights_that_are_not_finite(dtype, tolerance, backend):
    """That of a sample outside the image counts nothing in the original, and makes the output NaN here."""
    name = "nonfinite_mask"
    found = run(name, dtype, backend)
    compare(name, "grad_input", found["grad_input"], tolerance)
    positions, mask = taps_of(name)
    height, width = CASES[name]["output_size"]
    outside = ((positions <= -1) | (positions >= torch.tensor([width, height]))).any(-1)
    spoilt = (outside & ~mask.isfinite()).any(-1)  # by pixel and group
    assert spoilt.any()
    spoilt = spoilt.repeat_interleave(CASES[name]["group_channels"], -1)
    compare(name, "output", found["output"], tolerance, ~spoilt)
    assert found["output"][spoilt].isnan().all()


def test_is_one_operator_in_a_graph():
    name = "k3_pad1"
    value, offset_mask = (TENSORS[f"{name}/{part}"] for part in ("input", "offset_mask"))
    with Seen() as seen:
        dcnv4(value, offset_mask, **arguments_of(CASES[name]))
    assert [operator for operator in seen.names if "hf_internimage" in operator] == ["hf_internimage.dcnv3.default"]


def test_derivatives_of_higher_order():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    offset_mask = torch.rand(1, 3, 4, 32, generator=generator, dtype=torch.float64).mul_(0.3).add_(0.1)
    call = functools.partial(dcnv4, groups=1)
    assert torch.autograd.gradcheck(call, (value, offset_mask.requires_grad_()))
    assert torch.autograd.gradgradcheck(call, (value, offset_mask))


VALUE, OFFSET_MASK = torch.rand(1, 5, 7, 8), torch.rand(1, 5, 7, 56)


@pytest.mark.parametrize(
    ("offset_mask", "options", "message"),
    [
        (None, {}, "offset_mask is a NoneType, expected a torch.Tensor."),
        (
            OFFSET_MASK[..., :53],
            {},
            r"offset_mask has shape \(1, 5, 7, 53\), expected 4 dimensions .* at least 54 feat",
        ),
        (OFFSET_MASK[0], {}, r"offset_mask has shape \(5, 7, 56\), expected 4 dimensions"),
        (OFFSET_MASK.to_sparse(), {}, "offset_mask has layout torch.sparse_coo, expected torch.strided"),
        (OFFSET_MASK[:, 1:], {}, r"offset has shape \(1, 4, 7, 36\), expected \(1, 5, 7, 36\)"),
        (OFFSET_MASK, {"groups": 0}, "groups is 0, expected an integer of at least 1."),
        (OFFSET_MASK, {"kernel_size": 0}, "kernel_size is 0, expected an integer from 1"),
        (OFFSET_MASK, {"remove_center": None}, "remove_center is None, expected True or False."),
    ],
)
def test_arguments_that_disagree(offset_mask, options, message):
    with pytest.raises(ValueError, match=message):
        dcnv4(VALUE, offset_mask, **{"groups": 2, **options})
