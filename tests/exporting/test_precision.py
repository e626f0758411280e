# SPDX-License-Identifier: MIT
"""Files in half precision and in 8 bits."""

import json
import re
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image
from support.golden_data import awaken, tiny_config

from hf_internimage import InternImageBackbone, InternImageForImageClassification
from hf_internimage.exporting import Accuracy, ExportError, export, onnx_precision, onnx_program
from hf_internimage.exporting.targets import onnx as target
from hf_internimage.exporting.targets import openvino as openvino_target
from hf_internimage.hub.repository import default_image_processor

SIDE = 64
INT8 = {"DynamicQuantizeLinear", "MatMulInteger"}


@pytest.fixture(scope="module")
def model():
    return awaken(InternImageForImageClassification(tiny_config(depths=[1, 1], groups=[1, 2], image_size=SIDE)).eval())


@pytest.fixture
def one_program(model, monkeypatch, tmp_path_factory):
    """Let all exports of this file share one program for each kind of operators and sizes: it takes seconds."""
    original = onnx_program.export_onnx

    def kept(system, options, *, opset, translations):
        key = opset, options.dynamic
        if key not in PROGRAMS:
            PROGRAMS[key] = original(system, options, opset=opset, translations=translations)
        return PROGRAMS[key]

    for module in (target, openvino_target):
        monkeypatch.setattr(module, "export_onnx", kept)


PROGRAMS = {}


