#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compile dcnv3_cpu/ into one shared library: `python kernels/dcnv3/build.py` writes it to the package's sources.

The library has a plain C interface and depends on libc only, so that one file works with every version of Python and
torch. The compiler is $CXX, which may contain options, or else the first of c++, g++ and clang++.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "dcnv3_cpu"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
NAME = f"_dcnv3_cpu{SUFFIX}"
OUTPUT = HERE.parents[1] / "src" / "hf_internimage" / "ops" / NAME

# Fused multiply-adds and no traps or errno, but not -ffast-math: sums keep their order, NaN and infinity their meaning.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FAST = ["-O3"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

# name, bytes of a vector, required features of the processor; best first
X86_64 = (
    ("avx512", 64, ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")),
    ("avx2", 32, ("avx2", "fma")),
    ("baseline", 16, ()),
)
OTHER = (("baseline", 16, ()),)  # 16 bytes: NEON, VSX and others; without vectors the compiler uses scalars


class BuildError(Exception):
    """The library cannot be built; the message gives the reason."""


def source_hash() -> str:
    """Return sixteen hex digits of a hash of the sources; the library contains its own (hfi_source_hash)."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str]:
    """Return the compiler's command: $CXX, or the first of the usual names on PATH."""
    if command := shlex.split(os.environ.get("CXX", "")):
        if not shutil.which(command[0]):
            raise BuildError(f"the C++ compiler that CXX names, {command[0]}, was not found")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler was found: c++, g++ and clang++ are not on PATH, and CXX is not set")


def run(command: list[str], what: str) -> str:
    """Run a command and return its output; raise BuildError with the compiler's first errors if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if "error" in line.lower()] or lines or [f"exit status {done.returncode}"]
        raise BuildError(f"{command[0]} failed {what}: " + " / ".join(said[:3]))
    return done.stdout


def build(output: Path = OUTPUT, *, sanitize: bool = False) -> Path:
    """Compile all instruction sets of the compiler's target; write the library to `output`, complete or not at all."""
    compiler = find_compiler()
    target = run([*compiler, "-dumpmachine"], "to name its target").strip()
    windows = "mingw" in target or "windows" in target
    # GCC for Windows does not align the stack for longer vectors (its bug 54412).
    sets = X86_64 if target.startswith("x86_64") and not windows else OTHER
    flags = [*FLAGS, *(SANITIZE if sanitize else FAST)]
    link = ["-shared"]
    if windows:
        flags.remove("-fPIC")  # the default there; an error for some compilers
        link.append("-static")
    elif "darwin" not in target and not sanitize:
        # The compiler names libstdc++, libm and libgcc; none is used, and a missing symbol must fail here.
        link += ["-static-libgcc", "-Wl,--as-needed", "-Wl,-z,defs"]

    def condition(features: tuple[str, ...]) -> str:
        return "&&".join(f'__builtin_cpu_supports("{feature}")' for feature in features) or "true"

    with tempfile.TemporaryDirectory(prefix="dcnv3_cpu_") as folder:

        def compile_source(source: str, name: str, options: list[str]) -> str:
            object_file = os.path.join(folder, f"{name}.o")
            command = [*compiler, *flags, *options, "-c", str(SOURCES / source), "-o", object_file]
            run(command, f"to compile {source} ({name})")
            return object_file

        listed = "".join(f"X({name},{condition(features)})" for name, _, features in sets)
        jobs = [
            ("kernels.cpp", name, [f"-DHFI_ISA={name}", f"-DVECTOR={size}", *(f"-m{feature}" for feature in features)])
            for name, size, features in sets
        ]
        jobs.append(("library.cpp", "library", [f"-DHFI_SETS={listed}", f'-DHFI_SOURCE_HASH="{source_hash()}"']))
        jobs.append(("operators.cpp", "operators", ["-fexceptions"]))  # those of PyTorch pass through
        jobs.append(("onnxruntime.cpp", "onnxruntime", []))
        with ThreadPoolExecutor(len(jobs)) as pool:
            objects = list(pool.map(lambda job: compile_source(*job), jobs))
        linked = os.path.join(folder, output.name)
        run([*compiler, *flags, *objects, *link, "-o", linked], "to link the library")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            beside = output.with_name(f"{output.name}.{os.getpid()}")  # a rename needs one file system
            shutil.copyfile(linked, beside)
            os.replace(beside, output)
        except OSError as error:
            raise BuildError(f"the library could not be written: {error}") from error
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the CPU library of DCNv3.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the library goes (default: %(default)s)")
    parser.add_argument("--sanitize", action="store_true", help="for tests: with address and undefined sanitizers")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        built = build(options.output, sanitize=options.sanitize)
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(f"{built}: {built.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
