# SPDX-License-Identifier: MIT
"""Mask R-CNN and Cascade Mask R-CNN: the original's numbers, and plain recomputations of what those do not cover.

Skipped where torchvision's operators do not work, as with PyTorch for the CPU and torchvision from PyPI.
"""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.golden_data import awaken, fill
from support.golden_heads import TOLERANCES, document, expected, pixel_values, wanted, weights
from support.rcnn_tools import golden_config, tiny_config, why_no_torchvision
from torch.testing import assert_close
from transformers import AutoModelForInstanceSegmentation, AutoModelForObjectDetection, pipeline

from hf_internimage import InternImageDetectionImageProcessor, InternImageMaskRCNNConfig
from hf_internimage.conversion import rcnn as conversion

if reason := why_no_torchvision():
    pytest.skip(reason, allow_module_level=True)

from torchvision.models.detection.image_list import ImageList

from hf_internimage.models.mask_rcnn import (
    InternImageMaskRCNNForInstanceSegmentation,
    post_process_instance_segmentation,
)
from hf_internimage.models.mask_rcnn.masks import paste_mask
from hf_internimage.models.mask_rcnn.proposals import AnchorGrid, BoxCoder
from hf_internimage.models.mask_rcnn.roi_heads import RegionHeads, crop_masks, pool_regions

GOLDEN = "maskrcnn_tiny"
COUNTS = {"t": 48_920_544, "s": 68_715_024, "b": 115_245_264, "l": 277_307_236, "xl": 387_448_974}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
both = pytest.mark.parametrize("cascade", [False, True], ids=["mask_rcnn", "cascade"])


def golden_model(dtype):
    config = golden_config()
    model = InternImageMaskRCNNForInstanceSegmentation(config)
    model.load_state_dict(conversion.convert(weights(GOLDEN), config).tensors, strict=True)
    return model.to(dtype).eval()


def tiny_model(cascade=False, **fields):
    """A model that is sure of nothing, with detections in spite of it."""
    model = InternImageMaskRCNNForInstanceSegmentation(tiny_config(cascade, **{"score_threshold": 0.2, **fields}))
    with torch.no_grad():
        for head in model.roi_heads.box_heads:
            head.classifier.weight.mul_(10)
            head.regressor.weight.mul_(300)
    return awaken(model).eval()


def compare(found, what, dtype):
    """Fails unless `found` is the original's result; float64 results are kept of some only."""
    if dtype is torch.float64 and f"float64/{what}" not in wanted(GOLDEN):
        return 0
    value, tolerance = expected(GOLDEN, what, dtype)
    assert found.dtype == dtype
    assert_close(found, value, rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}")
    return 1


def golden_input(what, dtype):
    described = document(GOLDEN)["roi_features"][what]
    return torch.from_numpy(fill().pixels(described["fill_key"], described["shape"])).to(dtype)


@every_dtype
@torch.no_grad()
def test_golden_pyramid_and_proposals(dtype):
    model, pixels = golden_model(dtype), pixel_values(GOLDEN, dtype=dtype)
    compared = 0
    for index, level in enumerate(model.backbone(pixels).feature_maps):
        compared += compare(level, f"feature_maps_{index}", dtype)
    maps = list(model.pyramid(pixels).values())
    logits, deltas = model.rpn.head(maps)
    images = ImageList(pixels, [(64, 96)] * 2)
    (anchors, same), counts = model.rpn.anchor_generator(images, maps), [level[0].numel() for level in logits]
    assert torch.equal(anchors, same)
    for index, (level, anchor) in enumerate(zip(maps, anchors.split(counts), strict=True)):
        compared += compare(level, f"fpn_{index}", dtype)
        compared += compare(logits[index], f"rpn_logits_{index}", dtype)
        compared += compare(deltas[index], f"rpn_deltas_{index}", dtype)
        compared += compare(anchor, f"anchors_{index}", dtype)
        codes = deltas[index].unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        boxes = model.rpn.box_coder.decode_single(codes, anchor.repeat(2, 1)).view(2, -1, 4)
        limits = boxes.new_tensor([96, 64, 96, 64])
        compared += compare(boxes.clamp(min=0).minimum(limits), f"rpn_boxes_{index}", dtype)
    assert compared == {torch.float32: 29, torch.float64: 3}[dtype]


@every_dtype
@torch.no_grad()
def test_golden_heads(dtype):
    model = golden_model(dtype)
    logits, codes = model.roi_heads.box_heads[0](golden_input("box", dtype))
    rois = wanted(GOLDEN)["rois"].to(dtype)
    by_image = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    assert torch.equal(torch.cat(by_image), rois[:, 1:])
    boxes = model.roi_heads._decode(0, codes, by_image, [(64, 96)] * 2)
    compared = compare(logits, "box_class_logits", dtype) + compare(codes, "box_deltas", dtype)
    compared += compare(boxes.flatten(1), "box_boxes", dtype) + compare(logits.softmax(1), "box_scores", dtype)
    compared += compare(model.roi_heads.mask_heads[0](golden_input("mask", dtype)), "mask_logits", dtype)
    assert compared == {torch.float32: 5, torch.float64: 3}[dtype]


