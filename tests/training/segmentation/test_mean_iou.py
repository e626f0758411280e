# SPDX-License-Identifier: MIT
"""Mean IoU against sets of pixels, one class at a time, and in Trainer's batches."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_internimage.training.metric_modules import load_metric_module
from hf_internimage.training.segmentation.trainer import MEAN_IOU, ComputeMeanIoU, query_labels


def plain(predicted, truth, classes, ignored=255):
    """Compute the metrics by their definitions, with a set of pixels for each class."""
    pixels = [(p, t) for p, t in zip(predicted.ravel(), truth.ravel(), strict=True) if t != ignored]
    iou, accuracy = [], []
    for label in range(classes):
        here = {index for index, (p, _) in enumerate(pixels) if p == label}
        there = {index for index, (_, t) in enumerate(pixels) if t == label}
        iou.append(len(here & there) / len(here | there) if here | there else math.nan)
        accuracy.append(len(here & there) / len(there) if there else math.nan)
    return {
        "mean_iou": np.mean([value for value in iou if not math.isnan(value)]),
        "mean_accuracy": np.mean([value for value in accuracy if not math.isnan(value)]),
        "overall_accuracy": np.mean([p == t for p, t in pixels]),
        "iou": iou,
        "accuracy": accuracy,
    }


def maps(seed, shape=(3, 6, 7), classes=5):
    generator = np.random.default_rng(seed)
    predicted, truth = generator.integers(0, classes, (2, *shape))
    truth[generator.random(shape) < 0.4] = predicted[generator.random(shape) < 0.4][0]
    truth[generator.random(shape) < 0.2] = 255
    return predicted, truth


def close(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("classes", [5, 8])  # 8: three of them occur nowhere
def test_is_what_it_says(classes):
    predicted, truth = maps(0)
    metric = load_metric_module(MEAN_IOU, num_labels=classes)
    expected = plain(predicted, truth, classes)
    close(metric.compute(predictions=predicted, references=truth), expected)
    assert sum(map(math.isnan, expected["iou"])) == classes - 5


def test_batches_add_up_and_are_forgotten():
    predicted, truth = maps(1)
    metric = load_metric_module(MEAN_IOU, num_labels=5)
    for index in range(3):
        metric.add_batch(predictions=predicted[index : index + 1], references=truth[index : index + 1])
    close(metric.compute(), plain(predicted, truth, 5))
    metric.add(predicted[0], truth[0])
    close(metric.compute(), plain(predicted[0], truth[0], 5))


def test_images_of_several_sizes_and_another_ignored_number():
    first, second = maps(2), maps(3, (1, 2, 9))
    metric = load_metric_module(MEAN_IOU, num_labels=256, ignore_index=0)
    metric.add_batch(predictions=[first[0], second[0]], references=[first[1], second[1]])
    predicted, truth = (np.concatenate([first[side].ravel(), second[side].ravel()]) for side in (0, 1))
    close(metric.compute(), plain(predicted, truth, 256, ignored=0))


def test_a_class_that_is_only_predicted_counts_and_predictions_of_ignored_pixels_do_not():
    metric = load_metric_module(MEAN_IOU, num_labels=3)
    result = metric.compute(predictions=np.array([[0, 0, 1, 2]]), references=np.array([[0, 0, 0, 255]]))
    assert result["iou"][:2] == [2 / 3, 0.0]
    assert math.isnan(result["iou"][2])
    assert result["mean_iou"] == pytest.approx(1 / 3)
    assert result["mean_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        ([[3]], [[0]], "A prediction holds class 3, but there are 3: 0 to 2"),
        ([[0]], [[7]], "A reference holds class 7"),
        ([[-1]], [[0]], "class -1"),
        ([[0, 1]], [[0]], r"shape \(2,\), its reference \(1,\)"),
        ([[0], [0]], [[0]], "2 predictions for 1 references"),
        ([[0]], [[255]], "No pixel with a class"),
    ],
)
def test_refuses(predicted, truth, message):
    metric = load_metric_module(MEAN_IOU, num_labels=3)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predicted, references=truth)


def test_needs_classes():
    with pytest.raises(ValueError, match="num_labels is 0"):
        load_metric_module(MEAN_IOU, num_labels=0)


def test_in_trainers_batches():
    predicted, truth = maps(4)
    compute = ComputeMeanIoU(5)
    for index in range(3):
        prediction = EvalPrediction(torch.from_numpy(predicted[[index]]), torch.from_numpy(truth[[index]]))
        result = compute(prediction, compute_result=index == 2)
        assert bool(result) is (index == 2)
    expected = plain(predicted, truth, 5)
    assert result == pytest.approx({name: expected[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")})
    json.dumps(result)


def test_queries_are_one_of_each_class():
    labels = torch.tensor([[[2, 2, 255], [0, 255, 2]], [[255, 255, 255], [255, 255, 255]]])
    made = query_labels(labels)
    assert [classes.tolist() for classes in made["class_labels"]] == [[0, 2], []]
    assert made["mask_labels"][0].tolist() == [[[0, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 1]]]
    assert made["mask_labels"][1].shape == (0, 2, 3)
    assert made["mask_labels"][0].dtype == torch.float32
