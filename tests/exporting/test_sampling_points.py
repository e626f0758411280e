# SPDX-License-Identifier: MIT
"""Files that return where the model samples: the positions are those of `visualize.sampling_points`."""

import json
import shutil
import subprocess

import numpy as np
import onnxruntime
import pytest
import torch
from support.golden_data import awaken, tiny_config

import hf_internimage
from hf_internimage import (
    FlashInternImageConfig,
    FlashInternImageForImageClassification,
    InternImageForImageClassification,
)
from hf_internimage.exporting import ExportError
from hf_internimage.exporting.sampling_points import SamplingPoints
from hf_internimage.exporting.system import System, random_pixels
from hf_internimage.exporting.targets import web
from hf_internimage.visualize import sampling_points

STRIDES = {1: 4, 2: 8}  # pixels of the image, of each stage
AT = (37.0, 21.0)  # no tie between two pixels
TOLERANCE = 1e-5  # pixels


def classifier(**fields):
    torch.manual_seed(0)
    return awaken(InternImageForImageClassification(tiny_config(depths=[2, 1], groups=[1, 2], **fields)).eval())


def check(model, pixels, results):
    """Compare the points of one feature pixel, by the rule in docs/how-to/export.md."""
    scale, groups = model.config.offset_scale, model.config.groups
    taps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0) or not model.config.remove_center]
    for stage, stride in STRIDES.items():
        offset, mask = (results[f"stage{stage}_{part}"] for part in ("offset", "mask"))
        column, line = round(AT[0] / stride), round(AT[1] / stride)
        positions = stride * (np.array([column, line]) + scale * (np.array(taps) + np.float64(offset[0, line, column])))
        expected = sampling_points(model, pixels, stage=stage, at=AT)
        assert positions.shape == expected.positions.shape == (groups[stage - 1], len(taps), 2)
        np.testing.assert_allclose(positions, expected.positions, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(mask[0, line, column], expected.weights, rtol=0, atol=1e-6)
        regular = stride * (np.array([column, line]) + scale * np.array(taps))
        assert abs(positions - regular).max() > 1e-3  # the offsets matter


@pytest.mark.parametrize("fields", [{}, {"offset_scale": 2.0}, {"remove_center": True}])
def test_points_of_the_last_blocks(fields):
    model, pixels = classifier(**fields), random_pixels((1, 3, 64, 96))
    system = System(model, SamplingPoints(model))
    system.name_outputs(pixels)
    assert system.output_names == ("logits", "stage1_offset", "stage1_mask", "stage2_offset", "stage2_mask")
    with torch.no_grad():
        check(model, pixels, dict(zip(system.output_names, system(pixels), strict=True)))
    assert not any(part._forward_hooks for part in model.modules())


def test_the_page_knows_how_to_place_the_points():
    model = classifier(offset_scale=2.0)
    assert web._configuration(System(model, SamplingPoints(model)))["sampling_points"] == {
        "offset_scale": 2.0,
        "remove_center": False,
    }
    assert "sampling_points" not in web._configuration(System(model))


JAVASCRIPT = """
import {{ samplingPoints }} from {module};
const {{ outputs, at, settings }} = {input};
console.log(JSON.stringify([1, 2].map((stage) => samplingPoints(outputs, stage, at, settings))));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize("fields", [{}, {"offset_scale": 2.0}, {"remove_center": True}])
def test_the_page_places_the_points_as_python_does(fields, tmp_path):
    model, pixels = classifier(**fields), random_pixels((1, 3, 64, 96))
    points = SamplingPoints(model)
    system = System(model, points)
    with torch.no_grad():
        system(pixels)
    outputs = {
        name: {"dims": list(tensor.shape), "data": tensor.flatten().tolist()} for name, tensor in points.tensors.items()
    }
    given = {"outputs": outputs, "at": dict(zip("xy", AT, strict=True))}
    given["settings"] = web._configuration(system)["sampling_points"]
    script = tmp_path / "points.mjs"
    module = (web._PAGE / "points.mjs").as_uri()
    script.write_text(JAVASCRIPT.format(module=json.dumps(module), input=json.dumps(given)), "utf-8")
    done = subprocess.run(["node", script], stdout=subprocess.PIPE, text=True, check=True)
    for stage, result in zip(STRIDES, json.loads(done.stdout), strict=True):
        expected = sampling_points(model, pixels, stage=stage, at=AT)
        assert (result["centre"]["x"], result["centre"]["y"]) == expected.centre
        positions = np.array([(point["x"], point["y"]) for point in result["points"]])
        np.testing.assert_allclose(positions, expected.positions.reshape(-1, 2), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose([point["weight"] for point in result["points"]], expected.weights.ravel(), atol=1e-6)


def test_models_without_dcnv3_have_no_points():
    model = FlashInternImageForImageClassification(FlashInternImageConfig(channels=16, depths=[1, 1], groups=[1, 2]))
    with pytest.raises(ExportError, match="FlashInternImageForImageClassification has no DCNv3"):
        SamplingPoints(model)
    with pytest.raises(ExportError, match="Linear has no DCNv3"):
        SamplingPoints(torch.nn.Linear(1, 1))


def test_points_are_in_pixels_of_what_the_model_takes(tmp_path):
    with pytest.raises(ValueError, match="with_processing has no with_sampling_points; leave one of the two out"):
        hf_internimage.export(classifier(), tmp_path / "out", with_processing=True, with_sampling_points=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_files_return_the_points(target, tmp_path):
    model, pixels = classifier(), random_pixels((1, 3, 64, 96))
    report = hf_internimage.export(model, tmp_path / "out", target=target, with_sampling_points=True, size=64)
    assert set(report.comparisons[0].error) >= {"logits", "stage2_offset", "stage2_mask"}
    options = onnxruntime.SessionOptions()
    if target == "onnxruntime":
        options.register_custom_ops_library(str(tmp_path / "out" / report.details["library"]))
    session = onnxruntime.InferenceSession(report.file, options)
    names = [output.name for output in session.get_outputs()]
    check(model, pixels, dict(zip(names, session.run(None, {"pixel_values": pixels.numpy()}), strict=True)))
