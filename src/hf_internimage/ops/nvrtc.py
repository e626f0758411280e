# SPDX-License-Identifier: MIT
"""CUDA sources to machine code with NVRTC, the compiler that every CUDA build of PyTorch brings, and a cache on disk.

PyTorch's own loader, `torch.cuda._compile_kernel`, is private, changed between PyTorch 2.9 and 2.13, and keeps nothing
on disk; cuda.core comes with no PyTorch. NVRTC's C interface has been the same since CUDA 11.
"""

import ctypes
import hashlib
import importlib.util
import os
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
    """NVRTC did not compile a source; the message is its log."""


def why_not() -> str | None:
    """None if NVRTC is here, else the reason why it is not."""
    return _load()[1]


def version() -> tuple[int, int]:
    """Of NVRTC, as (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def describe() -> str:
    """The version of NVRTC, and where compiled kernels are kept."""
    return f"compiled by NVRTC {'.'.join(map(str, version()))}, kept in {cache_folder()}"


def build(source: str, headers: dict[str, str], options: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """Machine code for a GPU of this compute capability, from the cache if it is there.

    Raises: CompileError with NVRTC's log.
    """
    target = _target(capability)
    parts = [source, *(part for item in headers.items() for part in item), *options, target]
    parts += [torch.__version__, f"{torch.version.cuda}", f"{version()}"]
    key = _DIGEST("\0".join(parts).encode()).hexdigest()
    return _cached(key, lambda: compile(source, headers, (*options, f"--gpu-architecture={target}")))


def compile(source: str, headers: dict[str, str], options: tuple[str, ...]) -> bytes:
    """A cubin; PTX if the options ask for a virtual architecture (compute_90).

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
    """Where compiled kernels are kept."""
    root = os.environ.get(CACHE_VARIABLE) or Path(constants.HF_HOME) / "hf_internimage"
    return Path(root).expanduser() / "kernels"


def _cached(key: str, make: Callable[[], bytes]) -> bytes:
    """The content of file `key`, made where it is missing or damaged. Many processes may do so at once."""
    path = cache_folder() / key
    try:
        content = path.read_bytes()
        if _DIGEST(content[32:]).digest() == content[:32]:
            return content[32:]
    except OSError:
        pass
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
    except OSError:
        return made  # nowhere to write: the next process compiles again
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_DIGEST(made).digest() + made)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
    return made


def _target(capability: tuple[int, int]) -> str:
    """The architecture to compile for: this GPU's own or, if NVRTC is older than the GPU, one its driver translates."""
    wanted = 10 * capability[0] + capability[1]
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", known)
    if wanted in known:
        return f"sm_{wanted}"
    older = [architecture for architecture in known if architecture < wanted]
    if not older:
        raise CompileError(f"NVRTC {version()} compiles for compute capability {min(known) / 10} and later")
    return f"compute_{max(older)}"


def _candidates() -> Iterator[str]:
    """Where NVRTC may be: the packages PyTorch depends on, the system's, and what PyTorch itself is linked to."""
    major = torch.version.cuda.partition(".")[0] if torch.version.cuda else "*"
    patterns = {"win32": f"bin/**/nvrtc64_{major}0_0.dll"}
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        pattern = patterns.get(sys.platform, f"lib/libnvrtc.so.{major}")
        yield from sorted(map(str, Path(folder).glob(f"*/{pattern}")), reverse=True)
    inside = Path(torch.__file__).with_name("lib")
    if sys.platform == "win32":
        yield from map(str, inside.glob(f"nvrtc64_{major}0_0.dll"))
        return
    yield from (f"libnvrtc.so.{number}" for number in ((13, 12) if major == "*" else (major,)))
    yield str(inside / "libcaffe2_nvrtc.so")


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none."""
    for name in _candidates():
        try:
            if os.path.isabs(name):
                # NVRTC opens this one by name, and some versions do not look for it beside themselves.
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
