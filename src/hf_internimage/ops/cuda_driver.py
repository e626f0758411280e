# SPDX-License-Identifier: MIT
"""Load machine code on a GPU and launch it, through the C interface of NVIDIA's driver."""

import ctypes
import sys
from functools import cache

import torch


class DriverError(RuntimeError):
    """A call of the driver failed; the message names the call and the reason."""


class _Device:
    """The primary context of a GPU, which PyTorch uses; `with` makes it the current context of this thread."""

    def __init__(self, index: int) -> None:
        number, self.context = ctypes.c_int(), ctypes.c_void_p()
        _call("cuInit", 0)
        _call("cuDeviceGet", ctypes.byref(number), index)
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), number)

    def __enter__(self) -> None:
        _call("cuCtxPushCurrent_v2", self.context)

    def __exit__(self, *_: object) -> None:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def load(image: bytes, name: str, index: int) -> ctypes.c_void_p:
    """Load the function `name` of a cubin or PTX text on GPU number `index`; it is never unloaded.

    Raises: DriverError.
    """
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with _device(index):
        _call("cuModuleLoadData", ctypes.byref(module), image)
        _call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    return function


def launch(
    function: ctypes.c_void_p, index: int, grid: tuple[int, int], threads: int, argument: ctypes.Structure
) -> None:
    """Launch a function with one argument, passed by value, on GPU `index` in PyTorch's current stream."""
    stream = torch.cuda.current_stream(index).cuda_stream
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    with _device(index):
        _call("cuLaunchKernel", function, *grid, 1, threads, 1, 1, 0, stream, arguments, None)


@cache
def _device(index: int) -> _Device:
    return _Device(index)


@cache
def _library() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise DriverError(f"cannot load NVIDIA's driver: {error}") from error
    number, pointer = ctypes.c_uint, ctypes.c_void_p
    library.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    return library


def _call(function: str, *arguments: object) -> None:
    library = _library()
    if status := getattr(library, function)(*arguments):
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(f"{function}: {(text.value or b'unknown error').decode()} ({status})")
