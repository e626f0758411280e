# SPDX-License-Identifier: MIT
"""Colours, boxes and masks are drawn where they belong; texts fit."""

import numpy as np
import pytest
from PIL import Image
from support.segmentation_scenes import NAMES, scene

from hf_internimage.prediction import Classification, Detection
from hf_internimage.prediction import drawing as drawing_module
from hf_internimage.prediction.drawing import (
    blend,
    class_colours,
    draw_contact_sheet,
    draw_legend,
    draw_objects,
    drawable,
    fitting,
    tile,
)


def test_overlays_show_classes_over_the_image():
    image, mask = scene(0)
    labels = np.asarray(mask)
    blended = blend(image, labels, NAMES)
    assert blended.shape == (32, 32, 3)
    untouched = (labels == 0) | (labels == 255)
    assert (blended[untouched] == np.asarray(image)[untouched]).all()
    colours = class_colours(3)
    for label in (1, 2):
        expected = 0.4 * np.asarray(image)[labels == label] + 0.6 * colours[label]
        assert abs(blended[labels == label] - expected).max() <= 0.5


def test_a_class_keeps_its_colour_whatever_their_number():
    assert (class_colours(150)[:3] == class_colours(3)).all()
    assert len({tuple(colour) for colour in class_colours(150)}) > 140


def detection(boxes, scores, masks=None, size=(300, 400)):
    return Detection(
        None, np.array(boxes, np.float32), np.array(scores, np.float32), ["one"] * len(boxes), masks,
        np.arange(len(boxes)), size,
    )  # fmt: skip


def test_boxes_and_their_texts_are_inside_the_image():
    image = Image.new("RGB", (400, 300), "white")
    drawn = draw_objects(image, detection([[50, 60, 151, 201], [380, 2, 400, 12]], [0.9, 0.8]), 2)
    pixels, colours = np.asarray(drawn), class_colours(2)
    assert drawn.size == (400, 300)
    for point in ((60, 50), (60, 150), (200, 50), (200, 150), (100, 50), (200, 100)):
        assert (pixels[point] == colours[0]).all(), point
    assert (pixels[130, 100] == 255).all()
    assert (pixels[59, 51] == colours[0]).all()  # the text is above the box
    written = np.argwhere((pixels == colours[1]).all(axis=2))
    assert written[:, 1].min() < 380  # it does not fit above, and is moved to the left
    assert (np.asarray(image) == 255).all()


def test_masks_cover_their_objects():
    masks = np.zeros((2, 300, 400), bool)
    masks[0, 100:150, 100:150] = True
    masks[1, 140:200, 140:200] = True
    boxes = [[100, 100, 150, 150], [140, 140, 200, 200]]
    drawn = draw_objects(Image.new("RGB", (400, 300), "black"), detection(boxes, [0.9, 0.8], masks), 2)
    pixels, colours = np.asarray(drawn).astype(float), class_colours(2).astype(float)
    assert abs(pixels[120, 120] - 0.45 * colours[0]).max() <= 1
    assert abs(pixels[180, 180] - 0.45 * colours[1]).max() <= 1
    both = 0.55 * 0.45 * colours[1] + 0.45 * colours[0]  # the one with the higher score on top
    assert abs(pixels[145, 145] - both).max() <= 1


def test_small_images_are_enlarged():
    drawn = draw_objects(Image.new("RGB", (48, 40)), detection([[10, 10, 20, 20]], [0.5], size=(40, 48)), 1)
    assert drawn.size == (7 * 48, 7 * 40)
    assert (np.asarray(drawn)[139, 139] == class_colours(1)[0]).all()  # the last pixel of the last enlarged one


@pytest.mark.parametrize("count", [0, 1, 7, 60])
def test_contact_sheets_have_rows_of_six(count):
    tiles = [(tile(Image.new("RGB", (30, 20), (9, 8, 7))), f"{index}.png", CLASSES) for index in range(count)]
    sheet = draw_contact_sheet(tiles, "a title")
    one_row = draw_contact_sheet(tiles[:1], "a title").height
    assert sheet.height > (max(1, -(-count // 6)) - 1) * 200 + one_row - 1
    pixels = np.asarray(sheet)
    assert (pixels == (9, 8, 7)).all(axis=2).any() == (count > 0)


CLASSES = Classification(None, ["cat", "a very long name of a class that does not fit below a small image"], [0.7, 0.3])


def test_legends_have_the_colours_of_the_classes():
    names = ["background", *(f"class {index}" for index in range(1, 40))]
    pixels = np.asarray(draw_legend(names, [0, 3, 39]))
    colours = class_colours(40)
    assert [(pixels == colours[index]).all(axis=2).sum() > 200 for index in (3, 39, 7)] == [True, True, False]
    assert draw_legend(names, range(40)).width > draw_legend(names, range(20)).width
    assert draw_legend(names, []).width > 0


def test_names_that_a_font_does_not_have_become_numbers():
    font = drawing_module._font(13)
    assert drawable("two\n words", 3, font) == "two words"
    assert drawable("caf\N{LATIN SMALL LETTER E WITH ACUTE}", 3, font) == "café"
    assert drawable("\U0010fffe", 3, font) == "class 3"


def test_long_texts_keep_their_ends():
    font = drawing_module._font(13)
    short = fitting("the beginning of a long name and its end", font, 120)
    assert font.getlength(short) <= 120
    assert short.startswith("the beg")
    assert short.endswith("end")
    assert fitting("short", font, 120) == "short"
    assert fitting("wide", font, 1) == "…"
