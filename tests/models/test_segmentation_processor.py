# SPDX-License-Identifier: MIT
"""The segmentation image processor: the original's pixels, labels, label maps; Auto classes and pipelines."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.golden_data import fill
from support.golden_heads import document, expected, wanted
from support.golden_segmenters import decided_segmenter
from torch.nn.functional import interpolate
from transformers import Mask2FormerConfig, pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput
from transformers.utils import ModelOutput

from hf_internimage import InternImageSegmentationImageProcessor
from hf_internimage.models import semantic_maps
from hf_internimage.models.resizing import opencv_nearest

SMALL = {"size": {"shortest_edge": 64, "longest_edge": 256}}
NAMES = ["upernet_tiny", "mask2former_tiny"]


def picture(height, width):
    return fill().picture("segmentation", height, width)


def golden_outputs(name):
    """Return the model's outputs for the golden input, with the original's numbers."""
    if name == "upernet_tiny":
        return SemanticSegmenterOutput(logits=expected(name, "logits")[0])
    return Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=expected(name, "class_queries_logits")[0],
        masks_queries_logits=expected(name, "masks_queries_logits")[0],
    )


def decided_outputs():
    """Mask2Former's outputs with queries that know what they see: the golden ones are nearly all of one class."""
    outputs = golden_outputs("mask2former_tiny")
    classes = torch.arange(outputs.class_queries_logits.shape[1]) % 7
    outputs.class_queries_logits = 8 * torch.nn.functional.one_hot(classes, 8).float().expand(2, -1, -1)
    outputs.masks_queries_logits = 2 * (outputs.masks_queries_logits - outputs.masks_queries_logits.mean())
    return outputs


def resize(scores, size):
    return interpolate(scores, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("name", document("preprocess_seg")["pictures"])
def test_pixels_are_the_originals(name):
    case = document("preprocess_seg")["pictures"][name]
    long, short = case["img_scale"]
    processor = InternImageSegmentationImageProcessor(
        size={"shortest_edge": short, "longest_edge": long}, size_divisor=case["size_divisor"]
    )
    image = Image.fromarray(fill().picture(case["fill_key"], *case["input"]))
    got = processor(image, return_tensors="pt").pixel_values
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[0], wanted("preprocess_seg")[f"{name}/pixel_values"], rtol=0, atol=1e-5)


def test_the_default_is_ade20k_at_512():
    case = next(case for case in document("preprocess_seg")["sizes"] if case["input"] == [427, 640])
    assert case["setting"] == "ade_512"
    got = InternImageSegmentationImageProcessor()(picture(427, 640), return_tensors="pt")
    assert list(got.pixel_values.shape) == [1, 3, *case["final"]]
    assert list(got) == ["pixel_values"]


def test_takes_what_image_processors_take():
    processor = InternImageSegmentationImageProcessor(**SMALL)
    pixels = picture(40, 53)
    expected = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
    for image in (pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels), Image.fromarray(pixels).convert("RGBA")):
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected, rtol=0, atol=0)
    gray = Image.fromarray(pixels).convert("L")
    expected = processor(gray.convert("RGB"), return_tensors="pt").pixel_values
    for image in (gray, np.array(gray)[..., None]):
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected, rtol=0, atol=0)


def test_images_of_one_size_are_a_batch_others_a_list():
    processor = InternImageSegmentationImageProcessor(**SMALL)
    images = [picture(40, 53), picture(53, 40)]
    assert [values.shape for values in processor(images).pixel_values] == [(3, 64, 96), (3, 96, 64)]
    with pytest.raises(ValueError, match=r"one size, got \(height, width\) \[\(64, 96\), \(96, 64\)\]"):
        processor(images, return_tensors="pt")
    batch = processor([picture(40, 53), picture(80, 106)], return_tensors="pt").pixel_values
    assert batch.shape == (2, 3, 64, 96)
    torch.testing.assert_close(batch[:1], processor(picture(40, 53), return_tensors="pt").pixel_values)