def test_precisions_that_a_target_does_not_have(tmp_path, model):
    for arguments, message in (
        ({"half": True, "int8": True}, "half and int8 are two precisions; choose one"),
        ({"target": "aoti", "int8": True}, "target aoti has no int8; onnx and openvino can"),
        ({"target": "torchscript", "half": True}, "target torchscript has no half; onnx and openvino can"),
        ({"calibration": tmp_path}, "calibration is for int8; add int8, or leave it out"),
        ({"int8": True, "calibration": tmp_path}, "Calibration needs the model's image processor"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "out", **arguments)
    processor = default_image_processor(model.config)
    with pytest.raises(ValueError, match="holds no image"):
        export(model, tmp_path / "out", int8=True, calibration=tmp_path, image_processor=processor)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png.* Remove it from the folder of calibration"):
        export(model, tmp_path / "out", int8=True, calibration=tmp_path, image_processor=processor)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_half_precision(model, tmp_path, name):
    report = export(model, tmp_path / "out", target=name, size=SIDE, half=True)
    assert report.dynamic
    assert report.precision == "half"
    assert report.tolerance == 1e-2
    assert 1e-5 < report.relative_error < 1e-2  # float16 was in use
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4e-6
    assert report.megabytes < 0.5 * weights + 0.4  # the graph takes the rest
    if name == "onnx":
        graph = onnx.load(report.file).graph
        onnx.checker.check_model(report.file)
        assert {tensor.type.tensor_type.elem_type for tensor in (*graph.input, *graph.output)} == {
            onnx.TensorProto.FLOAT
        }


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
def test_int8_computes_ranges_when_it_runs(model, tmp_path):
    report = export(model, tmp_path / "out", size=SIDE, int8=True)
    assert report.precision == "int8"
    assert all(0.99 <= comparison.cosine["logits"] < 1 for comparison in report.comparisons)
    assert "least cosine of logits" in str(report)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["comparisons"][0]["same_class"] is not None
    nodes = onnx.load(report.file).graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds.keys() >= INT8
    # A block has linear layers for values, results, offsets and masks, and two more; one is for the classes.
    assert kinds["MatMulInteger"] == 2 * 6 + 1
    assert kinds["MatMul"] + kinds["Gemm"] == 0
    assert report.megabytes < report.float_megabytes
    assert f"({report.megabytes / report.float_megabytes:.2f} of {report.float_megabytes:.1f} MB in float32)" in str(
        report
    )
    pixels = torch.randn(2, 3, 48, 80)
    (logits,) = onnxruntime.InferenceSession(report.file).run(["logits"], {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        assert torch.cosine_similarity(torch.from_numpy(logits), model(pixels).logits).min() > 0.99


def write_images(folder):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(4):
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((80, 70)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
def test_accuracy_on_labelled_images(model, tmp_path):
    processor = default_image_processor(model.config)
    with torch.no_grad():
        pixels = processor([Image.open(path) for path in sorted(write_images(tmp_path / "x").iterdir())])[
            "pixel_values"
        ]
        classes = model(torch.as_tensor(np.stack(pixels))).logits.argmax(1).tolist()
    other = next(index for index in range(5) if index not in classes)
    for path, index in zip(sorted((tmp_path / "x").iterdir()), [*classes[:3], other], strict=True):
        folder = tmp_path / "labelled" / model.config.id2label[index]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    (folder / "bad.png").write_bytes(b"no image")
    report = export(
        model, tmp_path / "out", size=SIDE, int8=True, evaluate=tmp_path / "labelled", image_processor=processor
    )
    assert (report.accuracy, report.eager_accuracy) == (Accuracy(3, 4), Accuracy(3, 4))
    assert "right class: 3 of 4 (75.00%), PyTorch 3 of 4 (75.00%)" in str(report)
    assert re.search(r"note: left out: .*bad\.png", str(report))
    assert json.loads((tmp_path / "out" / "export.json").read_text())["accuracy"] == {"right": 3, "images": 4}


def test_labelled_images_need_a_classifier_and_its_classes(model, tmp_path):
    processor = default_image_processor(model.config)
    write_images(tmp_path / "labelled" / "cats")
    for arguments, message in (
        (
            {"image_processor": processor},
            r"images in 'cats', which is no class of the model; .* such as LABEL_0, LABEL_1",
        ),
        ({}, "evaluate needs the model's image processor"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "out", evaluate=tmp_path / "labelled", **arguments)
    with pytest.raises(ValueError, match="evaluate is for classifiers, and the model is a InternImageBackbone"):
        export(InternImageBackbone(tiny_config()), tmp_path / "out", evaluate=tmp_path / "labelled")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
def test_int8_with_calibration(model, tmp_path):
    report = export(
        model,
        tmp_path / "out",
        int8=True,
        calibration=write_images(tmp_path / "images"),
        image_processor=default_image_processor(model.config),
    )
    assert [comparison.shape for comparison in report.comparisons] == [(1, 3, SIDE, SIDE)] * 4 + [
        (1, 3, 83, 56),
        (3, 3, 56, 81),
    ]
    kinds = Counter(node.op_type for node in onnx.load(report.file).graph.node)
    assert kinds["QuantizeLinear"]
    assert kinds["DequantizeLinear"]
    assert not kinds.keys() & INT8


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize("calibrated", [False, True], ids=["weights", "products"])
def test_int8_of_openvino(model, tmp_path, calibrated):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    report = export(
        model,
        tmp_path / "out",
        target="openvino",
        size=SIDE,
        int8=True,
        calibration=write_images(tmp_path / "images") if calibrated else None,
        image_processor=default_image_processor(model.config),
    )
    assert report.dynamic
    assert {comparison.shape[2:] for comparison in report.comparisons} >= {(83, 56), (56, 81)}  # run, not only read
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert report.file.with_suffix(".bin").stat().st_size < 3 * parameters  # four bytes in float32
    core = openvino.Core()
    linear = [each for each in core.read_model(report.file).get_ops() if openvino_target._is_linear(each)]
    assert linear == []  # no weights are left in float32
    operators = core.read_model(report.file).get_ops()
    kinds = Counter(str(each.get_element_type()) for each in operators if each.get_type_name() == "Constant")
    assert kinds["<Type: 'int8_t'>"] + kinds["<Type: 'uint8_t'>"] >= 2 * 6 + 1
    quantised = [each for each in operators if each.get_type_name() == "FakeQuantize"]
    assert bool(quantised) == calibrated
    assert all(each.input(1).get_partial_shape().is_static for each in quantised)
    pixels = torch.randn(2, 3, 48, 80)
    (logits,) = openvino_target.load(report.file)(pixels)
    with torch.no_grad():
        assert torch.cosine_similarity(logits, model(pixels).logits).min() > 0.99


def test_openvino_without_nncf_says_so_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(openvino_target, "export_onnx", None)
    with pytest.raises(ModuleNotFoundError, match="nncf"):
        export(model, tmp_path / "out", target="openvino", size=SIDE, int8=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
def test_bad_int8_leaves_nothing(model, tmp_path, monkeypatch):
    def coarse(file, pixels):
        loaded = onnx.load(file)
        for tensor in loaded.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim == 2 and values.dtype == np.float32:
                step = np.abs(values).max()
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.round(values / step) * step, tensor.name))
        onnx.save(loaded, file)
        return file

    assert onnx_precision.to_int8 is target.to_int8
    monkeypatch.setattr(target, "to_int8", coarse)
    with pytest.raises(ExportError, match=r"the least cosine of logits of the file and .*; the bound is 0\.99"):
        export(model, tmp_path / "out", size=SIDE, int8=True)
    assert list(tmp_path.iterdir()) == []
