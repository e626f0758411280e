# SPDX-License-Identifier: MIT
"""Make ONNX programs of models with PyTorch's exporter."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .errors import STATIC_ADVICE, ExportError
from .options import Options
from .proof import example_mask, example_pixels
from .system import PIXEL_MASK, PIXEL_VALUES, System

_STACK_TRACE = "pkg.torch.onnx.stack_trace"  # of each node: names folders of this machine


def export_onnx(
    system: System, options: Options, *, opset: int, translations: Mapping[Callable[..., Any], Callable[..., Any]]
) -> Any:
    """Return the `torch.onnx.ONNXProgram` of a system.

    Args:
        system: with `output_names`.
        options: `image_size`, `dynamic` and `masked`.
        opset: version of ONNX's operators.
        translations: PyTorch's operators -> functions that write them as ONNX's.

    Raises:
        ExportError: if PyTorch cannot export the model; above all with dynamic sizes.
    """
    pixels = example_pixels(system, options)
    inputs = (pixels, example_mask(pixels)) if options.masked else (pixels,)
    sizes = ({0: "batch", 2: "height", 3: "width"}, {0: "batch", 1: "height", 2: "width"})
    try:
        with quiet_exporter(), torch.no_grad():
            program: Any = torch.onnx.export(
                system,
                inputs,
                input_names=[PIXEL_VALUES, PIXEL_MASK][: len(inputs)],
                output_names=list(system.output_names),
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=sizes[: len(inputs)] if options.dynamic else None,
                custom_translation_table=dict(translations),
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(failure(error, options.dynamic)) from error
    for graph in (program.model.graph, *program.model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.pop(_STACK_TRACE, None)
    return program


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's warnings about PyTorch's own future, and about a missing torchvision, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def failure(error: BaseException, dynamic: bool) -> str:
    """Return one line that says why PyTorch could not export, and what to do."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    advice = STATIC_ADVICE if dynamic else ""
    return f"PyTorch cannot export this model: {lines[0].strip().rstrip('.')}.{advice}"


__all__ = ["export_onnx", "failure", "quiet_exporter"]
