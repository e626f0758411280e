# SPDX-License-Identifier: MIT
"""Style of all pictures: colours, fonts for class names in any script, panels of images."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

INK, GREY, LIGHT, BLUE, RED = "#1d2733", "#5b6770", "#e3e7eb", "#1f6fb2", "#c8102e"
LINES = (BLUE, "#d9822b", "#2e8b57", "#7a4fa3", GREY)
SHADES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#bcd7ec", BLUE, "#0b2a4a"])
_BASIC_FONT = "DejaVu Sans"  # comes with matplotlib
_PLACEHOLDER_FONT = "Last Resort"  # draws a box for every character


@contextlib.contextmanager
def style(names: Sequence[str] = ()) -> Iterator[list[str]]:
    """Set matplotlib's settings for one picture within this context; yields class names that can be drawn.

    Characters missing from the basic font are taken from other installed fonts. A name with a character that is in no
    installed font becomes "class 17".
    """
    families, missing = _fonts(frozenset(ord(character) for name in names for character in name if character > " "))
    drawable_names = [
        f"class {index}" if missing & set(map(ord, name)) else " ".join(name.split())
        for index, name in enumerate(map(str, names))
    ]
    settings: Any = {
        "savefig.bbox": "tight",
        "text.parse_math": False,  # a dollar sign in a name does not start a formula
        "font.family": list(families),
        "font.size": 9,
        "axes.titlesize": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": GREY,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield drawable_names


@lru_cache
def _fonts(needed: frozenset[int]) -> tuple[tuple[str, ...], frozenset[int]]:
    """Return font families for the needed characters, and the characters that are in no installed font."""
    families = [_BASIC_FONT]
    missing = needed - _characters(font_manager.findfont(_BASIC_FONT))
    installed = sorted(
        font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.name)
    )
    for font in installed:
        if not missing:
            break
        if font.name in families or font.name.startswith(_PLACEHOLDER_FONT):
            continue
        added = missing & _characters(font.fname)
        if added:
            families.append(font.name)
            missing -= added
    return tuple(families), frozenset(missing)


def _characters(path: str) -> frozenset[int]:
    """Return the code points of the characters in a font file."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a damaged font
        return frozenset()


def cut(text: str, most: int) -> str:
    """Shorten a text to at most `most` characters; its beginning and end stay, which tell long names apart."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


def image_panels(
    image_size: tuple[int, int], titles: Sequence[str], *, panel_inches: float, dpi: int, legend_inches: float = 0.0
) -> tuple[Figure, list[Any]]:
    """Return a figure with one row of panels for images of the same size; call this within `style`.

    Args:
        image_size: width and height in pixels, as Pillow gives them.
        titles: one for each panel.
        panel_inches: width of a panel.
        dpi: pixels an inch.
        legend_inches: height that stays free below the panels.

    Returns: the figure, and one axes without ticks and frame for each panel.
    """
    width, height = image_size
    figure_height = panel_inches * height / width + 0.4 + legend_inches  # 0.4 for the titles
    figure = Figure(figsize=(len(titles) * panel_inches, figure_height), dpi=dpi, layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_axis_off()
        axis.set_title(title, loc="left")
    return figure, axes


def rows_to_draw(rows: int, count: int) -> list[int]:
    """Return at most `count` of the row numbers 0 to rows - 1, spread evenly and in rising order."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(int)).tolist()


__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "LIGHT",
    "LINES",
    "RED",
    "SHADES",
    "cut",
    "image_panels",
    "rows_to_draw",
    "style",
]
