# SPDX-License-Identifier: MIT
"""What each task makes of a batch of images: inputs of the model, and its outputs as predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..models.image_processing_internimage_detection import InternImageDetectionImageProcessor
from ..models.precision import at_least_float32
from ..segmentation import SemanticSegmenter
from .loading import is_mask_rcnn
from .results import NO_CLASS_8_BIT, NO_CLASS_16_BIT, Classification, Detection, Prediction, Segment, Segmentation
from .sources import Source

SEMANTIC, INSTANCE, PANOPTIC = SEGMENTATIONS = ("semantic", "instance", "panoptic")
PredictBatch = Callable[[Sequence[Source]], list[Prediction]]  # of sources that have images


def label_names(model: PreTrainedModel) -> list[str]:
    """Return the names of a model's classes by their numbers."""
    names: Any = model.config.id2label
    return [str(names[index]) for index in range(model.config.num_labels or 0)]


@dataclass
class Classifier:
    """Classify batches of images.

    Args:
        top_k: most classes of an image.
        threshold: classes of a lower probability are left out.
    """

    model: PreTrainedModel
    image_processor: Any
    top_k: int
    threshold: float

    def __call__(self, sources: Sequence[Source]) -> list[Prediction]:
        batch = self.image_processor([source.image for source in sources], return_tensors="pt")
        logits = at_least_float32(self.model(pixel_values=_inputs(batch, self.model)["pixel_values"]).logits)
        has_several_labels = self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        probabilities = logits.sigmoid() if has_several_labels else logits.softmax(dim=1)
        scores, classes = probabilities.topk(min(self.top_k, logits.shape[1]))
        names = label_names(self.model)
        results: list[Prediction] = []
        for source, row, indices in zip(sources, scores.tolist(), classes.tolist(), strict=True):
            kept = [(names[index], score) for score, index in zip(row, indices, strict=True) if score >= self.threshold]
            results.append(
                Classification(source.path, [name for name, _ in kept], [score for _, score in kept], source.frame)
            )
        return results


@dataclass
class SemanticPredictor:
    """Give each pixel of an image a class, one image after the other: each has a size of its own."""

    segmenter: SemanticSegmenter

    def __call__(self, sources: Sequence[Source]) -> list[Prediction]:
        names = label_names(self.segmenter.model)
        return [
            Segmentation(source.path, _as_map(self.segmenter(source.image), len(names)), names, frame=source.frame)
            for source in sources
        ]


@dataclass
class SegmentPredictor:
    """Find the segments of an image by the queries of a model such as Mask2Former, one image after the other.

    Args:
        kind: "instance" for objects, which may overlap, or "panoptic" for objects and regions, which do not.
        top_k: most objects of an image; None for all.
        threshold: least score of a segment.
    """

    model: PreTrainedModel
    image_processor: Any
    kind: str
    top_k: int | None
    threshold: float

    def __post_init__(self) -> None:
        if not hasattr(self.image_processor, f"post_process_{self.kind}_segmentation"):
            raise ValueError(
                f"segmentation is {self.kind!r}, which {type(self.image_processor).__name__} cannot make of the "
                "model's outputs; leave it out, or give the image processor that the model was trained with."
            )

    def __call__(self, sources: Sequence[Source]) -> list[Prediction]:
        return [self._one(source) for source in sources]

    def _one(self, source: Source) -> Prediction:
        image: Any = source.image
        size = (image.height, image.width)
        outputs = self.model(**_inputs(self.image_processor(image, return_tensors="pt"), self.model))
        options: dict[str, Any] = {"threshold": self.threshold, "target_sizes": [size]}
        names = label_names(self.model)
        if self.kind == INSTANCE:
            (result,) = self.image_processor.post_process_instance_segmentation(
                outputs, return_binary_maps=True, **options
            )
            return self._detection(source, size, result, names)
        (result,) = self.image_processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set(), **options)
        segment_map = np.zeros(size, np.int32)
        class_map = np.full(size, -1)
        segments = []
        ids = result["segmentation"].cpu().numpy()
        for number, segment in enumerate(result["segments_info"], start=1):
            segment_map[ids == segment["id"]] = number
            class_map[ids == segment["id"]] = segment["label_id"]
            segments.append(Segment(number, names[segment["label_id"]], segment["score"]))
        return Segmentation(source.path, _as_map(class_map, len(names)), names, segment_map, segments, source.frame)

    def _detection(self, source: Source, size: tuple[int, int], result: Any, names: Sequence[str]) -> Detection:
        segments = result["segments_info"]
        order = sorted(range(len(segments)), key=lambda index: -segments[index]["score"])[: self.top_k]
        masks = np.zeros((0, *size), bool)
        if order:
            masks = result["segmentation"].cpu().numpy().astype(bool)[order]
        classes = np.array([segments[index]["label_id"] for index in order], np.int64)
        return Detection(
            source.path,
            boxes=np.array([_bounds(mask) for mask in masks], np.float32).reshape(-1, 4),
            scores=np.array([segments[index]["score"] for index in order], np.float32),
            labels=[names[index] for index in classes],
            masks=masks,
            class_indices=classes,
            size=size,
            frame=source.frame,
        )


