# SPDX-License-Identifier: MIT
"""Augmentation for detection: boxes stay on their objects, sizes are the recipe's, and a seed gives the same."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import RTDetrImageProcessorPil

from hf_internimage import InternImageDetectionImageProcessor
from hf_internimage.training.detection.augmentation import (
    DetectionAugmentation,
    DetectionAugmentationArguments,
    Geometry,
    crop,
    mirror,
    resize,
)
from hf_internimage.training.detection.data import usable
from hf_internimage.training.images import Augmented


def objects(boxes, classes=None, crowds=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return {
        "boxes": boxes,
        "classes": np.arange(len(boxes)) if classes is None else np.array(classes),
        "areas": boxes[:, 2] * boxes[:, 3],
        "crowds": np.zeros(len(boxes), bool) if crowds is None else np.array(crowds),
    }


def keeping_ratio(short=128, long=213):
    return InternImageDetectionImageProcessor(size={"shortest_edge": short, "longest_edge": long})


def of_fixed_sides(height=96, width=128):
    return RTDetrImageProcessorPil(size={"height": height, "width": width}, do_normalize=False)


def picture(width, height, boxes):
    """Black, with a box of pure red, green or blue for each of up to three boxes (left, top, width, height)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (left, top, across, down) in enumerate(boxes):
        pixels[top : top + down, left : left + across, channel] = 255
    return Image.fromarray(pixels)


def brightness(pixels, processor):
    """(3, H, W) from 0 to 1."""
    if not processor.do_normalize:
        return pixels
    mean, std = (torch.tensor(list(values))[:, None, None] for values in (processor.image_mean, processor.image_std))
    return pixels * std + mean


# ---- Each change, on known pixels ----

BOX = np.array([[2.0, 1, 5, 3]])  # left, top, right, bottom


def numbered(height=4, width=7):
    """Pixels (3, height, width) that are all different: 100 * channel + 10 * row + column."""
    channel, row, column = torch.meshgrid(torch.arange(3), torch.arange(height), torch.arange(width), indexing="ij")
    return (100 * channel + 10 * row + column).float()


def inside(pixels, corners):
    """The pixels within a box with corners at whole numbers."""
    left, top, right, bottom = map(int, corners[0])
    assert (corners == [[left, top, right, bottom]]).all()
    return pixels[:, top:bottom, left:right]


def test_mirror_exchanges_left_and_right():
    pixels, corners = mirror(numbered(), BOX)
    assert pixels[0, 2].tolist() == [26, 25, 24, 23, 22, 21, 20]
    assert corners.tolist() == [[2, 1, 5, 3]]  # its left edge is as far from the border as its right edge
    pixels, corners = mirror(numbered(), np.array([[0.0, 1, 2, 4], [5.25, 0, 7, 4]]))
    assert corners.tolist() == [[5, 1, 7, 4], [0, 0, 1.75, 4]]
    assert inside(pixels, corners[:1])[1].tolist() == [[111, 110], [121, 120], [131, 130]]


def test_crop_moves_and_clips_boxes():
    pixels, corners = crop(numbered(), BOX, (1, 2, 3, 4))
    assert pixels[0].tolist() == [[12, 13, 14, 15], [22, 23, 24, 25], [32, 33, 34, 35]]
    assert corners.tolist() == [[0, 0, 3, 2]]
    assert torch.equal(inside(pixels, corners), inside(numbered(), BOX))
    _, corners = crop(numbered(), np.array([[0.0, 0, 7, 4], [3.5, 0, 7, 2.5], [0, 0, 2, 1]]), (1, 2, 2, 4))
    assert corners.tolist() == [[0, 0, 4, 2], [1.5, 0, 4, 1.5], [0, 0, 0, 0]]


@pytest.mark.parametrize("factors", [(2, 3), (3, 1), (1, 4)], ids=str)
def test_resize_of_boxes_is_that_of_pixels(factors):
    """Of a white box on black, the rows and columns that are more than half white are those of the resized box."""
    white = torch.zeros(3, 4, 7)
    white[:, 1:3, 2:5] = 1
    size = (4 * factors[0], 7 * factors[1])
    pixels, corners = resize(white, BOX, size)
    assert pixels.shape == (3, *size)
    assert corners.tolist() == [[2 * factors[1], factors[0], 5 * factors[1], 3 * factors[0]]]
    expected = torch.zeros(3, *size, dtype=torch.bool)
    inside(expected, corners).fill_(True)
    for axis in (1, 2):
        assert torch.equal((pixels > 0.5).any(axis), expected.any(axis))


