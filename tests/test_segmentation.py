# SPDX-License-Identifier: MIT
"""Segmentation of whole images, through windows, at several scales and mirrored: the original's numbers and rules."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.golden_data import fill
from support.golden_heads import document, expected, pixel_values, wanted
from support.golden_segmenters import decided_segmenter, golden_segmenter
from torch.nn.functional import interpolate
from transformers import BatchFeature, ViTImageProcessorPil

from hf_internimage import InternImageSegmentationImageProcessor, segmentation
from hf_internimage.models import semantic_maps
from hf_internimage.segmentation import SemanticSegmenter, window_starts

DTYPES = [torch.float32, torch.float64]
PROCESSOR = InternImageSegmentationImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})


class Prepared:
    """An image processor whose result is already there."""

    def __init__(self, values):
        self.values = values

    def __call__(self, image, return_tensors):
        return BatchFeature({"pixel_values": self.values})


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8)


def picture(height, width):
    return Image.fromarray(fill().picture("segmentation", height, width))


def resize(scores, size):
    return interpolate(scores, size=size, mode="bilinear", align_corners=False)


@pytest.fixture(scope="module", params=["upernet_tiny", "mask2former_tiny"])
def model(request):
    return decided_segmenter(request.param, PROCESSOR(picture(50, 75), return_tensors="pt").pixel_values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upernets_probabilities_are_the_originals(dtype):
    model = golden_segmenter("upernet_tiny", dtype)
    probabilities, atol = wanted("upernet_tiny")["probabilities_50x75"], 5e-6
    assert atol == document("upernet_tiny")["float32_noise"]["probabilities_50x75"]["atol"]
    if dtype == torch.float64:
        logits, atol = expected("upernet_tiny", "decode_logits", dtype)
        probabilities = resize(resize(logits, (64, 96)), (50, 75)).softmax(dim=1)
    for values, wished in zip(pixel_values("upernet_tiny", dtype=dtype), probabilities, strict=True):
        segmenter = SemanticSegmenter(model, Prepared(values[None]))
        got = segmenter.probabilities(blank(50, 75))
        assert got.dtype == dtype
        torch.testing.assert_close(got, wished, rtol=0, atol=atol)
        torch.testing.assert_close(segmenter(blank(50, 75)), wished.argmax(dim=0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask2formers_map_is_the_originals(dtype):
    model = golden_segmenter("mask2former_tiny", dtype)
    at_masks, atol = expected("mask2former_tiny", "semantic_stride4", dtype)
    wished = wanted("mask2former_tiny")["semantic"] if dtype == torch.float32 else resize(at_masks, (64, 96))
    with torch.no_grad():
        got = semantic_maps.semantic_scores(model(pixel_values("mask2former_tiny", dtype=dtype)))
    torch.testing.assert_close(got, at_masks, rtol=0, atol=atol)
    for values, scores in zip(pixel_values("mask2former_tiny", dtype=dtype), wished, strict=True):
        got = SemanticSegmenter(model, Prepared(values[None])).probabilities(blank(64, 96))
        torch.testing.assert_close(got, scores.softmax(dim=0), rtol=0, atol=atol)


@pytest.mark.parametrize("window_batch_size", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sliding_windows_are_the_originals(dtype, window_batch_size):
    slide = document("mask2former_tiny")["slide"]
    model = golden_segmenter("mask2former_tiny", dtype)
    values = pixel_values("mask2former_tiny", "slide", dtype)
    segmenter = SemanticSegmenter(
        model,
        Prepared(values),
        crop_size=slide["crop_size"],
        stride=slide["stride"],
        window_batch_size=window_batch_size,
    )
    scores, atol = expected("mask2former_tiny", "slide/semantic", dtype)
    got = segmenter.probabilities(blank(80, 112))
    torch.testing.assert_close(got, scores[0].softmax(dim=0), rtol=0, atol=atol)
    # The softmax leaves differences of scores as they are, so this checks the scores themselves but for an offset.
    log_ratios = got.log() - got.log().mean(dim=0)
    torch.testing.assert_close(log_ratios, scores[0] - scores[0].mean(dim=0), rtol=0, atol=10 * atol)
    torch.testing.assert_close(segmenter(blank(80, 112)), scores[0].argmax(dim=0))
    whole = SemanticSegmenter(model, Prepared(values)).probabilities(blank(80, 112))
    assert (whole - got).abs().max() > 100 * atol


@pytest.mark.parametrize("crop_size", [64, (96, 40), (500, 48), 500], ids=str)
def test_windows_by_the_loop(model, crop_size):
    """Windows of two strides, and crops that are larger than the image; the image is then resized to its own size."""
    image, stride = picture(50, 75), (24, 40)
    values = PROCESSOR(image, return_tensors="pt").pixel_values
    height, width = values.shape[-2:]
    crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    total, count = 0, torch.zeros(height, width)
    for row in range(max(math.ceil((height - crop[0]) / stride[0]), 0) + 1):
        for column in range(max(math.ceil((width - crop[1]) / stride[1]), 0) + 1):
            bottom, right = min(row * stride[0] + crop[0], height), min(column * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            with torch.no_grad():
                scores = semantic_maps.semantic_scores(model(values[..., top:bottom, left:right]))
            place = torch.zeros(1, scores.shape[1], height, width)
            place[..., top:bottom, left:right] = resize(scores, (bottom - top, right - left))
            total = total + place
            count[top:bottom, left:right] += 1
    segmenter = SemanticSegmenter(model, PROCESSOR, crop_size=crop_size, stride=stride, window_batch_size=3)
    wished = resize(total / count, (50, 75))[0]
    torch.testing.assert_close(segmenter.probabilities(image), wished.softmax(dim=0), rtol=0, atol=1e-5)
    assert (segmenter(image) != wished.argmax(dim=0)).float().mean() < 1e-3  # but for ties


def test_labels_of_a_whole_image(model):
    """Scores go to the network's input first, then to the image; Mask2Former's start at a quarter of the input."""
    values = PROCESSOR(picture(50, 75), return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = semantic_maps.semantic_scores(model(values))
    labels = SemanticSegmenter(model, PROCESSOR)(picture(50, 75))
    torch.testing.assert_close(labels, resize(resize(scores, values.shape[-2:]), (50, 75))[0].argmax(dim=0))
    assert len(labels.unique()) > 3
    straight = resize(scores, (50, 75))[0].argmax(dim=0)
    assert (straight != labels).any() == (scores.shape[-2:] != values.shape[-2:])


def test_window_starts():
    assert window_starts(80, 64, 32) == [0, 16]
    assert window_starts(112, 64, 32) == [0, 32, 48]
    assert window_starts(128, 64, 64) == [0, 64]
    assert window_starts(64, 64, 1) == window_starts(10, 64, 32) == [0]


@pytest.mark.parametrize("sliding", [{}, {"crop_size": 72, "stride": 64}], ids=["whole", "windows"])
@pytest.mark.parametrize("flip", [False, True])
def test_scales_and_mirror_images_by_the_loop(model, sliding, flip):
    image, total = picture(50, 75), []
    for short, long in ((64, 256), (48, 194)):
        processor = InternImageSegmentationImageProcessor(size={"shortest_edge": short, "longest_edge": long})
        values = processor(image, return_tensors="pt").pixel_values
        for mirrored in (False, True)[: 1 + flip]:
            alone = SemanticSegmenter(model, Prepared(values.flip(-1) if mirrored else values), **sliding)
            if sliding:
                probabilities = alone.probabilities(blank(50, 75))
            else:
                with torch.no_grad():
                    scores = semantic_maps.semantic_scores(model(alone.image_processor.values))
                probabilities = resize(resize(scores, values.shape[-2:]), (50, 75))[0].softmax(dim=0)
            total.append(probabilities.flip(-1) if mirrored else probabilities)
    wished = torch.stack(total).mean(dim=0)
    segmenter = SemanticSegmenter(model, PROCESSOR, scale_ratios=[1.0, 0.76], flip=flip, **sliding)
    got = segmenter.probabilities(image)
    torch.testing.assert_close(got, wished, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.sum(dim=0), torch.ones(50, 75))
    torch.testing.assert_close(segmenter(image), got.argmax(dim=0))
    assert (total[0] - wished).abs().max() > 1e-3


def test_the_originals_scales_are_whole_pixels():
    """Sizes and ratios of the multi-scale test of Mask2Former-H on ADE20K."""
    (setting,) = (case for case in document("preprocess_seg")["all_test_settings"] if case["img_ratios"])
    long, short = setting["img_scale"]
    processor = InternImageSegmentationImageProcessor(size={"shortest_edge": short, "longest_edge": long})
    seen = []

    class Recorder:
        size = processor.size

        def __call__(self, image, return_tensors, **options):
            seen.append(options.get("size", dict(processor.size))["shortest_edge"])
            return PROCESSOR(image, return_tensors=return_tensors)

    model = golden_segmenter("upernet_tiny")
    SemanticSegmenter(model, Recorder(), scale_ratios=setting["img_ratios"]).probabilities(picture(50, 75))
    assert seen == [768, 832, 896, 960, 1024]


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"crop_size": 64, "stride": 32}], ids=str)
def test_classes_in_blocks_change_nothing(model, options, monkeypatch):
    segmenter = SemanticSegmenter(model, PROCESSOR, maps_device="cpu", **options)
    labels, probabilities = segmenter(picture(50, 75)), segmenter.probabilities(picture(50, 75))
    monkeypatch.setattr(semantic_maps, "BLOCK_VALUES", 2 * 64 * 96)
    blocks = list(semantic_maps.resized_blocks(torch.zeros(5, 16, 24), [(64, 96), (50, 75)]))
    assert [(first, block.shape) for first, block in blocks] == [(0, (2, 50, 75)), (2, (2, 50, 75)), (4, (1, 50, 75))]
    torch.testing.assert_close(segmenter(picture(50, 75)), labels)
    torch.testing.assert_close(segmenter.probabilities(picture(50, 75)), probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["array", "channels first", "tensor", "gray"])
def test_the_size_of_every_kind_of_image(model, kind):
    pixels = np.array(picture(50, 75))
    image = {
        "array": pixels,
        "channels first": pixels.transpose(2, 0, 1),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "gray": picture(50, 75).convert("L"),
    }[kind]
    labels = SemanticSegmenter(model, PROCESSOR)(image)
    assert (labels.shape, labels.dtype) == ((50, 75), torch.int64)
    if kind != "gray":
        torch.testing.assert_close(labels, SemanticSegmenter(model, PROCESSOR)(picture(50, 75)))


@pytest.mark.parametrize("options", [{}, {"crop_size": 64, "stride": 64}, {"flip": True}], ids=str)
def test_sums_and_results_are_on_the_device_of_the_maps(options):
    """Here one without values; the model stays where it is."""
    model = golden_segmenter("upernet_tiny")
    segmenter = SemanticSegmenter(model, PROCESSOR, maps_device="meta", **options)
    assert segmenter(picture(50, 75)).device.type == "meta"
    assert segmenter.probabilities(picture(50, 75)).device.type == "meta"
    assert model.device.type == "cpu"


def test_the_default_is_one_view_and_one_window_at_a_time(monkeypatch):
    segmenter = SemanticSegmenter(golden_segmenter("upernet_tiny"), PROCESSOR)
    assert (segmenter.window_batch_size, segmenter.flip, segmenter.crop_size) == (1, False, None)
    # without a full-size map of all classes
    monkeypatch.setattr(segmenter, "probabilities", None)
    assert segmenter(picture(50, 75)).shape == (50, 75)


def test_half_precision_models_have_full_precision_sums():
    model = golden_segmenter("upernet_tiny", torch.bfloat16)
    got = SemanticSegmenter(model, PROCESSOR, flip=True).probabilities(picture(50, 75))
    assert got.dtype == torch.float32
    assert not got.requires_grad
    full = SemanticSegmenter(golden_segmenter("upernet_tiny"), PROCESSOR, flip=True).probabilities(picture(50, 75))
    torch.testing.assert_close(got, full, rtol=0, atol=0.03)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 64}, "need crop_size and stride, got 64 and None"),
        ({"stride": 64}, "need crop_size and stride"),
        ({"crop_size": 0, "stride": 1}, "crop_size must be one positive whole number"),
        ({"crop_size": 64.0, "stride": 1}, "crop_size must be one positive whole number"),
        ({"crop_size": (64, 64, 64), "stride": 1}, "crop_size must be one positive whole number"),
        ({"crop_size": 64, "stride": (32, -1)}, "stride must be one positive whole number"),
        ({"crop_size": 64, "stride": (32, 65)}, "leaves gaps between windows"),
        ({"crop_size": 64, "stride": 64, "window_batch_size": 0}, "window_batch_size must be at least 1"),
        ({"scale_ratios": []}, "one or more positive numbers"),
        ({"scale_ratios": [1.0, 0.0]}, "one or more positive numbers"),
        ({"scale_ratios": [0.001]}, "leaves nothing of the size"),
        ({"scale_ratios": [0.01]}, "A scale ratio of 0.01 leaves nothing of the size"),  # of the short edge
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SemanticSegmenter(golden_segmenter("upernet_tiny"), PROCESSOR, **options)


def test_processors_of_one_size_have_no_scales():
    processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    model = golden_segmenter("upernet_tiny")
    assert SemanticSegmenter(model, processor)(picture(50, 75)).shape == (50, 75)
    with pytest.raises(ValueError, match="shortest_edge and longest_edge in its size, got"):
        SemanticSegmenter(model, processor, scale_ratios=[1.0, 1.5])


def test_bad_calls_are_refused():
    model = golden_segmenter("upernet_tiny")
    with pytest.raises(ValueError, match="One image is segmented at a time, got 2"):
        SemanticSegmenter(model, Prepared(torch.zeros(2, 3, 64, 96)))(blank(50, 75))
    with pytest.raises(ValueError, match="PIL image, array or tensor, got str"):
        SemanticSegmenter(model, Prepared(torch.zeros(1, 3, 64, 96)))("https://example.org/image.png")
    with pytest.raises(ValueError, match="in training mode"):
        SemanticSegmenter(model.train(), PROCESSOR)(picture(50, 75))


def test_reachable_from_the_package():
    import hf_internimage

    assert hf_internimage.segmentation is segmentation