@dataclass
class Detector:
    """Detect objects in batches of images.

    Args:
        top_k: most objects of an image; None for the image processor's number.
        threshold: least score of an object.
    """

    model: PreTrainedModel
    image_processor: Any
    top_k: int | None
    threshold: float

    def __call__(self, sources: Sequence[Source]) -> list[Prediction]:
        processor, fixed = self.image_processor, dict(getattr(self.image_processor, "size", None) or {})
        if not isinstance(processor, InternImageDetectionImageProcessor) and not fixed.get("height"):
            # The image processors of the DETR family pad a batch, and then have boxes relative to the padded images.
            return [self._batch([source])[0] for source in sources]
        return self._batch(sources)

    def _batch(self, sources: Sequence[Source]) -> list[Prediction]:
        images: list[Any] = [source.image for source in sources]
        outputs = self.model(**_inputs(self.image_processor(images, return_tensors="pt"), self.model))
        sizes = [(image.height, image.width) for image in images]
        options: dict[str, Any] = {"threshold": self.threshold, "target_sizes": sizes}
        if is_mask_rcnn(self.model):
            from ..models.mask_rcnn import post_process_instance_segmentation

            results = post_process_instance_segmentation(outputs, **options)
        else:
            if self.top_k is not None and hasattr(self.image_processor, "top_k"):
                options["top_k"] = self.top_k
            results = self.image_processor.post_process_object_detection(outputs, **options)
        names = label_names(self.model)
        return [self._detection(*one, names) for one in zip(sources, sizes, results, strict=True)]

    def _detection(self, source: Source, size: tuple[int, int], result: Any, names: Sequence[str]) -> Detection:
        order = result["scores"].argsort(descending=True, stable=True)[: self.top_k]
        scores, classes, boxes = (result[key][order].cpu().numpy() for key in ("scores", "labels", "boxes"))
        masks = result["masks"][order].cpu().numpy() if "masks" in result else None
        height, width = size
        return Detection(
            source.path,
            boxes=boxes.clip(0, (width, height, width, height)).astype(np.float32),
            scores=scores.astype(np.float32),
            labels=[names[index] for index in classes],
            masks=masks,
            class_indices=classes.astype(np.int64),
            size=size,
            frame=source.frame,
        )


def _inputs(batch: Any, model: PreTrainedModel) -> dict[str, Any]:
    """Return the tensors of a batch on the model's device, and pixels in its dtype."""
    inputs = {"pixel_values": batch["pixel_values"].to(model.device, model.dtype)}
    if "pixel_mask" in batch:
        inputs["pixel_mask"] = batch["pixel_mask"].to(model.device)
    return inputs


def _as_map(classes: Any, count: int) -> np.ndarray:
    """Return class numbers (H, W) as 8 bits, or as 16 bits for more than 255 classes; -1 becomes no class."""
    values = classes.cpu().numpy() if isinstance(classes, torch.Tensor) else classes
    dtype, no_class = (np.uint8, NO_CLASS_8_BIT) if count <= NO_CLASS_8_BIT else (np.uint16, NO_CLASS_16_BIT)
    return np.where(values < 0, no_class, values).astype(dtype)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels of a mask (H, W), of which there is at least one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


__all__ = [
    "INSTANCE",
    "PANOPTIC",
    "SEGMENTATIONS",
    "SEMANTIC",
    "Classifier",
    "Detector",
    "PredictBatch",
    "SegmentPredictor",
    "SemanticPredictor",
    "label_names",
]
