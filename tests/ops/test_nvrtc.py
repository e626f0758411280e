# SPDX-License-Identifier: MIT
"""NVRTC and its cache on disk, and what NVRTC makes of the cuda backend's kernels: all of it without a GPU."""

import ctypes
import importlib.machinery
import importlib.util
import itertools
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_internimage.models.dcnv3_reference import DCNv3Geometry
from hf_internimage.ops import nvrtc
from hf_internimage.ops.backends import dcnv3_cuda

pytestmark = pytest.mark.slow
needs_nvrtc = pytest.mark.skipif(nvrtc.why_not() is not None, reason=str(nvrtc.why_not()))
SOURCE = 'extern "C" __global__ void probe(float* to) { *to = SIZE; }'

# The cache


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Return the folder of the cache, which does not exist yet."""
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def compiled(monkeypatch):
    """A compiler that needs no NVRTC; the list of what it compiled."""
    seen = []

    def compile_(*arguments):
        seen.append(arguments)
        return f"code {len(seen)}".encode()

    monkeypatch.setattr(nvrtc, "compile", compile_)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "_target", lambda capability: f"sm_{capability[0]}{capability[1]}")
    return seen


CALL = ("source", {"a.cuh": "text"}, ("--std=c++17",), (9, 0))


def test_what_was_compiled_is_kept(folder, compiled):
    assert nvrtc.build(*CALL) == b"code 1"
    assert compiled == [("source", {"a.cuh": "text"}, ("--std=c++17", "--gpu-architecture=sm_90"))]
    assert nvrtc.build(*CALL) == b"code 1"
    assert len(compiled) == len(list(folder.iterdir())) == 1


def test_each_part_of_a_call_has_its_own_place(folder, compiled, monkeypatch):
    calls = [
        CALL,
        ("source ", *CALL[1:]),
        (CALL[0], {"b.cuh": "text"}, *CALL[2:]),
        (CALL[0], {"a.cuh": "texts"}, *CALL[2:]),
        (CALL[0], {"a.cuh": "text", "b.cuh": ""}, *CALL[2:]),
        (*CALL[:2], ("--std=c++17", "-DX=1"), CALL[3]),
        (*CALL[:2], ("--std=c++17", "-DX=2"), CALL[3]),
        (*CALL[:3], (8, 0)),
        (*CALL[:3], (10, 0)),
    ]
    assert [nvrtc.build(*call) for call in calls] == [f"code {i + 1}".encode() for i in range(len(calls))]
    assert [nvrtc.build(*call) for call in calls] == [f"code {i + 1}".encode() for i in range(len(calls))]
    for count, (target, name, value) in enumerate(
        ((torch, "__version__", "2.99"), (torch.version, "cuda", "19.0"), (nvrtc, "version", lambda: (13, 1))), start=1
    ):
        monkeypatch.setattr(target, name, value)
        assert nvrtc.build(*CALL) == nvrtc.build(*CALL) == f"code {len(calls) + count}".encode()
    assert len(list(folder.iterdir())) == len(compiled) == len(calls) + 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:32],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "short", "bare", "truncated", "longer", "digest", "code", "zeros"],
)
def test_damaged_files_are_made_again(folder, compiled, damage):
    nvrtc.build(*CALL)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert nvrtc.build(*CALL) == nvrtc.build(*CALL) == b"code 2"
    assert len(compiled) == 2
    assert list(folder.iterdir()) == [path]


def test_without_a_place_to_write(folder, compiled, monkeypatch):
    folder.parent.write_text("a file where a folder should be")
    assert nvrtc.build(*CALL) == b"code 1"
    assert nvrtc.build(*CALL) == b"code 2"
    folder.parent.unlink()
    folder.mkdir(parents=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nvrtc.tempfile, "mkstemp", full)
        assert nvrtc.build(*CALL) == b"code 3"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert nvrtc.build(*CALL) == b"code 4"
    assert not list(folder.iterdir())
    assert nvrtc.build(*CALL) == nvrtc.build(*CALL) == b"code 5"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="who may write everywhere is not refused")
def test_folders_of_others(folder, compiled):
    folder.mkdir(parents=True)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert nvrtc.build(*CALL) == b"code 1"
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="Windows does not say who may write to a file")
@pytest.mark.parametrize("who", ["another user's", "the group may write", "everybody may write"])
def test_files_that_others_may_have_written_are_not_loaded(who, folder, compiled, monkeypatch):
    """A folder that several users share: machine code of another would run on this one's GPU."""
    nvrtc.build(*CALL)
    (path,) = folder.iterdir()
    assert nvrtc.build(*CALL) == b"code 1"
    with monkeypatch.context() as patch:
        if who == "another user's":
            patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        else:
            path.chmod(0o620 if who == "the group may write" else 0o602)
        assert nvrtc.build(*CALL) == b"code 2"
    assert path.stat().st_mode & 0o777 == 0o600
    assert nvrtc.build(*CALL) == b"code 2"


