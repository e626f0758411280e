# SPDX-License-Identifier: MIT
"""examples/serving: each program gives what the model does."""

import importlib
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper
from openvino import opset15 as op
from PIL import Image
from support.golden_data import awaken, tiny_config
from support.paths import ROOT

from hf_internimage import InternImageForImageClassification
from hf_internimage.exporting import export
from hf_internimage.hub.repository import default_image_processor

EXAMPLES = ROOT / "examples" / "serving"
SIDE = 40
HEADER = "onnxruntime_cxx_api.h"
MODULES = ("classify", "server", "model_repository")


def why_no_cpp():
    """Why the C++ program cannot be compiled here; None if it can."""
    if not sys.platform.startswith("linux") or shutil.which("g++") is None:
        return "needs Linux and g++"
    command = ["g++", "-std=c++17", "-E", "-x", "c++", "-include", HEADER, "/dev/null"]
    if subprocess.run(command, capture_output=True).returncode:
        return f"needs {HEADER} on the path of CPLUS_INCLUDE_PATH"
    return None


@pytest.fixture
def modules(monkeypatch):
    """A function that imports a program of the folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the model, its image processor, the folder)."""
    torch.manual_seed(0)
    labels = dict(enumerate(["cat", "dog", "cow", "hen", "pig"]))
    config = tiny_config(depths=[1], groups=[2], image_size=SIDE, id2label=labels)
    model = awaken(InternImageForImageClassification(config).eval())
    processor = default_image_processor(model.config)
    folder = tmp_path_factory.mktemp("serving") / "exported"
    export(model, folder, image_processor=processor)
    return model, processor, folder


def images():
    generator = np.random.default_rng(0)
    sizes = [(50, 75), (91, 43), (SIDE, SIDE), (33, 34), (120, 121)]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def model_scores(model, processor, pictures):
    with torch.no_grad():
        return model(**processor(pictures, return_tensors="pt")).logits.softmax(1)


