# SPDX-License-Identifier: MIT
"""The module `DCNv3` of hf-internimage-compat, called as copies of `ops_dcnv3` call it, and the wheel."""

import importlib.metadata
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from support.operator_cases import CASES, tensors
from support.paths import ROOT
from torch.autograd.function import once_differentiable

COMPAT = ROOT / "compat"
EXTENSIONS = COMPAT / "src" / "hf_internimage_compat" / "extensions"


@pytest.fixture
def extension(monkeypatch):
    """The module, found as installed."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    module = pytest.importorskip("DCNv3")
    assert Path(module.__file__).parent == EXTENSIONS
    return module


def make_function(extension, version, device_type="cpu"):
    """An autograd function that calls the extension as the copies of `ops_dcnv3` do for a version of it.

    Version 1.0 has no remove_center; it is handed on to 1.1 only.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type=device_type)
        def forward(ctx, input, offset, mask, *arguments):
            ctx.save_for_backward(input, offset, mask)
            *geometry, ctx.im2col_step, remove_center = arguments
            ctx.geometry, ctx.last = geometry, [remove_center] if version > 1.0 else []
            return extension.dcnv3_forward(input, offset, mask, *geometry, ctx.im2col_step, *ctx.last)

        @staticmethod
        @once_differentiable
        @torch.amp.custom_bwd(device_type=device_type)
        def backward(ctx, grad_output):
            arguments = (*ctx.saved_tensors, *ctx.geometry, grad_output.contiguous(), ctx.im2col_step, *ctx.last)
            grad_input, grad_offset, grad_mask = extension.dcnv3_backward(*arguments)
            return grad_input, grad_offset, grad_mask, *(None for _ in range(13))

    return Function.apply


GEOMETRY = "kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w group group_channels offset_scale"
# batch 3, 5x7 pixels, 2 groups of 4 channels
PLAIN = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.5)


def inputs(dtype=torch.float32, taps=9):
    """input, offset and mask for PLAIN; the samples lie away from pixels."""
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(3, 5, 7, 8, generator=generator, dtype=torch.float64)
    offset = torch.randint(-2, 3, (3, 5, 7, 4 * taps), generator=generator) + 0.2
    mask = torch.rand(3, 5, 7, 2 * taps, generator=generator, dtype=torch.float64)
    return [tensor.to(dtype).requires_grad_() for tensor in (input, offset, mask)]


@pytest.mark.parametrize("name", CASES)
def test_matches_the_original(name, extension):
    """The original's numbers: output and gradients in float64."""
    case = CASES[name]
    *leaves, grad_output = tensors(name, "input", "offset", "mask", "grad_output")
    leaves = [tensor.requires_grad_() for tensor in leaves]
    arguments = [case[part] for part in GEOMETRY.split()]
    versions = (1.1,) if case["remove_center"] else (1.0, 1.1)
    for version in versions:
        output = make_function(extension, version)(*leaves, *arguments, 256, case["remove_center"])
        gradients = torch.autograd.grad(output, leaves, grad_output)
        for what, got in zip(("output", "grad_input", "grad_offset", "grad_mask"), (output, *gradients), strict=True):
            if what == "grad_offset" and case["grad_offset"] == "skip":
                continue  # samples lie on pixels, where this gradient jumps; nothing is stored
            (expected,) = tensors(name, f"{what}_grid64")
            torch.testing.assert_close(got.detach(), expected, rtol=0, atol=case["atol_grid64"])


@pytest.mark.parametrize(("version", "remove_center"), [(1.0, 0), (1.1, 0), (1.1, 1)])
def test_gradcheck(extension, version, remove_center):
    function = make_function(extension, version)
    small = [tensor[:2, :3, :4].detach().requires_grad_() for tensor in inputs(torch.float64, 9 - remove_center)]
    assert torch.autograd.gradcheck(lambda *tensors: function(*tensors, *PLAIN, 2, remove_center), small)