def test_anchors():
    """The original's base anchors, which torchvision would round, on maps whose stride is no quotient of sizes."""
    maps = [torch.zeros(1, 1, 1, 2, dtype=torch.float64) for _ in range(5)]
    (anchors,) = AnchorGrid()(ImageList(torch.zeros(1, 3, 41, 75), [(41, 75)]), maps)
    for level, (base, (stride, _)) in enumerate(
        zip(document(GOLDEN)["base_anchors"], document(GOLDEN)["anchor_strides"], strict=True)
    ):
        base = torch.tensor(base, dtype=torch.float64)
        found = anchors[6 * level : 6 * level + 6]
        assert_close(found, torch.cat([base, base + torch.tensor([stride, 0, stride, 0])]), rtol=1e-7, atol=0)


def test_boxes_change_by_a_limited_factor():
    """Both ways: torchvision limits growing only."""
    coder = BoxCoder([0.1, 0.1, 0.2, 0.2])
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]], dtype=torch.float64)
    moved = coder.decode_single(torch.tensor([[1.0, -2.0, -100.0, 100.0]], dtype=torch.float64), boxes)
    factor = 1000 / 16
    centre, sides = (20 + 0.1 * 20, 40 - 0.2 * 40), (20 / factor, 40 * factor)
    assert_close(
        moved[0],
        torch.tensor([c + sign * s / 2 for sign in (-1, 1) for c, s in zip(centre, sides, strict=True)]).double(),
    )
    other = torch.tensor([[12.0, 18.0, 50.0, 61.0]], dtype=torch.float64)
    assert_close(coder.decode_single(coder.encode_single(other, boxes), boxes), other)


def plain_bilinear(plane, y, x):
    """One sample of plane (H, W) at a position in pixels whose centres are integers; RoIAlign's rule at the border."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = (0.0 if y0 == height - 1 else y - y0), (0.0 if x0 == width - 1 else x - x0)
    upper = plane[y0, x0] * (1 - fx) + plane[y0, x1] * fx
    return upper * (1 - fy) + (plane[y1, x0] * (1 - fx) + plane[y1, x1] * fx) * fy


def plain_align(plane, box, scale, size):
    """RoIAlign, aligned and with samples as dense as the pixels, of one channel: (size, size)."""
    x0, y0, x1, y1 = (float(value) * scale - 0.5 for value in box)
    counts = [max(math.ceil(side / size), 0) for side in (y1 - y0, x1 - x0)]
    result = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        samples = [
            plain_bilinear(
                plane,
                y0 + (i + (a + 0.5) / counts[0]) * (y1 - y0) / size,
                x0 + (j + (b + 0.5) / counts[1]) * (x1 - x0) / size,
            )
            for a in range(counts[0])
            for b in range(counts[1])
        ]
        result[i, j] = sum(samples) / max(len(samples), 1)
    return result


REGIONS = [  # image, box, level: below and above the limits at sides 112, 224, 448 of a square
    (0, (3.2, 4.1, 21.7, 9.9), 0),
    (1, (0.0, 0.0, 111.9, 111.9), 0),
    (0, (0.0, 0.0, 112.1, 112.1), 1),
    (1, (0.0, 0.0, 111.99998, 111.99998), 1),  # by the original's 1e-6
    (1, (-3.0, 10.0, 330.0, 150.2), 1),
    (1, (0.0, 0.0, 226.0, 224.0), 2),
    (0, (100.0, 0.0, 547.0, 448.5), 2),
    (0, (0.0, 5.0, 640.0, 448.0), 3),
]


def test_pooling_is_plain():
    """Levels, alignment, density of samples, against loops; in order of the regions, not of the levels."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 2, 480 // s, 640 // s, generator=generator).double() for s in (4, 8, 16, 32)]
    regions = torch.tensor([[image, *box] for image, box, _ in REGIONS], dtype=torch.float64)
    pooled = pool_regions(maps, regions, 3)
    for row, (image, box, level) in zip(pooled, REGIONS, strict=True):
        for channel in range(2):
            plain = plain_align(maps[level][image, channel].numpy(), box, 1 / (4 << level), 3)
            assert_close(row[channel], torch.from_numpy(plain), rtol=0, atol=1e-12)


