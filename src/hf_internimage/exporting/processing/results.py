# SPDX-License-Identifier: MIT
"""What predictions make of a model's outputs for one image, as ONNX operators."""

from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from ...models.image_processing_internimage_detection import InternImageDetectionImageProcessor
from ...prediction.loading import CLASSIFICATION, DETECTION, SEGMENTATION, task_of
from ...prediction.results import NO_CLASS_8_BIT
from ..errors import ExportError
from .nodes import Nodes
from .resizing import shape

_BLOCK = 16  # classes whose maps have the size of the image at the same time
Results = dict[str, tuple[str, int, tuple[Any, ...]]]  # name -> name in the graph, type, shape


class Run(NamedTuple):
    """The model between the image and the results.

    Attributes:
        model: tells the task and the number of classes.
        processor: makes boxes of a detector's outputs.
        outputs: names of the model's outputs.
        image: name of the image, (H, W, 3).
        pixel_values: name of what the model takes, (1, 3, height, width).
    """

    model: Any
    processor: Any
    outputs: tuple[str, ...]
    image: str
    pixel_values: str


def check(model: Any, processor: Any, num_channels: int) -> None:
    """Raise ExportError for a model whose results files cannot have."""
    if num_channels != 3:
        raise ExportError(f"with_processing takes images of 3 channels, and the model {num_channels}.")
    if task_of(model) == DETECTION and not isinstance(processor, InternImageDetectionImageProcessor):
        raise ExportError(
            f"with_processing makes boxes as InternImageDetectionImageProcessor does, and this is a "
            f"{type(processor).__name__}; give image_processor, or leave with_processing out."
        )


def finish(op: Nodes, run: Run) -> Results:
    """Write the results of a model of any task."""
    write = {CLASSIFICATION: _scores, SEGMENTATION: _label_map, DETECTION: _detections}
    return write[task_of(run.model)](op, run)


def has_several_labels(model: Any) -> bool:
    """Return True for a classifier whose images have several labels each, as `prediction.tasks.Classifier` sees it."""
    return model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1


def map_type(num_labels: int) -> int:
    """Return the type of a label map: 8 bits, or 16 for more than 255 classes, as predictions have."""
    return TensorProto.UINT8 if num_labels <= NO_CLASS_8_BIT else TensorProto.UINT16


def _scores(op: Nodes, run: Run) -> Results:
    scores = op.Sigmoid("logits") if has_several_labels(run.model) else op.Softmax("logits", axis=1)
    return {"scores": (op.Squeeze(scores, np.array([0])), TensorProto.FLOAT, (run.model.config.num_labels,))}


def _label_map(op: Nodes, run: Run) -> Results:
    """Write `models.semantic_maps.label_map` of the scores, resized to the network's input and then to the image."""
    scores = "logits"
    if "logits" not in run.outputs:
        classes = op.Softmax("class_queries_logits", axis=-1)
        classes = op.Slice(classes, np.array([0]), np.array([-1]), np.array([2]))
        masks = op.Sigmoid("masks_queries_logits")  # (1, queries, height, width)
        flat = op.MatMul(op.Transpose(classes, perm=[0, 2, 1]), op.Reshape(masks, np.array([0, 0, -1])))
        scores = op.Reshape(flat, op.Concat(np.array([1, -1]), op.Shape(masks, start=2), axis=0))
    sizes = (op.Shape(run.pixel_values, start=2), op.Shape(run.image, end=2))
    count = run.model.config.num_labels
    best = label = None
    for first in range(0, count, _BLOCK):
        block = op.Slice(scores, np.array([first]), np.array([min(first + _BLOCK, count)]), np.array([1]))
        for size in sizes:
            target = op.Concat(op.Shape(block, end=2), size, axis=0)
            block = op.Resize(block, None, None, target, mode="linear", coordinate_transformation_mode="half_pixel")
        index = op.Add(op.ArgMax(block, axis=1, keepdims=0), np.int64(first))
        value = op.ReduceMax(block, np.array([1]), keepdims=0)
        if best is None:
            best, label = value, index
        else:
            label = op.Where(op.Greater(value, best), index, label)
            best = op.Max(value, best)
        # The same size as before, of the result so far: runtimes then compute, and free, one block after the other.
        sizes = (sizes[0], op.Shape(label, start=1))
    kind = map_type(count)
    name = op.Cast(op.Squeeze(label, np.array([0])), to=kind)
    return {"label_map": (name, kind, ("height", "width"))}


def _detections(op: Nodes, run: Run) -> Results:
    """Write `post_process_object_detection` without a threshold."""
    count = run.model.config.num_labels
    centres, sides = op.Split("pred_boxes", axis=2, num_outputs=2, outputs=2)
    halves = op.Div(sides, np.float32(2))
    boxes = op.Concat(op.Sub(centres, halves), op.Add(centres, halves), axis=2)
    boxes = op.Clip(boxes, np.float32(0), np.float32(1))
    height, width = (op.Unsqueeze(side, np.array([0])) for side in shape(op, run.image, 0))
    size = op.Cast(op.Concat(width, height, width, height, axis=0), to=TensorProto.FLOAT)
    boxes = op.Squeeze(op.Mul(boxes, size), np.array([0]))
    probabilities = op.Reshape(op.Sigmoid("logits"), np.array([-1]))
    number = op.Min(op.Shape(probabilities), np.array([run.processor.top_k]))
    scores, chosen = op.TopK(probabilities, number, outputs=2)
    return {
        "scores": (scores, TensorProto.FLOAT, ("objects",)),
        "labels": (op.Mod(chosen, np.int64(count)), TensorProto.INT64, ("objects",)),
        "boxes": (op.Gather(boxes, op.Div(chosen, np.int64(count)), axis=0), TensorProto.FLOAT, ("objects", 4)),
    }


__all__ = ["Run", "check", "finish", "has_several_labels", "map_type"]
