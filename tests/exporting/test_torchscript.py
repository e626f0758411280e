# SPDX-License-Identifier: MIT
"""TorchScript files."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden_data import awaken, tiny_config

import hf_internimage
from hf_internimage import InternImageForImageClassification
from hf_internimage.exporting import ExportError, export
from hf_internimage.exporting.targets import torchscript as target

ALONE = """
import sys, torch
from safetensors.torch import load_file, save_file
module = torch.jit.load("out/model.pt")
pixels = load_file("pixels.safetensors")
save_file({name: module(tensor)[0].detach() for name, tensor in pixels.items()}, "logits.safetensors")
assert not [name for name in sys.modules if name.startswith(("hf_internimage", "transformers"))]
"""


@pytest.mark.slow
def test_pytorch_loads_the_file_without_this_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "cpu")  # the file has PyTorch's own operators all the same
    model = awaken(InternImageForImageClassification(tiny_config(remove_center=True)).eval())
    report = export(model, tmp_path / "out", target="torchscript", size=64)
    assert report.dynamic
    assert report.relative_error < 1e-5

    pixels = {"small": torch.randn(2, 3, 48, 80), "large": torch.randn(1, 3, 96, 64), "many": torch.randn(5, 3, 33, 47)}
    save_file(pixels, tmp_path / "pixels.safetensors")
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True, timeout=300)
    results = load_file(tmp_path / "logits.safetensors")
    for name in pixels:
        with torch.no_grad():
            torch.testing.assert_close(results[name], model(pixels[name]).logits, rtol=0, atol=1e-5)


def test_operators_of_this_package_are_refused(tmp_path):
    def call(value, offset, mask):
        return torch.ops.hf_internimage.dcnv3(value, offset, mask, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, False, True)

    inputs = torch.rand(1, 4, 5, 8), torch.rand(1, 4, 5, 18), torch.rand(1, 4, 5, 9)
    assert hf_internimage.dcnv3(*inputs, groups=1, softmax=True).shape == (1, 4, 5, 8)
    torch.jit.trace(call, inputs).save(str(tmp_path / "model.pt"))
    with pytest.raises(ExportError, match="operators that are not PyTorch's own: hf_internimage::dcnv3"):
        target.describe(tmp_path / "model.pt")
