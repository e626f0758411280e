# SPDX-License-Identifier: MIT
"""The package `DCNv4` of hf-internimage-compat, called as copies of the authors' function file call its extension."""

import importlib
import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from support import golden_flash
from support.paths import ROOT
from torch.autograd.function import once_differentiable

from hf_internimage import nn

EXTENSIONS = ROOT / "compat" / "src" / "hf_internimage_compat" / "extensions"
DESCRIPTION, TENSORS = golden_flash.load("op_cases")
# Two differ from the original by intention: tests/ops/test_dcnv4.py.
CASES = {k: v for k, v in DESCRIPTION["cases"].items() if k not in ("k3_zero_offset", "nonfinite_mask")}
# batch 3, 5x7 pixels, 2 groups of 4 channels
PLAIN = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.5)


@pytest.fixture
def package(monkeypatch):
    """The package, found as installed."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    found = importlib.import_module("DCNv4")
    assert Path(found.__file__).parent == EXTENSIONS / "DCNv4"
    yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == "DCNv4"]:
        del sys.modules[name]


def make_function():
    """An autograd function that calls the extension as the authors' does."""
    from DCNv4 import ext

    class Function(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu")
        def forward(ctx, input, offset_mask, *arguments):
            ctx.save_for_backward(input, offset_mask)
            *ctx.geometry, ctx.im2col_step, ctx.remove_center = arguments
            return ext.dcnv4_forward(input, offset_mask, *arguments, 8, 256, False)

        @staticmethod
        @once_differentiable
        @torch.amp.custom_bwd(device_type="cpu")
        def backward(ctx, grad_output):
            arguments = (*ctx.saved_tensors, *ctx.geometry, ctx.im2col_step, grad_output.contiguous())
            grad_input, grad_offset_mask = ext.dcnv4_backward(*arguments, ctx.remove_center, 1, 256, False)
            return grad_input, grad_offset_mask, *(None for _ in range(13))

    return Function.apply


def inputs(dtype=torch.float32, taps=9):
    """input and offset_mask for PLAIN, with features that are not read; the samples lie away from pixels."""
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(3, 5, 7, 8, generator=generator, dtype=torch.float64)
    offset = torch.randint(-2, 3, (3, 5, 7, 2, 2 * taps), generator=generator) + 0.2
    mask = torch.randn(3, 5, 7, 2, taps, generator=generator, dtype=torch.float64)
    unread = torch.randn(3, 5, 7, 2, generator=generator, dtype=torch.float64)
    offset_mask = torch.cat([torch.cat([offset, mask], -1).flatten(-2), unread], -1)
    return [tensor.to(dtype).requires_grad_() for tensor in (input, offset_mask)]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", CASES)
def test_matches_the_original(name):
    """The original's numbers: output and gradients in float64."""
    case = CASES[name]
    *leaves, grad_output = (
        TENSORS[f"{name}/{part}"].double().clone() for part in ("input", "offset_mask", "grad_output")
    )
    leaves = [tensor.requires_grad_() for tensor in leaves]
    sizes = [number for part in ("kernel_size", "stride", "padding", "dilation") for number in case[part]]
    numbers = (case["group"], case["group_channels"], case["offset_scale"], 256, int(case["remove_center"]))
    output = make_function()(*leaves, *sizes, *numbers)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    found = dict(zip(("output", "grad_input", "grad_offset_mask"), (output.detach(), *gradients), strict=True))
    assert case["compare"]
    for what in case["compare"]:
        expected = TENSORS[f"{name}/{what}"].double()
        torch.testing.assert_close(found[what], expected, rtol=0, atol=case["atol_float64"], equal_nan=True)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("remove_center", [0, 1])
def test_gradcheck(remove_center):
    small = [tensor[:2, :3, :4].detach().requires_grad_() for tensor in inputs(torch.float64, 9 - remove_center)]
    assert torch.autograd.gradcheck(lambda *tensors: make_function()(*tensors, *PLAIN, 2, remove_center), small)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_change_the_dtype(dtype):
    """As with a compiled extension: it computes in the dtype of its tensors."""
    leaves = inputs(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = make_function()(*leaves, *PLAIN, 256, 0)
        gradients = torch.autograd.grad(output.sum(), leaves)
    assert {tensor.dtype for tensor in (output, *gradients)} == {dtype}
    exact = make_function()(*(tensor.detach().double() for tensor in leaves), *PLAIN, 256, 0)
    torch.testing.assert_close(output.detach().double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_the_function_has_second_derivatives(package):
    leaves = inputs(torch.float64)
    found = package.DCNv4Function.apply(*leaves, *PLAIN, 256, 0)
    expected = make_function()(*leaves, *PLAIN, 256, 0)
    assert torch.equal(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    gradients = torch.autograd.grad(found.square().sum(), leaves, create_graph=True)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    (second,) = torch.autograd.grad(gradients[0].square().sum(), leaves[1])
    assert second.any()


@pytest.mark.usefixtures("package")
def test_numbers_that_must_agree():
    from DCNv4 import ext

    input, offset_mask = inputs()
    rest = (256, 0, 8, 256, False)
    with pytest.raises(ValueError, match="value has 8 channels, but group=2 and group_channels=5 make 10"):
        ext.dcnv4_forward(input, offset_mask, *PLAIN[:9], 5, 1.0, *rest)
    with pytest.raises(ValueError, match="p_offset has 53 features, expected at least 54, three for each of 9 taps"):
        ext.dcnv4_backward(input, offset_mask[..., :53], *PLAIN, 256, torch.zeros(3, 5, 7, 8), *rest[1:])


@pytest.mark.usefixtures("package")
def test_the_softmax_of_the_extension():
    """No file of the authors asks for it. It is over the weights of each group."""
    from DCNv4 import ext

    leaves = inputs(torch.float64)
    output = ext.dcnv4_forward(*leaves, *PLAIN, 256, 0, 8, 256, True)
    parts = leaves[1].detach().clone()
    for group in (0, 1):
        weights = slice(27 * group + 18, 27 * group + 27)
        parts[..., weights] = parts[..., weights].softmax(-1)
    expected = make_function()(leaves[0], parts, *PLAIN, 256, 0)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_the_names_of_the_package(package):
    from DCNv4.functions.dcnv4_func import DCNv4Function
    from DCNv4.modules.dcnv4 import DCNv4

    assert package.DCNv4 is DCNv4 is nn.DCNv4
    assert package.DCNv4Function is DCNv4Function
    assert importlib.metadata.version("DCNv4") == "1.0.0.post2"
    record = (EXTENSIONS / "DCNv4-1.0.0.post2.dist-info" / "RECORD").read_text().split()
    folders = [path for path in EXTENSIONS.glob("DCNv4*") if path.is_dir()]
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    assert {line.partition(",")[0] for line in record} == {file.relative_to(EXTENSIONS).as_posix() for file in files}
