# SPDX-License-Identifier: MIT
"""The compiled CPU library (sources in kernels/dcnv3/dcnv3_cpu): load it and let it register its operators."""

import ctypes
import os
import struct
import sys
import threading
from functools import lru_cache
from pathlib import Path

import torch

from .registry import BackendError

INTERFACE = 5  # version in api.h; a library with another version is refused
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PATH = Path(__file__).with_name(f"_dcnv3_cpu{SUFFIX}")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
INSTRUCTION_SET_VARIABLE = "HF_INTERNIMAGE_CPU_ISA"


_TORCH = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
# Functions of PyTorch's stable C interface, in the order of `hfi_torch` of api.h.
_FUNCTIONS = [
    "aoti_torch_library_init_impl",
    "aoti_torch_library_impl",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_get_dim",
    "aoti_torch_get_sizes",
    "aoti_torch_get_strides",
    "aoti_torch_get_dtype",
    "aoti_torch_get_device_type",
    "aoti_torch_get_data_ptr",
    "aoti_torch_get_storage_size",
    "aoti_torch_get_storage_offset",
    "aoti_torch_empty_strided",
    "aoti_torch_copy_",
    "aoti_torch_check",
]
_THREADS = ("torch_get_num_threads", "omp_get_max_threads")  # may be missing


class _Torch(ctypes.Structure):
    """`hfi_torch` of api.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_FUNCTIONS, *_THREADS)),
        ("dtypes", ctypes.c_int32 * 4),
        ("cpu", ctypes.c_int32),
    ]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library; return it, or the reason why there is none.

    Raises: BackendError if it lacks the instruction set that the environment variable demands.
    """
    _unregister()
    if not PATH.exists():
        return None, (
            "has no compiled library: this installation was built without a C++ compiler. Install a wheel that has it, "
            "or install again where one is found; in a checkout, python kernels/dcnv3/build.py"
        )
    try:
        if missing := _missing_bytes(PATH):
            return None, f"has a library that was cut off ({PATH} lacks {missing:,} bytes): install again"
        library = ctypes.CDLL(str(PATH))
        library.hfi_interface.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        return None, f"cannot load its library: {error}"
    if (interface := library.hfi_interface()) != INTERFACE:
        return None, (
            f"has a library of another version (interface {interface}, expected {INTERFACE}): install again, or in a "
            "checkout run python kernels/dcnv3/build.py"
        )
    library.hfi_instruction_set.restype = ctypes.c_char_p
    library.hfi_source_hash.restype = ctypes.c_char_p
    instruction_set = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if instruction_set and library.hfi_use_instruction_set(os.fsencode(instruction_set)):
        raise BackendError(
            f"The cpu backend lacks the instruction set {INSTRUCTION_SET_VARIABLE}={instruction_set!r}, or this "
            "processor does; set it to baseline, avx2 or avx512, or not at all."
        )
    pytorch = _pytorch()
    library.hfi_use_team.argtypes = [ctypes.c_void_p]
    library.hfi_use_team(_address(pytorch, "GOMP_parallel"))
    if not _register(library, pytorch):
        return None, f"cannot register its operators with PyTorch {torch.__version__}"
    return library, None


def _missing_bytes(path: Path) -> int:
    """Return how many bytes a 64-bit ELF file lacks at its end.

    Linux maps such a file nevertheless, and ends the process at the first access behind the end. Other systems check
    this themselves.
    """
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02" or len(data) < 64:
        return 0
    order = "<" if data[5] == 1 else ">"
    (start,), (size, count) = struct.unpack_from(f"{order}Q", data, 32), struct.unpack_from(f"{order}HH", data, 54)
    end = start + size * count
    if size == 56 and end <= len(data):
        for header in range(start, end, size):
            offset, _, _, length = struct.unpack_from(f"{order}4Q", data, header + 8)
            end = max(end, offset + length)
    return max(0, end - len(data))


def _pytorch() -> ctypes.CDLL:
    """Return PyTorch's own library, which holds its C interface and its OpenMP runtime."""
    return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / _TORCH))


def _address(library: ctypes.CDLL, name: str) -> int | None:
    """Return the address of a function, or None if the library lacks it."""
    function = getattr(library, name, None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


_registered: list[ctypes.c_void_p] = []


def _register(library: ctypes.CDLL, pytorch: ctypes.CDLL) -> bool:
    """Register the library's operators; return True if PyTorch has them.

    The threads are those of PyTorch's own OpenMP runtime: two runtimes would wait for each other's threads. GNU's and
    LLVM's have GOMP_parallel. Without it, the library uses the calling thread only.
    """
    addresses = {name: _address(pytorch, name) for name in (*_FUNCTIONS, *_THREADS)}
    if not all(addresses[name] for name in _FUNCTIONS):
        return False
    codes = [getattr(pytorch, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")() for dtype in DTYPES]
    table = _Torch(**addresses, dtypes=tuple(codes), cpu=pytorch.aoti_torch_device_type_cpu())
    library.hfi_register.argtypes, library.hfi_register.restype = [ctypes.c_void_p], ctypes.c_void_p
    handle = library.hfi_register(ctypes.byref(table))
    if handle:
        _registered.append(ctypes.c_void_p(handle))
    return bool(handle)


def _unregister() -> None:
    """Take back the operators of a library loaded before."""
    while _registered:
        _pytorch().aoti_torch_delete_library_object(_registered.pop())


_lock = threading.Lock()


def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    """Return what `_load` returns, which runs in one thread alone."""
    with _lock:
        return _load()


def why_not() -> str | None:
    """Return None if the library is loaded, else the reason why not."""
    return _loaded()[1]


@torch.compiler.assume_constant_result  # torch.compile asks this when it traces
def is_available() -> bool:
    """Return True if the library is loaded, with its operators registered."""
    return why_not() is None


def library() -> ctypes.CDLL:
    """Return the library; raise RuntimeError with the reason if it cannot be loaded."""
    loaded, reason = _loaded()
    if loaded is None:
        raise RuntimeError(f"The cpu backend {reason}.")
    return loaded


def describe() -> str:
    """Return the instruction set and number of threads in use."""
    threads = torch.get_num_threads() if _address(_pytorch(), "GOMP_parallel") else 1
    name = library().hfi_instruction_set().decode()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
