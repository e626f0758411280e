# SPDX-License-Identifier: MIT
"""Write nodes of an ONNX graph as calls: `nodes.Add(a, b)` returns the name of the sum."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Nodes:
    """Nodes and constants to add to a graph; each operator of ONNX is a method.

    A method takes names of tensors, arrays and numpy scalars (which become constants), and None for an input that is
    left out; attributes by their names. It returns the name of the result, or of several with `outputs`, their number.

    Args:
        prefix: of all names, which no other name in the graph has.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names = 0

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[0].isupper():
            raise AttributeError(operator)

        def write(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            names = [self._name() for _ in range(outputs)]
            node = helper.make_node(operator, [self._input(one) for one in inputs], names, names[0], **attributes)
            self.nodes.append(node)
            return names[0] if outputs == 1 else names

        return write

    def rename(self, old: str, new: str) -> None:
        """Give a result another name in all nodes so far."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    def _input(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        name = self._name()
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _name(self) -> str:
        self._names += 1
        return f"{self.prefix}/{self._names}"


__all__ = ["Nodes"]
