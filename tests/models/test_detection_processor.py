# SPDX-License-Identifier: MIT
"""The detection image processor: sizes, pixels, boxes and results of the original's pipeline."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.golden_data import GOLDEN, tiny_config
from transformers import AutoImageProcessor, DeformableDetrConfig, DeformableDetrForObjectDetection, pipeline
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

from hf_internimage import InternImageDetectionImageProcessor
from hf_internimage.models.configuration_internimage_dino import InternImageDinoConfig
from hf_internimage.models.loss_internimage_dino import dino_loss, make_denoising_queries
from hf_internimage.models.resizing import opencv_bilinear

GOLDEN_DINO = json.loads((GOLDEN / "heads" / "dino_tiny.json").read_text())
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processor(short=32, long=64, **fields):
    return InternImageDetectionImageProcessor(size={"shortest_edge": short, "longest_edge": long}, **fields)


def coco(image_id, *boxes, **fields):
    """Annotations of one image; boxes are (category, left, top, width, height)."""
    return {"image_id": image_id, "annotations": [{"category_id": c, "bbox": box, **fields} for c, *box in boxes]}


@pytest.mark.parametrize(
    ("size", "fields", "expected", "padded"),
    [
        ((480, 640), {}, (800, 1067), (800, 1088)),
        ((640, 427), {}, (1199, 800), (1216, 800)),
        ((300, 1000), {}, (400, 1333), (416, 1344)),  # 399.9
        ((1600, 1600), {}, (800, 800), (800, 800)),
        ((480, 640), {"size": {"shortest_edge": 1000, "longest_edge": 2000}}, (1000, 1333), (1024, 1344)),
        ((480, 640), {"size_divisor": 1}, (800, 1067), (800, 1067)),
        ((480, 640), {"pad_size": {"height": 1333, "width": 1100}}, (800, 1067), (1333, 1100)),
    ],
)
def test_sizes(size, fields, expected, padded):
    image = np.zeros((*size, 3), dtype=np.uint8)
    got = InternImageDetectionImageProcessor(**fields)(image, coco(1), return_tensors="pt")
    assert tuple(got.labels[0]["orig_size"].tolist()) == size
    assert tuple(got.labels[0]["size"].tolist()) == expected
    assert got.pixel_values.shape == (1, 3, *padded)
    assert got.pixel_mask.shape == (1, *padded)
    assert got.pixel_mask[0].nonzero().max(0).values.tolist() == [side - 1 for side in expected]
    assert got.pixel_mask.sum() == expected[0] * expected[1]


def test_pixels_are_opencvs_normalised_then_padded():
    image = picture(30, 45)
    got = processor()(image, return_tensors="np")
    expected = (opencv_bilinear(image, (32, 48)) / 255 - MEAN) / STD
    assert got.pixel_values.dtype == np.float32
    assert got.pixel_values.shape == (1, 3, 32, 64)
    np.testing.assert_allclose(got.pixel_values[0, :, :, :48], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    assert (got.pixel_values[0, :, :, 48:] == 0).all()
    assert "labels" not in got


def test_batch_of_different_sizes():
    """Each image is as alone but for the padding, and so are its boxes."""
    process = processor()
    images = [picture(20, 30), picture(40, 15), picture(10, 100)]
    annotations = [coco(7, (2, 3, 4, 10, 12)), coco(8), coco(9, (0, 50, 0, 50, 10), (1, 0, 5, 20, 5))]
    batch = process(images, annotations, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 64, 64)
    assert [tuple(label["size"].tolist()) for label in batch.labels] == [(32, 48), (64, 24), (6, 64)]
    for image, annotation, values, mask, label in zip(
        images, annotations, batch.pixel_values, batch.pixel_mask, batch.labels, strict=True
    ):
        alone = process(image, annotation, return_tensors="pt")
        height, width = label["size"]
        assert torch.equal(values[:, :height, :width], alone.pixel_values[0, :, :height, :width])
        assert (values[:, mask == 0] == 0).all()
        assert mask[:height, :width].all()
        assert mask.sum() == height * width
        for name, value in alone.labels[0].items():
            assert torch.equal(label[name], value), name
    assert batch.labels[0]["boxes"].tolist() == [pytest.approx([8 / 30, 10 / 20, 10 / 30, 12 / 20])]


def test_without_padding_or_resizing():
    process = processor()
    apart = process([picture(20, 30), picture(30, 20)], do_pad=False)
    assert [values.shape for values in apart.pixel_values] == [(3, 32, 48), (3, 48, 32)]
    assert "pixel_mask" not in apart
    image = picture(33, 21)
    got = process(image, coco(1, (0, 0, 0, 21, 33)), do_resize=False, do_rescale=False, do_normalize=False)
    assert got.pixel_values[0].shape == (3, 64, 32)
    assert np.array_equal(got.pixel_values[0][:, :33, :21], image.transpose(2, 0, 1))
    assert got.labels[0]["size"].tolist() == [33, 21]


def test_labels():
    """Types, clipping, scaled area; crowds and boxes without a rest inside are left out."""
    target = coco(
        42, (3, 2, 4, 6, 8), (1, -5, 10, 10, 100), (5, 30, 0, 5, 5), (2, 4, 4, 0, 5), (4, 0, 0, 8, 8), area=10.0
    )
    target["annotations"][-1]["iscrowd"] = 1
    label = processor(40, 80)(picture(20, 30), target, return_tensors="pt").labels[0]
    assert label["class_labels"].tolist() == [3, 1]
    expected = [[5 / 30, 8 / 20, 6 / 30, 8 / 20], [2.5 / 30, 15 / 20, 5 / 30, 10 / 20]]
    torch.testing.assert_close(label["boxes"], torch.tensor(expected), rtol=0, atol=1e-7)
    assert label["area"].tolist() == [40, 40]
    assert label["iscrowd"].tolist() == [0, 0]
    assert label["image_id"].tolist() == [42]
    types = {name: value.dtype for name, value in label.items()}
    assert types == {
        "boxes": torch.float32,
        "area": torch.float32,
        **dict.fromkeys(["class_labels", "iscrowd", "image_id", "orig_size", "size"], torch.int64),
    }
    empty = processor()(picture(20, 30), coco(1), return_tensors="pt").labels[0]
    assert empty["boxes"].shape == (0, 4)
    assert {name: value.dtype for name, value in empty.items()} == types
    del target["annotations"][0]["area"]
    assert processor(20, 30)(picture(20, 30), target).labels[0]["area"].tolist() == [48, 10]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"category_id": 1}, "KeyError: 'bbox'"),
        ({"bbox": [1, 2, 3, 4]}, "KeyError: 'category_id'"),
        ({"category_id": 1.5, "bbox": [1, 2, 3, 4]}, "TypeError"),
        ({"category_id": "cat", "bbox": [1, 2, 3, 4]}, "TypeError"),
        ({"category_id": -1, "bbox": [1, 2, 3, 4]}, "negative"),
        ({"category_id": 1, "bbox": [1, 2, 3]}, "ValueError: not enough values"),
        ({"category_id": 1, "bbox": [1, 2, 3, 4, 5]}, "ValueError: too many values"),
        ({"category_id": 1, "bbox": [9, 2, -3, 4]}, "negative"),
        ({"category_id": 1, "bbox": [1, 2, float("nan"), 4]}, "not finite"),
        ({"category_id": 1, "bbox": [1, 2, 3, 4], "area": float("inf")}, "not finite"),
        ({"category_id": 1, "bbox": None}, "TypeError"),
        ("bbox", "TypeError"),
    ],
)
def test_malformed_annotations_name_their_image(entry, problem):
    good = {"category_id": 1, "bbox": [1, 2, 3, 4]}
    annotations = [coco(5), {"image_id": 77, "annotations": [good, entry]}]
    with pytest.raises(ValueError, match=f"Image 77 has a malformed annotation .*{problem}"):
        processor()([picture(20, 30)] * 2, annotations)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"annotations": [coco(1)]}, "2 images, but 1 annotations"),
        ({"annotations": [coco(1), [{"bbox": [1, 2, 3, 4]}]]}, "a dict with 'image_id' and 'annotations', got"),
        ({"annotations": [coco(1), {"annotations": []}]}, "a dict with 'image_id' and 'annotations', got"),
        ({"annotations": [coco(1), coco("b")]}, "image_id must be an integer, got 'b'"),
        ({"resample": 3}, "Images are resized bilinearly only"),
        ({"size": {"height": 20, "width": 20}}, "'shortest_edge' and 'longest_edge'"),
        ({"size": {"shortest_edge": 20}}, "'shortest_edge' and 'longest_edge'"),
        ({"pad_size": {"height": 8, "width": 8}}, "[Pp]adding dimensions are negative"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        processor()([picture(20, 30)] * 2, **arguments)


def test_settings_of_single_calls():
    process, image = processor(), picture(20, 30)
    for divisor in (0, 1):
        assert process(image, size_divisor=divisor, return_tensors="np").pixel_values.shape == (1, 3, 32, 48)
    padded = process(image, pad_size={"height": 50, "width": 70}, return_tensors="np")
    assert padded.pixel_values.shape == (1, 3, 50, 70)
    assert padded.pixel_mask.sum() == 32 * 48
    # a way to resize is not asked for where nothing is resized
    assert process(image, do_resize=False, resample=3, return_tensors="np").pixel_values.shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"sizes \[\(32, 48\), \(48, 32\)\] make no batch without do_pad; leave it on"):
        process([image, picture(30, 20)], do_pad=False, return_tensors="np")
    assert process(image, coco(1), return_tensors="np").labels[0]["boxes"].__class__ is np.ndarray
    assert process.model_input_names == ["pixel_values", "pixel_mask"]


def test_an_area_of_zero_is_an_area():
    """As of a line; only a missing one is that of the box."""
    (label,) = processor(20, 30)(picture(20, 30), coco(1, (2, 3, 4, 10, 12), area=0)).labels
    assert label["area"].tolist() == [0]


def test_pixels_must_be_8_bit():
    with pytest.raises(ValueError, match="as 8-bit pixels, got float32; pass uint8, or do_resize=False"):
        processor()(picture(20, 30).astype(np.float32))


def test_takes_what_image_processors_take():
    process, array = processor(), picture(20, 30)
    images = [Image.fromarray(array), array, array.transpose(2, 0, 1), torch.from_numpy(array)]
    values = process(images, return_tensors="pt").pixel_values
    assert all(torch.equal(values[0], other) for other in values[1:])
    gray = process(Image.fromarray(array[..., 0]), return_tensors="pt").pixel_values
    assert gray.shape == (1, 3, 32, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_are_the_originals(dtype):
    """From the stored logits and boxes, in pixels of the resized and of the original image."""
    tensors = load_file(GOLDEN / "heads" / "dino_tiny.safetensors")
    prefix = "" if dtype == torch.float32 else "float64/"
    atol = GOLDEN_DINO["atol_float32_pixel_coordinates" if dtype == torch.float32 else "atol_float64"]
    outputs = SimpleNamespace(logits=tensors[f"{prefix}logits"], pred_boxes=tensors[f"{prefix}pred_boxes"])
    process = InternImageDetectionImageProcessor(top_k=GOLDEN_DINO["config"]["test_cfg"]["max_per_img"])
    for field, name in (("img_shape", "boxes"), ("ori_shape", "boxes_rescaled")):
        sizes = [image[field] for image in GOLDEN_DINO["images"]]
        for target_sizes in (sizes, torch.tensor(sizes), [torch.tensor(size) for size in sizes]):
            results = process.post_process_object_detection(outputs, 0.0, target_sizes)
            for index, (got, image) in enumerate(zip(results, GOLDEN_DINO["images"], strict=True)):
                boxes = tensors[f"{prefix}result_{index}/{name}"]
                if field == "ori_shape":  # the original divides by factors rounded to float32
                    height, width = (old / new for old, new in zip(image["ori_shape"], image["img_shape"], strict=True))
                    exact = torch.tensor([width, height, width, height], dtype=torch.float64)
                    boxes = boxes * (torch.tensor(image["scale_factor_xyxy"], dtype=torch.float64) * exact).to(dtype)
                torch.testing.assert_close(got["boxes"], boxes, rtol=0, atol=atol)
                scores = tensors[f"{prefix}result_{index}/scores"]
                torch.testing.assert_close(got["scores"], scores, rtol=0, atol=min(atol, 1e-6))
                assert torch.equal(got["labels"], tensors[f"result_{index}/labels"])


def outputs_of(logits, boxes, dtype=torch.float32):
    return SimpleNamespace(logits=torch.tensor(logits, dtype=dtype), pred_boxes=torch.tensor(boxes, dtype=dtype))


def test_results_by_hand():
    """Two queries, two classes: a query may be detected twice; the box is clipped, then scaled."""
    outputs = outputs_of([[[2.0, 0.5], [-1.0, 1.0]]], [[[0.5, 0.5, 0.2, 0.4], [0.9, 0.1, 0.4, 0.4]]])
    process = InternImageDetectionImageProcessor()
    (got,) = process.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(100, 200)])
    torch.testing.assert_close(got["scores"], torch.tensor([2.0, 1.0, 0.5, -1.0]).sigmoid())
    assert got["labels"].tolist() == [0, 1, 1, 0]
    first, second = [80, 30, 120, 70], [140, 0, 200, 30]
    torch.testing.assert_close(got["boxes"], torch.tensor([first, second, first, second]).float())
    (got,) = process.post_process_object_detection(outputs)
    assert got["labels"].tolist() == [0, 1, 1]  # the default threshold is 0.5
    torch.testing.assert_close(got["boxes"][1], torch.tensor([0.7, 0, 1, 0.3]))
    (got,) = process.post_process_object_detection(outputs, threshold=0.7, top_k=3)
    assert got["labels"].tolist() == [0, 1]
    (got,) = process.post_process_object_detection(outputs, threshold=0.0, top_k=1)
    assert got["labels"].tolist() == [0]
    (got,) = InternImageDetectionImageProcessor(top_k=2).post_process_object_detection(outputs, threshold=0.0)
    assert got["labels"].tolist() == [0, 1]
    assert len(process.post_process_object_detection(outputs, threshold=0.0, top_k=0)[0]["scores"]) == 0
    with pytest.raises(ValueError, match="outputs of 1 images, but 2 target_sizes"):
        process.post_process_object_detection(outputs, target_sizes=[(1, 1), (1, 1)])


def test_a_score_equal_to_the_threshold_is_left_out():
    """It has to be above; a logit of 0 has the probability of exactly one half."""
    outputs = outputs_of([[[0.0, 1e-3, -1e-3, -torch.inf]]], [[[0.5, 0.5, 0.2, 0.4]]])
    process = InternImageDetectionImageProcessor().post_process_object_detection
    assert process(outputs)[0]["labels"].tolist() == [1]
    assert process(outputs, threshold=0.5)[0]["labels"].tolist() == [1]
    assert process(outputs, threshold=0.0)[0]["labels"].tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((7, 5, 1, 1), True),  # one pixel in the middle
        ((39, 23, 1, 1), True),  # the last one
        ((39, 23, 9, 9), True),  # of which one pixel is in the image
        ((40, 5, 9, 9), False),  # beside it
        ((5, 24, 9, 9), False),
        ((7, 5, 0, 1), False),
        ((7, 5, 1, 0), False),
        ((-9, 5, 9, 9), False),
        ((-9, 5, 10, 9), True),
    ],
)
def test_boxes_of_one_pixel_and_of_none(box, kept):
    annotation = {"image_id": 0, "annotations": [{"category_id": 0, "bbox": box}]}
    process = InternImageDetectionImageProcessor(do_resize=False)
    image = np.zeros((24, 40, 3), np.uint8)
    (labels,) = process(image, annotations=annotation, return_tensors="np")["labels"]
    assert len(labels["boxes"]) == len(labels["class_labels"]) == kept


def test_low_precision_outputs_are_ranked_in_float32():
    """In bfloat16 the sigmoids of 6 and 6.5 are both 1, and pixel coordinates are whole dozens."""
    outputs = outputs_of([[[6.0, 6.5]]], [[[0.5, 0.5, 0.25, 0.25]]], torch.bfloat16)
    (got,) = InternImageDetectionImageProcessor().post_process_object_detection(outputs, target_sizes=[(1001, 1001)])
    assert got["labels"].tolist() == [1, 0]
    assert got["boxes"].tolist() == [[375.375, 375.375, 625.625, 625.625]] * 2


def test_boxes_return_to_where_they_were():
    """Image to labels to results, in a padded batch of two shapes."""
    process = processor()
    sizes = [(37, 61), (53, 29)]
    boxes = [[(2, 3.5, 7, 40, 20), (0, 0, 0, 61, 37)], [(1, 10, 20, 5, 30), (3, 28, 52, 1, 1)]]
    annotations = [coco(i, *rows) for i, rows in enumerate(boxes)]
    batch = process([picture(*size) for size in sizes], annotations, return_tensors="pt")
    logits = torch.full((2, 2, 4), -10.0)
    for image, label in enumerate(batch.labels):
        for query, category in enumerate(label["class_labels"]):
            logits[image, query, category] = 10.0 - query
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.stack([label["boxes"] for label in batch.labels]))
    originals = [label["orig_size"] for label in batch.labels]
    for rows, got in zip(boxes, process.post_process_object_detection(outputs, 0.5, originals), strict=True):
        assert got["labels"].tolist() == [row[0] for row in rows]
        corners = [[left, top, left + width, top + height] for _, left, top, width, height in rows]
        torch.testing.assert_close(got["boxes"], torch.tensor(corners).float(), rtol=0, atol=1e-4)


def test_saved_and_found(tmp_path):
    process = processor(40, 90, top_k=300, size_divisor=64, image_mean=[0.1, 0.2, 0.3])
    process.save_pretrained(tmp_path)
    image = picture(20, 30)
    expected = process(image, return_tensors="pt")
    for backend in ({}, {"backend": "pil"}):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, **backend)
        assert type(loaded) is InternImageDetectionImageProcessor
        assert loaded.to_dict() == process.to_dict()
        assert torch.equal(loaded(image, return_tensors="pt").pixel_values, expected.pixel_values)
    assert loaded.top_k == 300
    assert InternImageDetectionImageProcessor().to_dict()["top_k"] == 100
    # by the configuration's class, where the file does not name the processor
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    del saved["image_processor_type"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    InternImageDinoConfig().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is InternImageDetectionImageProcessor


def test_object_detection_pipeline():
    """A small stock detector: what the pipeline says is what the processor makes of the model's outputs."""
    config = DeformableDetrConfig(
        backbone_config=tiny_config(out_features=["stage2", "stage3", "stage4"]),
        d_model=64,
        num_feature_levels=4,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=7,
        num_labels=3,
    )
    model, process = DeformableDetrForObjectDetection(config).eval(), processor(top_k=5)
    image = Image.fromarray(picture(40, 70))
    detect = pipeline("object-detection", model=model, image_processor=process, device="cpu")
    found = detect(image, threshold=0.0)
    with torch.no_grad():
        outputs = model(**process(image, return_tensors="pt"))
    (expected,) = process.post_process_object_detection(outputs, 0.0, [(40, 70)])
    assert len(found) == 5
    for got, score, label, box in zip(found, *(expected[name] for name in ("scores", "labels", "boxes")), strict=True):
        assert got["score"] == pytest.approx(score.item())
        assert got["label"] == f"LABEL_{label}"
        assert list(got["box"].values()) == box.int().tolist()
    assert detect(image, threshold=1.0) == []


def test_a_batch_for_the_trainer():
    """A collator is one call; losses take its labels, also of an image without boxes."""
    process = processor()
    batch = process([picture(20, 30), picture(30, 20)], [coco(1, (2, 3, 4, 10, 12)), coco(2)], return_tensors="pt")
    assert set(batch) == {"pixel_values", "pixel_mask", "labels"}
    config = DeformableDetrConfig(num_labels=3, auxiliary_loss=False)
    logits, boxes = torch.randn(2, 4, 3), torch.rand(2, 4, 4)
    loss, _, _ = DeformableDetrForObjectDetectionLoss(logits, batch.labels, "cpu", boxes, config)
    assert loss.isfinite()
    queries = make_denoising_queries(batch.labels, 4, 3, num_denoising=2, label_noise=0)
    assert queries.labels.tolist() == [[2] * 4, [3] * 4]
    loss, _ = dino_loss(
        InternImageDinoConfig(), logits[None], boxes[None], logits, boxes, None, None, None, batch.labels
    )
    assert loss.isfinite()
