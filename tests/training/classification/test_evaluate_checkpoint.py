# SPDX-License-Identifier: MIT
"""Evaluation of a checkpoint: its numbers against a plain loop, labels by name, any model, processes, errors."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from datasets import config as datasets_config
from PIL import Image
from safetensors import SafetensorError
from sklearn.datasets import load_digits
from support.golden_data import tiny_config
from support.operator_cases import CPU_FALLBACK
from support.paths import SCRIPTS
from transformers import AutoImageProcessor, CLIPImageProcessorPil, ConvNextConfig, ConvNextForImageClassification

from hf_internimage import InternImageForImageClassification, InternImageImageProcessorPil
from hf_internimage.ops import BackendError
from hf_internimage.training.classification import evaluate_checkpoint as script
from hf_internimage.training.classification.data import ClassificationDataArguments

SCRIPT = SCRIPTS / "evaluate.py"
COUNT, CLASSES, SIZE = 50, 10, 32
NAMES = [f"digit {index}" for index in range(CLASSES)]
SIDES = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv(script.BACKEND_VARIABLE, "")  # so that what the script sets does not stay


def labelled(names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.fixture(scope="module")
def images():
    digits = load_digits()
    scans = [Image.fromarray((scan * 15).astype(np.uint8)).convert("RGB") for scan in digits.images[:COUNT]]
    return scans, digits.target[:COUNT].tolist()


@pytest.fixture(scope="module")
def work(tmp_path_factory, images):
    """A folder with data, as a folder for each class, and models whose classes are in another order."""
    folder = tmp_path_factory.mktemp("evaluate")
    for index, (scan, label) in enumerate(zip(*images, strict=True)):
        (folder / "data" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        scan.save(folder / "data" / NAMES[label] / f"{index:02}.png")
    torch.manual_seed(0)
    config = tiny_config(num_labels=CLASSES, **labelled(NAMES[::-1]))
    InternImageForImageClassification(config).save_pretrained(folder / "model")
    InternImageImageProcessorPil(**SIDES).save_pretrained(folder / "model")
    config = ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_labels=CLASSES)
    ConvNextForImageClassification(config).save_pretrained(folder / "convnext")
    CLIPImageProcessorPil(**SIDES).save_pretrained(folder / "convnext")
    return folder


def expected(folder, images, order):
    """Compute top-1, top-5 and loss by a plain loop over images; `order` gives the model's class for the data's."""
    kind = ConvNextForImageClassification if folder.name == "convnext" else InternImageForImageClassification
    model, processor = kind.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        logits = torch.cat([model(**processor(image, return_tensors="pt")).logits for image in images[0]])
    labels = torch.tensor([order[label] for label in images[1]])
    best = logits.topk(5).indices == labels[:, None]
    return {
        "top1": best[:, 0].float().mean().item(),
        "top5": best.any(1).float().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
    }


def run(*arguments):
    return script.main([str(argument) for argument in arguments])


def test_result(work, images, tmp_path, capsys):
    output = tmp_path / "result.json"
    data = work / "data"
    status = run("--model", work / "model", "--validation_dir", data, "--batch_size", 16, "--output", output)
    assert status == 0, capsys.readouterr().err
    result = json.loads(output.read_text())
    per_class = result.pop("per_class")
    printed = capsys.readouterr()
    measured, written = printed.out.splitlines()
    accuracy = f"accuracy {100 * result['metrics']['top1']:.1f} %"
    assert measured.startswith(f"Validation  loss {result['metrics']['loss']:.4g}, {accuracy}")
    assert f"({COUNT} images, " in measured
    assert written == f"written to {output} and {tmp_path / 'result_classes.png'}"
    assert len(per_class) == CLASSES
    assert sum(row["images"] for row in per_class) == COUNT
    hits = sum(row["images"] * row["recall"] for row in per_class if row["images"])
    assert hits / COUNT == pytest.approx(result["metrics"]["top1"])
    assert Image.open(tmp_path / "result_classes.png").width > 700
    assert result["metrics"] == pytest.approx(expected(work / "model", images, range(CLASSES)[::-1]), abs=1e-5)
    assert result["metrics"]["top1"] != pytest.approx(
        expected(work / "model", images, range(CLASSES))["top1"], abs=1e-5
    ), "the order of the classes does not matter here, so nothing was tested"
    assert result["labels_matched_by"] == "name"
    assert result["model_type"] == "internimage"
    assert result["dataset"] == {"name": str(data), "config": None, "split": "validation", "revision": None}
    assert (result["samples"], result["image_size"], result["batch_size"]) == (COUNT, [SIZE, SIZE], 16)
    assert (result["dtype"], result["device"]) == ("float32", "cpu")
    assert result["backend"] in ("cpu", CPU_FALLBACK)
    assert result["images_per_second"] > 0
    assert set(result["versions"]) == {"torch", "transformers", "hf_internimage"}
    assert datetime.fromisoformat(result["date"]).tzinfo is not None
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["result.json", "result_classes.png"]


def test_any_model_without_class_names(work, images, tmp_path):
    output = tmp_path / "result.json"
    options = ["--test_dir", work / "data", "--split", "test", "--num_workers", 1]
    assert run("--model", work / "convnext", *options, "--output", output) == 0
    result = json.loads(output.read_text())
    assert result["labels_matched_by"] == "index"
    assert (result["model_type"], result["backend"]) == ("convnext", None)
    assert result["dataset"]["split"] == "test"
    assert result["metrics"] == pytest.approx(expected(work / "convnext", images, range(CLASSES)), abs=1e-5)


def test_type_and_backend(work, images, tmp_path):
    output = tmp_path / "result.json"
    options = ["--validation_dir", work / "data", "--dtype", "bfloat16", "--backend", "torch"]
    assert run("--model", work / "model", *options, "--output", output) == 0
    result = json.loads(output.read_text())
    assert (result["dtype"], result["backend"]) == ("bfloat16", "torch")
    exact = expected(work / "model", images, range(CLASSES)[::-1])["loss"]
    assert result["metrics"]["loss"] == pytest.approx(exact, abs=0.02)
    assert result["metrics"]["loss"] != exact


def test_several_labels(tmp_path, images):
    labels = [[label, (label + 1) % CLASSES] for label in images[1]]
    features = Features({"image": ImageFeature(), "label": List(ClassLabel(names=NAMES))})
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"image": images[0], "label": labels}, features=features).to_parquet(tmp_path / "data/0.parquet")
    torch.manual_seed(0)
    config = tiny_config(problem_type="multi_label_classification", num_labels=CLASSES, **labelled(NAMES[::-1]))
    model = InternImageForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor = InternImageImageProcessorPil(**SIDES)
    processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "result.json"
    assert run("--model", tmp_path / "model", "--validation_dir", tmp_path / "data", "--output", output) == 0
    metrics = json.loads(output.read_text())["metrics"]
    assert set(metrics) == {"mean_average_precision", "f1", "loss"}
    targets = torch.zeros(COUNT, CLASSES)
    for row, (first, second) in enumerate(labels):
        targets[row, [CLASSES - 1 - first, CLASSES - 1 - second]] = 1
    with torch.no_grad():
        loss = model(**processor(images[0], return_tensors="pt"), labels=targets).loss.item()
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.slow
def test_processes_share_the_images(work, images, tmp_path):
    """The script finds the package `evaluate`, not itself; 50 images do not divide evenly into 2 x 7."""
    output = tmp_path / "result.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    options = ["--model", work / "model", "--validation_dir", work / "data", "--batch_size", 7, "--output", output]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launcher, *map(str, options), "--data_cache_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(output.read_text())
    assert len(result["per_class"]) == CLASSES
    assert done.stdout.count("Validation  loss") == 1  # one process prints
    assert (result["samples"], result["batch_size"], result["processes"]) == (COUNT, 7, 2)
    assert result["metrics"] == pytest.approx(expected(work / "model", images, range(CLASSES)[::-1]), abs=1e-5)


@pytest.mark.parametrize(
    ("data_names", "model_names", "match", "expected"),
    [
        (["a", "b"], ["a", "b"], "auto", ([0, 1], "name")),
        (["b", "a"], ["a", "b", "c"], "auto", ([1, 0], "name")),
        (["b", "a"], ["a", "b"], "index", ([0, 1], "index")),
        (["crane", "crane"], ["crane", "crane"], "auto", ([0, 1], "name")),
        (["a", "b"], ["LABEL_0", "LABEL_1", "LABEL_2"], "auto", ([0, 1], "index")),
        (["0", "1"], ["a", "b"], "auto", ([0, 1], "index")),
        (["1", "0"], ["0", "1"], "auto", ([1, 0], "name")),
    ],
)
def test_labels_are_matched(data_names, model_names, match, expected):
    assert script.match_labels(data_names, model_names, match) == expected


@pytest.mark.parametrize(
    ("data_names", "model_names", "match", "message"),
    [
        (["a", "dog"], ["a", "b"], "auto", r"1 of 2 classes .* \('dog'; the model's begin 'a', 'b'\).*match_labels"),
        (["a", "b", "c"], ["LABEL_0", "LABEL_1"], "auto", "3 classes, the model 2"),
        (["a", "b", "c"], ["a", "b"], "index", "3 classes, the model 2"),
        (["crane", "owl"], ["crane", "owl", "crane"], "auto", r"not, or not once.*'crane'"),
        (["0", "1"], ["a", "b"], "name", "'0', '1'"),
    ],
)
def test_labels_that_do_not_match(data_names, model_names, match, message):
    with pytest.raises(ValueError, match=message):
        script.match_labels(data_names, model_names, match)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "int8"], "dtype is 'int8', expected one of float32, bfloat16, float16."),
        (["--split", "dev"], "split is 'dev', expected one of train, validation, test."),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--output", "absent/folder/x.json"], "The folder of output=absent/folder/x.json does not exist"),
        (["--backend", "cuda"], "backend 'cuda' cannot run this call"),
        (["--split", "test"], "There are no data for test"),
        (["--model", "absent/model"], "error: absent/model: cannot be loaded"),
    ],
)
def test_errors_are_one_line(options, message, work, tmp_path, capsys):
    output = tmp_path / "result.json"
    arguments = ["--model", work / "model", "--validation_dir", work / "data", "--output", output, *options]
    assert run(*arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:")
    assert message in error
    assert "\n" not in error
    assert not output.exists()


def test_bad_image_is_named(images, work, tmp_path, capsys):
    (tmp_path / "data" / NAMES[0]).mkdir(parents=True)
    (tmp_path / "data" / NAMES[1]).mkdir()
    images[0][0].save(tmp_path / "data" / NAMES[0] / "good.png")
    (tmp_path / "data" / NAMES[1] / "bad.png").write_bytes(b"x")
    for workers in (0, 1):
        options = ["--validation_dir", tmp_path / "data", "--num_workers", workers]
        assert run("--model", work / "model", *options) == 1
        error = capsys.readouterr().err
        assert re.search(r"bad\.png: cannot be decoded \(.*\); replace or remove the file, or leave out such ", error)
        assert error.endswith("images with --bad_images skip.\n")
        assert error.count("\n") == 1


def test_labels_as_numbers(work, images, tmp_path):
    """A column of numbers is matched by index, also with a model that has names."""
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    (tmp_path / "data").mkdir()
    Dataset.from_dict(dict(zip(("image", "label"), images, strict=True)), features=features).to_parquet(
        tmp_path / "data/0.parquet"
    )
    output = tmp_path / "result.json"
    assert run("--model", work / "model", "--validation_dir", tmp_path / "data", "--output", output) == 0
    result = json.loads(output.read_text())
    assert result["labels_matched_by"] == "index"
    assert result["metrics"] == pytest.approx(expected(work / "model", images, range(CLASSES)), abs=1e-5)


@pytest.mark.parametrize("device", ["cudaa", "cuda:77", "xpu"])
def test_a_device_that_is_not_there_is_one_line(device, work, capsys):
    assert run("--model", work / "model", "--validation_dir", work / "data", "--device", device) == 1
    assert f"device is {device}, which PyTorch does not find here" in capsys.readouterr().err


# ---- What is given to what ----


class Passing(torch.nn.Module):
    """Gives the pixels' means as scores; keeps the sizes and types of its batches."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1, dtype=dtype)), []

    def forward(self, pixel_values):
        assert torch.is_inference_mode_enabled()
        self.seen.append((len(pixel_values), pixel_values.dtype))
        return SimpleNamespace(logits=pixel_values.mean((2, 3)))


