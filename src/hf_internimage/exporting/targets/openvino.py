# SPDX-License-Identifier: MIT
"""OpenVINO files of standard operators: DCNv3 is Gather and MatMul, which OpenVINO runs without an extension."""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Sequence
from importlib import import_module
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
    """Write model.xml with its weights, model.bin, which half precision makes float16.

    Raises:
        ImportError: for 8 bits, if NNCF is not installed.
    """
    if options.precision == "int8":
        _import_nncf()  # before the work
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


def to_int8(file: Path, pixels: Sequence[torch.Tensor] = ()) -> Path:
    """Make the weights of linear layers 8 bits, with NNCF; with images their products, too. Return the file.

    No other operators: computed in 8 bits, the sampling positions of DCNv3 would be wrong, and NNCF gives the inputs of
    depth-wise convolutions, which lie in memory as (N, H, W, C), a range for each of the H rows of one size.

    Args:
        file: is replaced.
        pixels: images (1, C, H, W) that tell the ranges of the layers' inputs.
    """
    nncf = _import_nncf()
    model = openvino.Core().read_model(file)
    others = [
        operator.get_friendly_name()
        for operator in model.get_ops()
        if operator.get_type_name() != "Constant" and not _is_linear(operator)
    ]
    scope = nncf.IgnoredScope(names=others, validate=False)
    with contextlib.redirect_stdout(io.StringIO()):  # progress
        if pixels:
            # 7 bits: products of more overflow on processors without VNNI.
            parameters = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
            model = nncf.quantize(
                model,
                nncf.Dataset([image.numpy() for image in pixels]),
                subset_size=len(pixels),
                ignored_scope=scope,
                advanced_parameters=parameters,
            )
        else:
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        result = Path(scratch) / file.name
        openvino.save_model(model, result, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            result.with_suffix(suffix).replace(file.with_suffix(suffix))
    return file


def _import_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # read by the first import; else NNCF reports each call to a server
    nncf = import_module("nncf")
    # nncf.set_log_level would set the levels of others' handlers, too
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def _is_linear(operator: Any) -> bool:
    """Return True for a product with weights."""
    kinds = {value.get_node().get_type_name() for value in operator.input_values()}
    return operator.get_type_name() == "MatMul" and "Constant" in kinds


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


__all__ = ["describe", "load", "to_int8", "write"]
