# SPDX-License-Identifier: MIT
"""The compiled library as such: what it was built from, its interface, its threads, and its use of memory.

The searches draw shapes and numbers at random and compare with PyTorch; the last test runs them, and other tests, on a
library built with sanitizers, which end the process at the first access out of bounds or undefined operation.
"""

import ctypes
import functools
import os
import platform
import re
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.fused_layers import KINDS
from support.golden_data import load_module
from support.native_library import sanitizer_preload
from support.operator_cases import LAYOUTS, LOPSIDED, TOLERANCE, make_inputs, on_cpu, on_torch, results
from support.paths import ROOT, TESTS

import hf_internimage
from hf_internimage.models.dcnv3_reference import DCNv3Geometry
from hf_internimage.ops import native

KERNELS = ROOT / "kernels" / "dcnv3"
build = load_module(KERNELS / "build.py")
needs_library = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")


def has_compiler():
    try:
        build.find_compiler()
    except build.BuildError:
        return False
    return True


def test_the_library_is_of_these_sources():
    command = f"run {sys.executable} kernels/dcnv3/build.py"
    if native.why_not():
        assert not has_compiler(), f"the cpu backend {native.why_not()}; {command}"
        pytest.skip("no compiler and no library here")
    found = native.library().hfi_source_hash().decode()
    assert found == build.source_hash(), f"the library is of other sources; {command}"


def test_structures_are_those_of_the_header():
    text = (KERNELS / "dcnv3_cpu" / "api.h").read_text()
    table = re.search(r"struct hfi_torch {(.*?)};", text, re.DOTALL).group(1)
    members = [
        function or name
        for function, name in re.findall(r"^    \w+ \(\*(\w+)\)\(|int32_t (dtypes|cpu)\b", table, re.MULTILINE)
    ]
    ours = [name for name, _ in native._Torch._fields_]
    assert len(members) == len(ours)
    for theirs, name in zip(members, ours, strict=True):
        words = {"device": "device_type", "data": "data_ptr", "tensor": "tensor_object"}
        head, _, last = theirs.rpartition("_")
        assert theirs in name or f"{head}_{words.get(last)}" in name, (theirs, name)
    assert f"#define HFI_INTERFACE {native.INTERFACE}\n" in text
    numbers = dict(re.findall(r"HFI_(\w+) = (\d)", text))
    assert {name: int(number) for name, number in numbers.items()} == {
        str(dtype).removeprefix("torch.").upper(): number for dtype, number in native.DTYPES.items()
    }


@needs_library
def test_functions_are_those_of_the_sources():
    folder = KERNELS / "dcnv3_cpu"
    text = "".join(path.read_text() for path in folder.glob("*.cpp"))
    exported = re.findall(r"HFI_EXPORT [\w ]+?[ *]+(\w+)\(", text)
    assert len(exported) == text.count("HFI_EXPORT ")
    for name in exported:
        assert hasattr(native.library(), name), name


@needs_library
def test_the_library_registers_what_python_declares():
    """Every operator has a CPU kernel, from the library or from Python."""
    names = torch._C._dispatch_get_all_op_names()
    ours = [name for name in names if name.startswith("hf_internimage::") and not name.endswith(".backend")]
    assert len(ours) >= 10
    for name in ours:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name


# Threads


@pytest.mark.skipif(sys.platform != "linux", reason="where PyTorch's OpenMP lies is known for Linux")
def test_threads_are_those_of_pytorch():
    assert native._address(native._pytorch(), "GOMP_parallel")
    assert any(native._address(native._pytorch(), name) for name in native._THREADS)