@pytest.mark.parametrize("several", [False, True])
def test_predictions_of_all_batches(several):
    pixels = torch.rand(5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 0, 2])
    if several:
        labels = torch.nn.functional.one_hot(labels, 3).float()
    loader = [{"pixel_values": pixels[rows], "labels": labels[rows]} for rows in (slice(0, 3), slice(3, 5))]
    accelerator = SimpleNamespace(gather_for_metrics=lambda results: results)
    model = Passing()
    found = script.predict(model, loader, accelerator, torch.device("cpu"))
    assert model.seen == [(3, torch.float32), (3, torch.float32), (2, torch.float32)]  # the first one twice
    assert torch.equal(found.labels, labels)
    assert found.image_size == (2, 4)
    assert 0 < found.seconds < 60
    logits = pixels.mean((2, 3))
    if several:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        torch.testing.assert_close(found.scores, logits.sigmoid())
    else:
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert torch.equal(found.scores[0][:, 0], logits.argmax(1))
    torch.testing.assert_close(found.losses, losses)
    half = Passing(torch.bfloat16)
    found = script.predict(half, loader, accelerator, torch.device("cpu"))
    assert {dtype for _, dtype in half.seen} == {torch.bfloat16}
    assert found.losses.dtype == torch.float32


def test_labels_of_the_model():
    def transform(batch):
        return {"labels": batch["labels"], "pixel_values": batch["pixels"]}

    labels = script.ModelLabels(transform, [3, 0, 2], 5)
    result = labels({"labels": [2, 0, 1], "pixels": "abc"})
    assert result["pixel_values"] == "abc"
    assert [int(label) for label in result["labels"]] == [2, 3, 0]
    (row,) = labels({"labels": [torch.tensor([1.0, 0.0, 1.0])], "pixels": "a"})["labels"]
    assert row.tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"), ({"match_labels": "all"}, "match_labels is 'all'"),
        ({"split": "dev"}, "split is 'dev'"), ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"output": "absent/a.json"}, "The folder of output=absent/a.json does not exist"),
    ],
)  # fmt: skip
def test_settings_of_an_evaluation(values, message, tmp_path):
    options = script.EvaluationArguments(model="a")
    expected = {"split": "validation", "match_labels": "auto", "batch_size": 32, "dtype": "float32", "device": None}
    expected |= {"backend": None, "num_workers": 0, "output": None, "model_revision": "main"}
    expected["trust_remote_code"] = False
    assert vars(options) == {"model": "a", **expected}
    script.EvaluationArguments(model="a", batch_size=1, output=str(tmp_path / "a.json"))
    for split in ("train", "validation", "test"):
        for match in ("auto", "name", "index"):
            script.EvaluationArguments(model="a", split=split, match_labels=match)
    with pytest.raises(ValueError, match=message):
        script.EvaluationArguments(model="a", **values)


