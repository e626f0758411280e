# SPDX-License-Identifier: MIT
"""The kernel for the Hub (kernels/dcnv3): its build, its operators without a GPU, and the backend that uses one."""

import dataclasses
import importlib
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import pytest
import torch
from support import cuda_tools
from support.loading import run_python
from support.operator_cases import LOPSIDED, make_inputs
from support.paths import ROOT

from hf_internimage import ops
from hf_internimage.models.dcnv3_reference import check_dcnv3, dcnv3_reference
from hf_internimage.ops import BackendError, fixed_point, native
from hf_internimage.ops.backends import dcnv3_hub
from hf_internimage.ops.registry import Backend, Call, Registry

pytestmark = pytest.mark.slow

module = sys.modules["hf_internimage.ops.dcnv3"]
SOURCES = ROOT / "kernels" / "dcnv3"
TORCH = Path(torch.__file__).parent
SQUARE = {**LOPSIDED, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}


def has_kernels():
    """Return True if the package is installed, not just this repository's folder of that name on the path."""
    try:
        return hasattr(importlib.import_module("kernels"), "get_local_kernel")
    except ImportError:
        return False


needs_kernels = pytest.mark.skipif(not has_kernels(), reason="the package kernels is not installed")


def load_build():
    pytest.importorskip("tomllib")
    spec = importlib.util.spec_from_file_location("dcnv3_build_cuda", SOURCES / "build_cuda.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def import_kernel(folder, name="_dcnv3_emulated"):
    """The module in a folder, as `kernels` does it."""
    place = [str(folder)]
    spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=place)
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


IMPORT = f"import importlib.util, sys\n{inspect.getsource(import_kernel)}"

# The build


def test_build_toml():
    """It names existing files, all of the sources, and the package's folder."""
    build = load_build()
    settings = build.settings()
    assert settings["general"]["backends"] == ["cuda"]
    assert (SOURCES / "torch-ext" / settings["general"]["name"] / "__init__.py").exists()
    named = {path.as_posix() for path in build.sources()}
    there = [*(SOURCES / "dcnv3_cuda").iterdir(), *(SOURCES / "torch-ext").glob("*.*")]
    assert named == {path.relative_to(SOURCES).as_posix() for path in there} - {"dcnv3_cuda/nvrtc.cu"}


@needs_kernels
def test_build_toml_is_kernel_builders():
    rust = pytest.importorskip("kernels._rust")
    assert [str(backend) for backend in rust.Build.open(SOURCES).general.backends] == ["cuda"]