def test_floats_are_refused_unless_they_stay_as_they_are():
    processor = InternImageSegmentationImageProcessor(**SMALL)
    image = picture(64, 96).astype(np.float32)
    with pytest.raises(ValueError, match="8-bit pixels, got float32"):
        processor(image)
    got = processor(image, do_resize=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(got, processor(picture(64, 96), return_tensors="pt").pixel_values)


def test_a_size_needs_both_edges():
    with pytest.raises(ValueError, match="'shortest_edge' and 'longest_edge', got"):
        InternImageSegmentationImageProcessor(size={"height": 64, "width": 64})(picture(40, 53))


def test_labels_follow_the_image():
    labels = np.random.default_rng(0).integers(0, 5, (40, 53)).astype(np.uint8)
    labels[:10] = 255
    resized = opencv_nearest(opencv_nearest(labels, (64, 85)), (64, 96)).astype(np.int64)
    processor = InternImageSegmentationImageProcessor(**SMALL)
    for given in (labels, Image.fromarray(labels), torch.from_numpy(labels), labels.astype(np.int32)):
        batch = processor(picture(40, 53), segmentation_maps=given, return_tensors="pt")
        assert batch.labels.dtype == torch.int64
        assert batch.labels.shape == (1, *batch.pixel_values.shape[-2:])
        np.testing.assert_array_equal(batch.labels[0], resized)
    reduced = processor(picture(40, 53), [labels], do_reduce_labels=True, return_tensors="pt").labels[0].numpy()
    assert set(np.unique(reduced)) == {0, 1, 2, 3, 255}
    np.testing.assert_array_equal(reduced == 255, (resized == 0) | (resized == 255))
    np.testing.assert_array_equal(reduced[reduced != 255], resized[reduced != 255] - 1)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((40, 52), np.uint8), r"the images have \[\(40, 53\)\], the maps \[\(40, 52\)\]"),
        ([np.zeros((40, 53), np.uint8)] * 2, "needs a segmentation map"),
        (Image.new("RGB", (53, 40)), "must have one channel, got 3"),
    ],
)
def test_maps_that_do_not_fit_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        InternImageSegmentationImageProcessor(**SMALL)(picture(40, 53), maps)


@pytest.mark.parametrize("values", [semantic_maps.BLOCK_VALUES, 2 * 131 * 96], ids=["at once", "two classes at a time"])
def test_label_maps_of_logits(values, monkeypatch):
    monkeypatch.setattr(semantic_maps, "BLOCK_VALUES", values)
    processor = InternImageSegmentationImageProcessor()
    outputs = golden_outputs("upernet_tiny")
    for got, scores in zip(processor.post_process_semantic_segmentation(outputs), outputs.logits, strict=True):
        torch.testing.assert_close(got, scores.argmax(dim=0))
    sizes = [(50, 75), (131, 70)]
    got = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert [(one.shape, one.dtype) for one in got] == [(size, torch.int64) for size in sizes]
    torch.testing.assert_close(got[0], wanted("upernet_tiny")["probabilities_50x75"][0].argmax(dim=0))
    torch.testing.assert_close(got[1], resize(outputs.logits[1:], sizes[1])[0].argmax(dim=0))


def test_scores_of_queries_are_the_originals():
    got = semantic_maps.semantic_scores(golden_outputs("mask2former_tiny"))
    wanted_scores, atol = expected("mask2former_tiny", "semantic_stride4")
    torch.testing.assert_close(got, wanted_scores, rtol=0, atol=atol)


@pytest.mark.parametrize("values", [semantic_maps.BLOCK_VALUES, 2 * 131 * 96], ids=["at once", "two classes at a time"])
def test_label_maps_of_queries(values, monkeypatch):
    """The scores at the masks' resolution go to the network's input first, and from there to the image."""
    monkeypatch.setattr(semantic_maps, "BLOCK_VALUES", values)
    processor = InternImageSegmentationImageProcessor()
    outputs = decided_outputs()
    classes = outputs.class_queries_logits.softmax(dim=-1)[..., :-1]
    scores = (classes[..., None, None] * outputs.masks_queries_logits.sigmoid()[:, :, None]).sum(dim=1)
    at_input = resize(scores, (64, 96))
    for got, one in zip(processor.post_process_semantic_segmentation(outputs), at_input, strict=True):
        torch.testing.assert_close(got, one.argmax(dim=0))
    sizes = [(50, 75), (131, 70)]
    for given in (sizes, torch.tensor(sizes)):
        got = processor.post_process_semantic_segmentation(outputs, target_sizes=given)
        for index, size in enumerate(sizes):
            labels = resize(at_input[index : index + 1], size)[0].argmax(dim=0)
            torch.testing.assert_close(got[index], labels)
            assert len(labels.unique()) > 3
            assert (labels != resize(scores[index : index + 1], size)[0].argmax(dim=0)).any()  # one resize would differ


@pytest.mark.parametrize("values", [semantic_maps.BLOCK_VALUES, 2 * 131 * 96], ids=["at once", "two classes at a time"])
def test_scores_beside_label_maps(values, monkeypatch):
    monkeypatch.setattr(semantic_maps, "BLOCK_VALUES", values)
    processor, outputs = InternImageSegmentationImageProcessor(), decided_outputs()
    sizes = [(50, 75), (131, 70)]
    maps = processor.post_process_semantic_segmentation(outputs, sizes)
    got = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    scores = resize(semantic_maps.semantic_scores(outputs), (64, 96))
    for index, size in enumerate(sizes):
        assert torch.equal(got[index].segmentation, maps[index])
        torch.testing.assert_close(got[index].segmentation_scores, resize(scores[index : index + 1], size)[0])