def test_the_batch_need_not_be_a_multiple_of_im2col_step(extension):
    function = make_function(extension, 1.1)
    with torch.no_grad():
        expected, *others = (function(*inputs(), *PLAIN, step, 0) for step in (3, 2, 256))
    assert all(torch.equal(output, expected) for output in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_change_the_dtype(extension, dtype):
    """As with a compiled extension: it computes in the dtype of its tensors."""
    leaves = inputs(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = make_function(extension, 1.1)(*leaves, *PLAIN, 256, 0)
        gradients = torch.autograd.grad(output.sum(), leaves)
    assert {tensor.dtype for tensor in (output, *gradients)} == {dtype}
    exact = make_function(extension, 1.1)(*(tensor.detach().double() for tensor in leaves), *PLAIN, 256, 0)
    torch.testing.assert_close(output.detach().double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_group_channels_must_agree(extension):
    arguments = (*PLAIN[:9], 5, 1.0)
    with pytest.raises(ValueError, match="input has 8 channels, but group=2 and group_channels=5 make 10"):
        extension.dcnv3_forward(*inputs(), *arguments, 256, 0)
    with pytest.raises(ValueError, match="make 10"):
        extension.dcnv3_backward(*inputs(), *arguments, torch.zeros(3, 5, 7, 8), 256, 0)


@pytest.mark.parametrize("larger", [False, True])
def test_reads_offset_and_mask_in_order(extension, larger):
    """Whatever their shapes, as the compiled extension: channels first, or maps of the input's size at stride 2."""
    function = make_function(extension, 1.1)
    input, offset, mask = inputs(torch.float64)
    geometry = (*PLAIN[:2], 2, 2, *PLAIN[4:]) if larger else PLAIN
    rows, columns = (3, 4) if larger else (5, 7)
    others = [tensor.detach().permute(0, 3, 1, 2).contiguous().requires_grad_() for tensor in (offset, mask)]
    taken = []
    for tensor, features in zip(others, (36, 18), strict=True):
        flat = tensor.detach().flatten()[: 3 * rows * columns * features]
        taken.append(flat.view(3, rows, columns, features).requires_grad_())
    found, expected = function(input, *others, *geometry, 256, 0), function(input, *taken, *geometry, 256, 0)
    assert torch.equal(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), [input, *others])
    wanted = torch.autograd.grad(expected.square().sum(), [input, *taken])
    for got, want in zip(gradients, wanted, strict=True):
        got = got.flatten()
        assert torch.equal(got[: want.numel()], want.flatten())
        assert not got[want.numel() :].any()
        assert want.any()
    with pytest.raises(ValueError, match=r"mask has shape \(3, 17, 5, 7\), too few numbers for \(3, 5, 7, 18\)"):
        function(input, others[0], others[1][:, 1:], *PLAIN, 256, 0)


def test_compiles_in_one_graph(extension):
    function = make_function(extension, 1.1)
    leaves = inputs()
    compiled = torch.compile(lambda *tensors: function(*tensors, *PLAIN, 256, 0), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    expected = torch.autograd.grad(function(*leaves, *PLAIN, 256, 0).square().sum(), leaves)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("extension")
def test_metadata():
    assert importlib.metadata.version("DCNv3") == "1.1"


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
INSTALL = "--no-deps --no-index --quiet --no-build-isolation".split()
ANOTHER = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "DCNv3"
version = "1.0"
[tool.hatch.build.targets.wheel]
only-include = ["DCNv3.py"]
"""
SHOW = """
import importlib.metadata, importlib.util
print(importlib.util.find_spec("DCNv3").origin, importlib.metadata.version("DCNv3"))
from pip._vendor import pkg_resources
print(pkg_resources.get_distribution("DCNv3").version)
"""


@pytest.mark.slow
def test_wheel_beside_another_extension(tmp_path):
    """It is found with its metadata, gives way to another DCNv3 whichever came first, and both can be removed."""
    pytest.importorskip("hatchling", reason="wheels are built by hatchling")
    pytest.importorskip("pip._vendor.pkg_resources", reason="stands for the one of setuptools, which may be too new")
    run(*PIP, "wheel", *INSTALL, "--wheel-dir", tmp_path, COMPAT)
    (wheel,) = tmp_path.glob("hf_internimage_compat-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "hf_internimage_compat.pth" in archive.namelist()
    other = tmp_path / "another"
    other.mkdir()
    (other / "pyproject.toml").write_text(ANOTHER)
    (other / "DCNv3.py").write_text("")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / ("bin" if os.name == "posix" else "Scripts") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    packages = [str(ROOT / "src"), *(path for path in sys.path if path.endswith("-packages"))]
    (site / "packages_of_the_tests.pth").write_text("\n".join(packages))

    def pip(*arguments):
        run(*PIP, "--python", python, *arguments)

    def found(**environment):
        """(where the module is, its version, its version for pkg_resources)"""
        file, version, second = run(python, "-c", SHOW, cwd=tmp_path, env=os.environ | environment).split()
        assert version == second
        return Path(file).parent, version

    ours = site / "hf_internimage_compat" / "extensions"
    pip("install", *INSTALL, wheel)
    assert found() == (ours, "1.1")
    run(python, "-c", "import DCNv3; DCNv3.dcnv3_forward, DCNv3.dcnv3_backward", cwd=tmp_path)
    run(python, "-c", "from DCNv4 import DCNv4, ext; ext.dcnv4_forward, ext.dcnv4_backward", cwd=tmp_path)
    assert run(python, "-c", "import importlib.metadata as m; print(m.version('DCNv4'))") == "1.0.0.post2\n"
    run(*PIP, "wheel", *INSTALL, "--wheel-dir", other, other)
    pip("install", *INSTALL, *other.glob("*.whl"))  # pip replaces the stand-in by it
    assert found() == (site, "1.0")
    assert not (ours / "DCNv3.py").exists()
    pip("install", *INSTALL, "--force-reinstall", wheel)
    assert found() == (site, "1.0")
    asked_for = run(python, "-m", "hf_internimage_compat", cwd=tmp_path).strip()
    assert found(PYTHONPATH=asked_for) == (ours, "1.1")
    pip("uninstall", "--yes", "--quiet", "DCNv3")
    assert found() == (ours, "1.1")
    pip("uninstall", "--yes", "--quiet", "hf-internimage-compat")
    assert not ours.parent.exists()
    assert not list(site.glob("hf_internimage_compat*"))
