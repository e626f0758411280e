# SPDX-License-Identifier: MIT
"""Draw pictures of simple shapes, for scenes that need no data set."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

_SIDE, _ENLARGED = 32, 4  # pixels of a picture; how much larger it is drawn, for smooth edges
_MOST_TURN = 20  # degrees
_PICTURES = {"train": 40, "validation": 10}  # of each shape


def _polygon(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Return corners (x, y) on a circle of radius 1, every second one on a circle of radius `inner`."""
    angles = [2 * math.pi * index / corners - math.pi / 2 for index in range(corners)]
    radii = [1.0 if index % 2 == 0 else inner for index in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


_CORNERS: dict[str, Sequence[tuple[float, float]]] = {  # (x, y) within a circle of radius 1, y downwards
    "disc": _polygon(40),
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "triangle": _polygon(3),
    "bar": [(-0.95, -0.25), (0.95, -0.25), (0.95, 0.25), (-0.95, 0.25)],
    "star": _polygon(10, inner=0.4),
    "cross": [
        *((-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3)),
        *((0.3, 0.9), (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)),
    ],
    "arrow": [(-1, -0.25), (0.1, -0.25), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.25), (-1, 0.25)],
    "diamond": [(0, -1), (0.5, 0), (0, 1), (-0.5, 0)],
    "corner": [(-0.7, -0.7), (-0.2, -0.7), (-0.2, 0.2), (0.7, 0.2), (0.7, 0.7), (-0.7, 0.7)],
    "hourglass": [(-0.6, -0.8), (0.6, -0.8), (0.15, 0), (0.6, 0.8), (-0.6, 0.8), (-0.15, 0)],
}
NAMES = list(_CORNERS)


def draw_shape(name: str, generator: np.random.Generator) -> np.ndarray:
    """Draw a shape, a little turned, stretched and shifted: (32, 32) uint8, white on black."""
    turn = math.radians(generator.uniform(-_MOST_TURN, _MOST_TURN))
    middle = _SIDE * _ENLARGED / 2
    wide, high = middle * generator.uniform(0.7, 0.9, 2)
    left, top = middle * generator.uniform(0.9, 1.1, 2)
    corners = [
        (
            left + wide * (x * math.cos(turn) - y * math.sin(turn)),
            top + high * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in _CORNERS[name]
    ]
    picture = Image.new("L", (_SIDE * _ENLARGED, _SIDE * _ENLARGED))
    ImageDraw.Draw(picture).polygon(corners, fill=255)
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def draw_shapes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pictures of a split, train or validation: (N, 32, 32) uint8, and their classes (N,)."""
    generator = np.random.default_rng(list(_PICTURES).index(split))
    classes = np.tile(np.arange(len(NAMES)), _PICTURES[split])
    return np.stack([draw_shape(NAMES[label], generator) for label in classes]), classes


__all__ = ["NAMES", "draw_shape", "draw_shapes"]