def test_resize_takes_half_pixel_centres_and_does_not_blur():
    ramp = torch.arange(8.0).expand(3, 2, 8)
    assert resize(ramp, BOX, (2, 4))[0][0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    assert resize(ramp, BOX, (2, 16))[0][0, 0].tolist()[:4] == [0, 0.25, 0.75, 1.25]
    impulse = torch.zeros(3, 1, 9)
    impulse[..., 4] = 1
    assert resize(impulse, BOX, (1, 3))[0][0, 0].tolist() == [0, 1, 0]


def test_changes_come_in_the_order_of_the_recipe():
    """The image is mirrored, then resized, then cropped, then resized: here by whole factors only."""
    geometry = Geometry(mirrored=True, size_before_crop=(4, 7), crop_box=(1, 0, 2, 6), size=(2, 6))
    pixels, corners = geometry.apply(numbered(), np.array([[1.0, 1, 4, 3]]))
    assert pixels[0].tolist() == [[16, 15, 14, 13, 12, 11], [26, 25, 24, 23, 22, 21]]
    assert corners.tolist() == [[3, 0, 6, 2]]
    assert inside(pixels, corners)[0].tolist() == [[13, 12, 11], [23, 22, 21]]
    doubled = Geometry(mirrored=False, size_before_crop=(8, 14), crop_box=(2, 4, 6, 10), size=(12, 30))
    pixels, corners = doubled.apply(numbered(), BOX)
    assert pixels.shape == (3, 12, 30)
    assert corners.tolist() == [[0, 0, 18, 8]]


def test_crops_are_everywhere():
    """The crop's place is drawn from all that fit, down and across apart."""
    augment = DetectionAugmentation(keeping_ratio(10, 20), DetectionAugmentationArguments(crop_probability=1.0))
    places = set()
    for seed in range(400):
        geometry = augment.draw_geometry(12, 24, np.random.default_rng(seed), True)
        (height, width), (top, left, kept_height, kept_width) = geometry.size_before_crop, geometry.crop_box
        assert 0 <= top <= height - kept_height
        assert 0 <= left <= width - kept_width
        places.add((height - kept_height, top, width - kept_width, left))
    assert {top for slack, top, _, _ in places if slack == 2} == {0, 1, 2}
    assert {left for _, _, slack, left in places if slack == 5} == set(range(6))
    assert max(left for *_, left in places) > 9


# ---- Boxes and pixels ----


@pytest.mark.parametrize("processor", [keeping_ratio(), of_fixed_sides()], ids=["keep ratio", "fixed"])
@pytest.mark.parametrize("crop", [0.0, 1.0], ids=["whole", "cropped"])
def test_boxes_stay_on_their_objects(processor, crop):
    boxes = [(9, 20, 40, 31), (70, 5, 55, 60), (30, 70, 17, 24)]
    image, target = picture(160, 100, boxes), objects(boxes)
    augment = DetectionAugmentation(processor, DetectionAugmentationArguments(crop_probability=crop))
    compared = 0
    for seed in range(50):
        example = augment(image, target, [seed])
        lit = brightness(example["pixel_values"], processor) > 0.5
        height, width = lit.shape[1:]
        for label, (x, y, w, h) in zip(*example["labels"].values(), strict=True):
            rows, columns = lit[label].any(1).nonzero(), lit[label].any(0).nonzero()
            if not len(rows):  # less than half a pixel is left at the border
                assert min(w * width, h * height) < 2
                continue
            seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            box = torch.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
            torch.testing.assert_close(
                seen.float(), box, atol=1.25 if crop else 0.75, rtol=0
            )  # half a pixel and a resize's blur; two of them with a crop
            compared += 1
    assert compared > 100


def test_a_box_on_everything_stays_so():
    """There is no shift by a part of a pixel, which a resize by 2 or 3 would show first."""
    target = objects([(0, 0, 100, 60), (0, 0, 50, 60), (25, 30, 75, 30)])
    for short in (60, 120, 180, 97):
        arguments = DetectionAugmentationArguments(crop_probability=0, resize_min=1, resize_count=1)
        for flip in (0.0, 1.0):
            arguments.flip_probability = flip
            example = DetectionAugmentation(keeping_ratio(short, 1000), arguments)(picture(100, 60, []), target, [3])
            half = 0.75 if flip else 0.25
            expected = [[0.5, 0.5, 1, 1], [half, 0.5, 0.5, 1], [0.375 if flip else 0.625, 0.75, 0.75, 0.5]]
            torch.testing.assert_close(example["labels"]["boxes"], torch.tensor(expected), atol=1e-5, rtol=0)


def test_pixels_without_augmentation_are_the_processors():
    arguments = DetectionAugmentationArguments(flip_probability=0, crop_probability=0, resize_min=1, resize_count=1)
    image = Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 90).convert("RGB")
    for processor in (keeping_ratio(64, 200), keeping_ratio(140, 150)):
        ours = DetectionAugmentation(processor, arguments)(image, objects([(0, 0, 9, 9)]), [0])["pixel_values"]
        theirs = processor(image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1.5 / 255 / 0.22, rtol=0)  # OpenCV's fixed point


