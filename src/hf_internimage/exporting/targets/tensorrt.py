# SPDX-License-Identifier: MIT
"""ONNX files within the limits of TensorRT's parser (10.0 and later); ONNX Runtime compares their numbers.

Limits: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md, and the parser's function for DeformConv.
"""

from pathlib import Path
from typing import Any

import onnx

from ..errors import ExportError
from ..options import Options
from ..system import System
from . import onnx as standard

load = standard.load
_LATEST_OPSET = 20
# Operators that the parser does not have.
_MISSING = """
    AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Col2Im CenterCropPad
    Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear HammingWindow HannWindow ImageDecoder
    MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional
    OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch STFT SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence
    StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique
"""


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.onnx."""
    return standard.write(system, folder, options)


def describe(file: Path) -> dict[str, Any]:
    """Return the opset and the number of nodes.

    Raises:
        ExportError: if the file has something that TensorRT's parser refuses.
    """
    details = standard.describe(file)
    if details["opset"] > _LATEST_OPSET:
        raise ExportError(f"the file has opset {details['opset']}; TensorRT 10 knows {_LATEST_OPSET} at most.")
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    types |= {value.name: value.type.tensor_type.elem_type for value in values}
    if missing := sorted({node.op_type for node in graph.node} & set(_MISSING.split())):
        raise ExportError(f"the file has {', '.join(missing)}, which TensorRT's parser does not have.")
    for node in graph.node:
        if node.op_type == "DeformConv":
            _check_deform_conv(node, types)
    return details


def _check_deform_conv(node: Any, types: dict[str, int]) -> None:
    """Raise ExportError unless the node has all five inputs, of one dtype, and the same padding before and after."""
    if len(node.input) != 5 or not all(node.input):
        raise ExportError(f"{node.name} has no bias or no mask, which TensorRT's parser asks for.")
    kinds = {types.get(name, 0) for name in node.input}
    if kinds not in ({onnx.TensorProto.FLOAT}, {onnx.TensorProto.FLOAT16}):
        names = ", ".join(sorted(onnx.TensorProto.DataType.Name(kind) for kind in kinds))
        raise ExportError(f"{node.name} has inputs of {names}; TensorRT's parser asks for one of FLOAT and FLOAT16.")
    pads = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "pads"), [])
    if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
        raise ExportError(f"{node.name} has the padding {pads}; TensorRT's parser asks for the same before and after.")


__all__ = ["describe", "load", "write"]