def test_one_device_for_each_of_several_processes(monkeypatch):
    monkeypatch.setattr(script, "Accelerator", lambda cpu: SimpleNamespace(num_processes=2, device="x"))
    data = ClassificationDataArguments(validation_dir="absent")
    with pytest.raises(ValueError, match="device is cuda:1, but several processes have a device each; leave it out"):
        script.evaluate_model(script.EvaluationArguments(model="a", device="cuda:1"), data)


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_one_process_prints_and_writes(rank, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    metrics = {"loss": float("nan"), "top1": 0.5}
    result = {"metrics": metrics, "samples": 24, "images_per_second": 10.62}
    monkeypatch.setattr(script, "evaluate_model", lambda options, data: result)
    output = tmp_path / "a.json"
    assert run("--model", "a", "--validation_dir", "b", "--output", output) == 0
    line = "Validation  loss nan, accuracy 50.0 % (24 images, 10.6 images/s)"
    assert capsys.readouterr().out == (f"{line}\nwritten to {output}\n" if shown else "")
    assert output.exists() is shown


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\n lines"), "error: two lines\n"),
        (OSError("with hf_abcdefghij0123456789"), "error: with [token]\n"),
        (BackendError("none"), "error: none\n"), (SafetensorError("cut"), "error: cut\n"),
        (ModuleNotFoundError("x", name="a"), 'error: a is missing: pip install "hf-internimage[train]"\n'),
    ],
)  # fmt: skip
def test_errors_of_an_evaluation(error, text, monkeypatch, capsys):
    def fail(options, data):
        raise error

    monkeypatch.setattr(script, "evaluate_model", fail)
    assert run("--model", "a", "--validation_dir", "b") == 1
    assert capsys.readouterr().err == text
