# SPDX-License-Identifier: MIT
"""Folders for transformers.js: what they hold, that both files agree with the model, and what is refused.

`make check-web` runs such a folder in Node and Chromium (tests/web/).
"""

import json
import re
import shutil
import subprocess

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support.golden_data import awaken, tiny_config
from transformers import ConvNextImageProcessorPil

import hf_internimage
from hf_internimage import (
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    exporting,
)
from hf_internimage.exporting import ExportError
from hf_internimage.exporting.targets import web

SIDE = 64
LABELS = {0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "pig"}
RESIZE = web._PAGE / "resize.mjs"


def classifier(**fields):
    return awaken(InternImageForImageClassification(tiny_config(image_size=SIDE, id2label=LABELS, **fields)).eval())


def processor(**fields):
    return InternImageImageProcessorPil(
        **{"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **fields}
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its folder and the report."""
    model, folder = classifier(), tmp_path_factory.mktemp("web") / "out"
    labelled = tmp_path_factory.mktemp("labelled")
    (labelled / "cat").mkdir()
    Image.new("RGB", (70, 80), "red").save(labelled / "cat" / "1.png")
    return (
        model,
        folder,
        hf_internimage.export(model, folder, target="web", image_processor=processor(), evaluate=labelled),
    )


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_folder_is_what_transformers_js_looks_for(exported):
    _, folder, report = exported
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        *("README.md", "config.json", "export.json", "index.html", "onnx/model.onnx", "onnx/model_quantized.onnx"),
        *("page.mjs", "points.mjs", "preprocessor_config.json", "resize.mjs"),
    ]
    assert report.file == folder / "onnx" / "model.onnx"
    config = read_json(folder / "config.json")
    assert config["model_type"] == "convnext"
    assert config["architectures"] == ["ConvNextForImageClassification"]
    assert config["id2label"] == {str(index): name for index, name in LABELS.items()}
    settings = read_json(folder / "preprocessor_config.json")
    assert settings["image_processor_type"] == "ViTImageProcessor"
    python = json.loads(processor().to_json_string())
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "image_mean", "image_std"):
        assert settings[name] == python[name]
    assert settings["size"] == {"shortest_edge": SIDE}
    assert settings["crop_size"] == {"height": SIDE, "width": SIDE}
    assert (settings["pillow_resample"], settings["resample"]) == (3, 1)


@pytest.mark.slow
def test_both_files_agree_with_the_model(exported):
    model, folder, report = exported
    pixels = torch.randn(3, 3, 48, 80)
    with torch.no_grad():
        expected = model(pixels).logits
    (exact,) = web.load(folder / "onnx" / "model.onnx")(pixels)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-5)
    (quantised,) = web.load(folder / "onnx" / "model_quantized.onnx")(pixels)
    assert torch.cosine_similarity(quantised, expected, dim=-1).min() > 0.999
    details = read_json(folder / "export.json")["details"]
    assert 0.999 < details["int8: least cosine of logits"] < 1
    assert details["int8: same class"] == "4 of 4"
    assert details["int8: right class"] == str(report.accuracy) == str(report.eager_accuracy)
    assert report.accuracy.images == 1
    quantised_file = folder / "onnx" / "model_quantized.onnx"
    assert details["int8: of float32"] == round(quantised_file.stat().st_size / report.file.stat().st_size, 2)
    assert "least cosine of logits" in str(report)


@pytest.mark.slow
def test_all_matrices_are_uint8(exported):
    _, folder, _ = exported
    exact, quantised = (onnx.load(folder / "onnx" / f"{name}.onnx").graph for name in ("model", "model_quantized"))
    kinds = [node.op_type for node in quantised.node]
    assert kinds.count("MatMulInteger") == sum(node.op_type in ("MatMul", "Gemm") for node in exact.node) > 0
    assert "MatMul" not in kinds
    weights = {node.input[1] for node in quantised.node if node.op_type == "MatMulInteger"}
    types = {tensor.data_type for tensor in quantised.initializer if tensor.name in weights}
    assert types == {onnx.TensorProto.UINT8}


def test_the_page_names_files_that_exist():
    html, script, readme = ((web._PAGE / name).read_text("utf-8") for name in ("index.html", "page.mjs", "README.md"))
    local = re.findall(r'(?:src|href)="([^"]+)"', html) + re.findall(r'from "(\./[^"]+)"', script + readme)
    local = [name for name in local if not name.startswith("data:")]
    assert {"page.mjs", "./resize.mjs"} <= set(local)
    assert all((web._PAGE / name).is_file() for name in local)
    for selector in re.findall(r'document\.querySelector\("#(\w+)"\)', script):
        assert f'id="{selector}"' in html
    (version,) = re.findall(r'"https://cdn\.jsdelivr\.net/npm/@huggingface/transformers@([\d.]+)/dist/', html)
    assert set(re.findall(r"(?:transformers@|transformers\.js )(\d+\.\d+\.\d+)", readme)) == {version}


@pytest.mark.parametrize(
    ("make_model", "arguments", "message"),
    [
        (lambda: InternImageBackbone(tiny_config()), {}, "for classifiers, and the model is a InternImageBackbone"),
        (
            lambda: classifier(problem_type="multi_label_classification"),
            {},
            "problem_type 'multi_label_classification' with 5 labels; choose the target onnx",
        ),
        (lambda: classifier(num_channels=4), {}, "pages read images of 3 channels, and the model takes 4"),
        (
            classifier,
            {"image_processor": ConvNextImageProcessorPil()},
            "the page resizes and crops to one size, and the image processor has size",
        ),
        (
            classifier,
            {"image_processor": ConvNextImageProcessorPil(size={"height": SIDE, "width": SIDE})},
            "ConvNextImageProcessorPil does more; give image_processor, such as a CLIPImageProcessor",
        ),
        (classifier, {"image_processor": processor(do_center_crop=False)}, "to one size, and the image processor has"),
        (classifier, {"image_processor": processor(resample=0)}, "resample is 0, and the page knows 1, 2 and 3"),
        (
            classifier,
            {"image_processor": processor(), "size": 96, "static": True},
            "makes images of 64x64; leave out size, or static",
        ),
    ],
)
def test_models_and_processors_that_cannot_run_there_are_refused(make_model, arguments, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        hf_internimage.export(make_model(), tmp_path / "out", target="web", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_models_above_a_browsers_memory_are_refused(monkeypatch):
    monkeypatch.setattr(web, "_MOST_BYTES", 1e5)
    model = classifier()
    with pytest.raises(ExportError, match=r"GB of weights in float32, and a browser can load"):
        web._check(model, exporting.main.System(model))


CALL = """
import { readFileSync, writeFileSync } from "node:fs";
import { resizeLikePython } from %s;
class Image {
  constructor(data, width, height, channels) { Object.assign(this, { data, width, height, channels }); }
}
for (const { image, out, width, height, config } of JSON.parse(readFileSync(0, "utf8"))) {
  const processor = { config, do_resize: config.do_resize, do_center_crop: config.do_center_crop };
  resizeLikePython({ processor });
  if (!processor.do_resize || processor.do_center_crop) throw new Error("the steps are not ours");
  const result = await processor.resize(new Image(readFileSync(image), width, height, 3));
  writeFileSync(out, result.data);
}
"""
SIZES = [  # height, width, settings
    (101, 151, {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    (93, 40, {"size": {"shortest_edge": 64}, "crop_size": {"height": 59, "width": 62}}),
    (97, 53, {"size": {"shortest_edge": 31}, "crop_size": {"height": 65, "width": 38}, "resample": 2}),
    (60, 90, {"size": {"height": 60, "width": 41}, "do_center_crop": False, "resample": 1}),
    (8, 8, {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 1}),
    (50, 70, {"size": {"height": 100, "width": 70}, "crop_size": {"height": 120, "width": 61}}),
    (33, 34, {"do_resize": False, "crop_size": {"height": 20, "width": 40}}),
]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node here")
def test_the_page_resizes_as_pillow_does(tmp_path):
    rng, calls, expected = np.random.default_rng(0), [], []
    for number, (height, width, fields) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        (tmp_path / f"{number}.in").write_bytes(pixels.tobytes())
        python = InternImageImageProcessorPil(**fields, do_rescale=False, do_normalize=False)
        (result,) = python(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        expected.append(result.transpose(1, 2, 0))
        image, out = str(tmp_path / f"{number}.in"), str(tmp_path / f"{number}.out")
        config = web._processor_settings(python)
        calls.append({"image": image, "out": out, "width": width, "height": height, "config": config})
    code = CALL % json.dumps(RESIZE.as_uri())
    subprocess.run(["node", "--input-type=module", "--eval", code], input=json.dumps(calls), text=True, check=True)
    for call, pixels in zip(calls, expected, strict=True):
        got = np.fromfile(call["out"], dtype=np.uint8).reshape(pixels.shape)
        np.testing.assert_array_equal(got, pixels)