# ---- What is kept ----


def test_crops_keep_an_object():
    augment = DetectionAugmentation(keeping_ratio(), DetectionAugmentationArguments(crop_probability=1.0))
    image, target = picture(300, 200, []), objects([(280, 180, 20, 20)])
    assert all(len(augment(image, target, [seed])["labels"]["boxes"]) for seed in range(15))


def test_the_last_attempt_keeps_the_whole_image(monkeypatch):
    """Crops that lose the only object are drawn ten times at most, the last time without a crop."""
    allowed = []

    def draw(self, height, width, generator, allow_crop):
        allowed.append(allow_crop)
        crop = ((height, width), (0, 0, 8, 8)) if allow_crop else (None, None)
        return Geometry(False, *crop, (height, width))

    monkeypatch.setattr(DetectionAugmentation, "draw_geometry", draw)
    augment = DetectionAugmentation(keeping_ratio(), DetectionAugmentationArguments())
    image = picture(60, 40, [])
    assert len(augment(image, objects([(50, 30, 6, 6)]), [0])["labels"]["boxes"]) == 1
    assert allowed == [True] * 9 + [False]
    # The first crop stays if it keeps an object, and if there is none to keep.
    for boxes in ([(0, 0, 6, 6), (50, 30, 6, 6)], []):
        allowed.clear()
        assert len(augment(image, objects(boxes), [0])["labels"]["boxes"]) == len(boxes[:1])
        assert allowed == [True]


def test_what_is_not_trained_on():
    target = objects(
        [(5, 5, 20, 20), (0, 0, 60, 60), (30, 30, 0, 9), (30, 30, 0.4, 9), (70, 10, 20, 20), (50, 50, 40, 40)],
        crowds=[False, True, False, False, False, False],
    )
    augment = DetectionAugmentation(keeping_ratio(), DetectionAugmentationArguments(crop_probability=0.0))
    labels = augment(picture(64, 64, []), target, [1])["labels"]
    assert labels["class_labels"].tolist() == [0, 5]
    left, right = (labels["boxes"][1, 0] + sign * labels["boxes"][1, 2] / 2 for sign in (-1, 1))
    assert min(abs(right - 1), abs(left)) < 1e-6  # clipped at the border, mirrored or not
    assert labels["boxes"][1, 2] == pytest.approx(14 / 64, abs=1e-6)


def test_images_without_objects():
    augment = DetectionAugmentation(keeping_ratio(), DetectionAugmentationArguments())
    for seed in range(6):
        example = augment(picture(50, 40, []), objects([]), [seed])
        assert example["pixel_values"].dtype == torch.float32
        assert example["labels"]["boxes"].shape == (0, 4)
        assert example["labels"]["class_labels"].shape == (0,)
        assert example["labels"]["class_labels"].dtype == torch.int64