@needs_library
@pytest.mark.parametrize("delivered", [1, 2, 5])
def test_teams_of_any_size(delivered, threads):
    """A runtime may give fewer threads than asked for; here they also come one after the other."""
    asked = []
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def team(run, pointer, count, flags):
        asked.append(count)
        for _ in range(min(count, delivered)):
            run(pointer)

    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    expected = results(on_cpu, inputs, **LOPSIDED)
    threads(5)
    library = native.library()
    library.hfi_use_team(ctypes.cast(team, ctypes.c_void_p))
    try:
        found = results(on_cpu, inputs, **LOPSIDED)
        assert asked
        assert set(asked) <= {4, 5}  # the backward pass has four parts: two images of two groups, and bands of lines
        threads(1)
        asked.clear()
        results(on_cpu, inputs, **LOPSIDED)
        assert not asked
        library.hfi_use_team(None)
        threads(5)
        alone = results(on_cpu, inputs, **LOPSIDED)
    finally:
        library.hfi_use_team(native._address(native._pytorch(), "GOMP_parallel"))
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, alone, expected))


@needs_library
def test_too_little_memory_is_an_error():
    """In a process that may take no more than it has."""
    code = """
        import resource
        import torch
        from hf_internimage.ops import dcnv3
        torch.set_num_threads(1)
        side = 2048
        value = torch.zeros(1, side, side, 2)
        offset, mask = torch.zeros(1, side, side, 4), torch.zeros(1, side, side, 2)
        arguments = dict(groups=2, kernel_size=1, padding=0)
        leaf = value.requires_grad_()
        output = dcnv3(leaf, offset, mask, **arguments)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
        try:
            output.backward(torch.zeros_like(value))
        except (RuntimeError, MemoryError) as error:
            print("memory" in str(error).lower())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@needs_library
def test_another_instruction_set_is_refused():
    library = native.library()
    before = library.hfi_instruction_set()
    assert library.hfi_use_instruction_set(b"sse9")
    assert library.hfi_instruction_set() == before
    assert native.describe().startswith(before.decode())


# Searches

search = functools.partial(
    settings,
    deadline=None,
    derandomize=True,  # the same examples everywhere and always
    database=None,
    suppress_health_check=list(HealthCheck),
)
BAD = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30)
pairs = functools.partial(st.tuples)
as_it_is = [lambda tensor: tensor]


def numbers(*shape, dtype, seed):
    """Multiples of 1/64, with which float32 and the half types compute positions exactly."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-160, 161, shape, generator=generator) / 64).to(dtype)


def spoiled(tensor, places, seed):
    """With numbers in some places that are none, or huge."""
    tensor = tensor.clone()
    if tensor.numel():
        where = torch.randint(tensor.numel(), (len(places),), generator=torch.Generator().manual_seed(seed))
        for index, bad in zip(where.tolist(), places, strict=True):
            tensor.view(-1)[index] = bad
    return tensor


def largest(tensor):
    """Of the ordinary numbers in it."""
    sizes = tensor.detach().double().abs()
    sizes = sizes[sizes < 1e20]
    return sizes.max().item() if sizes.numel() else 0


