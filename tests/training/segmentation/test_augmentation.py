# SPDX-License-Identifier: MIT
"""Augmentation for segmentation: images and maps stay aligned, and the result depends on the seed only."""

import colorsys
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_internimage import InternImageSegmentationImageProcessor
from hf_internimage.training.images import Augmented
from hf_internimage.training.segmentation.augmentation import (
    IGNORED_LABEL,
    SegmentationAugmentation,
    SegmentationAugmentationArguments,
    distort_colours,
)
from hf_internimage.training.segmentation.data import ProcessorTransform

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
CLASSES = 6


def augmentation(short=32, long=128, **changes):
    settings = {"crop_size": [24, 32], "color_distortion": False, **changes}
    return SegmentationAugmentation(short, long, MEAN, STD, SegmentationAugmentationArguments(**settings))


def picture(height=40, width=60, block=10):
    """Return an image of blocks whose gray is 40 times their class, and the classes."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, CLASSES, (-(-height // block), -(-width // block)))
    labels = np.kron(blocks, np.ones((block, block), int))[:height, :width]
    return Image.fromarray(np.repeat((40 * labels).astype(np.uint8)[..., None], 3, 2)), labels


def gray(example):
    """Return the first channel before normalisation."""
    return (example["pixel_values"][0] * STD[0] + MEAN[0]) * 255


def test_image_and_map_stay_aligned():
    image, labels = picture()
    augment = augmentation()
    shapes = set()
    for seed in range(40):
        example = augment(image, labels, seed)
        assert example["pixel_values"].shape == (3, 24, 32)
        assert example["pixel_values"].dtype == torch.float32
        cropped_labels = example["labels"]
        assert cropped_labels.shape == (24, 32)
        assert cropped_labels.dtype == torch.int64
        inside = cropped_labels != IGNORED_LABEL
        # Bilinear and nearest neighbour differ at the borders of the blocks only.
        same = (gray(example) - 40 * cropped_labels).abs()[inside] < 0.5
        assert same.float().mean() > 0.6
        assert (example["pixel_values"][:, ~inside] == 0).all()
        shapes.add(tuple(inside.any(1).sum().reshape(1).tolist() + inside.any(0).sum().reshape(1).tolist()))
    assert len(shapes) > 3  # small scales are padded


def test_without_change_it_is_what_the_processor_makes():
    image, labels = picture(32, 48, 7)
    processor = InternImageSegmentationImageProcessor(
        size={"shortest_edge": 24, "longest_edge": 96}, size_divisor=1, image_mean=MEAN, image_std=STD
    )
    augment = augmentation(24, 96, crop_size=[24, 36], scale_min=1, scale_max=1, flip_probability=0)
    got, expected = augment(image, labels, 0), ProcessorTransform(processor)(image, labels, [])
    assert torch.equal(got["labels"], expected["labels"])
    torch.testing.assert_close(got["pixel_values"], expected["pixel_values"], rtol=1e-5, atol=1e-6)


def test_only_the_seed_decides():
    image, labels = picture()
    augment = augmentation(color_distortion=True)
    torch.manual_seed(0)
    first = augment(image, labels, [1, 2])
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state()
    second = augment(image, labels, [1, 2])
    other = augment(image, labels, [1, 3])
    assert torch.equal(torch.get_rng_state(), before)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], other[name])


def test_epoch_and_image_are_part_of_the_seed():
    image, labels = picture()
    pair = Augmented(augmentation(), seed=3)
    made = [pair(image, labels, [5]), pair(image, labels, [6])]
    pair.epoch.fill_(1)
    made.append(pair(image, labels, [5]))
    made.append(Augmented(augmentation(), seed=4)(image, labels, [5]))
    pair.epoch.fill_(0)
    assert torch.equal(pair(image, labels, [5])["pixel_values"], made[0]["pixel_values"])
    for index, one in enumerate(made):
        assert not any(torch.equal(one["pixel_values"], other["pixel_values"]) for other in made[index + 1 :])


def test_mirrors_half_of_the_images():
    image, labels = picture(24, 32)
    augment = augmentation(24, 96, scale_min=1, scale_max=1)
    mirrored = 0
    for seed in range(100):
        result = augment(image, labels, seed)["labels"].numpy()
        assert np.array_equal(result, labels) or np.array_equal(result, labels[:, ::-1])
        mirrored += np.array_equal(result, labels[:, ::-1])
    assert 30 < mirrored < 70


def test_scales_are_spread_between_their_limits():
    image, labels = picture(48, 48, 8)
    augment = augmentation(48, 48, crop_size=[200, 200], scale_min=0.5, scale_max=2.0)
    sides = [int((augment(image, labels, seed)["labels"] != IGNORED_LABEL).any(0).sum()) for seed in range(60)]
    assert 24 <= min(sides) < 30
    assert 88 < max(sides) <= 96


def test_crops_of_one_class_are_drawn_again():
    labels = np.zeros((100, 100), int)
    labels[:, 45:55] = 1
    labels[:20] = IGNORED_LABEL
    image = Image.new("RGB", (100, 100))

    def one_sided_crops(most):
        augment = augmentation(
            100, 400, crop_size=[20, 20], scale_min=1, scale_max=1, crop_most_of_a_class=most, flip_probability=0
        )
        count = 0
        for seed in range(60):
            cropped_labels = augment(image, labels, seed)["labels"]
            shares = torch.bincount(cropped_labels[cropped_labels != IGNORED_LABEL], minlength=2).float()
            count += bool(shares.sum() == 0 or shares.max() >= 0.75 * shares.sum())
        return count

    assert one_sided_crops(1.0) > 30
    assert one_sided_crops(0.75) < 10  # ten attempts each


def test_colours_follow_the_definitions():
    """Compare with each operation written out for one pixel, in the order drawn and with the same draws."""
    values = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    changed = 0
    for seed in range(40):
        got = distort_colours(values, np.random.default_rng(seed))
        draw = np.random.default_rng(seed)
        steps = []
        if draw.random() < 0.5:
            steps.append(("brightness", draw.uniform(-32 / 255, 32 / 255)))
        contrast_first = draw.random() < 0.5
        if contrast_first and draw.random() < 0.5:
            steps.append(("contrast", draw.uniform(0.5, 1.5)))
        if draw.random() < 0.5:
            steps.append(("saturation", draw.uniform(0.5, 1.5)))
        if draw.random() < 0.5:
            steps.append(("hue", draw.uniform(-36, 36) / 360))
        if not contrast_first and draw.random() < 0.5:
            steps.append(("contrast", draw.uniform(0.5, 1.5)))
        changed += bool(steps)
        for row, column in ((0, 0), (3, 4), (1, 2)):
            pixel = values[:, row, column].double().numpy()
            for name, amount in steps:
                if name == "brightness":
                    pixel = np.clip(pixel + amount, 0, 1)
                elif name == "contrast":
                    pixel = np.clip(pixel * amount, 0, 1)
                else:
                    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
                    if name == "hue":
                        hue = (hue + amount) % 1
                    else:
                        saturation = min(1, saturation * amount)
                    pixel = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
            np.testing.assert_allclose(got[:, row, column], pixel, atol=2e-5, err_msg=str(steps))
    assert changed > 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": [0]}, r"crop_size is \[0\]"),
        ({"crop_size": [1, 2, 3]}, "crop_size is"),
        ({"scale_min": 0}, "scale_min is 0"),
        ({"scale_min": 2, "scale_max": 1}, "expected 0 < scale_min <= scale_max"),
        ({"crop_most_of_a_class": 0}, "crop_most_of_a_class is 0"),
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        SegmentationAugmentationArguments(**changes)


def test_kornia_is_needed_for_colours_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    augmentation()
    with pytest.raises(ImportError, match=r"hf-internimage\[train\], or set color_distortion to false"):
        augmentation(color_distortion=True)


@pytest.mark.parametrize(("most", "left"), [(0.75, 4), (0.76, 0), (0.74, 4)])
def test_a_crop_with_exactly_the_share_is_drawn_again(most, left):
    """The first crop drawn is 12 / 16 of one class, the second a half of each."""
    labels = np.zeros((4, 8), int)
    labels[3, :4] = labels[2:, 4:] = 1
    labels = np.ascontiguousarray(labels)
    drawn = iter([0, 0, 0, 4])
    generator = SimpleNamespace(integers=lambda bound: next(drawn))
    augment = augmentation(crop_size=[4, 4], crop_most_of_a_class=most)
    _, cropped_labels = augment.crop(np.zeros((4, 8, 3), np.uint8), labels, generator)
    assert np.array_equal(cropped_labels, labels[:, left : left + 4])


def test_ten_crops_are_drawn_at_most():
    """Of a map of one class none is good: the last one is taken."""
    bounds = []
    generator = SimpleNamespace(integers=lambda bound: bounds.append(bound) or len(bounds) % 5)
    augment = augmentation(crop_size=[4, 4], crop_most_of_a_class=0.75)
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    cropped, _ = augment.crop(pixels, np.zeros((8, 9), int), generator)
    assert bounds == [5, 6] * 10  # tops of 8 rows, lefts of 9 columns
    assert np.array_equal(cropped, pixels[4:8, :4])