def test_a_file_does_not_take_the_place_of_another(folder, compiled):
    """As who may rename files, but not write them, could make it."""
    nvrtc.build(*CALL)
    (path,) = folder.iterdir()
    nvrtc.build("other", *CALL[1:])
    (other,) = set(folder.iterdir()) - {path}
    os.replace(other, path)
    assert nvrtc.build(*CALL) == b"code 3"


@pytest.mark.parametrize("root", ["~nobody-of-this-name/cache", "caf\udcc3\udca9", "\udcff\x01"])
def test_odd_names_of_the_folder(root, compiled, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, root)
    assert nvrtc.build(*CALL) == nvrtc.build(*CALL) == b"code 1"


def test_nothing_is_kept_of_a_failure(folder, compiled, monkeypatch):
    def fail(*_):
        raise nvrtc.CompileError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "compile", fail)
        for _ in range(2):
            with pytest.raises(nvrtc.CompileError, match="no luck"):
                nvrtc.build(*CALL)
    assert not folder.exists()
    assert nvrtc.build(*CALL) == b"code 1"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path / "kernels"
    for unset in (
        lambda: monkeypatch.setenv(nvrtc.CACHE_VARIABLE, ""),
        lambda: monkeypatch.delenv(nvrtc.CACHE_VARIABLE),
    ):
        unset()
        assert nvrtc.cache_folder() == Path(constants.HF_HOME) / "hf_internimage" / "kernels"


def test_threads_at_once(folder):
    content = os.urandom(10**5)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: nvrtc._cached("key", lambda: content), range(100))) == {content}
    assert [path.name for path in folder.iterdir()] == ["key"]