@needs_library
@search(max_examples=300)
@given(data=st.data())
def test_search_the_operator(data):
    draw, side = data.draw, st.integers(0, 9)
    geometry = {
        "groups": draw(st.integers(1, 3)),
        "kernel_size": draw(pairs(st.integers(1, 4), st.integers(1, 4))),
        "stride": draw(pairs(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(pairs(st.integers(0, 3), st.integers(0, 3))),
        "dilation": draw(pairs(st.integers(1, 3), st.integers(1, 3))),
        "offset_scale": draw(st.sampled_from([1.0, 0.5, 2.0, -1.0, 0.0])),
        "remove_center": draw(st.booleans()),
    }
    batch, height, width, depth = draw(st.integers(0, 3)), draw(side), draw(side), draw(st.integers(1, 40))
    out_height, out_width = DCNv3Geometry(**geometry).output_size(height, width)
    assume(out_height > 0 and out_width > 0)
    dtype, seed = draw(st.sampled_from(list(TOLERANCE))), draw(st.integers(0, 10**6))
    wide = torch.float32 if dtype.itemsize == 2 and draw(st.booleans()) else dtype
    features = geometry["groups"] * DCNv3Geometry(**geometry).num_taps()
    pixels = (batch, out_height, out_width)
    value = numbers(batch, height, width, geometry["groups"] * depth, dtype=dtype, seed=seed)
    offset = numbers(*pixels, features * 2, dtype=wide, seed=seed + 1)
    mask = numbers(*pixels, features, dtype=wide, seed=seed + 2)
    grad_output = numbers(*pixels, geometry["groups"] * depth, dtype=dtype, seed=seed + 3)
    offset = spoiled(offset, draw(st.lists(st.sampled_from(BAD), max_size=8)), seed)
    mask = spoiled(mask, draw(st.lists(st.sampled_from(BAD), max_size=1)), seed)
    layout = st.sampled_from([*as_it_is, *LAYOUTS])
    inputs = [draw(layout)(tensor) if tensor.numel() else tensor for tensor in (value, offset, mask)]
    grad_output = draw(layout)(grad_output) if grad_output.numel() else grad_output
    softmax = draw(st.booleans())
    torch.set_num_threads(draw(st.integers(1, 3)))
    found = results(on_cpu, inputs, grad_output, **geometry, softmax=softmax)
    torch.set_num_threads(1)
    exact = results(on_torch, [tensor.double() for tensor in inputs], grad_output.double(), **geometry, softmax=softmax)
    # Sums may cancel out: the size of what was summed tells how much rounding to expect.
    each = largest(value) * largest(grad_output) * depth * max(1, abs(geometry["offset_scale"]))
    weight = max(1, largest(mask))
    sizes = (largest(value) * weight * features, largest(grad_output) * weight * features, each * weight, each)
    for what, got, want, size in zip(("output", "value", "offset", "mask"), found, exact, sizes, strict=True):
        finite = want.isfinite() & (want.abs() < 1e20)
        of_itself, of_largest = TOLERANCE[got.dtype]
        torch.testing.assert_close(
            got.double()[finite],
            want[finite],
            rtol=of_itself,
            atol=of_largest * size,
            msg=lambda t, w=what: f"{w}: {t}",
        )


@needs_library
@search(max_examples=150)
@given(data=st.data())
def test_search_the_layer(data):
    draw = data.draw
    channels, dtype = draw(st.integers(1, 40)), draw(st.sampled_from(list(TOLERANCE)[1:]))
    seed, kind = draw(st.integers(0, 10**6)), draw(st.sampled_from(["dw_conv", "mlp", "norm"]))
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), channels)
    states, grad_output = (numbers(*shape, dtype=dtype, seed=seed + index) for index in range(2))
    make, fused, plain = KINDS[kind]
    module = make(channels, draw(st.sampled_from([1, 3, 5, 7])), dtype) if kind == "dw_conv" else make(channels, dtype)
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 0.1  # rounding is enlarged by at most three
    layout = st.sampled_from([*as_it_is, *LAYOUTS])
    states, grad_output = (draw(layout)(t) if t.numel() else t for t in (states, grad_output))
    torch.set_num_threads(draw(st.integers(1, 3)))
    with torch.no_grad():
        found = [fused(states, module)]
    if kind != "norm":
        leaf = states.detach().requires_grad_()
        output = fused(leaf, module)
        found += [output, *torch.autograd.grad(output, [leaf, *module.parameters()], grad_output)]
    torch.set_num_threads(1)
    leaf, twin = states.detach().double().requires_grad_(), module.double()
    exact = plain(leaf, twin)
    wanted = [exact, exact, *torch.autograd.grad(exact, [leaf, *twin.parameters()], grad_output.double())]
    rounding = 4 * torch.finfo(dtype).eps + 2e-5
    for got, want in zip(found, wanted, strict=kind != "norm"):
        atol = rounding * max(largest(want), 1e-3)
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=atol)


# Sanitizers


