# SPDX-License-Identifier: MIT
"""The compiled CPU library (sources in kernels/dcnv3/dcnv3_cpu): finding it, and giving it PyTorch's threads."""

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path

import torch

INTERFACE = 3  # of api.h; a library with another number is refused
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PATH = Path(__file__).with_name(f"_dcnv3_cpu{SUFFIX}")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
INSTRUCTION_SET_VARIABLE = "HF_INTERNIMAGE_CPU_ISA"


class TensorLayout(ctypes.Structure):
    """`hfi_tensor` of api.h: a (N, height, width, features) tensor whose features lie side by side."""

    _fields_ = [(name, ctypes.c_int64) for name in ("dtype", "stride_n", "stride_h", "stride_w")]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorLayout":
        return cls(DTYPES[tensor.dtype], *tensor.stride()[:3])


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none."""
    if not PATH.exists():
        return None, (
            "has no compiled library: this installation was built without a C++ compiler. Install a wheel that has it, "
            "or install again where one is found; in a checkout, python kernels/dcnv3/build.py"
        )
    try:
        library = ctypes.CDLL(str(PATH))
        library.hfi_interface.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        return None, f"cannot load its library: {error}"
    if (found := library.hfi_interface()) != INTERFACE:
        return None, (
            f"has a library of another version (interface {found}, expected {INTERFACE}): install again, or in a "
            "checkout run python kernels/dcnv3/build.py"
        )
    library.hfi_instruction_set.restype = ctypes.c_char_p
    library.hfi_source_hash.restype = ctypes.c_char_p
    wanted = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if wanted and library.hfi_use_instruction_set(wanted.encode()):
        return None, f"lacks the instruction set {INSTRUCTION_SET_VARIABLE}={wanted!r}, or this processor does"
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


def _team() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP runtime that PyTorch itself uses: two runtimes would wait for each other's threads.

    GNU's and LLVM's runtimes both have it. None where there is none; the library then keeps to the calling thread.
    """
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    try:
        pytorch = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / name))
        return ctypes.cast(pytorch.GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None


def why_not() -> str | None:
    """None if the library is there, else the reason."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The library; RuntimeError with the reason if it cannot be had."""
    found, reason = _load()
    if found is None:
        raise RuntimeError(f"The cpu backend {reason}.")
    return found


def call(function: str, *arguments: object) -> None:
    """Call a library function with PyTorch's number of threads; seen by PyTorch's profiler, if that is on.

    Raises: MemoryError if there is no room for the function's working space.
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
    """The instruction set and threads in use."""
    threads = torch.get_num_threads() if _team() else 1
    name = library().hfi_instruction_set().decode()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
