# SPDX-License-Identifier: MIT
"""Metrics of classification against scikit-learn and numbers worked out by hand."""

import sys
import types

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from support.golden_data import tiny_config
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_internimage import InternImageForImageClassification
from hf_internimage.training.classification.metrics import (
    ACCURACY,
    ComputeMetrics,
    class_scores,
    keep_best,
    keep_scores,
    load_metric,
)
from hf_internimage.training.metric_modules import load_metric_module


def logits_and_labels(count, classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    logits[torch.arange(count), labels] += 1
    return logits, labels


@pytest.mark.parametrize("multi_label", [True, False])
def test_precision_and_recall_of_each_class(multi_label):
    """One class is never predicted, and another has no image."""
    logits, labels = logits_and_labels(200, 6)
    logits[:, 4] = -9.0
    labels[labels == 5] = 0
    scores = keep_scores(logits) if multi_label else keep_best(logits)
    truth = torch.nn.functional.one_hot(labels, 6) if multi_label else labels
    predicted = logits.sigmoid() > 0.5 if multi_label else logits.argmax(1)
    precision, recall, _, images = precision_recall_fscore_support(truth, predicted, labels=range(6), zero_division=0)
    rows = class_scores(scores, truth, "abcdef")
    assert [row["class"] for row in rows] == list("abcdef")
    assert [row["images"] for row in rows] == images.tolist()
    assert rows[4]["precision"] is rows[5]["recall"] is None
    assert [row["precision"] or 0 for row in rows] == pytest.approx(precision)
    assert [row["recall"] or 0 for row in rows] == pytest.approx(recall)
    as_numpy = (as_arrays(scores), truth.numpy(), "abcdef")  # as Trainer gives them
    assert class_scores(*as_numpy) == rows


def as_arrays(parts):
    return tuple(part.numpy() for part in parts) if isinstance(parts, tuple) else parts.numpy()


def test_keeps_the_best_classes_and_their_probabilities():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, -2.0], [9.0, 0.0, 0.0, 0.0, 0.0, 8.0]], dtype=torch.float64)
    for outputs in (logits, (logits, "another output")):
        classes, scores = keep_best(outputs, None)
        assert classes[0].tolist() == [1, 3, 2, 0, 4]
        assert classes[1, :2].tolist() == [0, 5]
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, logits.softmax(-1).sort(descending=True).values[:, :5].float())
    assert keep_best(logits[:, :3])[0].shape == (2, 3)
    assert keep_best(logits.bfloat16())[1].dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 5, 6, 30])
def test_accuracies(classes):
    logits, labels = logits_and_labels(400, classes)
    result = ComputeMetrics(classes)(EvalPrediction(as_arrays(keep_best(logits)), labels.numpy()))
    expected = {"accuracy": (logits.argmax(-1) == labels).double().mean().item()}
    if classes > 5:
        expected["top5_accuracy"] = top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
    assert result == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["accuracy"] < 1


def test_several_labels():
    generator = np.random.default_rng(0)
    truth = (generator.random((300, 6)) < 0.3).astype(np.float32)
    truth[:, 4] = 0  # a class that does not occur has no precision
    logits = torch.from_numpy(np.round(generator.normal(size=(300, 6)) + truth, 1))  # rounded: many equal scores
    scores = keep_scores(logits).numpy()
    assert len(np.unique(scores)) < 100
    result = ComputeMetrics(6, multi_label=True)(EvalPrediction(scores, truth))
    average = [average_precision_score(truth[:, index], scores[:, index]) for index in (0, 1, 2, 3, 5)]
    expected = {"mean_average_precision": np.mean(average), "f1": f1_score(truth, scores > 0.5, average="micro")}
    assert result == pytest.approx(expected, abs=1e-9)
    nothing = ComputeMetrics(6, multi_label=True)(EvalPrediction(scores * 0, truth * 0))
    assert nothing == {"mean_average_precision": 0.0, "f1": 0.0}


@pytest.mark.parametrize(("score", "f1"), [(0.5, 0.0), (np.nextafter(np.float32(0.5), 1), 1.0)])
def test_a_label_needs_more_than_one_half(score, f1):
    scores = np.array([[score, 0.1]], np.float32)
    result = ComputeMetrics(2, multi_label=True)(EvalPrediction(scores, np.array([[1, 0]], np.float32)))
    assert result["f1"] == f1


def test_there_are_two_configurations():
    with pytest.raises(ValueError, match="The configuration is 'several', expected 'default' or 'multi_label'"):
        load_metric_module(ACCURACY, config_name="several")


@pytest.mark.parametrize("multi_label", [False, True])
def test_batches_add_up(multi_label):
    logits, labels = logits_and_labels(100, 8)
    if multi_label:
        labels = (torch.rand(100, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    keep = keep_scores if multi_label else keep_best
    whole = ComputeMetrics(8, multi_label)(EvalPrediction(as_arrays(keep(logits)), labels.numpy()))
    compute = ComputeMetrics(8, multi_label)
    for _ in range(2):  # nothing is left over for the next evaluation
        for start, stop in ((0, 40), (40, 41), (41, 100)):
            prediction = EvalPrediction(keep(logits[start:stop]), labels[start:stop])
            result = compute(prediction, compute_result=stop == 100)
            assert result == (whole if stop == 100 else {})


@pytest.mark.parametrize("by_batch", [False, True])
def test_in_trainer(by_batch, tmp_path):
    """Trainer's accuracies and kept classes are those of the logits, also with a smaller last batch."""
    model = InternImageForImageClassification(tiny_config(num_labels=7)).eval()
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": int(label)}
        for label in torch.randint(7, (11,), generator=generator)
    ]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_eval_batch_size=4,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            batch_eval_metrics=by_batch,
        ),
        eval_dataset=rows,
        compute_metrics=ComputeMetrics(7),
        preprocess_logits_for_metrics=keep_best,
    )
    with torch.no_grad():
        logits = model(torch.stack([row["pixel_values"] for row in rows])).logits
    labels = torch.tensor([row["labels"] for row in rows])
    best = logits.topk(5).indices
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx((best[:, 0] == labels).float().mean().item())
    assert metrics["eval_top5_accuracy"] == pytest.approx((best == labels[:, None]).any(1).float().mean().item())
    if not by_batch:
        classes, scores = trainer.predict(rows).predictions
        assert classes.tolist() == best.tolist()
        np.testing.assert_allclose(scores, logits.softmax(-1).topk(5).values, rtol=1e-5)


def test_another_module_named_evaluate_is_noticed(monkeypatch):
    wrong = types.ModuleType("evaluate")
    wrong.__file__ = "somewhere/evaluate.py"
    monkeypatch.setitem(sys.modules, "evaluate", wrong)
    with pytest.raises(ImportError, match=r"found somewhere/evaluate\.py instead of the package evaluate"):
        load_metric()


def test_metric_module_stands_alone():
    metric = load_metric()
    assert metric.compute(predictions=[[1], [0]], references=[1, 1]) == {"accuracy": 0.5}
    five = [[4, 3, 2, 1, 0], [4, 3, 2, 1, 0]]
    assert metric.compute(predictions=five, references=[0, 5]) == {"accuracy": 0.0, "top5_accuracy": 0.5}
    assert "best first" in metric.inputs_description