def test_the_python_side_keeps_to_what_a_kernel_may_import():
    text = (SOURCES / "torch-ext" / "dcnv3" / "__init__.py").read_text()
    imported = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert set(imported) == {"__future__", "collections.abc", "typing", "torch", "._ops"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernels for float32 on one architecture, as build_cuda.py makes them."""
    build = load_build()
    try:
        build.find_nvcc()
        build.find_torch()
    except build.BuildError as error:
        pytest.skip(str(error))
    output = tmp_path_factory.mktemp("compiled")
    return build.build(output, (90,), ("float",))


def test_the_compiled_library_loads_without_a_gpu(compiled):
    """Its operators have their schemas, refuse the CPU, and go through fake tensors."""
    assert compiled.name.startswith("torch-stable-abi29-cu")
    assert sorted(path.suffix for path in compiled.iterdir()) == [".json", ".py", ".py", ".so"]
    code = f"""
        import torch
        from torch._subclasses import FakeTensorMode

        made = import_kernel({str(compiled)!r})
        print(made.ops.dcnv3_forward.default._schema)
        print(made.ops.dcnv3_backward.default._schema)
        shapes = (2, 4, 5, 8), (2, 4, 5, 36), (2, 4, 5, 18)
        try:
            made.dcnv3(*map(torch.zeros, shapes), groups=2)
        except NotImplementedError as error:
            print("dcnv3_forward' with arguments from the 'CPU' backend" in str(error))
        for kernel in made.ops.dcnv3_forward, made.ops.dcnv3_backward:  # what a GPU's tensors would reach
            few = kernel is made.ops.dcnv3_forward
            tensors = [torch.zeros(shape) for shape in (shapes if few else (shapes[0], *shapes))]
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
            try:
                kernel.default.redispatch(keys, *tensors, 2, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, False, True)
            except RuntimeError as error:
                print(error)
        with FakeTensorMode():
            tensors = [torch.empty(shape, device="cuda") for shape in shapes]
            output = made.forward(*tensors, groups=2)
            print(tuple(output.shape), output.device)
            print([tuple(gradient.shape) for gradient in made.backward(output, *tensors, groups=2)])
        """
    printed = run_python(IMPORT + textwrap.dedent(code)).splitlines()
    geometry = "int groups, " + "".join(
        f"int {name}_{axis}, " for name in ("kernel", "stride", "padding", "dilation") for axis in "hw"
    )
    rest = f"Tensor value, Tensor offset, Tensor mask, {geometry}float offset_scale, bool remove_center, bool softmax"
    assert printed[0].partition("::")[2] == f"dcnv3_forward({rest}) -> Tensor"
    backward = f"dcnv3_backward(Tensor grad_output, {rest}, Tensor? fixed_point=None) -> (Tensor, Tensor, Tensor)"
    assert printed[1].partition("::")[2] == backward
    assert printed[2] == "True"
    assert printed[3:5] == ["dcnv3: value must be on a CUDA device"] * 2
    assert printed[5] == "(2, 4, 5, 8) cuda:0"
    assert printed[6] == "[(2, 4, 5, 8), (2, 4, 5, 36), (2, 4, 5, 18)]"


@needs_kernels
def test_kernels_finds_the_compiled_library(compiled, monkeypatch):
    """Test metadata and digests with the package, if PyTorch is built for that CUDA."""
    kernels, rust = importlib.import_module("kernels"), pytest.importorskip("kernels._rust")
    variants, backends = importlib.import_module("kernels.variants"), importlib.import_module("kernels.backends")
    metadata = rust.Metadata.read_from_file(compiled / "metadata.json")
    assert metadata.id.startswith("_dcnv3_cuda_")
    assert (str(metadata.name), metadata.version, metadata.license) == ("dcnv3", 1, "MIT")
    assert metadata.backend.archs == ["9.0+PTX"]
    metadata.digest.validate(rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, compiled))
    version = variants.parse_variant(compiled.name).arch.backend.version
    with monkeypatch.context() as patch:
        patch.setattr(variants, "_select_backend", lambda name: backends.CUDA(version=version))
        kernel = kernels.get_local_kernel(compiled.parent)
    assert kernel.__all__ == ["backward", "dcnv3", "forward"]
    assert kernel.ops.dcnv3_forward.default._schema.name == f"{metadata.id}::dcnv3_forward"


def test_build_errors(monkeypatch, tmp_path):
    build = load_build()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("NVCC", raising=False)
    with pytest.raises(build.BuildError, match="nvcc was not found"):
        build.build(tmp_path)
    for text, message in (("echo no version", "does not tell its version"), ("echo error: x; exit 1", "error: x")):
        (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "nvcc").chmod(0o755)
        with pytest.raises(build.BuildError, match=message):
            build.variant(build.find_nvcc())
    assert not list(tmp_path.glob("torch-*"))


# The operators, on an emulation of CUDA

RUNTIME = """\
#pragma once
typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
"""
EMULATED = """\
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <sstream>

#include "cuda_emulation.h"
#include "cuda_runtime_api.h"

#define is_cuda is_cpu
#define DeviceGuard NoGuard
namespace torch::stable::accelerator {
struct NoGuard {
    explicit NoGuard(int) {}
};
}

extern "C" {
int cuCtxPushCurrent_v2(void*);
int cuCtxPopCurrent_v2(void**);
int cuDevicePrimaryCtxRetain(void**, int);
int cuGetErrorString(int, const char**);
int cuLaunchKernel(const void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                   void**);
}
static cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static cudaError_t cudaGetLastError() { return cudaSuccess; }
static const char* cudaGetErrorString(cudaError_t status) {
    const char* text;
    cuGetErrorString(status, &text);
    return text;
}
static cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t);

