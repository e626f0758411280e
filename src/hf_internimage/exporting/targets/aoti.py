# SPDX-License-Identifier: MIT
"""AOTInductor packages: compiled code that PyTorch's C++ library runs, without Python and without this package."""

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import _inductor, nn

from ...ops.dcnv3 import by_embedding_bag
from ..errors import ExportError
from ..onnx_program import failure
from ..options import Options
from ..proof import Run, example_pixels
from ..system import System

_SETTINGS = {
    "cpp.dynamic_threads": True,  # as many threads as the process that runs the file has, not this one
    "aot_inductor.check_lowerbound": False,  # the compiler assumes that batches have two images or more; it need not
}


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.pt2, compiled with the C++ compiler of this machine for its processor.

    Raises:
        ExportError: if PyTorch cannot export or compile the model.
    """
    pixels = example_pixels(system, options)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _Copies(system), (pixels,), dynamic_shapes=(free,) if options.dynamic else None
            )
            program = program.run_decompositions(_decompositions())
            file = _inductor.aoti_compile_and_package(
                program, package_path=str(folder / "model.pt2"), inductor_configs=_SETTINGS
            )
    except Exception as error:  # exporter and compiler raise many kinds
        raise ExportError(failure(error, options.dynamic)) from error
    kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if foreign := sorted(kind for kind in kinds if "hf_internimage" in kind):
        raise ExportError(f"the file has operators that are not PyTorch's own: {', '.join(foreign)}.")
    return Path(file)


def load(file: Path) -> Run:
    """Return a function that runs the file."""
    return torch.no_grad()(_inductor.aoti_load_package(str(file)))


def describe(file: Path) -> dict[str, Any]:
    """Return the version of PyTorch and the processor that the file is for."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("wrapper_metadata.json")]
        metadata = json.loads(archive.read(names[0]))
    processor = f"{metadata.get('AOTI_MACHINE', '')} {metadata.get('AOTI_CPU_ISA', '')}".strip()
    return {"PyTorch": torch.__version__.partition("+")[0], "processor": processor}


class _Copies(nn.Module):
    """Return contiguous copies: PyTorch 2.13 cannot compile permuted maps of dynamic height and width as results."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(result.clone(memory_format=torch.contiguous_format) for result in self.system(pixel_values))


def _decompositions() -> dict[Any, Any]:
    """Return what replaces operators of this package, and those that PyTorch cannot compile."""
    operator = torch.ops.hf_internimage.dcnv3
    return {
        operator.default: by_embedding_bag,
        operator.backend: by_embedding_bag,
        torch.ops.aten.conv2d.default: _conv2d,
    }


def _conv2d(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> torch.Tensor:
    """Convolve a contiguous copy: PyTorch 2.13 cannot compile one of a permuted view of dynamic height and width."""
    copy = pixels.clone(memory_format=torch.contiguous_format)
    return torch.ops.aten.convolution.default(copy, weight, bias, stride, padding, dilation, False, (0, 0), groups)


__all__ = ["describe", "load", "write"]
