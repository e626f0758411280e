# SPDX-License-Identifier: MIT
"""ONNX files of standard operators: DCNv3 is DeformConv, from opset 19 on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from ..errors import ExportError
from ..onnx_operators import TRANSLATIONS
from ..onnx_precision import to_half, to_int8
from ..onnx_program import export_onnx
from ..options import Options
from ..proof import Run
from ..system import System

OPSET = 20
_FORBIDDEN = ("Loop", "Scan", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SplitToSequence")


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.onnx, with its weights beside it above 2 GB."""
    program = export_onnx(system, options, opset=OPSET, translations=TRANSLATIONS)
    file = folder / "model.onnx"
    program.save(file)
    if options.precision == "half":
        to_half(file)
    return file


def load(file: Path, library: Path | None = None) -> Run:
    """Return a function that runs the file in ONNX Runtime on the CPU, with as many threads as PyTorch has.

    Args:
        file: model.onnx.
        library: of operators that are not ONNX's own.

    Raises:
        ExportError: if this version of ONNX Runtime lacks an operator.
    """
    settings = onnxruntime.SessionOptions()
    if library is not None:
        settings.register_custom_ops_library(str(library))
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # PyTorch, in turns with it, needs the cores
    try:
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    except errors.NotImplemented as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} lacks an operator of the file; DeformConv on CPUs needs version "
            "1.25, and the target onnxruntime 1.20."
        ) from error
    name = session.get_inputs()[0].name
    return lambda pixels: [torch.from_numpy(output) for output in session.run(None, {name: pixels.numpy()})]


def describe(file: Path, domain: str = "") -> dict[str, Any]:
    """Return the opset and the number of nodes.

    Args:
        file: model.onnx.
        domain: of operators that the file may have beside ONNX's own.

    Raises:
        ExportError: if the file has operators of other domains, or loops or sequences.
    """
    model = onnx.load(file, load_external_data=False)
    nodes = list(_nodes(model.graph))
    foreign = {node.domain for node in nodes} | {function.domain for function in model.functions}
    if foreign := foreign - {"", "ai.onnx", domain}:
        raise ExportError(f"the file has operators of {', '.join(sorted(foreign))}.")
    kinds = Counter(node.op_type for node in nodes)
    if found := [kind for kind in _FORBIDDEN if kind in kinds]:
        raise ExportError(f"the file has {', '.join(found)}, which many runtimes refuse.")
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    return {"opset": opsets[""], "nodes": len(nodes)}


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


__all__ = ["OPSET", "describe", "load", "to_int8", "write"]
