# SPDX-License-Identifier: MIT
"""Detections in COCO's form, as evaluation programs read them."""

from typing import Any

import numpy as np

from .results import Detection


def coco_results(detection: Detection, image_id: int) -> list[dict[str, Any]]:
    """Return the objects of an image as COCO results, best first.

    Each has `image_id`, `category_id` (the class number of the model), `bbox` (left, top, width, height in pixels),
    `score` and, for a detection with masks, `segmentation` (compressed run lengths).
    """
    results = []
    for index, (left, top, right, bottom) in enumerate(detection.boxes.tolist()):
        result = {
            "image_id": image_id,
            "category_id": int(detection.class_indices[index]),
            "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
            "score": round(float(detection.scores[index]), 6),
        }
        if detection.masks is not None:
            result["segmentation"] = run_lengths(detection.masks[index])
        results.append(result)
    return results


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask (H, W) bool as COCO's compressed run lengths: `size` (H, W) and the text `counts`.

    Source: `rleEncode` and `rleToString` of pycocotools.
    """
    flat = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), len(flat)]
    counts = np.diff(edges).tolist()
    if flat[0]:  # the first run is of pixels outside
        counts = [0, *counts]
    letters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        is_last = False
        while not is_last:
            bits = value & 31
            value >>= 5
            is_last = value == (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + (0 if is_last else 32)))
    return {"size": list(mask.shape), "counts": "".join(letters)}


__all__ = ["coco_results", "run_lengths"]
