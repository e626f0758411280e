# SPDX-License-Identifier: MIT
"""Exported folders: what they hold, that they compute what the model does, and what is refused."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from support.golden_data import awaken, tiny_config

import hf_internimage
from hf_internimage import InternImageConfig, InternImageForImageClassification, exporting
from hf_internimage.exporting import ExportError, onnx_operators
from hf_internimage.exporting.targets import onnx as onnx_target
from hf_internimage.hub.repository import default_image_processor
from hf_internimage_cli.main import main

SIDE = 64


def classifier(**fields):
    return awaken(InternImageForImageClassification(tiny_config(**fields)).eval())


def logits(file, pixels):
    session = onnxruntime.InferenceSession(file)
    return torch.from_numpy(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier's folder, as trainings write it."""
    folder = tmp_path_factory.mktemp("saved")
    model = classifier(image_size=SIDE, id2label={0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "pig"})
    model.save_pretrained(folder)
    default_image_processor(model.config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_command_writes_a_folder(saved, tmp_path, capsys):
    folder = tmp_path / "new" / "out"  # parents are made
    assert main(["export", str(saved), str(folder)]) == 0
    printed = capsys.readouterr().out
    model = InternImageForImageClassification.from_pretrained(saved).eval()
    for shape in ((2, 3, 48, 80), (1, 3, SIDE, SIDE)):
        pixels = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(logits(folder / "model.onnx", pixels), model(pixels).logits, rtol=0, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["id2label"]["1"] == "dog"
    assert json.loads((folder / "preprocessor_config.json").read_text())["crop_size"]["height"] == SIDE
    report = json.loads((folder / "export.json").read_text())
    assert report["dynamic"]
    assert report["file"] == "model.onnx"
    assert [entry["shape"] for entry in report["comparisons"]] == [[1, 3, 83, 56], [3, 3, 56, 81]]
    assert str(folder / "model.onnx") in printed
    assert "opset 20" in printed
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "export.json", "model.onnx", "preprocessor_config.json")
    ]
    for package in (torch, hf_internimage):
        assert str(Path(package.__file__).parent).encode() not in (folder / "model.onnx").read_bytes()


@pytest.mark.slow
def test_a_file_for_one_size_says_so(tmp_path):
    report = hf_internimage.export(classifier(), tmp_path / "out", size=(SIDE, 48), static=True)
    (shape,) = onnx.load(report.file).graph.input
    assert [dim.dim_value for dim in shape.type.tensor_type.shape.dim] == [1, 3, SIDE, 48]
    assert not report.dynamic
    assert "one image of 64x48" in str(report)


@pytest.mark.slow
def test_plain_torch_onnx_export_needs_nothing_else(tmp_path):
    model = classifier()
    model.config.return_dict = False
    with exporting.onnx_program.quiet_exporter():
        torch.onnx.export(model, (torch.randn(1, 3, SIDE, SIDE),), tmp_path / "model.onnx", verbose=False)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(pixels)[0].detach(), rtol=0, atol=1e-5)
    assert onnx_target.describe(tmp_path / "model.onnx")["nodes"] > 100


@pytest.mark.slow
def test_a_file_that_computes_something_else_leaves_nothing(tmp_path, monkeypatch):
    def without_softmax(value, offset, mask, *arguments):
        return onnx_operators.dcnv3_as_deform_conv(value, offset, mask, *arguments[:-1], False)

    changed = dict.fromkeys(onnx_target.TRANSLATIONS, without_softmax)
    monkeypatch.setattr(onnx_target, "TRANSLATIONS", changed)
    with pytest.raises(ExportError, match=r"for pixels of 1x3x83x56, logits of the file differs from the model's by"):
        hf_internimage.export(classifier(), tmp_path / "out", size=SIDE)
    assert list(tmp_path.iterdir()) == []


def test_untrained_offsets_are_noted():
    assert "all offsets are zero" in exporting.main._notes(InternImageForImageClassification(tiny_config()))[0]
    assert exporting.main._notes(classifier()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "onyx"}, "target is 'onyx', expected one of onnx"),
        ({"size": 16}, "size is 16x16, expected at least 32x32 pixels"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        hf_internimage.export(classifier(), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no empty folder"):
        hf_internimage.export(classifier(), tmp_path)
    assert main(["export", "me/model", str(tmp_path)]) == 2


def test_the_image_size_is_the_processors():
    model = InternImageForImageClassification(InternImageConfig(image_size=384, depths=[1, 1, 1, 1]))
    assert exporting.main._image_size(None, model, default_image_processor(model.config)) == (384, 384)
    assert exporting.main._image_size(None, model, None) == (384, 384)
    assert exporting.main._image_size(200, model, None) == (200, 200)
