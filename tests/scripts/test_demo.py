# SPDX-License-Identifier: MIT
"""scripts/demo.py: its pieces, and a short run of all of it on a part of the data."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from support.golden_data import load_module
from support.paths import SCRIPTS
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from hf_internimage import InternImageForImageClassification, InternImageImageProcessorPil

RED, WHITE = (200, 16, 46), (255, 255, 255)


demo = load_module(SCRIPTS / "demo.py")


@pytest.fixture(scope="module", autouse=True)
def _settings_come_back() -> Iterator[None]:
    """The script's `main` sets the number of threads and switches progress bars off, for the whole process."""
    threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


@pytest.fixture(scope="module")
def data() -> DatasetDict:
    return demo.load_data(seed=0)


@pytest.fixture(scope="module")
def small_data(data: DatasetDict) -> DatasetDict:
    return DatasetDict({"train": data["train"].select(range(448)), "test": data["test"].select(range(120))})


@pytest.fixture(scope="module")
def short_run(small_data: DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`main` itself with everything it does, on a quarter of the data."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "by the script"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(demo, "load_data", lambda seed: small_data)
        status = demo.main(["--output-dir", str(folder), "--epochs", "3", "--seed", "5"])
    return SimpleNamespace(folder=folder, status=status, out=out.getvalue(), err=err.getvalue())


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the demo skip training: its model is new each time, and differs with the seed."""

    def fake_train(data: Any, processor: Any, epochs: int, seed: int, scratch: Path) -> torch.nn.Module:
        torch.manual_seed(seed)
        config = demo.InternImageConfig(channels=4, depths=[1], groups=[1], num_labels=10)
        return InternImageForImageClassification(config).eval()

    monkeypatch.setattr(demo, "train", fake_train)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_is_split_by_class_and_the_same_for_one_seed(data: DatasetDict) -> None:
    assert (len(data["train"]), len(data["test"])) == (1437, 360)
    assert data["train"].features["label"].names == list("0123456789")
    shares = torch.bincount(torch.tensor(data["test"]["label"]), minlength=10)
    assert ((shares >= 34) & (shares <= 38)).all(), shares
    image = data["test"][0]["image"]
    assert image.size == (8, 8)
    assert image.getextrema() == (0, 255)
    assert demo.load_data(seed=0)["test"]["label"] == data["test"]["label"]
    assert demo.load_data(seed=1)["test"]["label"] != data["test"]["label"]


def test_transform_augments_only_when_asked(data: DatasetDict) -> None:
    size = {"height": demo.SIZE, "width": demo.SIZE}
    processor = InternImageImageProcessorPil(size={"shortest_edge": demo.SIZE}, crop_size=size)
    plain = data["train"].with_transform(demo.make_transform(processor, augmented=False))
    moved = data["train"].with_transform(demo.make_transform(processor, augmented=True))
    first, again, changed = plain[:4], plain[:4], moved[:4]
    assert first["pixel_values"].shape == (4, 3, demo.SIZE, demo.SIZE)
    assert first["labels"] == changed["labels"] == data["train"]["label"][:4]
    torch.testing.assert_close(first["pixel_values"], again["pixel_values"], rtol=0, atol=0)
    difference = (changed["pixel_values"] - first["pixel_values"]).abs().amax((1, 2, 3))
    assert (difference > 0.5).all(), difference


def test_short_run_learns_and_writes_what_it_says(short_run: SimpleNamespace, small_data: DatasetDict) -> None:
    files = contents(short_run.folder)
    expected = {"model/config.json", "model/model.safetensors", "model/preprocessor_config.json", "predictions.png"}
    assert expected <= set(files)
    assert {path.name for path in short_run.folder.iterdir()} == {"model", "predictions.png"}

    model = AutoModelForImageClassification.from_pretrained(short_run.folder / "model").eval()
    processor = AutoImageProcessor.from_pretrained(short_run.folder / "model", backend="pil")
    assert type(model) is InternImageForImageClassification
    assert model.config.id2label == {index: str(index) for index in range(10)}
    with torch.no_grad():
        logits = model(**processor(list(small_data["test"]["image"]), return_tensors="pt")).logits
    accuracy = (logits.argmax(-1) == torch.tensor(small_data["test"]["label"])).float().mean().item()
    assert accuracy > 0.3, "hardly better than guessing: nothing was learned"
    assert f"held-out accuracy  {accuracy:.2%}" in short_run.out
    assert str(short_run.folder / "predictions.png") in short_run.out


def test_short_run_fails_for_its_accuracy(short_run: SimpleNamespace) -> None:
    """Three epochs on a quarter of the data are not enough."""
    assert short_run.status == 1
    assert "expected at least 97.5%" in short_run.err


def test_short_run_shows_its_mistakes(short_run: SimpleNamespace) -> None:
    with Image.open(short_run.folder / "predictions.png") as sheet:
        pixels = sheet.convert("RGB")
    assert pixels.width > 900
    assert pixels.height > 900
    colours = {colour for _, colour in pixels.getcolors(maxcolors=pixels.width * pixels.height)}
    assert {RED, WHITE} <= colours


@pytest.mark.parametrize("wrong", [None, 0, 9])
def test_sheet_frames_exactly_the_mistakes(wrong: int | None) -> None:
    truth = [str(index % 10) for index in range(11)]
    predictions = [{"label": "x" if index == wrong else label, "score": 0.5} for index, label in enumerate(truth)]
    sheet = demo.draw_sheet([Image.new("L", (8, 8))] * 11, truth, predictions, "title")
    red = {(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == RED}
    if wrong is None:
        assert not red
        return
    columns, rows = [x for x, _ in red], [y for _, y in red]
    assert 96 <= max(columns) - min(columns) <= 112  # one tile and its frame
    assert min(columns) // 112 == wrong % demo.SHEET_COLUMNS
    assert (min(rows) - 70) // 140 == wrong // demo.SHEET_COLUMNS


@pytest.mark.parametrize(("accuracy", "status"), [(0.9749, 1), (0.975, 0), (1.0, 0)])
def test_main_refuses_low_accuracy(
    accuracy: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "run_demo", lambda data, output_dir, epochs, seed: accuracy)
    assert demo.REQUIRED_ACCURACY == 0.975
    assert demo.main(["--output-dir", str(tmp_path)]) == status
    assert bool(capsys.readouterr().err) == bool(status)


@pytest.mark.usefixtures("untrained")
def test_second_run_replaces_the_first(small_data: DatasetDict, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    demo.run_demo(small_data, tmp_path, epochs=1, seed=0)
    first = contents(tmp_path)
    demo.run_demo(small_data, tmp_path, epochs=1, seed=1)
    second = contents(tmp_path)
    assert first.keys() == second.keys()
    assert first["model/model.safetensors"] != second["model/model.safetensors"]
    assert first["predictions.png"] != second["predictions.png"]
    assert second["notes.txt"] == b"mine"


@pytest.mark.usefixtures("untrained")
def test_failed_run_leaves_the_former_output(
    small_data: DatasetDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.run_demo(small_data, tmp_path, epochs=1, seed=0)
    before = contents(tmp_path)

    load = AutoModelForImageClassification.from_pretrained

    def load_other_weights(folder: Path) -> torch.nn.Module:
        model = load(folder)
        torch.nn.init.normal_(model.head.weight)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(demo.AutoModelForImageClassification, "from_pretrained", load_other_weights)
        with pytest.raises(AssertionError, match="differ from those of the trained one"):
            demo.run_demo(small_data, tmp_path, epochs=1, seed=1)
    assert contents(tmp_path) == before

    with monkeypatch.context() as patch:
        patch.setattr(demo, "draw_sheet", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demo.run_demo(small_data, tmp_path, epochs=1, seed=1)
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "predictions.png"}


def test_replace_brings_the_former_back_if_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("former")
    with pytest.raises(FileNotFoundError):
        demo.replace(target, by=tmp_path / "absent")
    assert target.read_text() == "former"