# ---- Sizes ----


def sides(arguments, processor, image, count=80):
    """Sizes (height, width) that images of this one's size get."""
    augment = DetectionAugmentation(processor, arguments)
    generators = (np.random.default_rng(seed) for seed in range(count))
    return {augment.draw_geometry(image.height, image.width, generator, False).size for generator in generators}


def test_sizes_are_the_recipes():
    recipe = DetectionAugmentationArguments()
    sizes = sides(recipe, keeping_ratio(800, 1333), picture(64, 64, []))
    assert sizes == {(side, side) for side in range(480, 801, 32)}
    sizes = sides(recipe, keeping_ratio(100, 150), picture(200, 100, []))
    assert sizes == {(side, 2 * side) for side in range(60, 75, 4)} | {(75, 150)}
    any_size = DetectionAugmentationArguments(resize_min=0.6, resize_max=1.8, resize_count=0)
    sizes = sides(any_size, keeping_ratio(50, 1000), picture(40, 40, []))
    assert {side for side, _ in sizes} <= set(range(30, 91))
    assert len(sizes) > 30
    assert sides(recipe, of_fixed_sides(), picture(40, 70, []), 10) == {(96, 128)}


@pytest.mark.parametrize(
    ("limits", "drawn"), [((1.0, 1.0), range(20, 21)), ((0.9, 1.1), range(18, 23))], ids=["one size", "several"]
)
@pytest.mark.parametrize("count", [0, 5])
def test_the_smallest_and_the_largest_size_are_drawn(count, limits, drawn):
    recipe = DetectionAugmentationArguments(resize_min=limits[0], resize_max=limits[1], resize_count=count)
    assert sides(recipe, keeping_ratio(20, 1000), picture(40, 40, [])) == {(side, side) for side in drawn}


@pytest.mark.parametrize("processor", [keeping_ratio(64, 80), of_fixed_sides()], ids=["keep ratio", "fixed"])
def test_pixels_are_of_the_size_drawn(processor):
    """The sides are within the processor's after a crop of any shape, too."""
    augment = DetectionAugmentation(processor, DetectionAugmentationArguments(crop_probability=1.0))
    image, target = picture(100, 40, []), objects([(10, 10, 80, 20)])
    for seed in range(12):
        height, width = augment(image, target, [seed])["pixel_values"].shape[1:]
        if processor.size.get("height"):
            assert (height, width) == (96, 128)
        else:
            assert min(height, width) <= 64
            assert max(height, width) <= 80


def test_crops_are_the_recipes():
    """At 800 the short side is 400, 500 or 600 before the crop, and 384 to 600 pixels stay in both directions."""
    augment = DetectionAugmentation(keeping_ratio(800, 1333), DetectionAugmentationArguments(crop_probability=1))
    resizes, crops = set(), []
    for seed in range(300):
        geometry = augment.draw_geometry(100, 150, np.random.default_rng(seed), True)
        resizes.add(geometry.size_before_crop)
        crops.append(geometry.crop_box[2:])
    assert resizes == {(400, 600), (500, 750), (600, 900)}
    heights, widths = zip(*crops, strict=True)
    assert 384 <= min(heights) < 390
    assert 590 < max(heights) <= 600
    assert 384 <= min(widths) < 390
    assert 590 < max(widths) <= 600


def test_the_smallest_and_the_largest_crop_are_drawn():
    """At 20 the short side is 10, 12 or 15 before the crop, and 10 to 15 pixels stay in both directions."""
    augment = DetectionAugmentation(keeping_ratio(20, 1000), DetectionAugmentationArguments(crop_probability=1))
    drawn = set()
    for seed in range(400):
        geometry = augment.draw_geometry(40, 80, np.random.default_rng(seed), True)
        drawn.add((geometry.size_before_crop, *geometry.crop_box[2:]))
    kept = range(10, 16)
    assert {down for _, down, _ in drawn} == {across for *_, across in drawn} == set(kept)
    assert {down for size, down, _ in drawn if size == (12, 24)} == {10, 11, 12}


# ---- Chance ----


