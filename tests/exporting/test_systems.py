# SPDX-License-Identifier: MIT
"""Backbones, segmenters and detectors as files: any size and batch, which equal the model's results."""

import re
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from support.export_systems import ONE_BLOCK, SIDES, TWO_STAGES, backbone, composite_dino, mask2former, upernet
from support.golden_data import awaken, tiny_config, write_official_folder
from support.golden_detectors import tiny_composite_config, tiny_dino
from torch.nn import functional as F

import hf_internimage
from hf_internimage import (
    CBInternImageBackbone,
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageMaskRCNNConfig,
    InternImageModel,
)
from hf_internimage.exporting import ExportError, symbolic_sizes
from hf_internimage.exporting.main import _shapes
from hf_internimage.exporting.options import Options
from hf_internimage.exporting.proof import compare, example_pixels
from hf_internimage.exporting.query_choice import QueryChoice
from hf_internimage.exporting.system import QUERY_POSITIONS, System, random_pixels
from hf_internimage.exporting.targets import onnx as onnx_target
from hf_internimage.exporting.targets import tensorrt
from hf_internimage.prediction import loading


def run(file, pixels):
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    results = session.run(None, {"pixel_values": pixels.numpy()})
    return {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "outputs", "divisor"),
    [
        (upernet, ["logits"], 1),
        (composite_dino, ["logits", "pred_boxes", "last_hidden_state", QUERY_POSITIONS], 32),
    ],
)
def test_a_file_for_any_size(make, outputs, divisor, tmp_path):
    torch.manual_seed(0)
    model = awaken(make().eval())
    report = hf_internimage.export(model, tmp_path / "out", size=SIDES)
    assert report.dynamic
    assert report.size_divisor == divisor
    assert (f"multiples of {divisor}" in str(report)) == (divisor > 1)
    assert tensorrt.describe(report.file) == report.details  # the same file is within the limits of its parser
    pixels = random_pixels((2, 3, 96, 160))  # neither the exporter nor its comparison had this one
    results = run(report.file, pixels)
    assert list(results) == outputs
    with torch.no_grad():
        expected = model(pixel_values=pixels)
    for name in outputs:
        tensor = expected["encoder_topk_indices" if name == QUERY_POSITIONS else name]
        torch.testing.assert_close(results[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()))


@pytest.mark.slow
def test_no_size_is_left_in_mask2former():
    system = System(awaken(mask2former().eval()))
    system.name_outputs(random_pixels((1, 3, *SIDES)))
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            system, (example_pixels(system, Options(SIDES)),), dynamic_shapes=({0: free, 2: free, 3: free},)
        ).module(check_guards=False)  # files have none
        pixels = random_pixels((3, 3, 75, 130))
        for name, result, expected in zip(system.output_names, program(pixels), system(pixels), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), msg=name)


@pytest.mark.slow
def test_a_backbone_folder(tmp_path):
    model = awaken(backbone().eval())
    model.save_pretrained(tmp_path / "saved")
    report = hf_internimage.export(str(tmp_path / "saved"), tmp_path / "out", size=SIDES)
    pixels = random_pixels((2, 3, 75, 130))
    results = run(report.file, pixels)
    assert list(results) == ["stem", "stage2"]
    with torch.no_grad():
        for result, expected in zip(results.values(), model(pixels).feature_maps, strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [InternImageBackbone, InternImageModel, InternImageForImageClassification])
def test_folders_of_features_load_as_what_they_are(make, tmp_path):
    model = make(tiny_config(**ONE_BLOCK))
    model.save_pretrained(tmp_path)
    assert type(loading.load(str(tmp_path), feature_models=True)) is make
    if make is not InternImageForImageClassification:
        with pytest.raises(ValueError, match="lacks weights of InternImageForImageClassification"):
            loading.load(str(tmp_path))


def test_released_classifiers_are_no_base_models(tmp_path):
    folder = write_official_folder("tiny_t", tmp_path / "official")  # its config.json names InternImageModel
    assert type(loading.load(str(folder), feature_models=True)) is InternImageForImageClassification


@pytest.mark.parametrize("size", [(7, 10), (1, 5), (12, 6), (3, 2)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6, (2, 5), (None, 3)])
def test_adaptive_pooling_as_products(bins, size):
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(pixels, bins)
    torch.testing.assert_close(symbolic_sizes._adaptive_avg_pool2d(pixels, bins), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 7, 333])