def test_processes_at_once(folder):
    """Both compile, both get their code, and one whole file remains."""
    code = """
    import sys, time
    from hf_internimage.ops import nvrtc

    def make():
        print("compiling", flush=True)
        sys.stdin.readline()  # until both are here
        return b"code" * 10**5

    for _ in range(2):
        assert nvrtc._cached("key", make) == b"code" * 10**5
    """
    code = "\n".join(line[4:] for line in code.splitlines())
    environment = {**os.environ, "PYTHONPATH": str(Path(nvrtc.__file__).parents[2])}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    both = [subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["compiling\n"] * 2
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert [path.name for path in folder.iterdir()] == ["key"]
    assert nvrtc._cached("key", pytest.fail) == b"code" * 10**5


# Finding NVRTC


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """NVRTC in NVIDIA's packages for Python, as they lie on Linux and Windows, of CUDA 12 and 13."""
    files = ("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13", "cu13/lib/libnvrtc.alt.so.13")
    files += ("cuda_nvrtc/lib/libnvrtc-builtins.so.12.8", "cuda_nvrtc/bin/nvrtc64_120_0.dll")
    files += ("cuda_nvrtc/bin/nvrtc64_120_0.alt.dll", "cu13/bin/x86_64/nvrtc64_130_0.dll")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return tmp_path


@pytest.mark.parametrize(
    ("platform", "cuda", "expected"),
    [
        ("linux", "12.8", ["cuda_nvrtc/lib/libnvrtc.so.12", "libnvrtc.so.12"]),
        ("linux", "13.0", ["cu13/lib/libnvrtc.so.13", "libnvrtc.so.13"]),
        (
            "linux",
            None,
            ["cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13", "libnvrtc.so.13", "libnvrtc.so.12"],
        ),
        ("win32", "12.8", ["cuda_nvrtc/bin/nvrtc64_120_0.dll"]),
        ("win32", "13.0", ["cu13/bin/x86_64/nvrtc64_130_0.dll"]),
    ],
)
def test_where_nvrtc_may_be(packages, monkeypatch, platform, cuda, expected):
    """That of PyTorch's own CUDA only; first the packages, then the system's, then what PyTorch is linked to."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = [name.removeprefix(f"{packages}/") for name in nvrtc._candidates()]
    if platform != "win32":
        assert Path(found.pop()).name == "libcaffe2_nvrtc.so"
    assert found == expected
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [name for name in nvrtc._candidates() if name in expected] == [name for name in expected if "/" not in name]


@pytest.fixture
def search(monkeypatch):
    """Looks for NVRTC under other names."""

    def look(*names):
        monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(names))
        nvrtc._load.cache_clear()

    yield look
    monkeypatch.undo()
    nvrtc._load.cache_clear()


def test_no_nvrtc(search):
    search("libnothing.so.1")
    assert nvrtc.why_not() == "finds no NVRTC, the compiler that comes with CUDA: pip install nvidia-cuda-nvrtc"
    for call in (nvrtc.version, lambda: nvrtc.compile(SOURCE, {}, ()), lambda: nvrtc.build(SOURCE, {}, (), (9, 0))):
        with pytest.raises(nvrtc.CompileError, match=r"^The cuda backend finds no NVRTC, .*nvidia-cuda-nvrtc\.$"):
            call()


@needs_nvrtc
def test_other_libraries_are_passed_by(search):
    name = nvrtc._library()._name
    other = ctypes.util.find_library("m") or "libm.so.6"
    search("libnothing.so.1", other, name)
    assert nvrtc.why_not() is None
    assert nvrtc._library()._name == name


class Known:
    """An NVRTC for some architectures."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def nvrtcGetNumSupportedArchs(self, count):  # noqa: N802
        count._obj.value = len(self.numbers)

    def nvrtcGetSupportedArchs(self, known):  # noqa: N802
        known[:] = self.numbers

    def nvrtcVersion(self, major, minor):  # noqa: N802
        major._obj.value, minor._obj.value = 12, 8


def test_which_architecture_to_compile_for(monkeypatch):
    monkeypatch.setattr(nvrtc, "_library", lambda: Known(75, 80, 86, 89, 90, 100, 120))
    for capability, expected in (
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((12, 0), "sm_120"),
        ((8, 7), "compute_86"),  # for the driver to translate
        ((10, 3), "compute_100"),
        ((12, 1), "compute_120"),
        ((15, 0), "compute_120"),
    ):
        assert nvrtc._target(capability) == expected
    with pytest.raises(nvrtc.CompileError, match=r"^NVRTC \(12, 8\) compiles for compute capability 7\.5 and later$"):
        nvrtc._target((7, 0))


# Compiling


@needs_nvrtc
def test_machine_code_and_ptx():
    cubin = nvrtc.compile(SOURCE, {}, ("-DSIZE=3", "--gpu-architecture=sm_90"))
    assert cubin.startswith(b"\x7fELF")
    assert b"probe" in cubin
    ptx = nvrtc.compile(SOURCE, {}, ("-DSIZE=3", "--gpu-architecture=compute_90"))
    assert b".target sm_90" in ptx
    assert b".entry probe" in ptx
    assert ptx.endswith(b"\0")  # which tells the driver where it ends
    assert nvrtc.version() >= (12, 0)


@needs_nvrtc
def test_errors_have_the_compilers_words():
    destroyed = []
    real = nvrtc._call

    def call(function, *arguments):
        destroyed.append(function)
        real(function, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "_call", call)
        with pytest.raises(nvrtc.CompileError) as error:
            nvrtc.compile('#include "here.cuh"\n' + SOURCE, {"here.cuh": "int x = nowhere;"}, ())
    text = str(error.value)
    assert text.startswith("NVRTC_ERROR_COMPILATION:\n")
    assert "here.cuh(1): error" in text
    assert '"nowhere" is undefined' in text
    assert '"SIZE" is undefined' in text
    assert destroyed[-1] == "nvrtcDestroyProgram"
    with pytest.raises(nvrtc.CompileError, match=r"NVRTC_ERROR_INVALID_OPTION:\n.*no-such-option"):
        nvrtc.compile(SOURCE, {}, ("--no-such-option",))
    with pytest.raises(nvrtc.CompileError, match="nvrtcGetCUBINSize: NVRTC_ERROR"):
        nvrtc._get(ctypes.c_void_p(), "CUBIN")


@needs_nvrtc
def test_from_the_source_to_the_cache(folder, monkeypatch):
    first = nvrtc.build(SOURCE, {}, ("-DSIZE=3",), (9, 0))
    other = nvrtc.build(SOURCE, {}, ("-DSIZE=3",), (8, 0))
    newer = nvrtc.build(SOURCE, {}, ("-DSIZE=3",), (99, 0))
    assert first[:4] == other[:4] == b"\x7fELF"
    assert first != other
    assert b".entry probe" in newer
    with pytest.raises(nvrtc.CompileError, match=r"compiles for compute capability \d\.\d and later"):
        nvrtc.build(SOURCE, {}, ("-DSIZE=3",), (1, 0))
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(nvrtc, "compile", pytest.fail)
    assert nvrtc.build(SOURCE, {}, ("-DSIZE=3",), (9, 0)) == first


# What becomes of the kernels

ARCHITECTURES = (80, 90, 100, 120)
GEOMETRY = DCNv3Geometry(4, (3, 3), (1, 1), (1, 1), (1, 1), 1.0, False)
CHANNELS = (4, 8, 16, 32, 64)
HALVES = (torch.bfloat16, torch.float16)
# Registers of a thread. Forward, 80 leave room for 6 blocks of 128 threads on a multiprocessor; backward, 112 for 4.
FORWARD, BACKWARD, FIXED = 80, 112, 144


def kind(direction, dtype, channels, *, fixed=False, any_kernel=False, offset=None, places=torch.int32):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = torch.int64 if fixed else wide
    found = dcnv3_cuda.Kind.of(direction, dtype, offset or dtype, total, channels or 71, GEOMETRY, places)
    assert found.channels == channels
    return found._replace(kernel_size=(0, 0)) if any_kernel else found


@cache
def compiled_kernel(of_kind, target):
    sources = dcnv3_cuda.sources()
    headers = {name: text for name, text in sources.items() if name.endswith(".cuh")}
    return nvrtc.compile(sources["nvrtc.cu"], headers, (*of_kind.options(), f"--gpu-architecture={target}"))


def needs_architecture(number):
    try:
        target = nvrtc._target(divmod(number, 10))
    except nvrtc.CompileError as error:
        pytest.skip(str(error))
    if target != f"sm_{number}":
        pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{number}")


def resources(cubin):
    """Registers of a thread and bytes of its stack, from the file's .nv.info."""
    start, count, names = (struct.unpack_from(f, cubin, at)[0] for f, at in (("<Q", 40), ("<H", 60), ("<H", 62)))
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + 64 * i) for i in range(count)]
    found = {}
    for name, _, _, _, offset, size in headers:
        name = cubin[headers[names][4] + name :].partition(b"\0")[0]
        at = offset
        while name == b".nv.info" and at < offset + size:
            form, attribute, value = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if form == 4:  # so many bytes follow: the number of a symbol, and what is said of it
                if attribute in (0x2F, 0x11):
                    found[attribute] = struct.unpack_from("<II", cubin, at)[1]
                at += value
    return found[0x2F], found[0x11]