def plain_nms(boxes, scores, groups, threshold):
    """Indices kept, best first."""
    order, kept = sorted(range(len(boxes)), key=lambda index: -scores[index]), []
    for index in order:
        if all(groups[index] != groups[other] or plain_iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def plain_iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inner = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return inner / (sum(areas) - inner)


@torch.no_grad()
def test_proposals_are_plain():
    """The best of each level, without boxes of no area, after suppression within the level: all levels together."""
    model = tiny_model(rpn_test_proposals=50).double()
    model.rpn._pre_nms_top_n["testing"] = 40
    model.rpn.head.bbox_pred.weight.mul_(30)
    pixels, size = torch.randn(1, 3, 64, 96).double(), (50, 70)
    features = model.pyramid(pixels)
    (proposals,), losses = model.rpn(ImageList(pixels, [size]), features)
    assert losses == {}
    (anchors,), start, candidates = (
        model.rpn.anchor_generator(ImageList(pixels, [size]), list(features.values())),
        0,
        [],
    )
    for level, (logits, deltas) in enumerate(zip(*model.rpn.head(list(features.values())), strict=True)):
        _, shapes, height, width = logits.shape
        rows = []
        for y, x, shape in itertools.product(range(height), range(width), range(shapes)):
            x0, y0, x1, y1 = anchors[start + len(rows)].tolist()
            dx, dy, dw, dh = deltas[0, 4 * shape : 4 * shape + 4, y, x].tolist()
            cx, cy = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
            w, h = (x1 - x0) * math.exp(dw), (y1 - y0) * math.exp(dh)
            corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            box = [min(max(value, 0), side) for value, side in zip(corners, (70, 50, 70, 50), strict=True)]
            rows.append((logits[0, shape, y, x].item(), box, level))
        candidates += sorted(rows, key=lambda row: -row[0])[:40]
        start += len(rows)
    candidates = [row for row in candidates if row[1][2] > row[1][0] and row[1][3] > row[1][1]]
    scores, boxes, levels = zip(*candidates, strict=True)
    kept = plain_nms(boxes, scores, levels, 0.7)
    assert 50 < len(kept) < len(boxes)
    assert_close(proposals, torch.tensor([boxes[index] for index in kept[:50]], dtype=torch.float64))


@both
@torch.no_grad()
def test_detections_are_plain(cascade):
    """Refinement by the likeliest class, mean of the logits, selection and masks, one region after the other."""
    model = tiny_model(cascade, max_detections=15).double()
    heads, size = model.roi_heads, (60, 90)
    for head in heads.box_heads:
        head.regressor.weight.mul_(0.3)
    features = [torch.randn(1, 8, 64 // s, 96 // s).double() for s in (4, 8, 16, 32)]
    corners = torch.rand(12, 2).double() * torch.tensor([60.0, 35.0])
    proposals = torch.cat([corners, corners + 5 + torch.rand(12, 2) * 40], dim=1).clamp(max=60)
    (found,) = heads.predict(features, [proposals], [size])
    (masks,) = heads.predict_masks(features, [found])

    boxes, scores, labels = [], [], []
    for box in proposals.tolist():
        total = 0
        for stage, head in enumerate(heads.box_heads):
            logits, codes = head(pool_regions(features, torch.tensor([[0, *box]], dtype=torch.float64), 7))
            total = total + logits[0] / len(heads.box_heads)
            moved = []
            for dx, dy, dw, dh in codes.view(3, 4).tolist():
                sx, sy, sw, sh = model.config.stage_box_stds[stage]
                w, h = box[2] - box[0], box[3] - box[1]
                cx, cy = (box[0] + box[2]) / 2 + dx * sx * w, (box[1] + box[3]) / 2 + dy * sy * h
                w, h = w * math.exp(dw * sw), h * math.exp(dh * sh)
                corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
                moved.append([min(max(value, 0), side) for value, side in zip(corners, (90, 60) * 2, strict=True)])
            box = moved[int(logits[0, :3].argmax())]
        for label, score in enumerate(total.softmax(0)[:3].tolist()):
            if score > 0.2:
                boxes.append(moved[label])
                scores.append(score)
                labels.append(label)
    kept = plain_nms(boxes, scores, labels, 0.5)
    assert len(boxes) > len(kept) > 15
    kept = kept[:15]
    assert kept != plain_nms(boxes, scores, [0] * len(boxes), 0.5)[:15]  # boxes of other classes suppress none
    assert found.labels.tolist() == [labels[index] for index in kept]
    assert_close(found.scores, torch.tensor([scores[index] for index in kept], dtype=torch.float64))
    assert_close(found.boxes, torch.tensor([boxes[index] for index in kept], dtype=torch.float64))
    for box, label, mask in zip(found.boxes, found.labels, masks, strict=True):
        pooled = pool_regions(features, torch.cat([box.new_zeros(1), box])[None], 14)
        stages = [head(pooled)[0, label].sigmoid() for head in heads.mask_heads]
        assert_close(mask, sum(stages) / len(stages))


@pytest.mark.parametrize(("value", "expected"), [(0.5, 9), (0.4999, 0), (0.5001, 9)])
def test_a_mask_of_exactly_the_threshold_is_shown(value, expected):
    mask = torch.full((28, 28), value, dtype=torch.float64)
    pasted = paste_mask(mask, torch.tensor([-20.0, -20.0, 23.0, 23.0], dtype=torch.float64), 3, 3, threshold=0.5)
    assert pasted.sum() == expected


def test_half_covered_pixels_of_a_target_are_object():
    """A chessboard resampled to exactly one half in each pixel."""
    masks = torch.tensor([[[1.0, 0.0] * 28, [0.0, 1.0] * 28] * 28])
    cropped = crop_masks(masks, torch.tensor([0]), torch.tensor([[0.0, 0.0, 56.0, 56.0]]))
    assert cropped.shape == (1, 28, 28)
    assert (cropped == 1).all()


def test_a_detection_has_to_score_more_than_the_threshold():
    outputs = SimpleNamespace(
        logits=torch.tensor([[[0.0, -9.0], [1e-3, -9.0]]]),
        pred_boxes=torch.full((1, 2, 4), 0.5),
        box_masks=torch.ones(1, 2, 28, 28),
    )
    (found,) = post_process_instance_segmentation(outputs, threshold=0.5, target_sizes=[(8, 8)])
    assert len(found["scores"]) == 1
    assert found["scores"][0] > 0.5


def test_default_thresholds_are_one_half():
    ramp = torch.linspace(0, 1, 28).expand(28, 28)
    outputs = SimpleNamespace(
        logits=torch.tensor([[[0.04, -9.0], [-0.04, -9.0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0]] * 2]),
        box_masks=torch.stack([ramp, ramp])[None],
    )
    (found,) = post_process_instance_segmentation(outputs, target_sizes=[(28, 28)])
    assert found["masks"].shape == (1, 28, 28)
    assert torch.equal(found["masks"][0], ramp >= 0.5)
    assert torch.equal(paste_mask(ramp, torch.tensor([0.0, 0.0, 28.0, 28.0]), 28, 28), ramp >= 0.5)
    (strict,) = post_process_instance_segmentation(outputs, target_sizes=[(28, 28)], mask_threshold=0.8)
    assert torch.equal(strict["masks"][0], ramp >= 0.8)
    with pytest.raises(ValueError, match=r"target_sizes has 0 entries for 1 images; give \(height, width\) of each"):
        post_process_instance_segmentation(outputs)


def test_a_coarse_mask_reaches_a_pixel_beyond_its_box():
    """Where half a cell of the mask is a pixel, and a quarter of it is enough."""
    pasted = paste_mask(torch.ones(28, 28), torch.tensor([10.0, 12.0, 66.0, 68.0]), 80, 90, threshold=0.2)
    assert pasted[40].nonzero().flatten().tolist() == list(range(9, 67))
    assert pasted[:, 40].nonzero().flatten().tolist() == list(range(11, 69))


def test_the_mask_of_a_large_box_ends_where_the_originals_does():
    """One pixel before the box, two behind it: half a cell of the mask is five pixels, and a fifth of it enough."""
    pasted = paste_mask(torch.ones(28, 28), torch.tensor([10.0, 12.0, 290.0, 292.0]), 320, 330, threshold=0.2)
    assert pasted[40].nonzero().flatten().tolist() == list(range(9, 292))
    assert pasted[:, 40].nonzero().flatten().tolist() == list(range(11, 294))


def test_boxes_beside_the_image_have_no_mask():
    mask = torch.ones(28, 28)
    for box in ([5.0, 50.0, 9.0, 60.0], [5.0, -9.0, 9.0, -3.0], [-9.0, 5.0, -3.0, 9.0], [5.0, 9.0, 9.0, 5.0]):
        assert not paste_mask(mask, torch.tensor(box), 33, 21).any()
    assert paste_mask(mask, torch.tensor([20.0, 32.0, 60.0, 60.0]), 33, 21).nonzero().tolist() == [[32, 20]]


def test_the_models_own_threshold_is_exceeded():
    config = SimpleNamespace(score_threshold=0.25, nms_threshold=0.5, max_detections=9)
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [40, 40, 60, 60]])[:, None]
    found = RegionHeads._select(SimpleNamespace(config=config), boxes, torch.tensor([[0.25], [0.24], [0.26]]))
    assert found.scores.tolist() == pytest.approx([0.26])


def test_pasted_masks_are_plain():
    """Pixel centres in the box's own coordinates, bilinear between the mask's centres, zero outside the mask."""
    mask = torch.rand(28, 28, dtype=torch.float64)
    for box in ([3.3, 2.2, 17.9, 30.1], [-4.0, 5.5, 9.0, 11.0], [10.2, 10.3, 10.9, 10.6]):
        box = torch.tensor(box, dtype=torch.float64)
        pasted = paste_mask(mask, box, 33, 21, threshold=0.5)
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1)).numpy()
        for y, x in np.ndindex(33, 21):
            row, column = (
                (value + 0.5 - box[low].item()) / (box[low + 2] - box[low]).item() * 28 - 0.5 + 1
                for value, low in ((y, 1), (x, 0))
            )
            inside = 0 <= row <= 29 and 0 <= column <= 29
            value = plain_bilinear(padded, row, column) if inside else 0.0
            assert abs(value - 0.5) > 1e-9
            assert pasted[y, x] == (value >= 0.5), (y, x, value)
    assert not paste_mask(mask + 1, torch.tensor([5.0, 5.0, 5.0, 9.0]), 33, 21).any()
    assert not paste_mask(mask + 1, torch.tensor([50.0, 5.0, 60.0, 9.0]), 33, 21).any()


