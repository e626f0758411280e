# SPDX-License-Identifier: MIT
"""Draw predictions on images with Pillow: colours of classes, boxes and masks, label maps, contact sheets, legends."""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .results import Classification, Detection

BACKGROUND = "background"  # a class of this name is drawn as the image itself
INK, GREY, LIGHT = (29, 39, 51), (91, 103, 112), (227, 231, 235)
_GOLDEN = 0.6180339887498949
_OPACITY = 0.6
_MASK_OPACITY = 0.45
_SMALL = 320  # pixels; smaller images are enlarged before boxes are drawn
_COLUMNS, _TILE, _GAP = 6, 200, 12  # of a contact sheet
_LINES = 3  # classes below an image of a contact sheet
_SWATCH, _LEGEND_TEXT, _LEGEND_ROWS = 18, 360, 30
_FONTS = ("DejaVuSans.ttf", "Arial.ttf", "Helvetica.ttc")  # which have more scripts than Pillow's own
_UNKNOWN = "\U0010ffff"  # a character that no font has


def class_colours(count: int) -> np.ndarray:
    """Return a colour for each class, (count, 3) uint8; it depends on the index only, and neighbours differ much."""
    colours = [
        colorsys.hsv_to_rgb(index * _GOLDEN % 1, (0.85, 0.5, 0.7)[index // 8 % 3], (0.95, 0.7)[index // 4 % 2])
        for index in range(count)
    ]
    return np.round(255 * np.array(colours)).astype(np.uint8).reshape(-1, 3)


def blend(image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the image blended with the colours of its classes, (H, W, 3) uint8.

    The class "background" and pixels whose label is no class are left as they are.

    Args:
        image: RGB.
        labels: class of each pixel, (H, W).
        names: names of the classes.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    coloured = (labels >= 0) & (labels < len(names))
    if BACKGROUND in names:
        coloured &= labels != list(names).index(BACKGROUND)
    colours = class_colours(len(names))[np.where(coloured, labels, 0)]
    blended = np.where(coloured[..., None], (1 - _OPACITY) * pixels + _OPACITY * colours, pixels)
    return np.round(blended).astype(np.uint8)


def draw_objects(image: Image.Image, detection: Detection, count: int) -> Image.Image:
    """Return the image with boxes, masks, classes and scores, those of high scores on top.

    Images of less than 320 pixels are enlarged by a whole number, so that the text is not larger than the objects.

    Args:
        image: RGB.
        detection: its objects.
        count: number of the model's classes.
    """
    factor = math.ceil(_SMALL / max(image.size))
    colours = class_colours(count)
    drawn = _with_masks(image, detection, colours) if detection.masks is not None else image.convert("RGB")
    if factor > 1:
        drawn = drawn.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    line = max(2, round(max(drawn.size) / 400))
    font = _font(max(12, round(max(drawn.size) / 55)))
    pen = ImageDraw.Draw(drawn)
    order = range(len(detection.labels))[::-1]
    for index in order:
        colour = tuple(colours[detection.class_indices[index]].tolist())
        left, top, right, bottom = (factor * side for side in detection.boxes[index].tolist())
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
    for index in order:
        colour = tuple(colours[detection.class_indices[index]].tolist())
        name = drawable(detection.labels[index], int(detection.class_indices[index]), font)
        left, top = (factor * side for side in detection.boxes[index][:2].tolist())
        _draw_tag(pen, drawn.size, (left, top), f"{name} {detection.scores[index]:.2f}", colour, font)
    return drawn


def _with_masks(image: Image.Image, detection: Detection, colours: np.ndarray) -> Image.Image:
    pixels = np.asarray(image.convert("RGB"), np.float32).copy()
    masks: Any = detection.masks
    for index in range(len(masks))[::-1]:
        mask, colour = masks[index], colours[detection.class_indices[index]]
        pixels[mask] = (1 - _MASK_OPACITY) * pixels[mask] + _MASK_OPACITY * colour
        pixels[_outline(mask)] = colour
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (H, W) that have a neighbour outside of it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _draw_tag(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], corner: tuple[float, float], text: str, colour: Any, font: Any
) -> None:
    """Write a text on its colour above a corner of a box, or below it at the border, all inside the image."""
    text = fitting(text, font, size[0] - 4)
    width, height = math.ceil(font.getlength(text)) + 4, sum(font.getmetrics()) + 2
    left = min(max(0, corner[0]), max(0, size[0] - width))
    top = corner[1] - height if corner[1] >= height else min(corner[1], max(0, size[1] - height))
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((left + 2, top + 1), text, fill=INK if luminance > 140 else "white", font=font)


def tile(image: Image.Image) -> Image.Image:
    """Return a small copy of an image for a contact sheet; the pixels of very small images stay visible."""
    method = Image.Resampling.NEAREST if max(image.size) < _TILE / 2 else Image.Resampling.BICUBIC
    return ImageOps.pad(image.convert("RGB"), (_TILE, _TILE), method=method, color=LIGHT)


def draw_contact_sheet(tiles: Sequence[tuple[Image.Image, str, Classification]], title: str) -> Image.Image:
    """Return images in rows of six, with the name and the first three classes of each below it.

    Args:
        tiles: small images made by `tile`, their names, and their classes.
        title: line above the images.
    """
    font, title_font = _font(13), _font(18)
    step = sum(font.getmetrics()) + 3
    columns, rows = min(_COLUMNS, max(1, len(tiles))), max(1, math.ceil(len(tiles) / _COLUMNS))
    row_height = _TILE + (1 + _LINES) * step + 2 * _GAP
    top = sum(title_font.getmetrics()) + 2 * _GAP
    title_width = min(math.ceil(title_font.getlength(title)), _COLUMNS * (_TILE + _GAP))
    width = max(columns * (_TILE + _GAP) + _GAP, title_width + 2 * _GAP)
    sheet = Image.new("RGB", (width, top + rows * row_height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), fitting(title, title_font, width - 2 * _GAP), fill=INK, font=title_font)
    for number, (image, name, prediction) in enumerate(tiles):
        left = _GAP + number % _COLUMNS * (_TILE + _GAP)
        below = top + number // _COLUMNS * row_height
        sheet.paste(image, (left, below))
        below += _TILE + 5
        pen.text((left, below), fitting(drawable(name, number, font, "image"), font, _TILE), fill=GREY, font=font)
        for label, score in list(zip(prediction.labels, prediction.scores, strict=True))[:_LINES]:
            below += step
            text = f"{score:.1%}  {drawable(label, 0, font)}"
            first = label == prediction.labels[0]
            pen.text((left, below), fitting(text, font, _TILE), fill=INK if first else GREY, font=font)
        if not prediction.labels:
            pen.text((left, below + step), "no class", fill=GREY, font=font)
    return sheet


def draw_legend(names: Sequence[str], present: Sequence[int]) -> Image.Image:
    """Return the colours and names of classes.

    Args:
        names: names of all classes.
        present: numbers of the classes to draw, in their order.
    """
    font = _font(14)
    columns = max(1, math.ceil(len(present) / _LEGEND_ROWS))
    rows = max(1, min(len(present), _LEGEND_ROWS))
    texts = [fitting(drawable(names[index], index, font), font, _LEGEND_TEXT) for index in present]
    step, column = _SWATCH + 8, _SWATCH + 2 * _GAP + math.ceil(max(map(font.getlength, [*texts, "no class"])))
    legend = Image.new("RGB", (columns * column + _GAP, rows * step + 2 * _GAP), "white")
    pen = ImageDraw.Draw(legend)
    colours = class_colours(len(names))
    for position, (index, text) in enumerate(zip(present, texts, strict=True)):
        left = _GAP + position // _LEGEND_ROWS * column
        top = _GAP + position % _LEGEND_ROWS * step
        is_drawn = names[index] != BACKGROUND
        fill = tuple(colours[index].tolist()) if is_drawn else None
        pen.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=fill, outline=GREY)
        pen.text((left + _SWATCH + 8, top + _SWATCH // 2), text, fill=INK, font=font, anchor="lm")
    if not present:
        pen.text((_GAP, _GAP), "no class", fill=GREY, font=font)
    return legend


def drawable(name: str, number: int, font: Any, kind: str = "class") -> str:
    """Return a name in one line, or "class 17" for one with a character that the font does not have."""
    name = " ".join(name.split())
    unknown = _shape(font, _UNKNOWN)
    if any(_shape(font, character) == unknown for character in set(name) if character > "~"):
        return f"{kind} {number}"
    return name


def fitting(text: str, font: Any, width: float) -> str:
    """Shorten a text to a width in pixels; its beginning and end stay, which tell long names apart."""
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 1, -1):
        end = length // 3
        short = f"{text[: length - end].rstrip()}…{text[len(text) - end :].lstrip()}"
        if font.getlength(short) <= width:
            return short
    return "…"


@lru_cache
def _font(size: int) -> Any:
    """Return a font of a height in pixels: one of the system, or Pillow's own, which has Latin letters only."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _shape(font: Any, character: str) -> tuple[Any, bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


__all__ = [
    "BACKGROUND",
    "blend",
    "class_colours",
    "draw_contact_sheet",
    "draw_legend",
    "draw_objects",
    "drawable",
    "fitting",
    "tile",
]
