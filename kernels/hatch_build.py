# SPDX-License-Identifier: MIT
"""Add the CPU library and the CUDA sources to wheels, and the library to the sources of an editable install.

Without a compiler, installation still succeeds: the wheel is then a pure one, and the operator runs in PyTorch.
HF_INTERNIMAGE_BUILD_CPU=0 leaves the library out; =1 turns its absence into an error, for releases.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SWITCH = "HF_INTERNIMAGE_BUILD_CPU"
CUDA_SOURCES = ("nvrtc.cu", "dcnv3.cuh", "types.cuh")  # NVRTC compiles these on the user's machine


def load_build() -> ModuleType:
    """Import kernels/dcnv3/build.py by its path: hooks are not a package, and `build` is a common name."""
    path = Path(__file__).parent / "dcnv3" / "build.py"
    spec = importlib.util.spec_from_file_location("hf_internimage_dcnv3_build", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def platform() -> str:
    """Return the tag of this platform only; tags for many Linux systems need auditwheel."""
    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))


class CPULibraryHook(BuildHookInterface):
    """Build the library before a wheel is written."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        switch = os.environ.get(SWITCH, "")
        if switch not in ("", "0", "1"):
            raise ValueError(f"{SWITCH} must be 0 or 1, not {switch!r}")
        dcnv3 = load_build()
        editable = version == "editable"
        if editable:
            dcnv3.OUTPUT.unlink(missing_ok=True)  # better no library than one of other sources
        else:
            folder = Path(__file__).parent / "dcnv3" / "dcnv3_cuda"
            for name in CUDA_SOURCES:
                build_data["force_include"][str(folder / name)] = f"hf_internimage/ops/dcnv3_cuda/{name}"
        if switch == "0":
            return
        self.folder = tempfile.TemporaryDirectory(prefix="hf_internimage_")
        library = dcnv3.OUTPUT if editable else Path(self.folder.name) / dcnv3.NAME
        try:
            dcnv3.build(library)
            check_loads(library, dcnv3.BuildError)
        except dcnv3.BuildError as error:
            library.unlink(missing_ok=True)
            if switch == "1":
                raise
            self.app.display_warning(f"hf-internimage is built without its CPU library, PyTorch does its work: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform()}"
        if not editable:
            build_data["force_include"][str(library)] = f"hf_internimage/ops/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


def check_loads(library: Path, failure: type[Exception]) -> None:
    """Raise an error if the library does not load in a new process of this Python.

    A compiler for another machine would build such a library.
    """
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise failure(f"the compiled library does not load in this Python: {said[-1]}")
