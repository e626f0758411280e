# SPDX-License-Identifier: MIT
"""Compile CUDA sources with NVRTC, the compiler that comes with every CUDA build of PyTorch; cache the code on disk.

PyTorch's own loader, `torch.cuda._compile_kernel`, is private, changed between PyTorch 2.9 and 2.13, and has no cache
on disk; cuda.core is not a dependency of PyTorch. NVRTC's C interface has not changed since CUDA 11.
"""

import ctypes
import hashlib
import importlib.util
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants

CACHE_VARIABLE = "HF_INTERNIMAGE_CACHE"
_DIGEST = hashlib.sha256


class CompileError(RuntimeError):
    """NVRTC failed to compile a source; the message is its log."""


def why_not() -> str | None:
    """Return None if NVRTC can be loaded, else the reason why not."""
    return _load()[1]


def version() -> tuple[int, int]:
    """Return the version of NVRTC, such as (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def describe() -> str:
    """Return the version of NVRTC and the folder of compiled kernels, as a text."""
    return f"compiled by NVRTC {'.'.join(map(str, version()))}, kept in {cache_folder()}"


def build(source: str, headers: dict[str, str], options: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """Return machine code for a GPU of this compute capability, from the cache or newly compiled.

    Raises: CompileError with NVRTC's log.
    """
    target = _target(capability)
    parts = [source, *(part for item in headers.items() for part in item), *options, target]
    parts += [torch.__version__, f"{torch.version.cuda}", f"{version()}"]
    key = _DIGEST("\0".join(parts).encode()).hexdigest()
    return _cached(key, lambda: compile(source, headers, (*options, f"--gpu-architecture={target}")))


def compile(source: str, headers: dict[str, str], options: tuple[str, ...]) -> bytes:
    """Compile a source to a cubin, or to PTX if the options name a virtual architecture (compute_90).

    Raises: CompileError with NVRTC's log.
    """
    program = ctypes.c_void_p()
    names, texts = (_strings(list(part)) for part in (headers.keys(), headers.values()))
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"dcnv3.cu", len(headers), texts, names)
    try:
        library = _library()
        if status := library.nvrtcCompileProgram(program, len(options), _strings(list(options))):
            raise CompileError(f"{_error(library, status)}:\n{_get(program, 'ProgramLog').decode(errors='replace')}")
        virtual = any("=compute_" in option for option in options)
        return _get(program, "PTX" if virtual else "CUBIN")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def cache_folder() -> Path:
    """Return the folder of compiled kernels."""
    root = os.environ.get(CACHE_VARIABLE) or os.path.join(constants.HF_HOME, "hf_internimage")
    return Path(os.path.expanduser(root), "kernels")


def _cached(key: str, make: Callable[[], bytes]) -> bytes:
    """Return the content of file `key`; make it if it is missing, damaged, or not this user's alone to write.

    Safe with several processes at once.
    """
    path = cache_folder() / key
    try:
        with path.open("rb") as file:
            content = file.read() if _is_own(file.fileno()) else b""
        if content[:32] == _digest(key, content[32:]):
            return content[32:]
    except OSError:
        pass
    content = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
    except OSError:
        return content  # the folder is not writable: the next process compiles again
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_digest(key, content) + content)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
    return content


def _is_own(file: int) -> bool:
    """Return True if an open file belongs to this user and nobody else may write to it; Windows does not say."""
    if sys.platform == "win32":
        return True
    status = os.fstat(file)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(key: str, content: bytes) -> bytes:
    """Return the checksum in a file of the cache. With its name in it, no file can take the place of another."""
    return _DIGEST(key.encode() + content).digest()


def _target(capability: tuple[int, int]) -> str:
    """Return the architecture to compile for: the GPU's own, or the newest virtual one if NVRTC is older than the GPU.

    The driver translates code for a virtual architecture.
    """
    architecture = 10 * capability[0] + capability[1]
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    supported = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", supported)
    if architecture in supported:
        return f"sm_{architecture}"
    older = [number for number in supported if number < architecture]
    if not older:
        raise CompileError(f"NVRTC {version()} compiles for compute capability {min(supported) / 10} and later")
    return f"compute_{max(older)}"


def _candidates() -> Iterator[str]:
    """Yield possible names of NVRTC: in the packages PyTorch depends on, in the system, and in PyTorch itself."""
    major = torch.version.cuda.partition(".")[0] if torch.version.cuda else "*"
    patterns = {"win32": f"bin/**/nvrtc64_{major}0_0.dll"}
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        pattern = patterns.get(sys.platform, f"lib/libnvrtc.so.{major}")
        yield from sorted(map(str, Path(folder).glob(f"*/{pattern}")), reverse=True)
    pytorch = Path(torch.__file__).with_name("lib")
    if sys.platform == "win32":
        yield from map(str, pytorch.glob(f"nvrtc64_{major}0_0.dll"))
        return
    yield from (f"libnvrtc.so.{number}" for number in ((13, 12) if major == "*" else (major,)))
    yield str(pytorch / "libcaffe2_nvrtc.so")


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library; return it, or the reason why there is none."""
    for name in _candidates():
        try:
            if os.path.isabs(name):
                # NVRTC opens this library by name, and some versions do not search their own folder for it.
                for builtins in Path(name).parent.glob("libnvrtc-builtins.so*"):
                    ctypes.CDLL(str(builtins))
            library = ctypes.CDLL(name)
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
            return library, None
        except (OSError, AttributeError):
            continue
    return None, "finds no NVRTC, the compiler that comes with CUDA: pip install nvidia-cuda-nvrtc"


def _library() -> ctypes.CDLL:
    library, reason = _load()
    if library is None:
        raise CompileError(f"The cuda backend {reason}.")
    return library


def _error(library: ctypes.CDLL, status: int) -> str:
    return str(library.nvrtcGetErrorString(status).decode())


def _call(function: str, *arguments: object) -> None:
    library = _library()
    if status := getattr(library, function)(*arguments):
        raise CompileError(f"{function}: {_error(library, status)}")


def _get(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, content)
    return content.raw


def _strings(texts: list[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))