def runs_here(instruction_set):
    library = native.library()
    before = library.hfi_instruction_set()
    missing = library.hfi_use_instruction_set(instruction_set.encode())
    assert library.hfi_use_instruction_set(before) == 0
    return not missing


@pytest.fixture(scope="module")
def sanitized(request, tmp_path_factory):
    """(the library built with sanitizers, what its process needs in the environment); built once for the sources."""
    if sys.platform != "linux" or not has_compiler() or native.why_not():
        pytest.skip("needs Linux, a compiler and the library")
    runtime = sanitizer_preload(build.find_compiler())
    if runtime is None:
        pytest.skip(f"{build.find_compiler()[0]} has no libasan.so")
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("sanitized") if cache else tmp_path_factory.mktemp("sanitized")
    # Three times as quick to compile, and null pointers end a process anyway.
    build.SANITIZE += ["-Og", "-g1", "-fno-sanitize=null,object-size,alignment"]
    options = zlib.crc32(" ".join(build.FLAGS + build.SANITIZE).encode())
    path = Path(folder) / f"{build.source_hash()}_{options:08x}.so"
    if not path.exists():
        for old in set(Path(folder).glob("*.so")) - {path}:  # another process may be building the same
            old.unlink(missing_ok=True)
        # Vectors of a length that this processor has not, the compiler makes of shorter ones.
        build.X86_64 = tuple((name, size, wants if runs_here(name) else ()) for name, size, wants in build.X86_64)
        build.build(path, sanitize=True)
    # New memory holds 0xff, which is NaN in every dtype: numbers nobody wrote are noticed.
    options = "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000:detect_odr_violation=0"
    return path, {"LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def run_sanitized(sanitized, code):
    path, environment = sanitized
    package = str(Path(hf_internimage.__file__).parents[1])
    paths = f"{package}{os.pathsep}{TESTS}"
    environment = {**os.environ, **environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LIBRARY": str(path)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_sanitizers_end_a_process_that_reads_too_far(sanitized):
    """Or the next test would prove nothing: here one number more than there is."""
    for count, word in ((4096, "fine"), (4097, "AddressSanitizer: heap-buffer-overflow")):
        done = run_sanitized(
            sanitized,
            f"""
            import ctypes, os

            library = ctypes.CDLL(os.environ["LIBRARY"])
            libc = ctypes.CDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            numbers, output = (ctypes.c_void_p(libc.malloc(ctypes.c_size_t(4 * size))) for size in (4096, 9999))
            ctypes.memset(numbers, 0, 4 * 4096)
            integer = ctypes.c_int64
            print("fine" if library.hfi_gelu(integer(0), integer({count}), numbers, output, integer(1)) == 0 else "")
            """,
        )
        assert (done.returncode == 0) == (word == "fine"), done.stderr
        assert word in done.stdout + done.stderr


@pytest.mark.slow
def test_sanitizers_find_nothing(sanitized):
    """On x86-64 in vectors of 64 bytes, those of AVX-512, which the compiler makes of shorter ones if it must."""
    done = run_sanitized(
        sanitized,
        """
        import os, sys
        from support.kernel_tests import run_kernel_tests

        sys.exit(run_kernel_tests(os.environ["LIBRARY"]))
        """,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 100
    if platform.machine() == "x86_64":
        assert "Instruction set: avx512\n" in done.stdout


@pytest.mark.slow
def test_sanitizers_find_nothing_in_onnx_runtime(sanitized):
    pytest.importorskip("onnxruntime")
    done = run_sanitized(
        sanitized,
        """
        import os, sys
        from pathlib import Path
        import pytest
        from hf_internimage.ops import native
        from support.paths import TESTS

        native.PATH = Path(os.environ["LIBRARY"])
        options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
        chosen = "float16 or number_of_threads or are_errors or depthwise"
        sys.exit(pytest.main([*options, "-k", chosen, str(TESTS / "exporting" / "test_onnxruntime.py")]))
        """,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 20