def test_linspace_as_a_range(steps):
    for dtype in (None, torch.float64):
        for start, end in ((0.5, steps - 0.5), (-1, 1)):
            got = symbolic_sizes._linspace(start, end, steps, dtype=dtype)
            torch.testing.assert_close(got, torch.linspace(start, end, steps, dtype=dtype), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def detector():
    system = System(tiny_dino())
    system.name_outputs(random_pixels((1, 3, 64, 64)))
    return system


def choosing(system, change):
    """The system itself as a file that makes other choices."""

    def results(pixels):
        with QueryChoice() as choice:
            system.model(pixel_values=pixels)
        return system.on_queries(pixels, QueryChoice(change(choice.chosen.clone()), 1.0))

    return results


SHAPE = (2, 3, 64, 96)


def test_queries_of_equal_scores_may_change_places(detector):
    def exchange(positions):
        return positions[:, [1, 0, *range(2, positions.shape[1])]]

    with torch.no_grad():
        plain, changed = (choosing(detector, change)(random_pixels(SHAPE)) for change in (torch.clone, exchange))
        assert (plain[0] - changed[0]).abs().max() > 1e-3  # whole queries differ
    (comparison,) = compare(detector, choosing(detector, exchange), [random_pixels(SHAPE)], 0.5)
    assert comparison.relative_error["logits"] == 0
    with pytest.raises(ExportError, match="queries of other positions than the model, whose scores differ by"):
        compare(detector, choosing(detector, exchange), [random_pixels(SHAPE)], 1e-6)


def test_queries_of_8_bit_files(detector):
    def others(positions):
        number = positions.shape[1]
        return torch.tensor([[i for i in range(2 * number) if i not in row][:number] for row in positions.tolist()])

    def exchanged(pixels):
        """What a file returns whose queries are right, but in another order than their positions."""
        logits, *rest = choosing(detector, torch.clone)(pixels)
        return [logits.roll(1, 1), *rest]

    def by_cosine(run):
        return compare(detector, torch.no_grad()(run), [random_pixels(SHAPE)], 0.99, by_cosine=True)

    (comparison,) = by_cosine(choosing(detector, torch.clone))
    assert comparison.same_queries == 1
    assert comparison.cosine == pytest.approx({"logits": 1, "pred_boxes": 1, "last_hidden_state": 1})
    assert "queries of the same positions 100.0%" in str(comparison)
    with pytest.raises(ExportError, match="queries of other positions than the model, whose scores differ by"):
        by_cosine(choosing(detector, others))
    with pytest.raises(ExportError, match="the least cosine of logits"):
        by_cosine(exchanged)


def test_a_query_is_made_once(detector):
    def twice(positions):
        positions[:, 1] = positions[:, 0]
        return positions

    pixels = random_pixels(SHAPE)
    with torch.no_grad(), QueryChoice() as choice:
        detector.model(pixel_values=pixels)
    with pytest.raises(ExportError, match="not as many different ones"), torch.no_grad():
        detector.on_queries(pixels, QueryChoice(twice(choice.chosen.clone()), 1.0))


def test_sizes_are_multiples_where_the_model_needs_them(detector):
    composite = System(CBInternImageBackbone(tiny_composite_config(**TWO_STAGES, out_features=["stage2"])))
    composite.name_outputs(random_pixels((1, 3, *SIDES)))
    assert (detector.size_divisor, composite.size_divisor) == (1, 32)
    assert _shapes(composite, Options((96, 128))) == [(1, 3, 128, 128), (3, 3, 96, 192)]


def test_mask_rcnn_is_refused(tmp_path):
    model = SimpleNamespace(config=InternImageMaskRCNNConfig())  # the model itself needs torchvision
    with pytest.raises(ExportError, match="cannot be exported: how many boxes it keeps depends on the image"):
        hf_internimage.export(model, tmp_path / "out")


def test_other_sizes_that_fail_name_the_static_file(tmp_path, monkeypatch):
    def keeps_the_size(system, folder, options):
        (folder / "model.onnx").write_bytes(b"")
        return folder / "model.onnx"

    def one_size(pixels):
        raise RuntimeError("expected 64x96")

    monkeypatch.setattr(onnx_target, "write", keeps_the_size)
    monkeypatch.setattr(onnx_target, "load", lambda file: one_size)
    monkeypatch.setattr(onnx_target, "describe", lambda file: {})
    message = "the file cannot run pixels of 1x3x83x84: expected 64x96. A file for one size may work: --static."
    with pytest.raises(ExportError, match=re.escape(message)):
        hf_internimage.export(InternImageModel(tiny_config()), tmp_path / "out", size=SIDES)
    assert list(tmp_path.iterdir()) == []
