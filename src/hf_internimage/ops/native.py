# SPDX-License-Identifier: MIT
"""The compiled CPU library (sources in kernels/dcnv3/dcnv3_cpu): load it and call it with PyTorch's threads."""

import ctypes
import os
import struct
import sys
from functools import lru_cache
from pathlib import Path

import torch

from .registry import BackendError

INTERFACE = 3  # version in api.h; a library with another version is refused
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PATH = Path(__file__).with_name(f"_dcnv3_cpu{SUFFIX}")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
INSTRUCTION_SET_VARIABLE = "HF_INTERNIMAGE_CPU_ISA"


class TensorLayout(ctypes.Structure):
    """`hfi_tensor` of api.h: a (N, height, width, features) tensor whose features lie side by side in memory."""

    _fields_ = [(name, ctypes.c_int64) for name in ("dtype", "stride_n", "stride_h", "stride_w")]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorLayout":
        return cls(DTYPES[tensor.dtype], *tensor.stride()[:3])


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library; return it, or the reason why there is none.

    Raises: BackendError if it lacks the instruction set that the environment variable demands.
    """
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
    library.hfi_use_team.argtypes = [ctypes.c_void_p]
    library.hfi_use_team(_team())
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.hfi_dcnv3_forward.argtypes = [pointer] * 5 + [integer]
    library.hfi_dcnv3_backward.argtypes = [pointer] * 8 + [integer]
    library.hfi_gelu.argtypes = [integer] * 2 + [pointer] * 2 + [integer]
    library.hfi_gelu_backward.argtypes = [integer] * 2 + [pointer] * 3 + [integer]
    library.hfi_norm.argtypes = [integer] * 4 + [ctypes.c_double] + [pointer] * 6 + [integer]
    library.hfi_depthwise_norm_gelu.argtypes = [pointer] * 7 + [integer]
    library.hfi_depthwise_norm_gelu_backward.argtypes = [pointer] * 10 + [integer] * 2
    library.hfi_row.argtypes, library.hfi_row.restype = [integer], integer
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


def _team() -> ctypes.c_void_p | None:
    """Return GOMP_parallel of PyTorch's own OpenMP runtime: two runtimes would wait for each other's threads.

    GNU's and LLVM's runtimes both have it. Without it, return None: the library then uses the calling thread only.
    """
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    try:
        pytorch = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / name))
        return ctypes.cast(pytorch.GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None


def why_not() -> str | None:
    """Return None if the library is loaded, else the reason why not."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """Return the library; raise RuntimeError with the reason if it cannot be loaded."""
    loaded, reason = _load()
    if loaded is None:
        raise RuntimeError(f"The cpu backend {reason}.")
    return loaded


def call(function: str, *arguments: object) -> None:
    """Call a library function with PyTorch's number of threads; PyTorch's profiler records it.

    Raises: MemoryError if there is not enough memory for the function's working space.
    """
    run = getattr(library(), function)
    threads = torch.get_num_threads()
    if torch.autograd._profiler_enabled():
        with torch.profiler.record_function(f"hf_internimage::{function.removeprefix('hfi_')}"):
            status = run(*arguments, threads)
    else:
        status = run(*arguments, threads)
    if status:
        raise MemoryError("Not enough memory for the working space of hf_internimage's CPU library.")


def describe() -> str:
    """Return the instruction set and number of threads in use."""
    threads = torch.get_num_threads() if _team() else 1
    name = library().hfi_instruction_set().decode()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