KINDS = [
    *(
        pytest.param(90, direction, dtype, channels, False, id=f"sm_90-{direction}-{str(dtype)[6:]}-{channels}")
        for direction, dtype, channels in itertools.product(("forward", "backward"), (torch.float32, *HALVES), CHANNELS)
    ),
    *(
        pytest.param(number, "backward", dtype, 16, True, id=f"sm_{number}-fixed-{str(dtype)[6:]}-16")
        for number, dtype in itertools.product((80, 90), (torch.float32, torch.bfloat16))
    ),
    *(
        pytest.param(
            number, direction, dtype, channels, False, id=f"sm_{number}-{direction}-{str(dtype)[6:]}-{channels}"
        )
        for number, direction, dtype, channels in itertools.product(
            (80, 100, 120), ("forward", "backward"), (torch.float32, torch.bfloat16), (16, 32)
        )
    ),
]


@needs_nvrtc
@pytest.mark.parametrize(("number", "direction", "dtype", "channels", "fixed"), KINDS)
def test_kernels_fit_into_registers(number, direction, dtype, channels, fixed):
    """Nothing lies on a stack, which is memory: neither arrays whose places were not known, nor what did not fit.

    For the newest GPUs, the compiler puts a few numbers there that are needed once in a pixel.
    """
    needs_architecture(number)
    registers, stack = resources(compiled_kernel(kind(direction, dtype, channels, fixed=fixed), f"sm_{number}"))
    assert stack <= (0 if number <= 90 else 16)
    assert 16 <= registers <= (FIXED if fixed else FORWARD if direction == "forward" else BACKWARD)


