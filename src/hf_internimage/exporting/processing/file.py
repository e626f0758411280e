# SPDX-License-Identifier: MIT
"""Add pre- and post-processing to an ONNX file of a model: an image goes in, and its results come out."""

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from ..system import PIXEL_MASK, PIXEL_VALUES, QUERY_POSITIONS, System
from .images import prepare
from .nodes import Nodes
from .results import Run, finish

IMAGE = "image"


def add_processing(file: Path, system: System, processor: Any) -> tuple[str, ...]:
    """Let a file take `image` (H, W, 3) uint8 in place of pixel values; return the names of its results.

    Args:
        file: model.onnx with the inputs and outputs of `system`; is replaced.
        system: the model.
        processor: checked by `images.supported`.
    """
    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    before, after = Nodes("before"), Nodes("after")
    prepared = prepare(before, IMAGE, processor)
    before.rename(prepared.pixel_values, PIXEL_VALUES)
    if prepared.pixel_mask is not None:
        before.rename(prepared.pixel_mask, PIXEL_MASK)
    results = finish(after, Run(system.model, processor, system.output_names, IMAGE, PIXEL_VALUES))
    kept = [output for output in graph.output if output.name == QUERY_POSITIONS]
    for name, (written, _, _) in results.items():
        after.rename(written, name)
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, (_, kind, shape) in results.items()]

    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ("height", "width", 3)))
    graph.output.extend([*outputs, *kept])
    onnx.save(model, file)
    return tuple(output.name for output in graph.output)


__all__ = ["IMAGE", "add_processing"]