def test_cropped_masks_are_plain():
    masks = torch.zeros(2, 40, 50)
    masks[0, 5:20, 8:31] = 1
    masks[1, 30:] = 1
    boxes, objects = torch.tensor([[2.5, 1.0, 40.0, 33.3], [0.0, 20.0, 50.0, 40.0]]), torch.tensor([0, 1])
    cropped = crop_masks(masks, objects, boxes)
    for crop, box, index in zip(cropped, boxes, objects, strict=True):
        plain = plain_align(masks[index].numpy(), box, 1.0, 28)
        assert np.abs(plain - 0.5).min() > 1e-4
        assert_close(crop, torch.from_numpy(plain >= 0.5).float())
        assert 0 < crop.mean() < 1
    assert crop_masks(masks, objects[:0], boxes[:0]).shape == (0, 28, 28)


def scene(dtype=torch.float32, masks=True):
    """Two images, the second 48 x 80 and without objects, and their labels."""
    pixels = torch.randn(2, 3, 64, 96, dtype=dtype)
    pixel_mask = torch.zeros(2, 64, 96, dtype=torch.int64)
    pixel_mask[0], pixel_mask[1, :48, :80] = 1, 1
    labels = [
        {"class_labels": torch.tensor([2, 0]), "boxes": torch.tensor([[0.3, 0.4, 0.4, 0.5], [0.7, 0.5, 0.3, 0.8]])},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    if masks:
        labels[0]["masks"] = torch.zeros(2, 64, 96, dtype=torch.bool)
        labels[0]["masks"][0, 14:36, 12:40] = True
        labels[0]["masks"][1, 10:50, 60:78] = True
        labels[1]["masks"] = torch.zeros(0, 48, 80, dtype=torch.bool)
    return {"pixel_values": pixels, "pixel_mask": pixel_mask, "labels": labels}


def no_sampling(monkeypatch, model):
    """All candidates train, so that losses can be recomputed."""
    for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.sampler):
        monkeypatch.setattr(sampler, "batch_size_per_image", 10**6)
        monkeypatch.setattr(sampler, "positive_fraction", 0.5)


