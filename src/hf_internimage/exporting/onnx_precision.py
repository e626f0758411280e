# SPDX-License-Identifier: MIT
"""Change the precision of ONNX files: float16, and 8-bit weights and products."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

# ONNX Runtime's kernels for the CPU know them in float32 only.
_FLOAT32_OPERATORS = ["DeformConv"]
_EIGHT_BIT_OPERATORS = ["MatMul", "Gemm"]


def to_half(file: Path) -> None:
    """Make the weights and sums of a file float16; inputs and outputs stay float32, DeformConv as well."""
    model = onnx.load(file)
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=_FLOAT32_OPERATORS)
    OnnxModel(half).topological_sort()
    onnx.save(half, file)


def to_int8(file: Path, pixels: Sequence[torch.Tensor] = ()) -> Path:
    """Make the weights and products of linear layers 8 bits; return the file.

    Args:
        file: is replaced.
        pixels: images (1, C, H, W) that tell the ranges of the layers' inputs; without any, the file computes the range
            of each input when it runs.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch, _quiet():
        result = Path(scratch) / file.name
        # On processors without VNNI, products of int8 weights of full range overflow in 16 bits.
        if pixels:
            quantize_static(
                file,
                result,
                _Reader(pixels),
                quant_format=QuantFormat.QDQ,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                op_types_to_quantize=_EIGHT_BIT_OPERATORS,
            )
        else:
            quantize_dynamic(file, result, weight_type=QuantType.QUInt8, op_types_to_quantize=_EIGHT_BIT_OPERATORS)
        result.replace(file)
    return file


class _Reader:
    """What ONNX Runtime reads calibration images from."""

    def __init__(self, pixels: Sequence[torch.Tensor]) -> None:
        self._left = iter(pixels)

    def get_next(self) -> dict[str, Any] | None:
        """Return the inputs of the next run, None after the last."""
        pixels = next(self._left, None)
        return None if pixels is None else {"pixel_values": pixels.numpy()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the advice to prepare the file first, which the exporter has done, off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


__all__ = ["to_half", "to_int8"]