def test_as_many_channels_as_the_mean():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 64), dtype=np.uint8)
    fields = {**SMALL, "do_convert_rgb": False, "do_resize": False}
    processor = InternImageSegmentationImageProcessor(**fields, image_mean=[0.1, 0.2, 0.3, 0.4], image_std=[1.0] * 4)
    got = processor(pixels, return_tensors="np").pixel_values[0]
    expected = pixels / 255 - np.array([0.1, 0.2, 0.3, 0.4])[:, None, None]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="one or 3 channels, got 4"):
        InternImageSegmentationImageProcessor(**fields)(pixels)


def test_half_precision_is_not_summed_in_half_precision():
    outputs = golden_outputs("mask2former_tiny")
    half = type(outputs)(**{key: value.bfloat16() for key, value in outputs.items()})
    widened = type(outputs)(**{key: value.bfloat16().float() for key, value in outputs.items()})
    torch.testing.assert_close(semantic_maps.semantic_scores(half), semantic_maps.semantic_scores(widened))


def test_ties_go_to_the_lower_class(monkeypatch):
    monkeypatch.setattr(semantic_maps, "BLOCK_VALUES", 2 * 6)
    scores = torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0])[:, None, None].expand(5, 2, 3)
    assert (semantic_maps.label_map(scores, [(2, 3)]) == 1).all()


def test_outputs_with_logits_of_none_have_queries():
    queries = {"class_queries_logits": torch.zeros(1, 2, 4), "masks_queries_logits": torch.zeros(1, 2, 3, 5)}
    assert semantic_maps.semantic_scores(SimpleNamespace(logits=None, **queries)).shape == (1, 3, 3, 5)
    for name, values in queries.items():
        with pytest.raises(ValueError, match="SimpleNamespace has neither"):
            semantic_maps.semantic_scores(SimpleNamespace(**{name: values}))


def test_one_mean_for_all_channels():
    processor = InternImageSegmentationImageProcessor(**SMALL, image_mean=0.5, image_std=0.25)
    gray, pixels = np.full((1, 32, 64), 51, np.uint8), np.full((32, 64, 3), 51, np.uint8)
    for image in (gray, pixels):
        values = processor(image, return_tensors="np").pixel_values
        assert values.shape[1] == 3
        np.testing.assert_allclose(values, (0.2 - 0.5) / 0.25, rtol=0, atol=1e-6)
    assert processor.model_input_names == ["pixel_values"]


def test_other_outputs_and_sizes_are_refused():
    processor = InternImageSegmentationImageProcessor()
    with pytest.raises(ValueError, match="1 target sizes for 2 images"):
        processor.post_process_semantic_segmentation(golden_outputs("upernet_tiny"), target_sizes=[(50, 75)])
    with pytest.raises(ValueError, match="ModelOutput has neither"):
        processor.post_process_semantic_segmentation(ModelOutput(boxes=torch.zeros(1)))


@pytest.mark.parametrize("divisor", [None, 1, 16])
def test_saved_and_loaded(divisor, tmp_path):
    InternImageSegmentationImageProcessor(**SMALL, size_divisor=divisor, do_reduce_labels=True).save_pretrained(
        tmp_path
    )
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "InternImageSegmentationImageProcessor"
    for loader in (InternImageSegmentationImageProcessor, AutoImageProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is InternImageSegmentationImageProcessor
        assert (loaded.size_divisor, loaded.do_reduce_labels) == (divisor or 1, True)
        assert dict(loaded.size) == SMALL["size"]


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_of_a_folder(name, tmp_path):
    processor = InternImageSegmentationImageProcessor(**SMALL)
    image = Image.fromarray(picture(50, 75))
    model = decided_segmenter(name, processor(image, return_tensors="pt").pixel_values)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    segments = pipeline("image-segmentation", model=str(tmp_path))(image)

    with torch.no_grad():  # as the pipeline: with gradients the last bits differ, and decide ties
        scores = semantic_maps.semantic_scores(model(**processor(image, return_tensors="pt")))
    labels = resize(resize(scores, (64, 96)), (50, 75)).argmax(dim=1)[0]
    assert len(segments) == len(labels.unique()) > 1
    for segment in segments:
        mask = labels == model.config.label2id[segment["label"]]
        np.testing.assert_array_equal(np.array(segment["mask"]) == 255, mask)


def test_other_processors_stay_who_they_are(tmp_path):
    """A folder of transformers' own Mask2Former gets its own processor, by name and by configuration."""
    processors = []
    for name in ("InternImageSegmentationImageProcessor", "Mask2FormerImageProcessor", None):
        Mask2FormerConfig().save_pretrained(tmp_path)
        saved = {"image_processor_type": name} if name else {}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
        processors.append(type(AutoImageProcessor.from_pretrained(tmp_path)).__name__.removesuffix("Pil"))
    ours, theirs = "InternImageSegmentationImageProcessor", "Mask2FormerImageProcessor"
    assert processors == [ours, theirs, theirs]