@both
def test_proposal_loss_is_plain(cascade, monkeypatch):
    model = tiny_model(cascade).double()
    no_sampling(monkeypatch, model)
    pixels, size = torch.randn(1, 3, 64, 96).double(), (64, 96)
    features, images = model.pyramid(pixels), ImageList(pixels, [size])
    objects = torch.tensor([[10.0, 12.0, 40.0, 50.0], [50.0, 8.0, 90.0, 60.0], [3.0, 3.0, 8.0, 9.0]]).double()
    _, losses = model.rpn(images, features, [{"boxes": objects}])
    logits, deltas = model.rpn.head(list(features.values()))
    logits = torch.cat([level.permute(0, 2, 3, 1).flatten() for level in logits])
    deltas = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 4) for level in deltas])
    (anchors,) = model.rpn.anchor_generator(images, list(features.values()))
    overlaps = np.array([[plain_iou(a, b) for b in objects.tolist()] for a in anchors.tolist()])
    best = overlaps.max(axis=0)
    classes, boxes, count = 0.0, 0.0, 0
    for index, row in enumerate(overlaps):
        positive = row.max() >= 0.7 or (row == best).any()
        if not positive and row.max() >= 0.3:
            continue
        count += 1
        classes += torch.nn.functional.softplus(-logits[index] if positive else logits[index])
        if positive:
            difference = (
                deltas[index] - model.rpn.box_coder.encode_single(objects[row.argmax()][None], anchors[index][None])[0]
            ).abs()
            beta = model.config.rpn_smooth_l1_beta
            small = difference < beta
            boxes += torch.where(small, difference**2 / (2 * beta or 1), difference - beta / 2).sum()
    assert cascade == (model.config.rpn_smooth_l1_beta > 0)
    assert_close(losses["loss_rpn_objectness"], classes / count)
    assert_close(losses["loss_rpn_boxes"], boxes / count)


