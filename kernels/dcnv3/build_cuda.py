#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compile the CUDA kernels ahead of time into a folder that the package `kernels` loads.

`python kernels/dcnv3/build_cuda.py` needs Python 3.11, nvcc and the headers of PyTorch 2.10 or newer (a CPU build is
enough; it is not imported). The library uses PyTorch's stable interface: it works with every version from 2.9 on that
is built for the same major version of CUDA. Releases are built by kernel-builder, from the same build.toml.
"""

import argparse
import base64
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "build"
ARCHITECTURES = (80, 90, 100, 120)
TYPES = ("float", "double", "half", "bfloat")

FLAGS = ["-std=c++17", "-O3", "-DUSE_CUDA", "-DCUDA_KERNEL", "-diag-suppress=128"]  # 128: loops of general kernels
FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden,-fno-gnu-unique"]

# kernel-builder writes both of these itself; its library is a Python module, this one is not.
REGISTRATION = """\
#pragma once
#define STABLE_TORCH_LIBRARY_EXPAND(name, module) STABLE_TORCH_LIBRARY(name, module)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(name, key, module) STABLE_TORCH_LIBRARY_IMPL(name, key, module)
#define REGISTER_EXTENSION(name)
"""
OPS = """\
import os

import torch

torch.ops.load_library(os.path.join(os.path.dirname(os.path.abspath(__file__)), "{library}"))
ops = torch.ops.{name}


def add_op_namespace_prefix(op_name):
    return f"{name}::{{op_name}}"
"""


class BuildError(Exception):
    """The kernel cannot be built; the message gives the reason."""


def settings() -> dict[str, Any]:
    """Return the content of build.toml."""
    return tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))


def sources() -> list[Path]:
    """Return all files named in build.toml, relative to this folder."""
    build = settings()
    names = [*build["torch"]["src"], *(name for kernel in build["kernel"].values() for name in kernel["src"])]
    return sorted({Path(name) for name in names})


def run(command: list[str], what: str) -> str:
    """Run a command and return its output; raise BuildError with its errors if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        raise BuildError(f"{command[0]} failed {what}: " + " / ".join(lines[:3] or [f"exit status {done.returncode}"]))
    return done.stdout


def find_nvcc() -> str:
    """Return the path of nvcc: $NVCC, the one in $CUDA_HOME, or the one on PATH."""
    home = os.environ.get("CUDA_HOME")
    for name in (os.environ.get("NVCC"), home and os.path.join(home, "bin", "nvcc"), "nvcc"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("nvcc was not found: it is not on PATH, and NVCC and CUDA_HOME do not name it")


def find_torch() -> Path:
    """Return the folder of PyTorch, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("PyTorch is not installed for this Python")
    folder = Path(spec.origin).parent
    if not (folder / "include" / "torch" / "csrc" / "stable" / "macros.h").exists():  # new in 2.10
        raise BuildError(f"the headers of PyTorch 2.10 or newer are needed, {folder} lacks them")
    return folder


def variant(nvcc: str) -> str:
    """Return the name of the folder that `kernels` loads from."""
    version = re.search(r"release (\d+)\.(\d+)", run([nvcc, "--version"], "to tell its version"))
    if version is None:
        raise BuildError(f"{nvcc} does not tell its version")
    abi = settings()["torch"]["stable-abi"]["cuda"].replace(".", "")
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"torch-stable-abi{abi}-cu{version[1]}{version[2]}-{machine}-{platform.system().lower()}"


def build(
    output: Path = OUTPUT, architectures: tuple[int, ...] = ARCHITECTURES, types: tuple[str, ...] = TYPES
) -> Path:
    """Compile the kernels and return their folder, output/<variant>, written completely or not at all."""
    nvcc, torch = find_nvcc(), find_torch()
    digest = hashlib.sha256(repr((sorted(architectures), sorted(types))).encode())
    for path in sources():
        digest.update((HERE / path).read_bytes())
    build_name = settings()["general"]["name"]
    name = f"_{build_name}_cuda_{digest.hexdigest()[:10]}"
    library = f"{name}.so"
    major, minor = settings()["torch"]["stable-abi"]["cuda"].split(".")
    flags = [
        *FLAGS,
        f"-DTORCH_TARGET_VERSION={int(major) << 56 | int(minor) << 48:#x}",
        f"-DTORCH_EXTENSION_NAME={name}",
    ]
    flags += [f"-DHFI_NO_{missing.upper()}" for missing in TYPES if missing not in types]
    gencode = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    gencode.append(f"-gencode=arch=compute_{max(architectures)},code=compute_{max(architectures)}")
    left_out = {f"{missing}.cu" for missing in TYPES if missing not in types}
    compiled = [path for path in sources() if path.suffix in (".cu", ".cpp") and path.name not in left_out]

    with tempfile.TemporaryDirectory(prefix="dcnv3_cuda_") as work:
        folder = Path(work) / "variant"
        shutil.copytree(HERE / "torch-ext" / build_name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        Path(work, "registration.h").write_text(REGISTRATION, encoding="utf-8")
        (folder / "_ops.py").write_text(OPS.format(library=library, name=name), encoding="utf-8")

        def compile_source(path: Path) -> str:
            object_file = os.path.join(work, f"{path.name}.o")
            include = [f"-I{work}", f"-isystem={torch / 'include'}"]
            run([nvcc, *flags, *gencode, *include, "-c", str(HERE / path), "-o", object_file], f"to compile {path}")
            return object_file

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_source, compiled))
        link = ["-shared", "-cudart=static", f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu"]
        link += ["-Xlinker=--no-as-needed,--exclude-libs,ALL"]
        run([nvcc, *objects, *link, "-o", str(folder / library)], "to link the library")
        write_metadata(folder, name, architectures)
        return install(folder, output / variant(nvcc))


def write_metadata(folder: Path, name: str, architectures: tuple[int, ...]) -> None:
    """Write metadata.json, in which `kernels` reads the content of the folder."""
    general = settings()["general"]
    capabilities = [f"{number // 10}.{number % 10}" for number in sorted(architectures)]
    capabilities[-1] += "+PTX"
    files = {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    metadata = {
        "name": general["name"],
        "id": name,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": "cuda", "archs": capabilities},
        "digest": {"algorithm": "sha256", "files": files},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def install(folder: Path, target: Path) -> Path:
    """Copy a folder to `target`, in place of an existing one."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")  # a rename needs one file system
        shutil.copytree(folder, beside)
        if target.exists():
            shutil.rmtree(target)
        os.rename(beside, target)
    except OSError as error:
        raise BuildError(f"the kernel could not be written: {error}") from error
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels of DCNv3 ahead of time.")
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        default=ARCHITECTURES,
        help="compute capabilities, 90 for 9.0 (default: %(default)s)",
    )
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="value types (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="parent of the folder (default: %(default)s)")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        built = build(options.output, tuple(options.arch), tuple(options.types))
    except BuildError as error:
        sys.exit(f"error: {error}")
    size = max(path.stat().st_size for path in built.glob("*.so"))
    print(f"{built}: {size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
