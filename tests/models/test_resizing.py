# SPDX-License-Identifier: MIT
"""Sizes and resizes: the original's numbers and OpenCV's pixels."""

import math
import zlib

import numpy as np
import pytest
from support.golden_data import fill
from support.golden_heads import document, wanted

from hf_internimage.models.resizing import keep_ratio_size, multiple_size, opencv_bilinear, opencv_nearest

DOCUMENT = document("preprocess_seg")
# (old size, new size, CRC-32 of OpenCV 5.0's INTER_LINEAR, of its INTER_NEAREST) of fill.picture("opencv", *old size)
OPENCV = [
    ((37, 53), (64, 96), "206cd66d", "b316e6a0"),
    ((37, 53), (20, 31), "221081d2", "ba8a9f46"),
    ((80, 60), (40, 30), "606c14f7", "d5ceb48a"),
    ((5, 3), (64, 41), "8da0abef", "787f81c8"),
    ((97, 1), (13, 7), "ea554474", "fd055778"),
    ((61, 90), (61, 33), "dfcef4e6", "4820e04e"),
]


@pytest.mark.parametrize("case", DOCUMENT["sizes"], ids=lambda case: f"{case['setting']}-{case['input']}")
def test_sizes_are_the_originals(case):
    setting = DOCUMENT["settings"][case["setting"]]
    kept = keep_ratio_size(*case["input"], short=min(setting["img_scale"]), long=max(setting["img_scale"]))
    assert list(kept) == case["resized"]
    assert list(multiple_size(*kept, divisor=setting["size_divisor"] or 1)) == case["final"]


@pytest.mark.parametrize(
    ("old", "edges", "new"),
    [
        ((320, 333), (800, 1333), (800, 833)),  # 832.5
        ((333, 320), (800, 1333), (833, 800)),
        ((4, 6), (3, 100), (3, 5)),  # 4.5
        ((6, 4), (3, 100), (5, 3)),
        ((8, 20), (100, 5), (2, 5)),
        ((4, 10), (100, 5), (2, 5)),
        ((3, 10), (100, 5), (2, 5)),  # 1.5
        ((1, 10), (100, 5), (1, 5)),  # 0.5
    ],
)
def test_halves_are_rounded_up(old, edges, new):
    assert keep_ratio_size(*old, *edges) == new


def test_a_thin_image_keeps_a_pixel():
    assert keep_ratio_size(1, 10_000, short=64, long=256) == (1, 256)


@pytest.mark.parametrize("name", DOCUMENT["pictures"])
def test_bilinear_gives_the_originals_pixels(name):
    case = DOCUMENT["pictures"][name]
    picture = fill().picture(case["fill_key"], *case["input"])
    resized = opencv_bilinear(picture, case["resized"])
    np.testing.assert_array_equal(resized, wanted("preprocess_seg")[f"{name}/resized"].numpy())
    final = opencv_bilinear(resized, case["final"])
    np.testing.assert_array_equal(final, wanted("preprocess_seg")[f"{name}/final"].numpy())


@pytest.mark.parametrize(("old", "new", "bilinear", "nearest"), OPENCV)
def test_pixels_are_opencvs(old, new, bilinear, nearest):
    picture = fill().picture("opencv", *old)
    assert f"{zlib.crc32(opencv_bilinear(picture, new).tobytes()):08x}" == bilinear
    assert f"{zlib.crc32(opencv_nearest(picture, new).tobytes()):08x}" == nearest


def bilinear_by_the_pixel(image, height, width):
    """The fixed-point rule for one channel, as written down, one output pixel after the other."""

    def place(index, old, new):
        position = np.float32((index + 0.5) * (1 / (new / old)) - 0.5)
        before = math.floor(position)
        return before, np.float32(position - np.float32(before))

    def weights(fraction):
        return round(float((np.float32(1) - fraction) * 2048)), round(float(fraction * 2048))  # halves to even

    def horizontal(row, column):
        left, fraction = place(column, len(row), width)
        if left < 0:
            left, fraction = 0, np.float32(0)
        if left >= len(row) - 1:
            left, fraction = len(row) - 1, np.float32(0)
        near, far = weights(fraction)
        return near * int(row[left]) + far * int(row[min(left + 1, len(row) - 1)])

    result = np.zeros((height, width), np.uint8)
    for y in range(height):
        upper, fraction = place(y, len(image), height)
        near, far = weights(fraction)
        rows = [image[min(max(row, 0), len(image) - 1)] for row in (upper, upper + 1)]
        for x in range(width):
            above, below = (horizontal(row, x) >> 4 for row in rows)
            result[y, x] = (((near * above) >> 16) + ((far * below) >> 16) + 2) >> 2
    return result


@pytest.mark.parametrize("old", [(1, 1), (2, 7), (13, 9), (31, 40)], ids=str)
@pytest.mark.parametrize("new", [(1, 1), (5, 64), (17, 3), (62, 20)], ids=str)
def test_bilinear_of_odd_sizes(old, new):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 2), dtype=np.uint8)
    got = opencv_bilinear(pixels, new)
    assert (got.shape, got.dtype) == ((*new, 2), np.uint8)
    for channel in range(2):
        np.testing.assert_array_equal(got[..., channel], bilinear_by_the_pixel(pixels[..., channel], *new))
    np.testing.assert_array_equal(opencv_bilinear(pixels[..., 0], new), got[..., 0])


def test_extreme_values_stay_in_range():
    white = np.full((7, 11, 3), 255, np.uint8)
    assert (opencv_bilinear(white, (23, 5)) == 255).all()
    assert (opencv_bilinear(0 * white, (23, 5)) == 0).all()


@pytest.mark.parametrize("resize", [opencv_bilinear, opencv_nearest])
def test_the_same_size_is_a_copy(resize):
    pixels = fill().picture("same", 9, 6)
    got = resize(pixels, (9, 6))
    np.testing.assert_array_equal(got, pixels)
    assert not np.shares_memory(got, pixels)


def test_nearest_keeps_labels_as_they_are():
    labels = np.array([[0, 70_000, 3], [-1, 5, 255]], np.int32)
    got = opencv_nearest(labels, (4, 5))
    assert got.dtype == np.int32
    expected = [[labels[math.floor(y * 2 / 4), math.floor(x * 3 / 5)] for x in range(5)] for y in range(4)]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("resize", [opencv_bilinear, opencv_nearest])
@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [((4,), (2, 2), r"\(H, W\)"), ((0, 3, 3), (2, 2), "not empty"), ((4, 4, 3), (0, 2), "at least 1 each, got")],
)
def test_impossible_resizes_are_refused(resize, shape, size, message):
    with pytest.raises(ValueError, match=message):
        resize(np.zeros(shape, np.uint8), size)


def test_bilinear_is_for_8_bit_pixels():
    with pytest.raises(ValueError, match="uint8 pixels, got float32"):
        opencv_bilinear(np.zeros((4, 4, 3), np.float32), (2, 2))