#include "torch-ext/torch_binding.cpp"
#include "dcnv3_cuda/dispatch.cu"
#include "dcnv3_cuda/float.cu"
#include "dcnv3_cuda/double.cu"
#include "dcnv3_cuda/half.cu"
#include "dcnv3_cuda/bfloat.cu"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
    *stream = nullptr;
    return 0;
}

struct Started {
    void (*kernel)(hfi::Call);
    const hfi::Call* call;
};
static void enter(const hfi_emulator* emulator, const void* argument) {
    hfi_emulated = emulator;
    const Started* started = (const Started*)argument;
    started->kernel(*started->call);
}
static cudaError_t cudaLaunchKernel(const void* function, dim3 blocks, dim3 threads, void** arguments, size_t shared,
                                    cudaStream_t stream) {
    struct {
        void (*enter)(const hfi_emulator*, const void*);
        void* context;
    } entry = {enter, nullptr};
    void* context;
    cuDevicePrimaryCtxRetain(&entry.context, 0);
    cuCtxPushCurrent_v2(entry.context);
    Started started = {(void (*)(hfi::Call))function, (const hfi::Call*)arguments[0]};
    void* passed[] = {&started};
    const int status = cuLaunchKernel(&entry, blocks.x, blocks.y, blocks.z, threads.x, threads.y, threads.z,
                                      (unsigned)shared, stream, passed, nullptr);
    cuCtxPopCurrent_v2(&context);
    return status;
}
"""
OPS = """\
import torch

torch.ops.load_library({library!r})
ops = torch.ops._dcnv3_emulated


def add_op_namespace_prefix(name):
    return "_dcnv3_emulated::" + name
