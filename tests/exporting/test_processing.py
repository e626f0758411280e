# SPDX-License-Identifier: MIT
"""Files with pre- and post-processing: an image of any size goes in, and what `predict` returns comes out."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from support import prediction_models
from support.golden_data import awaken, tiny_config
from support.golden_detectors import tiny_dino
from transformers import CLIPImageProcessorPil, ConvNextImageProcessorPil, DetrImageProcessorPil, ViTImageProcessorPil

import hf_internimage
from hf_internimage import (
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.exporting import ExportError
from hf_internimage.exporting.processing import proof, resizing
from hf_internimage.exporting.processing.images import prepare, supported
from hf_internimage.exporting.processing.nodes import Nodes
from hf_internimage.exporting.processing.results import Run, check, finish
from hf_internimage.exporting.system import System, random_pixels
from hf_internimage.models.image_processing_pil_internimage import InternImageImageProcessorPil, image_processor_for
from hf_internimage.models.resizing import opencv_bilinear

SIZES = [(40, 48), (1, 5), (201, 33), (64, 64), (3, 90)]  # of images, (height, width)
ONE_STAGE = {"depths": [1, 1], "groups": [1, 2]}  # an export takes a second or two for each block


def image(height, width):
    return proof.random_image(height, width).numpy()


def run(op, inputs, outputs):
    """Results of the nodes for arrays by their names."""
    types = {np.dtype("uint8"): TensorProto.UINT8, np.dtype("float32"): TensorProto.FLOAT}
    graph = helper.make_graph(
        op.nodes,
        "graph",
        [helper.make_tensor_value_info(n, types[a.dtype], [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        op.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(list(outputs), inputs)


@pytest.mark.parametrize("resample", resizing.RESAMPLES)
@pytest.mark.parametrize("size", [(32, 38), (7, 150), (64, 64)])
def test_resizes_are_pillows_to_the_grey_level(size, resample):
    op = Nodes("resize")
    pixels = op.Transpose(resizing.double(op, "image"), perm=[2, 0, 1])
    height, width = (op.Identity(np.int64(side)) for side in size)
    resized = resizing.pillow_resize(op, pixels, (height, width), resample)
    for old in SIZES:
        (got,) = run(op, {"image": image(*old)}, {resized: TensorProto.DOUBLE})
        expected = np.asarray(Image.fromarray(image(*old)).resize(size[::-1], resample))
        assert (got == expected.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size", [(32, 38), (7, 150), (64, 64)])
def test_resizes_are_opencvs_to_the_grey_level(size):
    op = Nodes("resize")
    height, width = (op.Identity(np.int64(side)) for side in size)
    resized = resizing.opencv_resize(op, op.Cast("image", to=TensorProto.INT32), (height, width))
    for old in SIZES:
        (got,) = run(op, {"image": image(*old)}, {resized: TensorProto.INT32})
        assert (got == opencv_bilinear(image(*old), size)).all()


PROCESSORS = {
    "released": image_processor_for(32, 24),
    "square": ViTImageProcessorPil(size={"height": 30, "width": 20}),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 41}, crop_size={"height": 32, "width": 32}),
    "as it is": ViTImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False),
    "one mean": InternImageSegmentationImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 100}, image_mean=[0.5] * 3, image_std=[0.25] * 3, size_divisor=None
    ),
    "segmentation": InternImageSegmentationImageProcessor(size={"shortest_edge": 70, "longest_edge": 200}),
    "detection": InternImageDetectionImageProcessor(size={"shortest_edge": 70, "longest_edge": 200}),
    "detection without padding": InternImageDetectionImageProcessor(
        size={"shortest_edge": 70, "longest_edge": 200}, do_pad=False
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_image_processors(name):
    processor, op = PROCESSORS[name], Nodes("before")
    prepared = prepare(op, "image", supported(processor))
    outputs = {prepared.pixel_values: TensorProto.FLOAT}
    if prepared.pixel_mask is not None:
        outputs[prepared.pixel_mask] = TensorProto.INT64
    for size in SIZES:
        expected = processor(Image.fromarray(image(*size)), return_tensors="pt")
        results = run(op, {"image": image(*size)}, outputs)
        assert len(results) == len(expected)
        torch.testing.assert_close(torch.from_numpy(results[0]), expected["pixel_values"].float(), rtol=0, atol=5e-7)
        if "pixel_mask" in expected:
            assert (results[1] == expected["pixel_mask"].numpy()).all()


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (ConvNextImageProcessorPil(), "this is a ConvNextImageProcessorPil; give image_processor"),
        (DetrImageProcessorPil(), "this is a DetrImageProcessorPil; give image_processor"),
        (object(), "this is a object; give image_processor"),
        (ViTImageProcessorPil(do_pad=True), "ViTImageProcessorPil pads"),
        (ViTImageProcessorPil(resample=1), r"has resample 1, and with_processing knows 2 and 3"),
        (ViTImageProcessorPil(size={"max_height": 9, "max_width": 9}), "needs shortest_edge, or height and width"),
        (CLIPImageProcessorPil(size={"shortest_edge": 20}), "crops to 224x224 from size .*, which may be smaller"),
        (CLIPImageProcessorPil(do_resize=False), "crops to 224x224 from size .*, which may be smaller"),
        (InternImageSegmentationImageProcessor(size={"height": 9, "width": 9}), "needs shortest_edge and longest_edge"),
        (InternImageDetectionImageProcessor(pad_size={"height": 9, "width": 9}), "pads to pad_size"),
    ],
)
def test_image_processors_that_files_cannot_have(processor, message):
    with pytest.raises(ExportError, match=message):
        supported(processor)


def test_detectors_need_this_packages_boxes():
    with pytest.raises(ExportError, match="this is a ViTImageProcessorPil; give image_processor"):
        check(tiny_dino(), ViTImageProcessorPil(), 3)
    with pytest.raises(ExportError, match="images of 3 channels, and the model 4"):
        check(tiny_dino(), InternImageDetectionImageProcessor(), 4)


def test_the_image_processor_on_torchvision_is_taken_as_that_on_pillow():
    pytest.importorskip("torchvision")
    processor = hf_internimage.InternImageImageProcessor(
        size={"shortest_edge": 50}, crop_size={"height": 40, "width": 40}
    )
    same = supported(processor)
    assert isinstance(same, InternImageImageProcessorPil)
    assert (dict(same.crop_size)["height"], dict(same.size)["shortest_edge"]) == (40, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "web"}, "target web has no with_processing; onnx and onnxruntime can."),
        ({"target": "tensorrt"}, "target tensorrt has no with_processing"),
        ({"static": True}, "with_processing has no static; leave one of the two out."),
        ({"int8": True}, "with_processing has no int8; leave one of the two out."),
    ],
)
def test_exports_that_have_no_processing(arguments, message, tmp_path):
    model = InternImageForImageClassification(tiny_config())
    with pytest.raises(ValueError, match=message):
        hf_internimage.export(model, tmp_path / "out", with_processing=True, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("problem", "labels"), [(None, 5), ("multi_label_classification", 5), (None, 1)])
def test_scores_are_shares_of_1_unless_an_image_has_several_labels(problem, labels):
    model = InternImageForImageClassification(tiny_config(num_labels=labels, problem_type=problem))
    op = Nodes("after")
    results = finish(op, Run(model, None, ("logits",), "image", "pixel_values"))
    logits = torch.randn(1, labels)
    (got,) = run(op, {"logits": logits.numpy()}, {results["scores"][0]: TensorProto.FLOAT})
    expected = logits[0].softmax(0) if (problem, labels) == (None, 5) else logits[0].sigmoid()
    torch.testing.assert_close(torch.from_numpy(got), expected)


@pytest.mark.parametrize("labels", [5, 40, 300])  # one block of classes, three, and more classes than 8 bits
def test_label_maps_are_those_of_the_segmenter(labels):
    class UperNetForSemanticSegmentation:
        config = SimpleNamespace(num_labels=labels, model_type="upernet")

    op = Nodes("after")
    results = finish(op, Run(UperNetForSemanticSegmentation(), None, ("logits",), "image", "pixel_values"))
    name, kind, _ = results["label_map"]
    logits = torch.randn(1, labels, 9, 12)
    pixels = np.zeros((1, 3, 36, 48), np.float32)
    (got,) = run(op, {"logits": logits.numpy(), "image": image(31, 57), "pixel_values": pixels}, {name: kind})
    expected = hf_internimage.models.semantic_maps.label_map(logits[0], [(36, 48), (31, 57)])
    assert got.dtype == (np.uint16 if labels > 255 else np.uint8)
    assert (got == expected.numpy()).all()
    resizes = [node for node in op.nodes if node.op_type == "Resize"]
    for earlier, later in pairwise(resizes[1::2]):  # to the size of the image
        assert earlier.output[0] in sources_of(op, later)  # else the maps of all classes may be in memory at once


def sources_of(op, node):
    """Names of all results that a node is computed from."""
    producers = {node.output[0]: node for node in op.nodes}
    pending, names = list(node.input), set()
    while pending:
        if (name := pending.pop()) in producers and name not in names:
            names.add(name)
            pending += producers[name].input
    return names


@pytest.fixture(scope="module")
def detector():
    """A detector, its results for an image as a file gives them, and the image."""
    system = System(tiny_dino())
    system.name_outputs(random_pixels((1, 3, 64, 64)))
    processor = InternImageDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, top_k=30)
    processed = proof.ProcessedSystem(system, processor)
    pixels = proof.random_image(50, 70)
    with torch.no_grad():
        outputs = processed.outputs(pixels, None, 0)
    (result,) = processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(50, 70)])
    return processed, [result[name] for name in ("scores", "labels", "boxes")], pixels


def compared(detector, change):
    processed, results, pixels = detector
    changed = [tensor.clone() for tensor in results]
    change(*changed)
    return proof.compare_images(processed, lambda _: changed, ("scores", "labels", "boxes"), [pixels], 1e-4)


def test_equal_results_pass(detector):
    (comparison,) = compared(detector, lambda scores, labels, boxes: None)
    assert comparison.error == {"scores": 0, "boxes": 0}
    assert comparison.shape == (50, 70, 3)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (lambda scores, labels, boxes: scores.mul_(1.001), "scores"),
        (lambda scores, labels, boxes: labels[3:].add_(1).remainder_(5), "boxes"),
        (lambda scores, labels, boxes: boxes[7].add_(0.1), "boxes"),
        (lambda scores, labels, boxes: boxes[7].fill_(torch.nan), "boxes"),
    ],
)
def test_other_objects_are_refused(detector, changed, name):
    with pytest.raises(ExportError, match=f"for an image of 50x70x3, {name} of the file differs from Python's by"):
        compared(detector, changed)


def test_a_file_that_gives_pixels_other_classes_is_refused(tmp_path):
    prediction_models.upernet(tmp_path)
    model = hf_internimage.prediction.loading.load(str(tmp_path))
    system = System(model)
    system.name_outputs(random_pixels((1, 3, 64, 64)))
    processor = InternImageSegmentationImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    processed, pixels = proof.ProcessedSystem(system, processor), proof.random_image(50, 70)
    label_map = torch.from_numpy(hf_internimage.predict(model, pixels.numpy(), image_processor=processor)[0].label_map)
    (comparison,) = proof.compare_images(processed, lambda _: [label_map], ("label_map",), [pixels], 1e-6)
    assert comparison.error == {"label_map": 0}
    changed = label_map.clone()
    changed[20, 30] = (changed[20, 30] + 1) % 5
    for other in (changed, label_map[1:]):
        with pytest.raises(ExportError, match="label_map of the file differs from Python's"):
            proof.compare_images(processed, lambda _, other=other: [other], ("label_map",), [pixels], 1e-6)


def save_upernet(folder):
    return prediction_models.upernet(folder), {}


def save_mask2former(folder):
    prediction_models.mask2former(folder)
    processor = InternImageSegmentationImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    processor.save_pretrained(folder)
    return folder, {}


def save_dino(folder):
    backbone = tiny_config(**ONE_STAGE, out_features=["stage1", "stage2"])
    model = awaken(tiny_dino(backbone, encoder_layers=1, num_feature_levels=2, **prediction_models.LABELS))
    processor = InternImageDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    return prediction_models.save(model, processor, folder), {"threshold": 0}


def save_classifier(folder):
    return prediction_models.classifier(folder, **ONE_STAGE), {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "target"),
    [(save_classifier, "onnxruntime"), (save_upernet, "onnx"), (save_mask2former, "onnx"), (save_dino, "onnx")],
)
def test_files_return_what_predict_does(save, target, tmp_path):
    saved, settings = save(tmp_path / "saved")
    report = hf_internimage.export(str(saved), tmp_path / "out", target=target, with_processing=True, size=(64, 96))
    assert "one image of any size, 8 bits" in str(report)
    assert [comparison.shape for comparison in report.comparisons] == [(131, 84, 3), (56, 193, 3)]
    options = onnxruntime.SessionOptions()
    if target == "onnxruntime":
        options.register_custom_ops_library(str(tmp_path / "out" / report.details["library"]))
    session = onnxruntime.InferenceSession(report.file, options)
    names = [output.name for output in session.get_outputs()]
    for height, width in ((77, 131), (40, 48)):
        picture = prediction_models.picture(3, width, height)
        results = dict(zip(names, session.run(None, {"image": np.asarray(picture)}), strict=True))
        (expected,) = hf_internimage.predict(str(saved), picture, **settings)
        if "label_map" in results:
            assert (results["label_map"] == expected.label_map).all()
            assert results["label_map"].dtype == expected.label_map.dtype
            assert len(np.unique(expected.label_map)) > 1
        elif "boxes" in results:
            assert (results["labels"] == expected.class_indices).all()
            np.testing.assert_allclose(results["scores"], expected.scores, rtol=0, atol=1e-6)
            np.testing.assert_allclose(results["boxes"], expected.boxes, rtol=0, atol=1e-3)
        else:
            best = results["scores"].argsort()[::-1]
            assert [prediction_models.NAMES[index] for index in best] == expected.labels
            np.testing.assert_allclose(results["scores"][best], expected.scores, rtol=0, atol=1e-6)