@pytest.mark.slow
def test_onnx_runtime_in_python(exported, modules, tmp_path):
    model, processor, folder = exported
    classifier = modules("classify").Classifier(folder)
    for picture in images():
        (expected,) = processor(picture, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(classifier.pixels(picture), expected, rtol=0, atol=1e-6)
    expected = model_scores(model, processor, images())
    scores = classifier.scores(np.stack([classifier.pixels(picture) for picture in images()]))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)

    images()[0].save(tmp_path / "one.png")
    command = [sys.executable, str(EXAMPLES / "classify.py"), str(folder), str(tmp_path / "one.png")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    label = model.config.id2label[int(expected[0].argmax())]
    assert printed.split()[1:] == [label, f"{float(expected[0].max()):.4f}"]


def test_other_preprocessing_is_refused(modules, tmp_path):
    (tmp_path / "config.json").write_text('{"id2label": {}}')
    (tmp_path / "preprocessor_config.json").write_text('{"do_center_crop": false, "size": {"shortest_edge": 8}}')
    with pytest.raises(ValueError, match="is not preprocessed by resizing the shortest edge and a centre crop"):
        modules("classify").Classifier(tmp_path)


@pytest.mark.slow
def test_the_server_answers_in_batches(exported, modules, monkeypatch):
    testing = pytest.importorskip("fastapi.testclient")
    model, processor, folder = exported
    monkeypatch.setenv("MODEL", str(folder))
    server, batches = modules("server"), []
    monkeypatch.setattr(server, "SECONDS", 1.0)
    compute = server.Classifier.scores

    def scores(classifier, pixels):
        batches.append(len(pixels))
        if len(pixels) == 2:
            raise RuntimeError("out of memory")
        return compute(classifier, pixels)

    monkeypatch.setattr(server.Classifier, "scores", scores)
    bodies = []
    for picture in images():
        picture.save(stream := io.BytesIO(), "PNG")
        bodies.append(stream.getvalue())
    with testing.TestClient(server.app, raise_server_exceptions=False) as client, ThreadPoolExecutor(5) as pool:

        def post(body):
            return client.post("/classify", content=body)

        answers = list(pool.map(post, bodies))
        assert batches == [5]
        failed = list(pool.map(post, bodies[:2]))
        after, wrong = post(bodies[0]), post(b"no image")
    expected = model_scores(model, processor, images())
    for answer, row in zip([*answers, after], [*expected, expected[0]], strict=True):
        result = answer.json()
        assert result["label"] == model.config.id2label[int(row.argmax())]
        assert result["score"] == pytest.approx(float(row.max()), abs=1e-6)
    assert [answer.status_code for answer in failed] == [500, 500]
    assert wrong.status_code == 400
    assert wrong.json()["detail"].startswith("the body is no image: cannot identify image file")


@pytest.mark.slow
@pytest.mark.skipif(why_no_cpp() is not None, reason=str(why_no_cpp()))
def test_onnx_runtime_in_cpp(exported, tmp_path):
    model, _, folder = exported
    # The Python package has the library, not the names that a linker and a program look for.
    (library,) = Path(onnxruntime.__file__).with_name("capi").glob("libonnxruntime.so.*.*.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    program = tmp_path / "classify"
    link = [f"-L{tmp_path}", f"-Wl,-rpath,{tmp_path}", "-lonnxruntime"]
    command = ["g++", "-std=c++17", "-O1", str(EXAMPLES / "classify.cpp"), "-o", str(program), *link]
    subprocess.run(command, check=True, timeout=300)
    pixels = torch.randn(2, 3, 48, 36)
    pixels.numpy().tofile(tmp_path / "pixels.raw")
    command = [str(program), str(folder / "model.onnx"), str(tmp_path / "pixels.raw"), *map(str, pixels.shape)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    logits = torch.tensor([[float(number) for number in line.split()] for line in printed.splitlines()])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(pixels).logits, rtol=0, atol=1e-5)
    result = subprocess.run([*command[:-1], "640"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert "has fewer than" in result.stderr


def onnx_file(folder, batch):
    """A file of two outputs, one with a size that is not known before."""
    folder.mkdir()
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, 3, "height", "width"])]
    outputs = [
        helper.make_tensor_value_info("maps", TensorProto.FLOAT, [batch, 3, "height", "width"]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [4]),
    ]
    nodes = [helper.make_node("Relu", ["pixel_values"], ["maps"]), helper.make_node("Shape", ["maps"], ["shape"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "model.onnx"
    )
    return folder


def triton_configuration(file):
    """A config.pbtxt, read by the schema of Triton's own Python package."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse(file.read_text(), schema.ModelConfig())


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_folder_for_triton(batch, modules, tmp_path):
    modules("model_repository").main(onnx_file(tmp_path / "exported", batch), tmp_path / "models")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "models").rglob("*.*")) == [
        *("models/internimage/1/model.onnx", "models/internimage/config.pbtxt")
    ]
    text = (tmp_path / "models/internimage/config.pbtxt").read_text()
    sizes = "3, -1, -1" if batch == "batch" else "1, 3, -1, -1"
    assert f'{{ name: "pixel_values" data_type: TYPE_FP32 dims: [ {sizes} ] }}' in text
    assert f"max_batch_size: {8 if batch == 'batch' else 0}" in text
    assert ("dynamic_batching" in text) == (batch == "batch")
    parsed = triton_configuration(tmp_path / "models/internimage/config.pbtxt")
    assert [tensor.name for tensor in parsed.output] == ["maps", "shape"]
    assert parsed.HasField("dynamic_batching") == (batch == "batch")


def test_a_folder_for_openvino_model_server(modules, tmp_path):
    pixels = op.parameter([-1, 3, -1, -1], name="pixel_values")
    (tmp_path / "exported").mkdir()
    scaled = op.multiply(pixels, op.constant(np.full((1, 3, 1, 1), 2, np.float32)))
    openvino.save_model(openvino.Model([scaled], [pixels]), tmp_path / "exported" / "model.xml")
    modules("model_repository").main(tmp_path / "exported", tmp_path / "models")
    (entry,) = json.loads((tmp_path / "models" / "config.json").read_text())["model_config_list"]
    assert entry == {"config": {"name": "internimage", "base_path": "/models/internimage"}}
    served = openvino.Core().compile_model(tmp_path / "models" / "internimage" / "1" / "model.xml", "CPU")
    assert float(served(np.ones((1, 3, 2, 2), np.float32))[0].max()) == 2


def test_other_folders_are_refused(modules, tmp_path):
    with pytest.raises(
        SystemExit, match=r"has no model\.onnx and no model\.xml; export with --target onnx or openvino"
    ):
        modules("model_repository").main(tmp_path, tmp_path / "models")
