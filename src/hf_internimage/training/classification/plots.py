# SPDX-License-Identifier: MIT
"""Draw what a classifier confuses, and its worst mistakes."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ..plot_style import BLUE, GREY, INK, LIGHT, RED, SHADES, cut, style

_DRAWN_CLASSES, _NUMBERED_CLASSES, _PAIRS = 40, 20, 25
_COLUMNS = 6
_TILE_PIXELS = 256
_FILE_SIZE = 7.5  # of the font


def draw_confusions(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draw the confusions of classes: a matrix for up to 40 classes, the most frequent pairs for more.

    Args:
        truth, predicted: class index of each image, (N,).
        names: names of the classes.
        path: PNG file to write.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    title = f"{int((truth == predicted).sum()):,} of {len(truth):,} images are classified right"
    with style(names) as labels:
        draw = _draw_matrix if len(names) <= _DRAWN_CLASSES else _draw_pairs
        draw(truth, predicted, labels, title).savefig(path)


def _draw_matrix(truth: np.ndarray, predicted: np.ndarray, labels: list[str], title: str) -> Figure:
    classes = len(labels)
    counts = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = [cut(label, 28) for label in labels]
    side = max(3.0, (0.55 if classes <= _NUMBERED_CLASSES else 0.26) * classes)
    margin = 0.6 + 0.085 * max(len(label) for label in labels)
    figure = Figure(figsize=(max(6.5, side + margin + 1.2), side + margin + 0.9), dpi=120, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    axis.set_xticks(range(classes), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axis.set_yticks(range(classes), labels)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=LIGHT, linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title, loc="left")
    if classes <= _NUMBERED_CLASSES:
        size = 9 if counts.max() < 1000 else 7
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else INK
            count = _short_number(int(counts[row, column]))
            axis.text(column, row, count, ha="center", va="center", color=colour, fontsize=size)
    bar = figure.colorbar(image, ax=axis, shrink=min(1.0, 4 / side), aspect=24, format=lambda share, _: f"{share:.0%}")
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


def _draw_pairs(truth: np.ndarray, predicted: np.ndarray, labels: list[str], title: str) -> Figure:
    wrong = truth != predicted
    pairs, counts = np.unique(np.stack([truth[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_PAIRS]
    totals = np.bincount(truth, minlength=len(labels))
    figure = Figure(figsize=(9, 0.8 + 0.27 * max(1, len(order))), dpi=120, layout="constrained")
    axis = figure.subplots()
    if not len(order):
        axis.set_axis_off()
        axis.text(0, 0.5, title)
        return figure
    figure.suptitle(
        f"{title}; the most frequent mistakes, with their share of the true class:", x=0, ha="left", size=10
    )
    axis.barh(range(len(order)), counts[order], color=BLUE, height=0.62)
    names = [f"{cut(labels[true], 30)}  →  {cut(labels[other], 30)}" for true, other in pairs[order]]
    axis.set_yticks(range(len(order)), names)
    axis.set_ylim(len(order) - 0.4, -0.6)
    axis.tick_params(length=0)
    axis.xaxis.set_visible(False)
    axis.spines[:].set_visible(False)
    axis.set_xlim(0, counts.max() * 1.3)
    for row, index in enumerate(order):
        text = f"  {counts[index]:,}  ({counts[index] / totals[pairs[index][0]]:.0%})"
        axis.text(counts[index], row, text, va="center", color=GREY)
    return figure


def worst_mistakes(truth: np.ndarray, classes: np.ndarray, scores: np.ndarray, count: int = 24) -> list[int]:
    """Return the rows of the wrongly classified images with the highest scores, highest first.

    Shapes: truth (N,); classes (N, k) and scores (N, k), best first, as `metrics.keep_best` returns them.
    """
    wrong = np.flatnonzero(np.asarray(classes)[:, 0] != np.asarray(truth))
    order = np.argsort(-np.asarray(scores)[wrong, 0], kind="stable")
    return wrong[order][:count].tolist()


def draw_mistakes(
    images: Sequence[Image.Image],
    files: Sequence[str],
    truth: Sequence[int],
    predicted: Sequence[int],
    scores: Sequence[float],
    names: Sequence[str],
    path: str | Path,
    title: str,
) -> None:
    """Draw images, and below each the predicted class with its score, the true class, and the name of the file.

    Args:
        images: RGB, of any sizes.
        files: name of each image.
        truth, predicted: class index of each image.
        scores: scores of the predicted classes, 0 to 1.
        names: names of all classes.
        path: PNG file to write.
        title: line above the images.
    """
    columns = min(len(images), _COLUMNS)
    rows = math.ceil(len(images) / _COLUMNS)
    with style([*names, *files]) as drawable:
        labels = drawable[: len(names)]
        files = [
            shown if shown == " ".join(file.split()) else f"image {index + 1}"  # no font has its characters
            for index, (shown, file) in enumerate(zip(drawable[len(names) :], files, strict=True))
        ]
        figure = Figure(figsize=(2.0 * columns + 0.4, 2.9 * rows + 0.6), dpi=110, layout="constrained")
        figure.suptitle(title, x=0.028 / max(columns, 1), ha="left", color=INK, fontsize=13)
        axes: Any = figure.subplots(rows, columns, squeeze=False).ravel() if rows else []
        for axis in axes:
            axis.set_axis_off()
        for axis, image, file, right, wrong, score in zip(axes, images, files, truth, predicted, scores, strict=False):
            tile = (_TILE_PIXELS, _TILE_PIXELS)
            small = min(image.size) < _TILE_PIXELS / 4  # its single pixels stay visible
            resampling = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
            axis.imshow(ImageOps.pad(image.convert("RGB"), tile, method=resampling, color=LIGHT))
            lines = [(line, RED) for line in _wrapped(f"{score:.0%}  {labels[wrong]}")]
            lines += [(line, GREY) for line in _wrapped(f"is {labels[right]}")]
            lines.append((cut(file, 28), GREY))
            for row, (line, colour) in enumerate(lines):
                size = _FILE_SIZE if row == len(lines) - 1 else None
                axis.text(0, -0.04 - 0.1 * row, line, transform=axis.transAxes, va="top", color=colour, fontsize=size)
        figure.savefig(path)


def _wrapped(text: str) -> list[str]:
    """Break a text into at most two lines that fit below a tile."""
    return textwrap.wrap(text if len(text) <= 44 else cut(text, 44), 24, max_lines=2, placeholder="…")


def _short_number(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


__all__ = ["draw_confusions", "draw_mistakes", "worst_mistakes"]
