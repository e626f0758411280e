# SPDX-License-Identifier: MIT
"""The cuda backend without a GPU: its kernels compiled for the CPU, and a driver that runs them there.

`emulation` puts both in the place of NVRTC and NVIDIA's driver; plans of the backend then take CPU tensors. With
HF_INTERNIMAGE_SANITIZE=1 the kernels are compiled with sanitizers, for a process that libasan was loaded into.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from hf_internimage.ops import cuda_driver, nvrtc
from hf_internimage.ops.backends import dcnv3_cuda

HERE = Path(__file__).parent / "cuda_emulation"
# Numbers of one type lie in the memory of another, as CUDA allows. Most of the time goes into compiles, not runs.
FLAGS = ["-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-fno-math-errno", "-ffp-contract=off"]
FAST = ["-O0", "-fno-exceptions", "-nostartfiles", "-nodefaultlibs", "-lm"]
# Pointers that are never followed may lie anywhere. Stacks change, so the compiler must not watch them.
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "--param", "asan-stack=0"]
SANITIZE += ["-fno-sanitize=pointer-overflow,null,object-size"]
SANITIZE_VARIABLE = "HF_INTERNIMAGE_SANITIZE"
MACHINES = ("x86_64", "aarch64")


def compiler():
    """g++ or what CXX names, and gcc or what CC names."""
    return shlex.split(os.environ.get("CXX", "g++")), shlex.split(os.environ.get("CC", "gcc"))


def why_not():
    """None if the emulation runs here, else the reason."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return "the emulation of CUDA needs Linux on x86-64 or aarch64"
    for command in compiler():
        if not command or not shutil.which(command[0]):
            return f"the emulation of CUDA needs {' '.join(command)}"
    return None


class FakeLog(ctypes.Structure):
    """What the driver was asked for, and in which order it runs threads."""

    _fields_ = [
        *((name, ctypes.c_longlong) for name in ("retained", "pushed", "popped", "loaded", "launched", "threads")),
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "block_x")),
        ("device", ctypes.c_int),
        ("stream", ctypes.c_void_p),
        ("shuffled", ctypes.c_ulonglong),
    ]


class Emulation:
    """Kernels for the CPU and a driver for them; its files lie in a folder."""

    def __init__(self, folder):
        self.folder, self.kept = Path(folder), {}
        driver = self.folder / "libcuda.so"
        command = [*compiler()[1], "-O1", "-shared", "-fPIC", str(HERE / "fake_driver.c"), "-o", str(driver)]
        subprocess.run([*command, "-lpthread", "-ldl"], check=True)
        self.driver = ctypes.CDLL(str(driver))
        self.driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
        self.log = FakeLog.in_dll(self.driver, "fake_log")
        self.capability = (9, 0)

    def library(self, text, headers, options):
        """A C++ source compiled with CUDA's functions in reach, kept by what it was made of."""
        key = hashlib.sha256(repr((text, sorted(headers.items()), options)).encode()).hexdigest()[:32]
        path = self.folder / f"{key}.so"
        if not path.exists():
            place = self.folder / key
            place.mkdir(exist_ok=True)
            for name, content in {**headers, "source.cpp": f'#include "cuda_emulation.h"\n{text}'}.items():
                (place / name).write_text(content)
            more = SANITIZE if os.environ.get(SANITIZE_VARIABLE) else FAST
            command = [*compiler()[0], *options, *FLAGS, f"-I{HERE}", "source.cpp", "-o", str(path), *more]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
            if done.returncode:
                raise nvrtc.CompileError(done.stderr)
        return path

    def build(self, source, headers, options, capability):
        """In place of `nvrtc.build`: an image for the driver above."""
        assert capability == self.capability
        key = source, options
        if key not in self.kept:
            names = re.findall(r"__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(", source)
            wanted = [name for name in names if f"-DHFI_{name.rpartition('_')[2].upper()}=1" in options] or names
            text = source + "".join(f"\nHFI_ENTRY({name})" for name in wanted) + "\n"
            self.kept[key] = b"emulated:" + bytes(self.library(text, headers, options))
        return self.kept[key]


def forget():
    """What the modules keep of the driver and its kernels."""
    for cached in (dcnv3_cuda._kernel, dcnv3_cuda._why_not, cuda_driver._library, cuda_driver._device):
        getattr(cached, "cache_clear", lambda: None)()


@contextlib.contextmanager
def emulation(folder):
    """The emulation in place of NVRTC, the driver and torch.cuda."""
    made = Emulation(folder)
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "build", made.build)
        patch.setattr(cuda_driver, "_library", lambda: made.driver)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda index: made.capability)
        patch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=1000 + index))
        try:
            yield made
        finally:
            patch.undo()
            forget()
