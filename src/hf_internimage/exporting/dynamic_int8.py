# SPDX-License-Identifier: MIT
"""ONNX files with matrices of 8 bits, whose inputs are quantised while they run: no calibration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from .errors import ExportError
from .proof import LEAST_COSINE, Run
from .system import random_pixels

_IMAGES = 4


def quantise(file: Path, output: Path) -> None:
    """Write a copy of an ONNX file with the matrices of its linear layers as uint8.

    Weights are uint8, not int8: processors without VNNI sum products of uint8 and int8 in 16 bits, which overflow.
    """
    quant_pre_process(file, output, skip_optimization=True, skip_symbolic_shape=True)
    quantize_dynamic(output, output, op_types_to_quantize=["MatMul"], weight_type=QuantType.QUInt8)


def agreement(exact: Run, quantised: Run, shape: Sequence[int]) -> dict[str, Any]:
    """Compare the logits of a classifier's two files on random images of shape (1, C, H, W).

    Raises:
        ExportError: if the least cosine is below `LEAST_COSINE`.
    """
    images = random_pixels((_IMAGES, *shape[1:])).split(1)
    expected, actual = (torch.cat([run(image)[0] for image in images]).double() for run in (exact, quantised))
    cosine = float(torch.cosine_similarity(expected, actual, dim=-1).min())
    if not cosine >= LEAST_COSINE:  # NaN compares false
        raise ExportError(
            f"the logits of the int8 file have a cosine of {cosine:.4f} to those of the float file, expected at least "
            f"{LEAST_COSINE}."
        )
    same = int((expected.argmax(-1) == actual.argmax(-1)).sum())
    return {
        "least cosine of logits": round(cosine, 6),
        "greatest change of a score": float(f"{(expected.softmax(-1) - actual.softmax(-1)).abs().max():.2g}"),
        "same first class": f"{same} of {_IMAGES}",
    }


__all__ = ["agreement", "quantise"]