@both
def test_head_losses_are_plain(cascade, monkeypatch):
    """Assignment at each stage's threshold, classes, boxes, masks, and the boxes handed to the next stage."""
    model = tiny_model(cascade).double()
    no_sampling(monkeypatch, model)
    size = (64, 96)
    features = [torch.randn(1, 8, 64 // s, 96 // s).double() for s in (4, 8, 16, 32)]
    objects = torch.tensor([[10.0, 12.0, 40.0, 50.0], [50.0, 8.0, 90.0, 60.0]]).double()
    shifts = torch.randn(30, 4).double() * 5
    proposals = (objects.repeat(15, 1) + shifts).clamp(0, 64)
    masks = torch.zeros(2, 64, 96)
    masks[0, 12:30, 10:40], masks[1, 8:60, 60:90] = 1, 1
    target = {"class_labels": torch.tensor([2, 0]), "boxes": objects, "masks": masks}
    losses = model.roi_heads.losses(features, [proposals], [target], [size])
    assert len(losses) == 3 * model.config.num_stages
    config, boxes = model.config, torch.cat([objects, proposals])
    for stage, (box_head, mask_head) in enumerate(
        zip(model.roi_heads.box_heads, model.roi_heads.mask_heads, strict=True)
    ):
        overlaps = np.array([[plain_iou(a, b) for b in objects.tolist()] for a in boxes.tolist()])
        matched = [int(row.argmax()) if row.max() >= config.stage_iou_thresholds[stage] else -1 for row in overlaps]
        assert {-1, 0, 1} == set(matched)
        rois = torch.nn.functional.pad(boxes, (1, 0))
        logits, codes = box_head(pool_regions(features, rois, 7))
        mask_logits = mask_head(pool_regions(features, rois, 14))
        classes, box_loss, mask_loss, positives, moved = 0.0, 0.0, 0.0, 0, []
        for index, found in enumerate(matched):
            label = 3 if found < 0 else int(target["class_labels"][found])
            classes -= logits[index].log_softmax(0)[label]
            code = codes[index].view(3, 4)[label if label < 3 else int(logits[index, :3].argmax())]
            unit = code * torch.tensor(config.stage_box_stds[stage])
            x0, y0, x1, y1 = boxes[index]
            centre = torch.stack([(x0 + x1) / 2 + unit[0] * (x1 - x0), (y0 + y1) / 2 + unit[1] * (y1 - y0)])
            sides = torch.stack([(x1 - x0) * unit[2].exp(), (y1 - y0) * unit[3].exp()])
            box = torch.cat([centre - sides / 2, centre + sides / 2])
            if index >= 2:  # the objects themselves are not handed on
                moved.append(box.detach().clamp(min=0).minimum(torch.tensor([96.0, 64.0] * 2)))
            if found < 0:
                continue
            positives += 1
            if cascade:
                a, b = box.tolist(), objects[found].tolist()
                hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
                inner = plain_iou(a, b)
                areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
                union = areas / (1 + inner)
                box_loss += 10 * (1 - inner + (hull - union) / hull)
            else:
                x, y, p, q = objects[found]
                want = torch.stack(
                    [
                        ((x + p) / 2 - (x0 + x1) / 2) / (x1 - x0) / 0.1,
                        ((y + q) / 2 - (y0 + y1) / 2) / (y1 - y0) / 0.1,
                        ((p - x) / (x1 - x0)).log() / 0.2,
                        ((q - y) / (y1 - y0)).log() / 0.2,
                    ]
                )
                box_loss += (code - want).abs().sum().item()
            shown = crop_masks(masks, torch.tensor([found]), boxes[index][None])[0]
            mask_loss += torch.nn.functional.binary_cross_entropy_with_logits(mask_logits[index, label], shown)
        weight = config.stage_loss_weights[stage]
        assert_close(losses[f"loss_classes_{stage + 1}"], weight * classes / len(boxes))
        assert_close(losses[f"loss_boxes_{stage + 1}"].item(), weight * box_loss / len(boxes), rtol=1e-6, atol=1e-9)
        assert_close(losses[f"loss_masks_{stage + 1}"], weight * mask_loss / positives)
        boxes = torch.cat([objects, torch.stack(moved)])


@both
def test_training_reaches_every_weight(cascade):
    model = tiny_model(cascade).train()
    output = model(**scene())
    assert output.logits is None
    stages = range(1, model.config.num_stages + 1)
    names = {"loss_rpn_objectness", "loss_rpn_boxes"}
    names |= {f"loss_{kind}_{stage}" for kind in ("classes", "boxes", "masks") for stage in stages}
    assert set(output.loss_dict) == names
    assert_close(output.loss, sum(output.loss_dict.values()))
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_training_learns_an_image():
    """A few steps on one image, from the initial weights: the loss falls, and the objects are found."""
    torch.manual_seed(0)
    model = InternImageMaskRCNNForInstanceSegmentation(tiny_config(fpn_channels=16, box_head_size=32)).train()
    model.roi_heads.sampler.batch_size_per_image = 64
    batch = scene()
    for label in batch["labels"][:1]:
        for mask, channel in zip(label["masks"], range(2), strict=True):
            batch["pixel_values"][0, channel, mask] += 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.4 * losses[0]
    with torch.no_grad():
        output = model.eval()(batch["pixel_values"], batch["pixel_mask"])
    found, none = post_process_instance_segmentation(output, 0.5, [(64, 96), (48, 80)])
    masks = batch["labels"][0]["masks"]
    assert set(found["labels"].tolist()) == {0, 2}
    assert len(none["labels"]) == 0
    for label, box, mask in zip((2, 0), ([9.6, 9.6, 48.0, 41.6], [52.8, 6.4, 81.6, 57.6]), masks, strict=True):
        best = found["labels"].tolist().index(label)
        assert plain_iou(found["boxes"][best].tolist(), box) > 0.5
        assert (found["masks"][best] & mask).sum() > 0.5 * (found["masks"][best] | mask).sum()


def test_boxes_of_labels():
    """Relative to the image without its padding, here 48 x 80 of 64 x 96."""
    batch = scene(masks=False)
    batch["labels"].reverse()
    none, targets = tiny_model()._targets(batch["labels"], [(64, 96), (48, 80)], batch["pixel_values"])
    assert none["boxes"].shape == (0, 4)
    wanted = [[0.1 * 80, 0.15 * 48, 0.5 * 80, 0.65 * 48], [0.55 * 80, 0.1 * 48, 0.85 * 80, 0.9 * 48]]
    assert_close(targets["boxes"], torch.tensor(wanted))


def test_losses_without_masks():
    batch = scene(masks=False)
    output = tiny_model().train()(**batch)
    assert "loss_boxes_1" in output.loss_dict
    assert "loss_masks_1" not in output.loss_dict


@both
@torch.no_grad()
def test_evaluation_with_labels_gives_both(cascade):
    model, batch = tiny_model(cascade), scene()
    output = model(**batch)
    alone = model(batch["pixel_values"], batch["pixel_mask"])
    assert output.loss > 0
    assert alone.loss is None
    assert torch.equal(output.logits, alone.logits)
    assert torch.equal(output.box_masks, alone.box_masks)


@both
@torch.no_grad()
def test_padding_is_no_place_for_objects(cascade):
    model, batch = tiny_model(cascade), scene()
    output = model(batch["pixel_values"], batch["pixel_mask"])
    results = post_process_instance_segmentation(output, 0.2, [(64, 96), (48, 80)])
    processed = InternImageDetectionImageProcessor().post_process_object_detection(output, 0.2, [(64, 96), (48, 80)])
    features = model.pyramid(batch["pixel_values"])
    sizes, levels = [(64, 96), (48, 80)], list(features.values())[:4]
    proposals, _ = model.rpn(ImageList(batch["pixel_values"], sizes), features)
    detections = model.roi_heads.predict(levels, proposals, sizes)
    for result, other, found, (height, width) in zip(results, processed, detections, sizes, strict=True):
        count = len(result["scores"])
        assert_close(result["boxes"], found.boxes, rtol=0, atol=1e-4)
        assert torch.equal(result["labels"], found.labels)
        assert count > 0
        assert result["masks"].shape == (count, height, width)
        assert (result["boxes"] >= -1e-4).all()
        assert (result["boxes"] <= torch.tensor([width, height] * 2) + 1e-4).all()
        assert (result["scores"][:-1] >= result["scores"][1:]).all()
        for key in ("scores", "labels"):
            assert torch.equal(result[key], other[key])
        assert_close(result["boxes"], other["boxes"], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="target_sizes has 1 entries for 2 images"):
        post_process_instance_segmentation(output, 0.5, [(64, 96)])


@both
@torch.no_grad()
def test_no_object_at_all(cascade):
    model, batch = tiny_model(cascade, score_threshold=0.999), scene()
    output = model(batch["pixel_values"], batch["pixel_mask"])
    assert (output.logits == -torch.inf).all()
    (first, _) = post_process_instance_segmentation(output, 0.0, [(64, 96), (48, 80)])
    assert first["masks"].shape == (0, 64, 96)


@both
@torch.no_grad()
def test_save_and_load(cascade, tmp_path):
    model, pixels = tiny_model(cascade), scene()["pixel_values"]
    model.save_pretrained(tmp_path)
    for auto in (
        InternImageMaskRCNNForInstanceSegmentation,
        AutoModelForObjectDetection,
        AutoModelForInstanceSegmentation,
    ):
        loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is InternImageMaskRCNNForInstanceSegmentation
        assert {key: value for key, value in report.items() if value} == {}
        for name in ("logits", "pred_boxes", "box_masks"):
            assert torch.equal(loaded(pixels)[name], model(pixels)[name])


@both
def test_pipeline(cascade, tmp_path):
    tiny_model(cascade).save_pretrained(tmp_path)
    InternImageDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    found = pipeline("object-detection", model=str(tmp_path))(Image.fromarray(pixels), threshold=0.2)
    assert len(found) > 0
    for entry in found:
        assert entry["label"].startswith("LABEL_")
        assert 0 <= entry["box"]["xmin"] <= entry["box"]["xmax"] <= 150
        assert 0 <= entry["box"]["ymin"] <= entry["box"]["ymax"] <= 90


@pytest.mark.parametrize("size", COUNTS)
def test_released_sizes(size):
    """Counts of the authors' table: 49, 69, 115, 277 and 387 million."""
    with torch.device("meta"):
        model = InternImageMaskRCNNForInstanceSegmentation(InternImageMaskRCNNConfig.from_size(size))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[size]


def test_how_many_boxes_the_original_trains_and_keeps():
    model = tiny_model(rpn_train_proposals=7, rpn_test_proposals=9, rpn_nms_threshold=0.6)
    assert (model.rpn.fg_bg_sampler.batch_size_per_image, model.rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (model.roi_heads.sampler.batch_size_per_image, model.roi_heads.sampler.positive_fraction) == (512, 0.25)
    assert (model.rpn._pre_nms_top_n, model.rpn.nms_thresh) == ({"training": 2000, "testing": 1000}, 0.6)
    assert model.rpn._post_nms_top_n == {"training": 7, "testing": 9}
    assert 0 < model.rpn.min_size < 1e-30  # any box with an area


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_positions_and_scores_are_not_in_half_precision(dtype):
    model, batch = tiny_model().to(dtype), scene()
    features = model.pyramid(batch["pixel_values"].to(dtype))
    images = ImageList(batch["pixel_values"], [(64, 96), (48, 80)])
    assert model.rpn.anchor_generator(images, list(features.values()))[0].dtype == torch.float32
    targets = model._targets(batch["labels"], images.image_sizes, batch["pixel_values"].to(dtype))
    assert targets[0]["boxes"].dtype == torch.float32
    proposals, losses = model.rpn(images, features, targets)
    assert {tensor.dtype for tensor in (*proposals, *losses.values())} == {torch.float32}
    heads = model.roi_heads
    assert {output.dtype for output in heads.box_heads[0](torch.zeros(2, 8, 7, 7, dtype=dtype))} == {torch.float32}
    assert heads.mask_heads[0](torch.zeros(2, 8, 14, 14, dtype=dtype)).dtype == torch.float32


def test_initial_weights():
    model = InternImageMaskRCNNForInstanceSegmentation(tiny_config(True, fpn_channels=64, box_head_size=64))
    head = model.roi_heads.box_heads[2]
    for weight, std in (
        (model.rpn.head.cls_logits.weight, 0.01),
        (model.rpn.head.conv[0][0].weight, 0.01),
        (head.classifier.weight, 0.01),
        (head.regressor.weight, 0.001),
        (model.fpn.inner_blocks[0][0].weight, math.sqrt(2 / (8 + 64))),
        (model.fpn.layer_blocks[0][0].weight, math.sqrt(2 / (9 * (64 + 64)))),
        (model.roi_heads.mask_heads[1].layers[0][0].weight, math.sqrt(2 / (9 * 64))),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.2)
    assert not any(
        part.bias.any() for part in (model.rpn.head.cls_logits, head.regressor, model.fpn.inner_blocks[0][0])
    )


@both
def test_initialisation_sets_every_tensor_also_after_meta(cascade):
    with torch.device("meta"):
        model = InternImageMaskRCNNForInstanceSegmentation(tiny_config(cascade))
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    assert not [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.running_var == 1).all()
            assert not any(tensor.any() for tensor in (module.running_mean, module.bias, module.num_batches_tracked))


def test_a_value_set_later_is_checked_too():
    config = tiny_config()
    config.box_loss = "l2"
    with pytest.raises(ValueError, match="box_loss is 'l2', expected one of l1, giou"):
        InternImageMaskRCNNForInstanceSegmentation(config)


def test_what_trainer_and_accelerate_read():
    assert InternImageMaskRCNNForInstanceSegmentation.accepts_loss_kwargs is False
    blocks = {"InternImageStem", "InternImageLayer", "InternImageDownsample"}
    assert set(InternImageMaskRCNNForInstanceSegmentation._no_split_modules) == blocks
    assert blocks <= {type(module).__name__ for module in tiny_model().modules()}


def test_training_without_objects():
    batch = scene()
    batch["labels"] = [
        {name: tensor[:0] for name, tensor in label.items() if name != "masks"} | {"masks": torch.zeros(0, 48, 80)}
        for label in batch["labels"]
    ]
    output = tiny_model().train()(**batch)
    assert all(loss.isfinite() for loss in output.loss_dict.values())
    assert output.loss_dict["loss_masks_1"] == output.loss_dict["loss_boxes_1"] == 0


def test_a_stage_learns_from_its_own_losses():
    """Boxes are handed on without their gradients."""
    model = tiny_model(True).train()
    losses = model(**scene()).loss_dict
    losses["loss_boxes_2"].backward()
    assert model.roi_heads.box_heads[1].regressor.weight.grad.any()
    assert model.roi_heads.box_heads[0].regressor.weight.grad is None
    assert model.rpn.head.bbox_pred.weight.grad is None


def test_other_sizes_are_named(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    load = InternImageMaskRCNNForInstanceSegmentation.from_pretrained
    load(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    (message,) = (r.getMessage() for r in caplog.records if r.name.startswith("hf_internimage"))
    assert "Newly initialised are roi_heads.box_heads.classifier, roi_heads.box_heads.regressor, " in message
    assert "roi_heads.mask_heads.predictor.mask_fcn_logits; train them before use" in message


@both
@torch.no_grad()
def test_bfloat16(cascade):
    model, batch = tiny_model(cascade).bfloat16(), scene()
    output = model(batch["pixel_values"].bfloat16(), batch["pixel_mask"], labels=batch["labels"])
    assert output.loss.isfinite()
    assert output.pred_boxes.dtype == torch.float32


def test_gradient_checkpointing():
    plain, batch = tiny_model(), scene()
    checkpointed = copy.deepcopy(plain)
    # transformers 5.23 renamed the method and warns about the old name
    getattr(checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable)()
    gradients = []
    for model in (plain, checkpointed):
        torch.manual_seed(0)
        model.train()(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels.pop(), "labels has 1 entries for 2 images"),
        (lambda labels: labels[1].pop("masks"), "Only 1 of 2 labels have masks"),
        (lambda labels: labels[0].update(class_labels=torch.tensor([0])), "1 class_labels, 2 boxes and 2 masks"),
        (
            lambda labels: labels[0].update(class_labels=torch.tensor([0, 3])),
            "classes 0 to 3, but the model has 0 to 2",
        ),
        (lambda labels: labels[0].update(class_labels=torch.tensor([-1, 2])), "classes -1 to 2"),
        (lambda labels: labels[0]["boxes"][1].zero_(), "a box of no width or height"),
        (lambda labels: labels[0]["boxes"][1, 2:3].zero_(), r"labels\[0\] has a box of no width or height"),
        (lambda labels: labels[0]["boxes"][0, 3:].zero_(), r"labels\[0\] has a box of no width or height"),
        (lambda labels: labels[0].update(masks=torch.zeros(2, 65, 96)), r"masks of size \(65, 96\)"),
        (
            lambda labels: labels[0].update(masks=torch.zeros(2, 64, 97)),
            r"masks of size \(64, 97\), larger than the in",
        ),
        (lambda labels: labels[0].update(masks=torch.zeros(3, 64, 96)), "2 class_labels, 2 boxes and 3 masks"),
    ],
)
def test_bad_labels_are_refused(change, message):
    batch = scene()
    change(batch["labels"])
    with pytest.raises(ValueError, match=message):
        tiny_model()(**batch)


def test_training_needs_labels():
    with pytest.raises(ValueError, match="labels is None"):
        tiny_model().train()(torch.zeros(1, 3, 64, 64))