"""
METADATA = (
    '{"name": "dcnv3", "id": "%s", "version": 1, "license": "MIT", "python-depends": [], "backend": {"type": "cpu"}}'
)


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """The kernel's own binding, Python and CUDA sources, built for tensors and kernels on the CPU."""
    if reason := cuda_tools.why_not():
        pytest.skip(reason)
    if not (TORCH / "include" / "torch" / "csrc" / "stable" / "macros.h").exists():
        pytest.skip("the binding needs the headers of PyTorch 2.10 or newer")
    folder = tmp_path_factory.mktemp("emulated")
    made = folder / "variant"
    shutil.copytree(SOURCES / "torch-ext" / "dcnv3", made, ignore=shutil.ignore_patterns("__pycache__"))
    registration = (
        "#define STABLE_TORCH_LIBRARY_EXPAND(name, module) STABLE_TORCH_LIBRARY(name, module)\n"
        "#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(name, key, module) STABLE_TORCH_LIBRARY_IMPL(name, CPU, module)\n"
        "#define REGISTER_EXTENSION(name)\n"
    )
    for name, text in (
        ("cuda_runtime_api.h", RUNTIME),
        ("registration.h", registration),
        ("emulated.cpp", EMULATED),
        ("variant/_ops.py", OPS.format(library=str(made / "library.so"))),
        ("variant/metadata.json", METADATA % "_dcnv3_emulated"),
    ):
        (folder / name).write_text(text)
    cxx, cc = cuda_tools.compiler()
    driver = [*cc, "-O1", "-fPIC", "-c", str(cuda_tools.HERE / "fake_driver.c"), "-o", "driver.o"]
    library = [*cxx, "-std=c++17", *cuda_tools.FLAGS, *(f"-I{path}" for path in (folder, cuda_tools.HERE, SOURCES))]
    library += ["-DTORCH_TARGET_VERSION=0x0209000000000000", "-DTORCH_EXTENSION_NAME=_dcnv3_emulated"]
    library += ["-isystem", str(TORCH / "include"), "emulated.cpp", "driver.o", "-o", str(made / "library.so")]
    library += [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lpthread", "-ldl"]
    for command in (driver, library):
        subprocess.run(command, cwd=folder, check=True)
    return made


@pytest.fixture(scope="module")
def emulated(variant):
    """The module of that kernel."""
    if has_kernels():
        return importlib.import_module("kernels").get_local_kernel(variant)
    return import_kernel(variant)


def test_the_kernels_own_tests(variant, emulated):
    """They travel with the kernel, so they run on their own, here on the emulation."""
    code = f"""{IMPORT}
import_kernel({str(variant)!r}, "dcnv3")
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", {os.devnull!r}, {str(SOURCES / "tests")!r}]))
"""
    environment = {**os.environ, "DCNV3_DEVICE": "cpu"}
    environment.pop("DCNV3_KERNEL", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=variant, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "1 skipped" in done.stdout


@pytest.mark.parametrize("fixed", [False, True])
def test_fake_operators_tell_the_truth(emulated, fixed):
    value, offset, mask = make_inputs(SQUARE, dtype=torch.float32)
    geometry = 2, 3, 3, 1, 1, 1, 1, 1, 1, 1.5, False, True
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(emulated.ops.dcnv3_forward.default, (value, offset, mask, *geometry), test_utils=checks)
    scale = torch.tensor(2.0**40, dtype=torch.float64) if fixed else None
    arguments = (torch.randn_like(value), value.to(torch.float16), offset, mask.double(), *geometry, scale)
    arguments = (arguments[0].to(torch.float16), *arguments[1:])
    torch.library.opcheck(emulated.ops.dcnv3_backward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_kernels_scale_is_ours(emulated, softmax, dtype):
    """Kernels must not import anything, so it has a copy of `fixed_point.scale`."""
    for factor in (1.0, 3e-7, 2e3, float("nan"), float("inf")):
        value, _, mask = make_inputs(LOPSIDED, dtype=dtype)
        grad_output = torch.randn(*mask.shape[:3], value.shape[3]).mul(factor).to(dtype)
        geometry = emulated._geometry(**LOPSIDED, softmax=softmax)
        terms = mask.shape[1] * mask.shape[2] * (1 if softmax else 6)
        expected = fixed_point.scale(grad_output, mask, softmax, terms)
        assert torch.equal(emulated._scale(grad_output, mask, geometry).nan_to_num(7), expected.nan_to_num(7))
    empty = emulated._scale(grad_output[:0], mask[:0], geometry)
    assert torch.equal(empty, fixed_point.scale(grad_output[:0], mask[:0], softmax, terms))


# The backend

FAKE = '''
"""A kernel that PyTorch's own operators do the work of, and that notes its calls."""
import torch
from hf_internimage.models.dcnv3_reference import dcnv3_reference

calls = []


def forward(value, offset, mask, **geometry):
    calls.append(("forward", geometry))
    return dcnv3_reference(value.detach(), offset.detach(), mask.detach(), **geometry)


def backward(grad_output, value, offset, mask, **geometry):
    calls.append(("backward", geometry))
    inputs = [tensor.detach().requires_grad_() for tensor in (value, offset, mask)]
    with torch.enable_grad():
        output = dcnv3_reference(*inputs, **geometry)
    return torch.autograd.grad(output, inputs, grad_output)
'''


def write_kernel(folder, text=FAKE, name="_fake_kernel"):
    """A folder with a kernel in Python alone, for all devices."""
    made = folder / "build" / "torch-universal"
    made.mkdir(parents=True)
    (made / "__init__.py").write_text(text)
    (made / "metadata.json").write_text(METADATA % name)
    return str(folder)


@pytest.fixture
def cpu(monkeypatch):
    """The backend for CPU tensors, with nothing asked for or loaded."""
    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND", raising=False)
    monkeypatch.delenv("HF_INTERNIMAGE_USE_HUB_KERNEL", raising=False)
    order = [dataclasses.replace(module.DCNV3.backends["hub"], devices=("cpu",)), module.DCNV3.backends["torch"]]
    monkeypatch.setattr(module, "DCNV3", Registry("dcnv3", order))
    monkeypatch.setattr(module, "_plans", {})
    monkeypatch.setattr(dcnv3_hub, "_wanted", None)
    monkeypatch.setattr(dcnv3_hub, "_loaded", {})
    native._unregister()  # the CPU's own kernel would run the operator
    yield
    native._load.cache_clear()


@pytest.fixture
def hub(cpu, monkeypatch):
    """The package `kernels`, pretended: notes what is asked of it and gives `.kernel`, or raises `.error`."""
    made = types.ModuleType("kernels")
    made.asked, made.error = [], None
    made.kernel = types.ModuleType("fake_kernel")
    exec(FAKE, made.kernel.__dict__)

    def give(function):
        def run(*names, **version):
            made.asked.append((function, *names, version))
            if made.error:
                raise made.error
            return made.kernel

        return run

    made.get_kernel, made.get_local_kernel = give("get_kernel"), give("get_local_kernel")
    monkeypatch.setitem(sys.modules, "kernels", made)
    return made


def results(arguments, softmax, inputs, backend=None, run=ops.dcnv3):
    """Output and gradients."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    extra = {} if backend is None else {"backend": backend}
    output = run(*inputs, **arguments, softmax=softmax, **extra)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, inputs, weights)]


def assert_results_close(got, expected, tolerance=1e-12):
    for mine, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize("softmax", [False, True])
def test_a_local_kernel_runs_where_it_is_asked_for(cpu, tmp_path, softmax):
    name = write_kernel(tmp_path, name=f"_fake_kernel_{softmax}")
    inputs = make_inputs(LOPSIDED)
    expected = results(LOPSIDED, softmax, inputs, run=dcnv3_reference)
    assert_results_close(results(LOPSIDED, softmax, inputs), expected)
    assert not dcnv3_hub._loaded
    ops.use_hub_kernel(name)
    assert_results_close(results(LOPSIDED, softmax, inputs), expected)
    kernel = dcnv3_hub.load(name)
    geometry = {**check_dcnv3(*inputs, **LOPSIDED)._asdict(), "softmax": softmax}
    assert kernel.calls == [("forward", geometry), ("backward", geometry)]
    kernel.calls.clear()
    assert_results_close(results(LOPSIDED, softmax, inputs, backend="hub"), expected)
    assert len(kernel.calls) == 2
    assert dcnv3_hub.load(name) is kernel
    kernel.calls.clear()
    ops.use_hub_kernel(None)
    assert_results_close(results(LOPSIDED, softmax, inputs), expected)
    assert kernel.calls == []


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_real_kernel_as_a_backend(cpu, variant, dtype):
    """All the way: operator, backend, `kernels`, the kernel's Python, binding and CUDA sources; eager and compiled."""
    ops.use_hub_kernel(str(variant))
    inputs = make_inputs(SQUARE, depth=8, dtype=dtype)
    expected = results(SQUARE, True, [tensor.double() for tensor in inputs], run=dcnv3_reference)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    got = results(SQUARE, True, inputs, backend="hub")
    assert all(tensor.dtype == dtype for tensor in got)
    assert_results_close([tensor.double() for tensor in got], expected, tolerance)
    assert module.DCNV3.explain(Call("cpu", "float32"))["hub"] is None
    compiled = torch.compile(
        lambda *tensors: ops.dcnv3(*tensors, **SQUARE, softmax=True), fullgraph=True, backend="aot_eager"
    )
    again = results(SQUARE, True, inputs, run=lambda *tensors, **_: compiled(*tensors))
    assert_results_close(again, got, 0)


def test_nothing_is_loaded_unasked(hub):
    inputs = make_inputs(LOPSIDED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(LOPSIDED, True, inputs)
    reason = module.DCNV3.explain(Call("cpu", "float32"))["hub"]
    assert reason.startswith("is used only where a kernel is asked for: hf_internimage.ops.use_hub_kernel(...), or ")
    assert "HF_INTERNIMAGE_USE_HUB_KERNEL=owner/repository@version" in reason
    with pytest.raises(BackendError, match="'hub' cannot run this call: is used only where"):
        ops.dcnv3(*inputs, **LOPSIDED, backend="hub")
    assert hub.asked == []


def test_kernels_is_not_even_imported_unasked():
    printed = run_python(
        """
        import sys
        import torch
        from hf_internimage.ops import dcnv3, explain
        from hf_internimage.ops.backends import dcnv3_hub

        explain()
        dcnv3(torch.rand(1, 4, 4, 2), torch.rand(1, 4, 4, 18), torch.rand(1, 4, 4, 9), groups=1)
        dcnv3_hub.use("owner/kernel@1")
        print("kernels" in sys.modules)
        """,
        HF_INTERNIMAGE_USE_HUB_KERNEL="",
        HF_INTERNIMAGE_BACKEND="",
    )
    assert printed == "False\n"


def test_a_kernel_is_loaded_once(hub):
    ops.use_hub_kernel("owner/kernel@2")
    assert hub.asked == []  # not before a call needs it
    for dtype in (torch.float64, torch.float32, torch.float64):
        for arguments in (LOPSIDED, SQUARE):
            results(arguments, False, make_inputs(arguments, dtype=dtype))
    assert module.DCNV3.explain(Call("cpu", "float16"))["hub"] is None
    assert hub.asked == [("get_kernel", "owner/kernel", {"version": 2})]
    assert len(hub.kernel.calls) == 12
    ops.use_hub_kernel("owner/kernel@3")
    results(LOPSIDED, False, make_inputs(LOPSIDED))
    ops.use_hub_kernel("owner/kernel@2")
    results(LOPSIDED, False, make_inputs(LOPSIDED))
    assert hub.asked[1:] == [("get_kernel", "owner/kernel", {"version": 3})]


def test_the_environment_asks_for_a_kernel(hub, monkeypatch):
    inputs = make_inputs(LOPSIDED)
    monkeypatch.setenv("HF_INTERNIMAGE_USE_HUB_KERNEL", "owner/kernel@v1")
    ops.dcnv3(*inputs, **LOPSIDED)
    ops.use_hub_kernel("owner/other@1")  # goes before
    ops.dcnv3(*inputs, **LOPSIDED)
    ops.use_hub_kernel(None)
    ops.dcnv3(*inputs, **LOPSIDED)
    monkeypatch.setenv("HF_INTERNIMAGE_USE_HUB_KERNEL", "")
    ops.use_hub_kernel(None)
    ops.dcnv3(*inputs, **LOPSIDED)
    assert hub.asked == [
        ("get_kernel", "owner/kernel", {"revision": "v1"}),
        ("get_kernel", "owner/other", {"version": 1}),
    ]
    assert len(hub.kernel.calls) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/kernel@1", ("owner/kernel", {"version": 1})),
        ("owner/kernel@12", ("owner/kernel", {"version": 12})),
        ("owner/kernel@v1", ("owner/kernel", {"revision": "v1"})),
        ("owner/kernel@main", ("owner/kernel", {"revision": "main"})),
        ("owner/kernel@0123abc", ("owner/kernel", {"revision": "0123abc"})),
        ("owner/kernel@refs/pr/1", ("owner/kernel", {"revision": "refs/pr/1"})),
    ],
)
def test_names(name, expected):
    assert dcnv3_hub.parse(name) == (None, *expected)


@pytest.mark.parametrize(
    "name", ["owner/kernel", "owner/kernel@", "kernel@1", "@1", "/@1x", "owner/@1", "a/b/c@1", "kernels", " "]
)
def test_names_that_are_none(hub, name):
    ops.use_hub_kernel(name)
    with pytest.raises(BackendError, match=r"expected owner/repository@version|is a folder that does not exist"):
        ops.dcnv3(*make_inputs(LOPSIDED), **LOPSIDED)
    assert hub.asked == []


def test_folders(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "made@1" / "here").mkdir(parents=True)
    place = (tmp_path / "made@1" / "here").resolve()
    for name in (str(place), "./made@1/here", "~/made@1/here", ".//made@1/../made@1/here"):
        assert dcnv3_hub.parse(name) == (place, "", {})
        dcnv3_hub.load(name)
    assert hub.asked == [("get_local_kernel", place, {})] * 4
    with pytest.raises(
        BackendError, match=r"expected owner/repository@version"
    ):  # never a folder that happens to be there
        dcnv3_hub.parse("made@1/here")
    with pytest.raises(BackendError, match=r"'\./nowhere' is a folder that does not exist: .*nowhere"):
        dcnv3_hub.load("./nowhere")


def test_what_is_asked_for_never_falls_back(hub):
    """Whatever goes wrong, the call fails with it, is not tried again unasked, and `explain` tells it."""
    inputs = make_inputs(LOPSIDED)
    ops.use_hub_kernel("owner/kernel@1")
    hub.error = FileNotFoundError("no build variant for this system")
    text = "The kernel 'owner/kernel@1' cannot be loaded: FileNotFoundError: no build variant for this system"
    for backend in (None, "hub", None):
        with pytest.raises(BackendError, match=text):
            ops.dcnv3(*inputs, **LOPSIDED, backend=backend)
    assert text in module.DCNV3.explain(Call("cpu", "float32"))["hub"]
    assert len(hub.asked) == 1
    hub.error = None
    ops.use_hub_kernel("owner/kernel@1")  # asked for again, tried again
    ops.dcnv3(*inputs, **LOPSIDED)
    assert len(hub.asked) == 2


def test_an_untrusted_publisher(hub):
    """Whom `kernels` does not trust, a name alone does not make trusted; the error tells what does."""
    hub.error = ValueError("not from a trusted publisher. Set trust_remote_code=True")
    ops.use_hub_kernel("stranger/kernel@1")
    with pytest.raises(
        BackendError, match=r"trusted publisher.* kernels\.install_kernel\(\.\.\., trust_remote_code=True\)"
    ):
        ops.dcnv3(*make_inputs(LOPSIDED), **LOPSIDED)
    assert hub.asked == [("get_kernel", "stranger/kernel", {"version": 1})]


def test_a_module_that_is_no_kernel_of_ours(hub):
    del hub.kernel.backward
    ops.use_hub_kernel("owner/relu@1")
    with pytest.raises(BackendError, match="The kernel 'owner/relu@1' is none of DCNv3: it has no backward"):
        ops.dcnv3(*make_inputs(LOPSIDED), **LOPSIDED)


@pytest.mark.parametrize("stands_there", [None, types.ModuleType("kernels")])
def test_without_the_package(cpu, monkeypatch, stands_there):
    """None: it cannot be imported. Else a folder named kernels, as in this repository, is taken for it."""
    monkeypatch.setitem(sys.modules, "kernels", stands_there)
    ops.use_hub_kernel("owner/kernel@1")
    with pytest.raises(BackendError, match=r"needs the package kernels, .*: pip install hf-internimage\[hub-kernel\]"):
        ops.dcnv3(*make_inputs(LOPSIDED), **LOPSIDED)


def test_other_dtypes_and_devices(hub):
    ops.use_hub_kernel("owner/kernel@1")
    reason = module.DCNV3.explain(Call("cpu", "float8_e5m2"))["hub"]
    assert reason == "computes float32, float64, bfloat16, float16, not float8_e5m2"
    assert hub.asked == []
    backend = Backend("hub", "hf_internimage.ops.backends.dcnv3_hub", ("cuda",))
    assert backend.why_not(Call("cpu", "float32")) == "needs tensors on cuda, got cpu"
