# SPDX-License-Identifier: MIT
"""Colours and fonts of the pictures in `reports`, and class names in any script."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ft2font import FT2Font

INK, GREY, LIGHT, BLUE, RED = "#1d2733", "#5b6770", "#e3e7eb", "#1f6fb2", "#c8102e"
LINES = (BLUE, "#d9822b", "#2e8b57", "#7a4fa3", GREY)
SHADES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#bcd7ec", BLUE, "#0b2a4a"])
_BASIC_FONT = "DejaVu Sans"  # comes with matplotlib
_BOXES = "Last Resort"  # has a box for every character


@contextlib.contextmanager
def style(names: Sequence[str] = ()) -> Iterator[list[str]]:
    """matplotlib's settings for a picture; gives class names as they can be drawn.

    Characters that the basic font lacks are taken from other installed fonts. A name with characters that no installed
    font has becomes "class 17".
    """
    families, missing = _fonts(frozenset(ord(character) for name in names for character in name if character > " "))
    drawn = [
        f"class {index}" if missing & set(map(ord, name)) else " ".join(name.split())
        for index, name in enumerate(map(str, names))
    ]
    settings: Any = {
        "savefig.bbox": "tight",
        "text.parse_math": False,  # a dollar sign in a name starts no formula
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
        yield drawn


@lru_cache
def _fonts(wanted: frozenset[int]) -> tuple[tuple[str, ...], frozenset[int]]:
    """Families that together have the most of the wanted characters, and the characters that none has."""
    families = [_BASIC_FONT]
    missing = wanted - _characters(font_manager.findfont(_BASIC_FONT))
    installed = sorted(
        font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.name)
    )
    for font in installed:
        if not missing:
            break
        if font.name in families or font.name.startswith(_BOXES):
            continue
        found = missing & _characters(font.fname)
        if found:
            families.append(font.name)
            missing -= found
    return tuple(families), frozenset(missing)


def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a damaged font
        return frozenset()


def cut(text: str, most: int) -> str:
    """The text in `most` characters: its beginning and its end, which tell long names apart."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


__all__ = ["BLUE", "GREY", "INK", "LIGHT", "LINES", "RED", "SHADES", "cut", "style"]
