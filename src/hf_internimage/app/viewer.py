# SPDX-License-Identifier: MIT
"""What the application computes, without the interface: predictions and pictures of one model."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from transformers import ConvNextConfig, ConvNextModel

from .. import visualize
from ..devices import find_device
from ..ops.dcnv3 import backend_for
from ..prediction import Classification, Detection, Prediction, Predictor, Segmentation, loading
from ..prediction.drawing import blend, draw_objects
from ..prediction.sources import Source, read_sources
from ..visualize.blocks import convolutions, find_stage, find_trunk

MAX_PIXELS = 40_000_000  # of an uploaded image
_LEAST_SCORE = 0.05  # objects that are computed, so that the slider can show more of them
_FIELD_SIDE = 224  # pixels of the image for receptive fields


class Viewer:
    """One model; calls from several threads take turns.

    Attributes:
        predictor: of the model.
        depths: number of blocks of each stage.
        groups: number of groups of each stage.
    """

    def __init__(self, model: str, *, device: str | None = None, revision: str | None = None) -> None:
        self.name = model
        loaded = loading.load(model, revision=revision)
        threshold = _LEAST_SCORE if loading.task_of(loaded) == loading.DETECTION else None
        self.predictor = Predictor(loaded, device=find_device(device), threshold=threshold, max_image_pixels=MAX_PIXELS)
        trunk = find_trunk(self.predictor.model)
        stages = [convolutions(find_stage(trunk, stage + 1)) for stage in range(len(trunk.levels))]
        self.depths = [len(stage) for stage in stages]
        self.groups = [stage[0].groups for stage in stages]
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """One line about the model and where it runs."""
        model = self.predictor.model
        device, dtype = model.device.type, str(model.dtype).removeprefix("torch.")
        return (
            f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, "
            f"{len(self.predictor.label_names):,} classes, on {device} in {dtype}; DCNv3 by backend "
            f"{backend_for(device, dtype)}"
        )

    def predict(self, path: str) -> tuple[Image.Image, Prediction, float]:
        """Return the image, its prediction, and the milliseconds it took.

        Raises:
            ValueError: for a file that cannot be used.
        """
        start = time.perf_counter()
        source, prediction = self.predict_file(path)[0]
        milliseconds = 1000 * (time.perf_counter() - start)
        if source.image is None or prediction is None:
            raise ValueError(source.problem)
        return source.image, prediction, milliseconds

    def predict_file(self, path: str) -> list[tuple[Source, Prediction | None]]:
        """Predict a file, by its name alone: the folder of uploaded files is nobody's business."""
        name = Path(path).name
        with self._lock:
            results = list(self.predictor(path))
        return [
            (
                replace(source, path=name, problem=source.problem and source.problem.replace(path, name)),
                prediction and replace(prediction, path=name),
            )
            for source, prediction in results
        ]

    def draw(self, image: Image.Image, prediction: Prediction, threshold: float) -> Image.Image:
        """Draw label map or objects of at least `threshold` on the image; a classified image stays as it is."""
        if isinstance(prediction, Segmentation):
            return Image.fromarray(blend(image, prediction.label_map, self.predictor.label_names))
        if isinstance(prediction, Detection):
            return draw_objects(image, above(prediction, threshold), len(self.predictor.label_names))
        return image

    def shares(self, prediction: Prediction, threshold: float) -> dict[str, float]:
        """Return class -> probability, share of the pixels, or best score of an object; the greatest first."""
        if isinstance(prediction, Classification):
            return dict(zip(prediction.labels, prediction.scores, strict=True))
        if isinstance(prediction, Segmentation):
            numbers, counts = np.unique(prediction.label_map, return_counts=True)
            order = np.argsort(-counts)
            names = prediction.label_names
            pairs = [(int(numbers[i]), counts[i] / counts.sum()) for i in order]
            return {names[number]: float(share) for number, share in pairs if number < len(names)}
        kept = above(prediction, threshold)
        best: dict[str, float] = {}
        for label, score in zip(kept.labels, kept.scores.tolist(), strict=True):
            best[label] = max(score, best.get(label, 0.0))
        return best

    def model_view(self, path: str) -> Image.Image:
        """Return the image as the model sees it: resized and cropped by its image processor."""
        return Image.fromarray(np.round(255 * self._shown(self._pixels(path))).astype(np.uint8))

    def sampling(
        self, path: str, at: tuple[int, int], stage: int, block: int, layers: int, group: int | None
    ) -> Figure:
        """Draw where a pixel of the model's view samples; `block` counts from 1."""
        pixels = self._pixels(path)
        block = min(block, self.depths[stage - 1])
        with self._lock:
            points = visualize.sampling_points(
                self.predictor.model, pixels, stage=stage, block=block - 1, layers=min(layers, block), at=at
            )
        group = None if group is None or layers > 1 or group >= self.groups[stage - 1] else group
        return visualize.draw_sampling_points(self._shown(pixels), points, group=group)

    def receptive_fields(self, path: str, stage: int) -> Figure:
        """Draw the receptive field of a stage on the image, beside those of two models with random weights."""
        pixels = F.interpolate(self._pixels(path), (_FIELD_SIDE, _FIELD_SIDE), mode="bilinear", antialias=True)
        trunk = find_trunk(self.predictor.model)
        with self._lock:
            fields = {"this model": visualize.effective_receptive_field(trunk, pixels, stage=stage)}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                others: dict[str, nn.Module] = {
                    "its architecture,\nrandom weights": type(trunk)(trunk.config),
                    # a layer scale of 1e-6, as for training, would show the downsampling alone
                    "ConvNeXt-T,\nrandom weights": ConvNextModel(ConvNextConfig(layer_scale_init_value=1.0)),
                }
            for title, model in others.items():
                fields[title] = visualize.effective_receptive_field(
                    model.to(pixels.device, pixels.dtype), pixels, stage=min(stage, 4)
                )
        return visualize.draw_receptive_fields(fields)

    def activation(self, path: str, label: str | None) -> Figure:
        """Draw where the features of a classifier's last stage speak for a class; None for the most probable one.

        Raises:
            ValueError: for a model that is no classifier.
        """
        if self.predictor.task != loading.CLASSIFICATION:
            raise ValueError("Activation maps are of classifiers; this model has another task.")
        pixels = self._pixels(path)
        number = None if not label else self.predictor.label_names.index(label)
        with self._lock:
            values = visualize.class_activation_map(self.predictor.model, pixels, label=number)[0]
        return visualize.draw_map(self._shown(pixels), values, label or "")

    def _shown(self, pixels: torch.Tensor) -> np.ndarray:
        """Return the model's pixels (1, C, H, W) as colours (H, W, 3) from 0 to 1."""
        return visualize.to_images(pixels, self.predictor.image_processor)[0]

    def _pixels(self, path: str) -> torch.Tensor:
        source = next(iter(read_sources([path], max_pixels=MAX_PIXELS)))
        if source.image is None:
            raise ValueError(str(source.problem).replace(path, Path(path).name))
        model = self.predictor.model
        pixels = self.predictor.image_processor(source.image, return_tensors="pt")["pixel_values"]
        return pixels.to(model.device, model.dtype)


def above(detection: Detection, threshold: float) -> Detection:
    """Return a detection with the objects whose score is at least `threshold`."""
    kept = detection.scores >= threshold
    return replace(
        detection,
        boxes=detection.boxes[kept],
        scores=detection.scores[kept],
        labels=[label for label, keep in zip(detection.labels, kept.tolist(), strict=True) if keep],
        masks=None if detection.masks is None else detection.masks[kept],
        class_indices=detection.class_indices[kept],
    )


__all__ = ["MAX_PIXELS", "Viewer", "above"]
