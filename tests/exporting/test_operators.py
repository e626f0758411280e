# SPDX-License-Identifier: MIT
"""DCNv3 as other runtimes' operators: the golden cases, and positions that are no numbers or far away."""

import functools

import onnxruntime
import pytest
import torch
from support.golden_data import operator_arguments
from support.operator_cases import CASES, ROUNDING, tensors

from hf_internimage import dcnv3
from hf_internimage.exporting.onnx_operators import TRANSLATIONS
from hf_internimage.exporting.onnx_program import quiet_exporter
from hf_internimage.exporting.onnxruntime_operators import TRANSLATIONS as OURS
from hf_internimage.ops import native

LOWERINGS = {"DeformConv": TRANSLATIONS, "Gather": {}}
if native.is_available():
    LOWERINGS["DCNv3"] = OURS
ODD = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e9, -40.0)  # offsets


class Calls(torch.nn.Module):
    """Calls of the operator, one for each set of arguments; the inputs are three tensors for each."""

    def __init__(self, arguments):
        super().__init__()
        self.arguments = arguments

    def forward(self, *inputs):
        return tuple(
            dcnv3(*inputs[3 * i : 3 * i + 3], **arguments, softmax=True) for i, arguments in enumerate(self.arguments)
        )


@functools.cache
def calls(dtype, wide):
    """The module of all golden cases, and its inputs: of a dtype, and offsets and masks in float32 if `wide`."""
    inputs = []
    for name in CASES:
        value, *others = tensors(name, "input", "offset", "mask", dtype=dtype)
        inputs += [value, *(tensor.float() if wide else tensor for tensor in others)]
    return Calls([operator_arguments(CASES[name]) for name in CASES]), tuple(inputs)


def run(file, inputs):
    options = onnxruntime.SessionOptions()
    if native.is_available():
        options.register_custom_ops_library(str(native.PATH))
    session = onnxruntime.InferenceSession(file, options)
    names = [parameter.name for parameter in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feeds)]


def export(module, inputs, file, lowering):
    with quiet_exporter(), torch.no_grad():
        torch.onnx.export(
            module, inputs, file, opset_version=20, custom_translation_table=LOWERINGS[lowering], verbose=False
        )


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "wide"), [(torch.float32, False), (torch.float16, False), (torch.float16, True)])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_golden_cases(lowering, dtype, wide, tmp_path):
    module, inputs = calls(dtype, wide)
    export(module, inputs, tmp_path / "cases.onnx", lowering)
    expected = module(*(tensor.double() for tensor in inputs))
    for name, got, exact in zip(CASES, run(tmp_path / "cases.onnx", inputs), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(),
            exact,
            rtol=ROUNDING.get(dtype, 0),
            atol=CASES[name]["atol_float32_run"],
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.slow
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_offsets_that_are_no_numbers_or_far_away(lowering, tmp_path):
    names = [name for name in CASES if CASES[name]["kernel_h"] == 3][:6]
    module, inputs = Calls([operator_arguments(CASES[name]) for name in names]), []
    for name in names:
        value, offset, mask = tensors(name, "input", "offset", "mask", dtype=torch.float32)
        picked = offset.view(-1)[::7]
        picked.copy_(torch.tensor(ODD).repeat(len(picked))[: len(picked)])
        inputs += [value, offset, mask]
    export(module, tuple(inputs), tmp_path / "odd.onnx", lowering)
    for got, exact in zip(run(tmp_path / "odd.onnx", inputs), module(*inputs), strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=5e-6)