def test_a_seed_gives_the_same_and_epochs_differ():
    image = Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 90).convert("RGB")
    target = objects([(10, 10, 30, 30), (50, 20, 30, 40)])
    prepare = Augmented(DetectionAugmentation(keeping_ratio(), DetectionAugmentationArguments()), seed=7)
    before = torch.get_rng_state()
    results = []
    for epoch in (0, 1, 2, 3, 0):
        prepare.epoch.fill_(epoch)
        results.append(prepare(image, target, [123]))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(results[0]["pixel_values"], results[4]["pixel_values"])
    assert torch.equal(results[0]["labels"]["boxes"], results[4]["labels"]["boxes"])
    assert len({(tuple(result["pixel_values"].shape), result["pixel_values"].sum().item()) for result in results}) >= 3
    prepare.epoch.fill_(0)
    torch.manual_seed(5)  # of no influence
    assert torch.equal(prepare(image, target, [123])["pixel_values"], results[0]["pixel_values"])
    other = prepare(image, target, [124])["pixel_values"]
    assert other.shape != results[0]["pixel_values"].shape or not torch.equal(other, results[0]["pixel_values"])


def test_half_are_mirrored_and_half_are_cropped():
    augment = DetectionAugmentation(keeping_ratio(), DetectionAugmentationArguments())
    drawn = [augment.draw_geometry(100, 100, np.random.default_rng(seed), True) for seed in range(400)]
    assert 160 < sum(geometry.mirrored for geometry in drawn) < 240
    assert 160 < sum(geometry.crop_box is not None for geometry in drawn) < 240
    whole = [augment.draw_geometry(100, 100, np.random.default_rng(seed), False) for seed in range(20)]
    assert not any(geometry.crop_box or geometry.size_before_crop for geometry in whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ({"crop_probability": -1}, "crop_probability is -1"),
        ({"resize_min": 0}, "resize_min is 0 and"),
        ({"resize_min": 2}, "resize_min is 2 and resize_max 1.0"),
        ({"resize_count": -3}, "resize_count is -3"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionAugmentationArguments(**arguments)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((7, 5, 1, 1), True),
        ((7, 5, 1, 9), True),
        ((7, 5, 0.9, 9), False),
        ((7, 5, 9, 0.9), False),
        ((39, 23, 9, 9), True),  # one pixel is in the image
        ((39.1, 23, 9, 9), False),
    ],
)
def test_boxes_of_one_pixel_are_trained_on(box, kept):
    """Less than a pixel is left out, of the annotations and after the augmentation."""
    target = objects([box])
    corners, rows = usable(target, 40, 24)
    assert len(corners) == len(rows) == kept
    settings = DetectionAugmentationArguments(
        flip_probability=0, crop_probability=0, resize_min=1, resize_max=1, resize_count=0
    )
    augment = DetectionAugmentation(of_fixed_sides(24, 40), settings)
    example = augment(Image.new("RGB", (40, 24)), target, [0])
    assert len(example["labels"]["boxes"]) == kept


@pytest.mark.parametrize(("scale", "kept"), [(1, True), (0.5, False), (2, True)])
def test_a_pixel_may_be_lost_by_resizing(scale, kept):
    settings = DetectionAugmentationArguments(flip_probability=0, crop_probability=0)
    augment = DetectionAugmentation(of_fixed_sides(int(24 * scale), int(40 * scale)), settings)
    example = augment(Image.new("RGB", (40, 24)), objects([(7, 5, 1, 1)]), [0])
    assert len(example["labels"]["boxes"]) == kept


def test_a_long_image_keeps_its_short_side_before_the_crop():
    """The long side is limited to ten times that of evaluation there, so that a strip does not grow without end."""
    arguments = DetectionAugmentationArguments(crop_probability=1.0)
    augmentation = DetectionAugmentation(InternImageDetectionImageProcessor(), arguments)
    sizes = set()
    for seed in range(20):
        generator = np.random.default_rng(seed)
        sizes.add(augmentation.draw_geometry(100, 1000, generator, allow_crop=True).size_before_crop)
        strip = augmentation.draw_geometry(2, 1000, generator, allow_crop=True).size_before_crop
        assert max(strip) <= 13_330
    assert sizes == {(400, 4000), (500, 5000), (600, 6000)}
