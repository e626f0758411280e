# SPDX-License-Identifier: MIT
"""ONNX files of standard operators: DCNv3 is DeformConv, from opset 19 on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from ..onnx_operators import TRANSLATIONS
from ..onnx_program import export_onnx
from ..options import Options
from ..proof import ExportError, Run
from ..system import System

_OPSET = 20
_FORBIDDEN = ("Loop", "Scan", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SplitToSequence")


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.onnx, with its weights beside it above 2 GB."""
    program = export_onnx(system, options, opset=_OPSET, translations=TRANSLATIONS)
    file = folder / "model.onnx"
    program.save(file)
    return file


def load(file: Path) -> Run:
    """Return a function that runs the file in ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: [torch.from_numpy(output) for output in session.run(None, {name: pixels.numpy()})]


def describe(file: Path) -> dict[str, Any]:
    """Return the opset and the number of nodes.

    Raises:
        ExportError: if the file has operators that are not ONNX's own, or loops or sequences.
    """
    model = onnx.load(file, load_external_data=False)
    nodes = list(_nodes(model.graph))
    foreign = {node.domain for node in nodes} | {function.domain for function in model.functions}
    if foreign - {"", "ai.onnx"}:
        raise ExportError(f"the file has operators of {', '.join(sorted(foreign - {'', 'ai.onnx'}))}.")
    kinds = Counter(node.op_type for node in nodes)
    if found := [kind for kind in _FORBIDDEN if kind in kinds]:
        raise ExportError(f"the file has {', '.join(found)}, which many runtimes refuse.")
    return {"opset": model.opset_import[0].version, "nodes": len(nodes)}


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


__all__ = ["describe", "load", "write"]
