# SPDX-License-Identifier: MIT
"""OpenVINO files of standard operators: DCNv3 is Gather and MatMul, which OpenVINO runs without an extension."""

import tempfile
from pathlib import Path
from typing import Any

import openvino
import torch

from ..errors import ExportError
from ..onnx_program import export_onnx
from ..options import Options
from ..proof import Run
from ..system import System

_OPSET = 18
_LOOPS = ("Loop", "TensorIterator")


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.xml with its weights, model.bin, which half precision makes float16."""
    program = export_onnx(system, options, opset=_OPSET, translations={})
    file = folder / "model.xml"
    with tempfile.TemporaryDirectory() as scratch:
        program.save(Path(scratch) / "model.onnx")
        # `openvino.convert_model` writes the same operators, and reports each call to a server.
        model = openvino.Core().read_model(Path(scratch) / "model.onnx")
        openvino.save_model(model, file, compress_to_fp16=options.precision == "half")
    return file


def load(file: Path) -> Run:
    """Return a function that runs the file in OpenVINO on the CPU in float32, with as many threads as PyTorch has."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda pixels: [torch.from_numpy(output) for output in compiled(pixels.numpy()).to_tuple()]


def describe(file: Path) -> dict[str, Any]:
    """Return the version of OpenVINO and the number of operators.

    Raises:
        ExportError: if the file has operators that are not OpenVINO's own, or loops.
    """
    operators = openvino.Core().read_model(file).get_ops()
    versions = {kind.name: str(kind.version_id) for kind in (operator.get_type_info() for operator in operators)}
    if foreign := sorted(name for name, version in versions.items() if not version.startswith("opset")):
        raise ExportError(f"the file has operators that are not OpenVINO's own: {', '.join(foreign)}.")
    if found := [name for name in _LOOPS if name in versions]:
        raise ExportError(f"the file has {', '.join(found)}, which takes one turn after the other.")
    return {"OpenVINO": openvino.__version__.partition("-")[0], "operators": len(operators)}


__all__ = ["describe", "load", "write"]
