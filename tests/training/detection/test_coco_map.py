# SPDX-License-Identifier: MIT
"""COCO's metrics against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction

from hf_internimage.training.detection.coco_map import CocoMap, stack_detections

NAMES = ["cat", "dog", "owl"]


def split(*images):
    """Return a split; each image is a list of objects (class, box, and optionally area and crowd)."""
    objects = [[(*entry, *(None, False)[len(entry) - 2 :]) for entry in image] for image in images]
    return Dataset.from_dict(
        {
            "image_id": list(range(len(images))),
            "width": [0] * len(images),
            "height": [0] * len(images),
            "boxes": [[box for _, box, *_ in image] for image in objects],
            "classes": [[label for label, *_ in image] for image in objects],
            "areas": [
                [float(box[2] * box[3]) if area is None else area for _, box, area, _ in image] for image in objects
            ],
            "crowds": [[crowd for *_, crowd in image] for image in objects],
        }
    )


def detections(*images):
    """Return (N, K, 6) from lists of detections (score, class, left, top, width, height), one list an image."""
    results = []
    for image in images:
        rows = torch.tensor(image, dtype=torch.float64).reshape(-1, 6)
        boxes = torch.cat([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:]], 1)
        results.append({"scores": rows[:, 0], "labels": rows[:, 1].long(), "boxes": boxes})
    return stack_detections(results).numpy()


def measured(truth, detected):
    return CocoMap(truth, NAMES).evaluate(detected, np.arange(len(truth)))


BOX = [10, 20, 40, 60]


def test_all_found():
    truth = split([(0, BOX), (1, [50, 50, 20, 20])], [(2, [0, 0, 200, 100])])
    detected = detections([(0.9, 0, *BOX), (0.6, 1, 50, 50, 20, 20)], [(0.1, 2, 0, 0, 200, 100)])
    result = measured(truth, detected)
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
    names += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
    assert result.metrics == {name: pytest.approx(1) for name in names}
    assert result.per_class == {name: pytest.approx(1) for name in NAMES}


def test_a_score_of_zero_is_a_detection():
    """Rows that fill up have -1."""
    assert measured(split([(0, BOX)]), detections([(0.0, 0, *BOX)])).metrics["map"] == pytest.approx(1)


@pytest.mark.parametrize(("shift", "thresholds"), [(0, 10), (4, 7), (10, 3), (13.3, 1), (14, 0)])
def test_thresholds(shift, thresholds):
    """A box of 40 pixels that is shifted by s has an IoU of (40 - s) / (40 + s) with itself."""
    overlap = (40 - shift) / (40 + shift)
    assert thresholds == sum(overlap >= 0.5 + 0.05 * step for step in range(10))
    result = measured(split([(1, BOX)]), detections([(0.5, 1, BOX[0] + shift, *BOX[1:])]))
    assert result.metrics["map"] == pytest.approx(thresholds / 10)
    assert result.metrics["map_50"] == (thresholds >= 1)
    assert result.metrics["map_75"] == (thresholds >= 6)
    assert result.metrics["mar_100"] == pytest.approx(thresholds / 10)


def test_a_false_one_in_between():
    """Precision is 1 up to recall .5 (51 of 101 points) and 2 / 3 beyond."""
    truth = split([(0, BOX), (0, [200, 200, 40, 40])])
    detected = detections([(0.9, 0, *BOX), (0.8, 0, 100, 100, 9, 9), (0.7, 0, 200, 200, 40, 40)])
    result = measured(truth, detected)
    assert result.metrics["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.metrics["mar_1"] == pytest.approx(0.5)
    assert result.metrics["mar_10"] == pytest.approx(1.0)


def test_a_second_detection_of_an_object_is_false():
    truth = split([(0, BOX), (0, [200, 200, 40, 40])])
    result = measured(truth, detections([(0.9, 0, *BOX), (0.8, 0, *BOX)]))
    assert result.metrics["map"] == pytest.approx(51 / 101)


def test_classes_count_alike_and_another_class_is_a_miss():
    truth = split([(0, BOX), (1, [100, 100, 50, 50])])
    result = measured(truth, detections([(0.9, 0, *BOX), (0.9, 2, 100, 100, 50, 50)]))
    assert result.per_class == {"cat": pytest.approx(1), "dog": 0}  # there is no owl
    assert result.metrics["map"] == pytest.approx(0.5)


def test_crowds_are_neither_missed_nor_false():
    crowd = (0, [100, 100, 100, 100], None, True)
    truth = split([(0, BOX), crowd])
    inside = [(0.95, 0, 110, 110, 20, 20), (0.9, 0, 150, 150, 30, 30)]
    result = measured(truth, detections([*inside, (0.5, 0, *BOX)]))
    assert result.metrics["map"] == pytest.approx(1)
    assert measured(split([(0, BOX)]), detections([*inside, (0.5, 0, *BOX)])).metrics["map"] == pytest.approx(1 / 3)


def test_sizes_go_by_the_annotated_area():
    """The annotated area is that of the mask in COCO: a box of 40 x 60 with 900 pixels counts as small."""
    result = measured(split([(0, BOX, 900.0)]), detections([(0.9, 0, *BOX)]))
    assert result.metrics["map_small"] == pytest.approx(1)
    assert not {"map_medium", "map_large", "mar_medium", "mar_large"} & set(result.metrics)


def test_only_the_images_that_were_predicted_count():
    truth = split([(0, BOX)], [(0, BOX)], [(0, BOX)])
    measure = CocoMap(truth, NAMES)
    detected = detections([(0.9, 0, *BOX)], [])
    assert measure.evaluate(detected, np.array([2, 0])).metrics["map"] == pytest.approx(51 / 101)
    assert measure.evaluate(detected[:1], np.array([[2]])).metrics["map"] == pytest.approx(1)


def test_nothing_found():
    assert measured(split([(0, BOX)]), detections([])).metrics["map"] == 0


def test_as_trainer_gives_it():
    """Trainer fills up batches of several widths and processes with -100."""
    truth = split([(0, BOX)], [(0, BOX)])
    detected = np.full((2, 5, 6), -100.0, np.float32)
    detected[:, :1] = detections([(0.9, 0, *BOX)], [(0.8, 0, *BOX)])
    metrics = CocoMap(truth, NAMES)(EvalPrediction(detected, np.array([1, 0])))
    assert metrics["map"] == pytest.approx(1)
    assert all(isinstance(value, float) for value in metrics.values())


def test_rows():
    results = [
        {"scores": torch.tensor([0.5, 0.25]), "labels": torch.tensor([3, 1]), "boxes": torch.arange(8.0).reshape(2, 4)},
        {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    rows = stack_detections(results)
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[[0.5, 3, 0, 1, 2, 3], [0.25, 1, 4, 5, 6, 7]], [[-1] * 6] * 2]
    assert stack_detections(results[1:]).tolist() == [[[-1] * 6]]
    scores = torch.tensor([0.5], dtype=torch.bfloat16)
    assert (
        stack_detections([{**results[0], "scores": scores, "labels": scores, "boxes": scores.expand(1, 4)}]).dtype
        == torch.float32
    )
