# SPDX-License-Identifier: MIT
"""What the tasks do with the results of an evaluation: metrics, tables, pictures and cards."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from support.golden_data import tiny_config
from transformers import TrainingArguments

from hf_internimage import (
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.training.classification import evaluation as classification
from hf_internimage.training.classification.data import ClassificationData
from hf_internimage.training.classification.trainer import ClassificationRecipe
from hf_internimage.training.detection import evaluation as detection
from hf_internimage.training.detection.trainer import DetectionTrainer
from hf_internimage.training.images import ImageReader
from hf_internimage.training.segmentation import evaluation as segmentation
from hf_internimage.training.segmentation import main as segmentation_script
from hf_internimage.training.segmentation.trainer import SegmentationTrainer
from hf_internimage.training.system_trainer import SystemRecipe


class Noting:
    """Keeps the calls of the functions that it makes."""

    def __init__(self):
        self.calls = {}

    def __call__(self, name, result=None):
        def call(*arguments, **options):
            self.calls[name] = (arguments, options)
            return result

        return call


def fake_trainer(noting, folder, processor, prediction, main_process=True):
    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder)),
        processing_class=processor,
        predict=noting("predict", prediction),
        save_metrics=noting("save_metrics"),
        is_world_process_zero=lambda: main_process,
    )


def classes_data(count=3, multi_label=False):
    rows = [{"image": {"bytes": None, "path": f"far/{index}.png"}, "label": index % 2} for index in range(count)]
    rows = Dataset.from_list(rows)
    reader = ImageReader(left_out={"train": ["a: is empty"]})
    return ClassificationData(None, rows, rows, ["cat", "dog"], "image", "label", multi_label, reader)


# ---- Classification ----


@pytest.mark.parametrize(("split", "prefix"), [("validation", "eval"), ("test", "test")])
@pytest.mark.parametrize(("main_process", "multi_label"), [(True, False), (False, False), (True, True)])
def test_an_evaluation_of_a_classifier(split, prefix, main_process, multi_label, tmp_path, monkeypatch):
    noting = Noting()
    measured = {"accuracy": 0.5, "top5_accuracy": 1.0, "mean_average_precision": 0.25, "f1": 0.1, "loss": 2.0}
    metrics = {f"{prefix}_{name}": value for name, value in measured.items()}
    metrics |= {f"{prefix}_samples_per_second": 7.0, f"{prefix}_runtime": 3.0}
    prediction = SimpleNamespace(metrics=metrics, predictions=(np.array([[0], [1], [1]]), None))
    prediction.label_ids = np.array([0, 1, 0])
    if multi_label:
        prediction.predictions = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.8]])
        prediction.label_ids = np.array([[1, 0], [0, 1], [1, 0]])
    for name in ("report_evaluation", "draw_predictions", "draw_classes"):
        monkeypatch.setattr(classification, name, noting(name, "evaluation"))
    processor = InternImageImageProcessorPil(crop_size={"height": 32, "width": 64})
    trainer = fake_trainer(noting, tmp_path, processor, prediction, main_process)
    data = classes_data(multi_label=multi_label)
    assert classification.evaluate_and_report(trainer, data, split, "names", model_name="me/model") == "evaluation"
    (rows,), options = noting.calls["predict"]
    assert options == {"metric_key_prefix": prefix}
    assert rows.format["format_kwargs"]["transform"].prepare.processor is processor
    assert noting.calls["save_metrics"][0] == (prefix, metrics)
    given, options = noting.calls["report_evaluation"]
    assert given == (trainer, "names", split)
    expected = {"model_name": "me/model", "samples": 3, "metrics": measured, "image_size": (32, 64)}
    cat = {"class": "cat", "images": 2, "precision": 1.0, "recall": 0.5}
    dog = {"class": "dog", "images": 1, "precision": 0.5, "recall": 1.0}
    expected |= {
        "images_per_second": 7.0,
        "per_class": [cat, dog],
        "left_out_images": {"train": {"count": 1, "images": ["a: is empty"]}},
    }
    assert options == expected
    assert ("draw_classes" in noting.calls) is main_process
    if main_process:
        drawn = (["cat", "dog"], {"recall": [0.5, 1.0], "precision": [1.0, 0.5]}, tmp_path / f"{prefix}_classes.png")
        assert noting.calls["draw_classes"][0] == drawn
    assert ("draw_predictions" in noting.calls) is (main_process and not multi_label)
    if main_process and not multi_label:
        assert noting.calls["draw_predictions"][0][3:] == (tmp_path, prefix)


@pytest.mark.parametrize(
    ("found", "title", "shown"),
    [
        ([0, 1, 0], "0 of 3 images are classified wrong.", []),
        ([1, 1, 1], "2 of 3 images are classified wrong:", [2, 0]),
        ([1, 0] * 13, "26 of 26 images are classified wrong; the 24 with the highest scores:", None),
    ],
)
def test_predictions_are_written_and_the_surest_mistakes_drawn(found, title, shown, tmp_path, monkeypatch):
    noting, count = Noting(), len(found)
    for name in ("draw_confusions", "draw_mistakes"):
        monkeypatch.setattr(classification, name, noting(name))
    monkeypatch.setattr(classification, "decode_image", lambda image, limit: (image["path"], limit))
    classes = np.array([[best, 1 - best] for best in found])
    scores = np.array([[0.5 + 0.001 * row, 0.25] for row in range(count)])
    truth, data = np.arange(count) % 2, classes_data(count)
    data.reader = ImageReader(99)
    prediction = SimpleNamespace(predictions=(classes, scores), label_ids=truth)
    classification.draw_predictions(prediction, data.validation, data, tmp_path, "test")
    rows = list(csv.DictReader((tmp_path / "test_predictions.csv").open(newline="")))
    assert [row["row"] for row in rows] == [str(row) for row in range(count)]
    assert rows[1] == {
        "row": "1", "file": "far/1.png", "label": "dog", "found": ["cat", "dog"][found[1]], "score": "0.501000",
    }  # fmt: skip
    assert noting.calls["draw_confusions"][0][2:] == (["cat", "dog"], tmp_path / "test_confusions.png")
    images, files, right, wrong, sure, names, path, line = noting.calls["draw_mistakes"][0]
    assert (names, path, line) == (["cat", "dog"], tmp_path / "test_mistakes.png", title)
    if shown is None:
        shown = list(range(count))[::-1][:24]
    assert images == [(f"far/{row}.png", 99) for row in shown]
    assert files == [f"{row}.png" for row in shown]
    assert list(right) == [truth[row] for row in shown]
    assert list(wrong) == [classes[row, 0] for row in shown]
    assert list(sure) == [scores[row, 0] for row in shown]


@pytest.mark.parametrize(
    ("metrics", "full"),
    [
        ({"top1": 0.5, "loss": 1.0}, True), ({"top1": 0.5, "loss": math.nan}, False), ({"loss": 1.0}, False),
        ({"top1": 0.5}, False), (None, False), ({"mean_average_precision": 0.5, "loss": 1.0}, False),
    ],
)  # fmt: skip
def test_the_card_of_a_classifier_has_its_numbers_if_there_are_any(metrics, full, tmp_path, monkeypatch):
    noting = Noting()
    monkeypatch.setattr(classification, "write_repository", noting("write_repository"))
    monkeypatch.setattr(classification, "evaluated_card", noting("full", "full card"))
    monkeypatch.setattr(classification, "trained_card", noting("other", "other card"))
    monkeypatch.setattr(classification, "training_facts", lambda trainer, **more: {"Epochs": "2", **more})
    arguments = TrainingArguments(output_dir=str(tmp_path / "mine"), use_cpu=True, report_to="none")
    model = SimpleNamespace(config=SimpleNamespace(model_type="internimage"))
    trainer = SimpleNamespace(args=arguments, model=model, recipe=ClassificationRecipe(cutmix_alpha=1.0))
    evaluation = None if metrics is None else {"metrics": metrics}
    classification.publish(trainer, evaluation, base_model="me/base", license="mit", notes=["a note"])
    of, auto_class, name, make_card, notes = noting.calls["write_repository"][0]
    assert (of, auto_class.__name__, name, notes) == (trainer, "AutoModelForImageClassification", "mine", ["a note"])
    assert make_card("model") == ("full card" if full else "other card")
    options = {"base_model": "me/base", "license": "mit", "training": {"Epochs": "2", "Mixup, CutMix": "0, 1"}}
    if full:
        assert noting.calls["full"] == ((evaluation,), {**options, "model_id": "mine", "model": "model"})
    else:
        options |= {"task": "image-classification", "has_code": True}
        options["evaluation"] = evaluation if metrics and "top1" not in metrics else None
        assert noting.calls["other"] == (("model", "mine"), options)


@pytest.mark.parametrize("push", [True, False])
def test_other_classifiers_are_pushed_by_trainer(push, monkeypatch):
    noting = Noting()
    monkeypatch.setattr(classification, "write_repository", noting("write_repository"))
    model = SimpleNamespace(config=SimpleNamespace(model_type="convnext"))
    trainer = SimpleNamespace(args=SimpleNamespace(push_to_hub=push), model=model, push_to_hub=noting("push"))
    classification.publish(trainer, None)
    assert list(noting.calls) == ["push"] * push


# ---- Segmentation and detection ----


def system_trainer(folder):
    arguments = TrainingArguments(output_dir=str(folder / "mine"), use_cpu=True, report_to="none")
    return SimpleNamespace(args=arguments, model=InternImageForImageClassification(tiny_config(num_labels=7)))


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("task", [segmentation, detection], ids=["segmentation", "detection"])
def test_the_card_of_a_system_has_its_evaluation(task, evaluated, tmp_path, monkeypatch):
    noting = Noting()
    monkeypatch.setattr(task, "trained_card", noting("card", "a card"))
    monkeypatch.setattr(task, "publish_by_trainer", noting("publish"))
    monkeypatch.setattr(task, "training_facts", lambda trainer: {"Steps": 3})
    evaluation = {"metrics": {"map": 0.5}} if evaluated else None
    trainer = system_trainer(tmp_path)
    task.publish(trainer, evaluation, base_model="me/base", license="mit", notes=["a note"])
    assert noting.calls["publish"] == ((trainer, "a card", ["a note"]), {})
    kind = "semantic-segmentation" if task is segmentation else "object-detection"
    expected = {"task": kind, "has_code": False, "base_model": "me/base", "license": "mit"}
    expected |= {"evaluation": evaluation, "training": {"Steps": 3}}
    assert noting.calls["card"] == ((trainer.model, "mine"), expected)


def test_dino_becomes_a_repository(tmp_path, monkeypatch):
    noting = Noting()
    monkeypatch.setattr(detection, "trained_card", noting("card", "a card"))
    monkeypatch.setattr(detection, "training_facts", lambda trainer: {"Steps": 3})
    monkeypatch.setattr(detection, "write_repository", noting("write"))
    trainer = SimpleNamespace(
        args=system_trainer(tmp_path).args, model=SimpleNamespace(config=SimpleNamespace(model_type="internimage_dino"))
    )
    detection.publish(trainer, None, base_model=str(tmp_path), license=None, notes=["a note"])
    of, auto_class, name, make_card, notes = noting.calls["write"][0]
    assert (of, auto_class.__name__, name, notes) == (trainer, "AutoModelForObjectDetection", "mine", ["a note"])
    assert make_card("whole model") == "a card"
    expected = {"task": "object-detection", "has_code": True, "base_model": None, "license": None}
    expected |= {"evaluation": None, "training": {"Steps": 3}}
    assert noting.calls["card"] == (("whole model", "mine"), expected)


@pytest.mark.parametrize("main_process", [True, False])
@pytest.mark.parametrize(("split", "prefix"), [("validation", "eval"), ("test", "test")])
def test_an_evaluation_of_a_detector(split, prefix, main_process, tmp_path, monkeypatch):
    noting = Noting()
    for name in ("report_evaluation", "draw_overlays", "draw_classes"):
        monkeypatch.setattr(detection, name, noting(name, "evaluation"))
    result = SimpleNamespace(metrics={"map": 0.5}, per_class={"cat": 0.25})
    coco_map = SimpleNamespace(evaluate=noting("evaluate", result))
    monkeypatch.setattr(detection, "CocoMap", noting("CocoMap", coco_map))
    metrics = {f"{prefix}_loss": 2.0, f"{prefix}_map": 0.5, f"{prefix}_samples_per_second": 7.0}
    detections, ids = np.arange(12.0).reshape(2, 1, 6), np.array([[3], [1]])
    prediction = SimpleNamespace(metrics=metrics, predictions=detections, label_ids=ids)
    processor = InternImageDetectionImageProcessor(size={"shortest_edge": 40, "longest_edge": 90})
    trainer = fake_trainer(noting, tmp_path, processor, prediction, main_process)
    rows = Dataset.from_dict({"image_id": [1, 3]})
    data = SimpleNamespace(
        validation=rows, test=rows, label_names=["cat"], reader=ImageReader(),
        evaluation_transform=noting("transform", lambda batch: batch),
    )  # fmt: skip
    options = {"model_name": "me/model", "overlays": 5, "overlay_threshold": 0.25}
    assert detection.evaluate_and_report(trainer, data, split, "names", **options) == "evaluation"
    assert trainer.compute_metrics is coco_map
    assert noting.calls["CocoMap"][0] == (rows, ["cat"])
    assert noting.calls["transform"][0] == (processor,)
    assert noting.calls["predict"][1] == {"metric_key_prefix": prefix}
    assert noting.calls["save_metrics"][0] == (prefix, metrics)
    assert noting.calls["evaluate"][0] == (detections, ids)
    given, options = noting.calls["report_evaluation"]
    assert given == (trainer, "names", split)
    expected = {"model_name": "me/model", "samples": 2, "metrics": {"map": 0.5, "loss": 2.0}, "image_size": [40, 90]}
    assert options == {**expected, "images_per_second": 7.0, "map_per_class": {"cat": 0.25}}
    assert ("draw_overlays" in noting.calls) is ("draw_classes" in noting.calls) is main_process
    if main_process:
        drawn = (["cat"], {"average precision": [0.25]}, tmp_path / f"{prefix}_classes.png")
        assert noting.calls["draw_classes"][0] == drawn
        (drawn, by_image, names, folder), options = noting.calls["draw_overlays"]
        assert (drawn, names, folder) == (rows, ["cat"], tmp_path / "overlays")
        assert {key: value.tolist() for key, value in by_image.items()} == {
            3: detections[0].tolist(), 1: detections[1].tolist(),
        }  # fmt: skip
        assert options == {"prefix": f"{prefix}_", "count": 5, "threshold": 0.25, "reader": data.reader}


@pytest.mark.parametrize(
    ("size", "sides"),
    [({"shortest_edge": 40, "longest_edge": 90}, [40, 90]), ({"height": 40, "width": 90}, [40, 90])],
)
def test_sides_of_a_detectors_images(size, sides):
    assert detection._sides(SimpleNamespace(size=size)) == sides


def test_a_segmenter_has_the_settings_of_the_inference():
    options = {"inference": "slide", "inference_crop": [32, 64], "inference_stride": 16, "inference_windows": 3}
    inference = segmentation.InferenceArguments(**options, tta_ratios=1.5, tta_flip=True)
    assert inference.tta_ratios == [1.5]
    segmenter = inference.segmenter(None, InternImageSegmentationImageProcessor())
    assert (segmenter.crop_size, segmenter.stride, segmenter.window_batch_size) == ((32, 64), (16, 16), 3)
    assert (segmenter._views(), segmenter.flip) == (2, True)
    segmenter = segmentation.InferenceArguments().segmenter(None, InternImageSegmentationImageProcessor())
    assert (segmenter.crop_size, segmenter.stride, segmenter.window_batch_size) == (None, None, 1)
    assert (segmenter._views(), segmenter.flip) == (1, False)
    for wrong in (
        {"inference_stride": [1, 2, 3]},
        {"inference_crop": [8]},
        {"inference_stride": [8]},
        {"inference": "slide"},
    ):
        with pytest.raises(ValueError, match=r"inference_(crop|stride)"):
            segmentation.InferenceArguments(**wrong)


def test_an_evaluation_of_a_segmenter(tmp_path, monkeypatch):
    noting = Noting()
    monkeypatch.setattr(segmentation, "report_evaluation", noting("report_evaluation", "evaluation"))
    monkeypatch.setattr(segmentation, "draw_classes", noting("draw_classes"))
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])

    def segment(trainer, rows, transform, segmenter, metric, names, inference):
        assert not model.training
        metric.counts = counts
        return 4.0

    monkeypatch.setattr(segmentation, "_segment", segment)
    processor = InternImageSegmentationImageProcessor(size={"shortest_edge": 32, "longest_edge": 128})
    model = torch.nn.Linear(1, 1)
    trainer = fake_trainer(noting, tmp_path, processor, None)
    trainer.model, trainer.is_fsdp_enabled = model, False
    trainer.args.device, trainer.evaluation_weights = torch.device("cpu"), lambda: torch.no_grad()
    trainer.accelerator = SimpleNamespace(reduce=lambda tensor, way: 2 * tensor if way == "sum" else None)
    data = SimpleNamespace(
        validation=[1, 2], label_names=["a", "b", "c"], reader=ImageReader(), evaluation_transform=noting("transform")
    )
    inference = segmentation.InferenceArguments(tta_flip=True)
    result = segmentation.evaluate_and_report(trainer, data, "validation", "names", model_name="m", inference=inference)
    assert result == "evaluation"
    given, options = noting.calls["report_evaluation"]
    assert given == (trainer, "names", "validation")
    means = {"mean_iou": 0.775, "mean_accuracy": 0.875, "overall_accuracy": 0.875}
    assert options["metrics"] == pytest.approx(means)
    logged = {f"eval_{name}": value for name, value in options["metrics"].items()}
    assert noting.calls["save_metrics"][0] == ("eval", logged)
    assert noting.calls["draw_classes"][0] == (
        ["a", "b", "c"],
        {"IoU": [0.75, 0.8, None]},
        tmp_path / "eval_classes.png",
    )
    assert options["class_iou"] == {"a": 0.75, "b": 0.8, "c": None}
    settings = {
        "inference": "whole",
        "inference_crop": [],
        "inference_stride": [],
        "tta_ratios": [1.0],
        "tta_flip": True,
    }
    assert options["inference"] == settings
    expected = {"model_name": "m", "samples": 2, "image_size": [32, 128], "batch_size": 1, "images_per_second": 0.5}
    assert {name: options[name] for name in expected} == expected
    assert noting.calls["transform"][0] == (processor,)


@pytest.mark.parametrize(("rank", "world", "seen"), [(0, 1, [0, 1, 2]), (0, 2, [0, 2]), (1, 2, [1, 2])])
def test_each_process_segments_its_share(rank, world, seen, tmp_path, monkeypatch):
    noting, drawn, read, added = Noting(), [], [], []
    monkeypatch.setattr(segmentation, "draw_masks", lambda *arguments: drawn.append(arguments))

    def read_row(row):
        read.append(row)
        return Image.new("L", (1, 1), row), np.array([[row]]), b""

    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=world, process_index=rank, output_dir=str(tmp_path / "new")),
        accelerator=SimpleNamespace(autocast=torch.no_grad),
    )
    metric = SimpleNamespace(add=lambda *arguments: added.append(arguments))
    inference = segmentation.InferenceArguments(overlays=2)
    seconds = segmentation._segment(
        trainer, [0, 1, 2], SimpleNamespace(read=read_row), lambda image: torch.tensor([[image.getpixel((0, 0))]]),
        metric, ["a"], inference,
    )  # fmt: skip
    assert read == seen
    counted = [row for row in seen if row % world == rank]
    assert [(int(found[0, 0]), int(truth[0, 0])) for found, truth in added] == [(row, row) for row in counted]
    names = [f"{row:05d}.png" for row in counted if row in (0, 2)]
    assert [arguments[4] for arguments in drawn] == [tmp_path / "new" / "overlays" / name for name in names]
    assert seconds > 0
    assert not noting.calls


# ---- Steps of the trainers ----


class Answering(torch.nn.Module):
    """Gives these outputs, with a parameter so that a trainer takes it."""

    def __init__(self, **outputs):
        super().__init__()
        self.weight, self.outputs = torch.nn.Parameter(torch.zeros(1)), outputs

    def forward(self, **inputs):
        return SimpleNamespace(**self.outputs)


def step_trainer(trainer_class, folder, model, **options):
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    return trainer_class(model=model, args=arguments, recipe=SystemRecipe(), **options)


def test_a_loss_of_labelled_pixels_that_is_no_number_stays_so(tmp_path):
    nothing, some = torch.full((1, 2, 2), 255), torch.full((1, 2, 2), 255)
    some[0, 0, 0] = 1
    model = Answering(loss=torch.tensor([math.nan]))
    trainer = step_trainer(SegmentationTrainer, tmp_path, model)
    assert trainer.compute_loss(model, {"labels": nothing}) == 0
    assert trainer.compute_loss(model, {"labels": some}).isnan()
    two = Answering(loss=torch.tensor([1.0, 3.0]))
    loss, outputs = trainer.compute_loss(two, {"labels": some}, return_outputs=True)
    assert (loss, outputs.loss.tolist()) == (2.0, [1.0, 3.0])


def test_maps_of_other_processes_may_be_larger(tmp_path, monkeypatch):
    calls = []

    def pad(maps, dimension, pad_index):
        calls.append((dimension, pad_index))
        return torch.nn.functional.pad(maps, (0, dimension == 2, 0, dimension == 1), value=pad_index)

    model = Answering(loss=torch.tensor(0.5), logits=torch.rand(2, 3, 4, 4))
    trainer = step_trainer(SegmentationTrainer, tmp_path, model)
    monkeypatch.setattr(trainer.accelerator, "pad_across_processes", pad)
    inputs = {"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.zeros(2, 8, 8, dtype=torch.int64)}
    loss, classes, labels = trainer.prediction_step(model, inputs, False)
    assert (loss, classes.shape, labels.shape) == (0.5, (2, 9, 9), (2, 9, 9))
    assert calls == [(1, 255), (1, 255), (2, 255), (2, 255)]
    assert classes[:, :8, :8].max() < 3
    assert trainer.prediction_step(model, inputs, True) == (0.5, None, None)


def test_a_detectors_step_keeps_every_score(tmp_path):
    noting = Noting()
    found = [{"scores": torch.tensor([0.0, 0.5]), "labels": torch.tensor([1, 0]), "boxes": torch.zeros(2, 4)}]
    processor = SimpleNamespace(post_process_object_detection=noting("post", found))
    model = Answering(loss=torch.tensor([1.0, 3.0]))
    trainer = step_trainer(DetectionTrainer, tmp_path, model, processing_class=processor)
    inputs = {"labels": [{"orig_size": torch.tensor([30, 40]), "image_id": torch.tensor([7])}]}
    loss, detections, ids = trainer.prediction_step(model, inputs, False)
    assert (loss, ids.tolist()) == (2.0, [7])
    assert detections[0, :, :2].tolist() == [[0.0, 1.0], [0.5, 0.0]]
    options = noting.calls["post"][1]
    assert options["threshold"] == 0.0
    assert options["target_sizes"].tolist() == [[30, 40]]
    assert trainer.prediction_step(model, inputs, True) == (2.0, None, None)


@pytest.mark.parametrize(
    ("processes", "device", "converted"), [(2, "cuda", True), (1, "cuda", False), (2, "cpu", False)]
)
def test_norms_of_a_segmenter_on_several_gpus_are_over_all_images(processes, device, converted, monkeypatch):
    noting = Noting()
    monkeypatch.setattr(torch.nn.SyncBatchNorm, "convert_sync_batchnorm", noting("convert"))
    for name in ("trainer_with_data", "checkpoint_backbone"):
        monkeypatch.setattr(segmentation_script, name, noting(name))
    training = SimpleNamespace(world_size=processes, device=torch.device(device))
    arguments = SimpleNamespace(training=training, augmentation=None)
    segmentation_script.build_trainer(arguments, SimpleNamespace(label_names=["a"]), "model", None)
    assert ("convert" in noting.calls) is converted
