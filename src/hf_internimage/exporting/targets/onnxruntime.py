# SPDX-License-Identifier: MIT
"""Fast files for ONNX Runtime on CPUs, with operators of our own, whose library lies beside the file."""

import shutil
import sysconfig
from pathlib import Path
from typing import Any

from ...ops import native
from ..errors import ExportError
from ..onnx_program import export_onnx
from ..onnxruntime_fusion import fuse
from ..onnxruntime_operators import DOMAIN, TRANSLATIONS
from ..options import Options
from ..proof import Run
from ..system import System
from . import onnx

LIBRARY = f"libdcnv3-{sysconfig.get_platform()}{native.SUFFIX}"


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.onnx, and the library of its operators for this platform.

    Raises:
        ExportError: if the package was installed without its compiled library.
    """
    if reason := native.why_not():
        raise ExportError(f"the target onnxruntime needs the compiled library; hf_internimage {reason}.")
    program = export_onnx(system, options, opset=onnx.OPSET, translations=TRANSLATIONS)
    fuse(program)
    file = folder / "model.onnx"
    program.save(file)
    shutil.copyfile(native.PATH, folder / LIBRARY)
    return file


def load(file: Path) -> Run:
    """Return a function that runs the file in ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    return onnx.load(file, library=native.PATH)  # not the copy: Windows would not let its folder be renamed


def describe(file: Path) -> dict[str, Any]:
    """Return the opset, the number of nodes, and the name of the library.

    Raises:
        ExportError: if the file has operators that are neither ONNX's nor ours, or loops or sequences.
    """
    return {**onnx.describe(file, domain=DOMAIN), "library": LIBRARY}


__all__ = ["LIBRARY", "describe", "load", "write"]
