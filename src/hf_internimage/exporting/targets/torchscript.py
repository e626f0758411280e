# SPDX-License-Identifier: MIT
"""TorchScript files, which PyTorch loads without this package, in Python and C++: DCNv3 is `embedding_bag`."""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import ExportError
from ..options import Options
from ..proof import Run, example_pixels
from ..system import System


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.pt, a trace.

    Raises:
        ExportError: if PyTorch cannot trace the model.
    """
    pixels = example_pixels(system, options)
    file = folder / "model.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # conditions on sizes: other sizes are compared afterwards
        try:
            torch.jit.trace(system, (pixels,), check_trace=False).save(file)
        except RuntimeError as error:
            raise ExportError(f"PyTorch cannot trace this model: {str(error).strip().splitlines()[-1]}") from error
    return file


def load(file: Path) -> Run:
    """Return a function that runs the file without gradients."""
    module = torch.jit.load(file)
    return torch.no_grad()(module)


def describe(file: Path) -> dict[str, Any]:
    """Return the version of PyTorch and the number of nodes.

    Raises:
        ExportError: if the file has operators that are not PyTorch's own.
    """
    kinds = Counter(tuple(node.kind().split("::")) for node in _nodes(torch.jit.load(file).inlined_graph))
    if foreign := sorted("::".join(kind) for kind in kinds if kind[0] not in ("aten", "prim")):
        raise ExportError(f"the file has operators that are not PyTorch's own: {', '.join(foreign)}.")
    return {"PyTorch": torch.__version__.partition("+")[0], "nodes": sum(kinds.values())}


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph or block, and of the blocks in them."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


__all__ = ["describe", "load", "write"]
