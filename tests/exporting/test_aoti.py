# SPDX-License-Identifier: MIT
"""AOTInductor packages, and the C++ program that runs one."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.export_systems import backbone
from support.golden_data import awaken, tiny_config
from support.paths import ROOT

from hf_internimage import InternImageForImageClassification
from hf_internimage.exporting import ExportError, export
from hf_internimage.exporting.options import Options
from hf_internimage.exporting.system import System
from hf_internimage.exporting.targets import aoti as target

EXAMPLE = ROOT / "examples" / "aoti" / "classify.cpp"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def compiled_example(folder):
    """The program of examples/, compiled as its first lines say."""
    torch_folder, program = Path(torch.__path__[0]), folder / "classify"
    command = [
        *("g++", "-std=c++20", "-O1", str(EXAMPLE), "-o", str(program)),
        *(f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include", f"-L{torch_folder}/lib"),
        *(f"-Wl,-rpath,{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]
    subprocess.run(command, check=True, timeout=900)
    return program


@pytest.mark.slow
@needs_compiler
def test_a_program_without_python_runs_the_package(tmp_path):
    model = awaken(InternImageForImageClassification(tiny_config(depths=[1], groups=[2])).eval())
    report = export(model, tmp_path / "out", target="aoti", size=40)
    assert report.dynamic
    assert report.relative_error < 1e-5
    program = compiled_example(tmp_path)
    checks = {"AOTI_RUNTIME_CHECK_INPUTS": "1"}  # refuses sizes that the file is not made for
    for shape in ((2, 3, 48, 36), (1, 3, 33, 64)):
        pixels = torch.randn(shape)
        pixels.numpy().tofile(tmp_path / "pixels.raw")
        command = [str(program), str(report.file), str(tmp_path / "pixels.raw"), *map(str, shape)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=checks).stdout
        logits = torch.tensor([[float(number) for number in line.split()] for line in printed.splitlines()])
        with torch.no_grad():
            torch.testing.assert_close(logits, model(pixels).logits, rtol=0, atol=1e-5)
    command[-1] = "640"
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=checks)
    assert result.returncode == 1
    assert "has fewer than 253440 bytes" in result.stderr


def test_results_are_contiguous():
    """Else the compiler fails for maps of any size: an export of them takes a minute and more."""
    system = System(backbone())
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        results, copies = system(pixels), target._Copies(system)(pixels)
    assert not all(result.is_contiguous() for result in results)
    for result, copy in zip(results, copies, strict=True):
        assert copy.is_contiguous()
        assert torch.equal(copy, result)


def test_operators_of_this_package_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "_decompositions", dict)
    monkeypatch.setattr(target._inductor, "aoti_compile_and_package", lambda program, **_: tmp_path / "model.pt2")
    system = System(awaken(InternImageForImageClassification(tiny_config(depths=[1], groups=[2])).eval()))
    with pytest.raises(ExportError, match=r"operators that are not PyTorch's own: hf_internimage\.dcnv3\.default"):
        target.write(system, tmp_path, Options((40, 40), dynamic=False))
