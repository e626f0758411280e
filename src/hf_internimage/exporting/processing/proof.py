# SPDX-License-Identifier: MIT
"""Compare a file that has pre- and post-processing with the image processor, the model and the results in Python."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from ...models.semantic_maps import resized_blocks, semantic_scores
from ...prediction.loading import CLASSIFICATION, SEGMENTATION, task_of
from ..errors import ExportError
from ..proof import Run, run_file
from ..query_choice import QueryChoice
from ..report import Comparison
from ..system import QUERY_POSITIONS, System
from .results import has_several_labels

Errors = dict[str, tuple[float, float]]  # name of an output -> greatest absolute difference, greatest absolute value


def random_image(height: int, width: int) -> torch.Tensor:
    """Return random pixels (height, width, 3) uint8, the same for a size at every call."""
    generator = torch.Generator().manual_seed(height + width)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)


class ProcessedSystem:
    """An image processor and a model: from an image (H, W, 3) uint8 to the model's outputs.

    Args:
        system: the model.
        processor: its image processor.
    """

    def __init__(self, system: System, processor: Any) -> None:
        self.system, self.processor = system, processor

    def __call__(self, image: torch.Tensor) -> list[torch.Tensor]:
        return list(self.system(*self._inputs(image)))

    def outputs(self, image: torch.Tensor, positions: torch.Tensor | None, tolerance: float) -> Any:
        """Return the model's outputs and `pixel_values` by their names; see `QueryChoice` for the arguments."""
        pixels, mask = self._inputs(image)
        if positions is None:
            results = self.system(pixels, mask)
        else:
            results = self.system.on_queries(pixels, QueryChoice(positions, tolerance), mask)
        named = dict(zip(self.system.output_names, results, strict=False))  # without positions, the last name has none
        return SimpleNamespace(**named, pixel_values=pixels)

    def _inputs(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch = self.processor(Image.fromarray(image.numpy()), return_tensors="pt")
        return batch["pixel_values"].float(), batch.get("pixel_mask")


@torch.no_grad()
def compare_images(
    processed: ProcessedSystem, run: Run, names: tuple[str, ...], images: Iterable[torch.Tensor], tolerance: float
) -> tuple[Comparison, ...]:
    """Run Python and the file on images (H, W, 3) uint8.

    Scores must be equal within the tolerance. Rounding can exchange classes or objects of nearly equal scores: the
    class of a pixel must have its best score within the tolerance, and each object must be one of the model's, of the
    same class, with such a score and such a box.

    Raises:
        ExportError: if the file cannot run an image, or returns something else.
    """
    comparisons = []
    for image in images:
        text = "x".join(map(str, image.shape))
        results = dict(zip(names, run_file(run, image, f"an image of {text}"), strict=True))
        outputs = processed.outputs(image, results.get(QUERY_POSITIONS), tolerance)
        errors = _errors(processed, image, outputs, results, tolerance)
        relative = {name: error / max(greatest, 1e-12) for name, (error, greatest) in errors.items()}
        for name, value in relative.items():
            if not value <= tolerance:  # NaN compares false
                raise ExportError(
                    f"for an image of {text}, {name} of the file differs from Python's by {errors[name][0]:.2e} "
                    f"(relative {value:.2e}); the tolerance is {tolerance:g}."
                )
        comparisons.append(
            Comparison(tuple(image.shape), {name: error for name, (error, _) in errors.items()}, relative)
        )
    return tuple(comparisons)


def _errors(
    processed: ProcessedSystem, image: torch.Tensor, outputs: Any, results: dict[str, torch.Tensor], tolerance: float
) -> Errors:
    model, size = processed.system.model, tuple(image.shape[:2])
    task = task_of(model)
    if task == CLASSIFICATION:
        logits = outputs.logits[0]
        return {
            "scores": _difference(
                results["scores"], logits.sigmoid() if has_several_labels(model) else logits.softmax(0)
            )
        }
    if task == SEGMENTATION:
        return {"label_map": _lost_score(results["label_map"], outputs, size)}
    everything = outputs.logits[0].numel()
    (expected,) = processed.processor.post_process_object_detection(
        outputs, threshold=-1.0, target_sizes=[size], top_k=everything
    )
    return {
        "scores": _difference(results["scores"], expected["scores"][: processed.processor.top_k]),
        "boxes": _distance(results, expected, tolerance),
    }


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    if actual.shape != expected.shape:
        return float("inf"), 1.0
    return float((actual - expected).abs().max()), float(expected.abs().max())


def _lost_score(label_map: torch.Tensor, outputs: Any, size: tuple[int, ...]) -> tuple[float, float]:
    """Return by how much the scores of the file's classes fall below the best ones, and the greatest score."""
    scores = semantic_scores(outputs)[0]
    blocks = resized_blocks(scores, [outputs.pixel_values.shape[-2:], size])
    full = torch.cat([block for _, block in blocks])
    labels = label_map.to(torch.int64)[None]
    if labels.shape[1:] != size or int(labels.max()) >= len(full):
        return float("inf"), 1.0
    return float((full.amax(0) - full.gather(0, labels)[0]).max()), float(full.abs().max())


def _distance(
    results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> tuple[float, float]:
    """Return the greatest distance of a box from the nearest of the model's of that class and score, and from 0."""
    scores, allowed = expected["scores"], tolerance * float(expected["scores"].max())
    distances = [0.0]
    for score, label, box in zip(results["scores"], results["labels"], results["boxes"], strict=True):
        alike = (expected["labels"] == label) & ((scores - score).abs() <= allowed)
        boxes = expected["boxes"][alike]
        distances.append(float((boxes - box).abs().amax(1).min()) if len(boxes) else float("inf"))
    return float(torch.tensor(distances).max()), float(expected["boxes"].abs().max())  # NaN, too, if there is one


__all__ = ["ProcessedSystem", "compare_images", "random_image"]
