# SPDX-License-Identifier: MIT
"""Build the CPU library for arm64 and run the tests of its kernels, with each call going to an emulated processor."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.golden_data import load_module
from support.kernel_tests import run_kernel_tests
from support.paths import ROOT

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = "/usr/aarch64-linux-gnu"  # where the emulated program finds its C library
REMOTE = Path(__file__).with_name("remote.cpp")


def main():
    if missing := [tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)]:
        return f"make check-arm64 needs {' and '.join(missing)}: apt-get install g++-aarch64-linux-gnu qemu-user"
    build = load_module(ROOT / "kernels" / "dcnv3" / "build.py")
    flags = [*build.FLAGS, "-O1", f"-I{build.SOURCES}", str(REMOTE)]
    with tempfile.TemporaryDirectory() as folder:
        proxy, library, server = (Path(folder) / name for name in ("proxy.so", "arm64.so", "server"))
        operators = [str(build.SOURCES / "operators.cpp"), "-fexceptions", "-shared"]
        build.run([*build.find_compiler(), *flags, *operators, "-o", str(proxy)], "to compile remote.cpp")
        os.environ["CXX"] = COMPILER
        build.build(library)
        link = ["-DHFI_SERVER", str(library), f"-Wl,-rpath,{folder}", "-o", str(server)]
        build.run([COMPILER, *flags, *link], "to compile remote.cpp")
        command = [EMULATOR, "-L", SYSTEM, str(server)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            ctypes.CDLL(str(proxy)).connect_pipes(process.stdin.fileno(), process.stdout.fileno())
            return run_kernel_tests(proxy)


if __name__ == "__main__":
    sys.exit(main())
