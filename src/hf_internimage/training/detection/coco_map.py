# SPDX-License-Identifier: MIT
"""COCO's mean average precision of a detector on a split, by faster-coco-eval."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from faster_coco_eval import COCO, COCOeval_faster
from transformers import EvalPrediction

# in the order of faster-coco-eval's statistics
_METRICS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)


@dataclass(frozen=True)
class CocoResult:
    """COCO's metrics, from 0 to 1; those without objects to measure, such as no large objects, are left out.

    Attributes:
        metrics: `map` (average precision, the mean over IoU thresholds of .5 to .95 and classes), at the thresholds .5
            and .75 (`map_50`, `map_75`), of objects under 32^2 pixels, up to 96^2 and above (`map_small`, `map_medium`,
            `map_large`); `mar_1`, `mar_10`, `mar_100`, the average recall with so many detections an image, and with
            100 by the objects' sizes.
        per_class: `map` of each class with objects.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]


class CocoMap:
    """Compute COCO's metrics of the results of `stack_detections`: Trainer's `compute_metrics`.

    The annotations of the whole split are held here, so that processes exchange detections only.

    Args:
        split: a split of `data.DetectionData`.
        label_names: names of its classes.
    """

    def __init__(self, split: Dataset, label_names: list[str]) -> None:
        self.label_names = label_names
        truth = split.select_columns(["image_id", "width", "height", "boxes", "classes", "areas", "crowds"])
        annotations: list[dict[str, Any]] = []
        for row in truth:
            columns = zip(*(row[name] for name in ("boxes", "classes", "areas", "crowds")), strict=True)
            for box, label, area, crowd in columns:
                annotation = {"image_id": row["image_id"], "category_id": label, "bbox": box, "area": area}
                annotations.append({"id": len(annotations) + 1, "iscrowd": int(crowd), **annotation})
        self.truth = COCO(
            {
                "images": [{"id": number} for number in truth["image_id"]],
                "categories": [{"id": index, "name": name} for index, name in enumerate(label_names)],
                "annotations": annotations,
            }
        )

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        rows: Any = prediction.predictions
        return self.evaluate(np.asarray(rows), np.asarray(prediction.label_ids)).metrics

    def evaluate(self, detections: np.ndarray, image_ids: np.ndarray) -> CocoResult:
        """Compare detections with the annotations of these images.

        Shapes: detections (N, K, 6), as `stack_detections` returns them; image_ids (N,), from the split's column.
        """
        image_ids = image_ids.reshape(-1).astype(int)
        is_detection = detections[..., 0] >= 0  # other rows fill up
        rows = detections[is_detection].astype(np.float64)
        ids = np.broadcast_to(image_ids[:, None], is_detection.shape)[is_detection]
        sides = rows[:, 4:] - rows[:, 2:4]
        # image, left, top, width, height, score, class
        table = np.concatenate([ids[:, None], rows[:, 2:4], sides, rows[:, :1], rows[:, 1:2]], 1)
        evaluation = COCOeval_faster(self.truth, self.truth.loadRes(table), iouType="bbox")
        evaluation.params.imgIds = sorted(set(image_ids.tolist()))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        metrics = {name: float(value) for name, value in zip(_METRICS, evaluation.stats, strict=False) if value >= 0}
        # (thresholds, recalls, classes), for objects of all sizes and 100 detections an image
        precision = evaluation.eval["precision"][..., 0, -1]
        per_class = {
            name: float(values[values >= 0].mean())
            for name, values in zip(self.label_names, np.moveaxis(precision, -1, 0), strict=True)
            if (values >= 0).any()
        }
        return CocoResult(metrics, per_class)


def stack_detections(results: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Stack the results of `post_process_object_detection` into a tensor (N, K, 6), float32, that processes can gather.

    A detection is (score, class, left, top, right, bottom). Images with fewer than K are filled up with rows of -1.
    """
    most = max(1, *(len(result["scores"]) for result in results))
    rows = torch.full((len(results), most, 6), -1.0, device=results[0]["scores"].device)
    for row, result in zip(rows, results, strict=True):
        count = len(result["scores"])
        row[:count, 0], row[:count, 1] = result["scores"].float(), result["labels"].float()
        row[:count, 2:] = result["boxes"].float()
    return rows


__all__ = ["CocoMap", "CocoResult", "stack_detections"]