@needs_nvrtc
@pytest.mark.parametrize("number", ARCHITECTURES)
def test_every_sort_of_kernel_compiles(number):
    """Any channels, any taps, float64, offsets of another dtype, places in 64 bits. No arrays lie on the stack."""
    needs_architecture(number)
    sorts = [
        *({"dtype": dtype, "channels": 0, "any_kernel": True} for dtype in (torch.float32, *HALVES, torch.float64)),
        {"dtype": torch.float64, "channels": 4},
        {"dtype": torch.bfloat16, "channels": 16, "any_kernel": True, "offset": torch.float32},
        {"dtype": torch.float16, "channels": 3, "offset": torch.float32, "places": torch.int64},
    ]
    for index, sort in enumerate(sorts):
        for direction, fixed in (("forward", False), ("backward", index % 2 == number // 10 % 2)):
            registers, stack = resources(compiled_kernel(kind(direction, **sort, fixed=fixed), f"sm_{number}"))
            assert stack <= 96, (sort, direction, fixed)
            assert registers <= 160, (sort, direction, fixed)


@needs_nvrtc
@pytest.mark.parametrize("channels", [4, 16])
def test_gradients_are_summed_in_vectors_where_the_gpu_can(channels):
    """Since compute capability 9.0; and no array is indexed in memory."""
    corners = 9 * 4
    for number, name, count in ((90, "red.global.add.v4.f32", corners), (80, "red.global.add.f32", 4 * corners)):
        ptx = compiled_kernel(kind("backward", torch.bfloat16, channels), f"compute_{number}").decode()
        assert ptx.count(name) == count
        assert ptx.count("red.") == count
        assert ".local" not in ptx
        assert ".shared" not in ptx
    ptx = compiled_kernel(kind("backward", torch.bfloat16, channels, fixed=True), "compute_90").decode()
    assert ptx.count("red.") == ptx.count("red.global.add.u64") == 4 * corners
    assert "atom." not in ptx


def disassembler():
    """NVIDIA's, on PATH or of the triton package."""
    found = shutil.which("nvdisasm")
    spec = None if found else importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "backends" / "nvidia" / "bin" / "nvdisasm"
        found = str(path) if path.exists() else found
    return found


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="finds no nvdisasm, which comes with CUDA and with triton")
@pytest.mark.parametrize("number", ARCHITECTURES)
def test_instructions(number, tmp_path):
    """Values come in vectors, nothing goes through local memory, and no thread waits for its block."""
    needs_architecture(number)
    path = tmp_path / "kernel.cubin"

    def instructions(of_kind):
        path.write_bytes(compiled_kernel(of_kind, f"sm_{number}"))
        done = subprocess.run([disassembler(), "-c", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nvdisasm cannot read what NVRTC writes: {done.stderr.strip()[-200:]}")
        lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][\w.]*)", done.stdout, re.MULTILINE)
        counts = Counter(lines)
        first = Counter(name.partition(".")[0] for name in lines)
        assert not first.keys() & {"LDL", "STL", "BAR", "LDS", "STS", "ATOM", "ATOMG"}, first
        return counts, first

    counts, first = instructions(kind("forward", torch.bfloat16, 16))
    assert counts["LDG.E.128.CONSTANT"] == 9 * 4  # vectors of values, one to each corner of a sample
    assert counts["LDG.E.CONSTANT"] == 9  # pairs of offsets
    assert counts["LDG.E.U16.CONSTANT"] == 9  # the mask, once
    assert first["LDG"] == 54
    assert first["STG"] == 1
    counts, first = instructions(kind("backward", torch.bfloat16, 16))
    assert counts["LDG.E.64.CONSTANT"] == 9 * 4 + 1  # also the gradient of the output
    assert first["LDG"] == 9 * 4 + 1 + 18
    reductions = sum(count for name, count in counts.items() if name.startswith("RED"))
    assert reductions == (9 * 4 if number >= 90 else 9 * 4 * 4)
    assert first["SHFL"] == 9 * 3 * 2  # sums over four lanes: two steps, for each tap's two offsets and its weight
