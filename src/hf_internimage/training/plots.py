# SPDX-License-Identifier: MIT
"""Draw the curves of a training, and the classes of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..hub.card_blocks import percent
from .metric_words import metric_name, shares
from .plot_style import GREY, LIGHT, LINES, cut, style

Series = list[tuple[float, float]]
_DRAWN_CLASSES = 40
_MARKED_POINTS = 40
_LEAST_ROWS = 3  # so that one bar does not fill its panel
_METRICS = "metrics of the validation"


def draw_training(log_history: Sequence[dict[str, float]], path: str | Path) -> None:
    """Draw the losses of training and validation, the metrics of the validation, and the learning rate, by step.

    What was logged only once is drawn as bars.

    Args:
        log_history: `log_history` of Trainer's state.
        path: PNG file to write.
    """
    names = sorted({name for entry in log_history for name in shares(entry) if name.startswith("eval_")})
    panels = {
        "loss": {"training": _series(log_history, "loss"), "validation": _series(log_history, "eval_loss")},
        _METRICS: {metric_name(name.removeprefix("eval_")): _series(log_history, name) for name in names},
        "learning rate": {"": _series(log_history, "learning_rate")},
    }
    panels = {title: {name: line for name, line in lines.items() if line} for title, lines in panels.items()}
    panels = {title: lines for title, lines in panels.items() if lines}
    is_single = {title: all(len(line) == 1 for line in lines.values()) for title, lines in panels.items()}
    if is_single.get("learning rate") and len(panels) > 1:
        del panels["learning rate"]
    last_step = max((step for lines in panels.values() for line in lines.values() for step, _ in line), default=0)
    with style():
        figure = Figure(figsize=(8, 0.6 + 2.3 * max(1, len(panels))), dpi=120, layout="constrained")
        axes = figure.subplots(max(1, len(panels)), 1, squeeze=False)[:, 0]
        if not panels:
            axes[0].set_axis_off()
            axes[0].text(0, 0.5, "Nothing was logged.")
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            axis.set_title(title, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
            if is_single[title]:
                _draw_bars(axis, {name: line[0][1] for name, line in lines.items()}, are_shares=title == _METRICS)
            else:
                _draw_lines(axis, lines, last_step, are_shares=title == _METRICS)
        figure.savefig(path)


def _draw_lines(axis: Any, lines: Mapping[str, Series], last_step: float, *, are_shares: bool) -> None:
    """Draw curves by step, with a legend if they have names."""
    for colour, (name, series) in zip(LINES * len(lines), lines.items(), strict=False):
        steps, values = zip(*series, strict=True)
        marker = "o" if len(series) <= _MARKED_POINTS else ""
        axis.plot(steps, values, color=colour, label=name, marker=marker, markersize=3, linewidth=1.4)
    axis.grid(color=LIGHT, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_xlim(0, 1.02 * last_step)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("step")
    if are_shares:
        low, high = axis.get_ylim()
        margin = 0.03 * (high - low)
        axis.set_ylim(max(low, -margin), min(high, 1 + margin))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if any(lines):
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_bars(axis: Any, values: Mapping[str, float], *, are_shares: bool) -> None:
    """Draw values as bars with their numbers; shares from 0 to 100 %."""
    bars = axis.barh(range(len(values)), list(values.values()), color=LINES[: len(values)], height=0.6)
    texts = [percent(value) if are_shares else f"{value:.4g}" for value in values.values()]
    axis.bar_label(bars, texts, padding=4, color=GREY)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(max(_LEAST_ROWS, len(values)) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    if are_shares:
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    else:
        axis.margins(x=0.1)


def draw_classes(names: Sequence[str], measures: Mapping[str, Sequence[float | None]], path: str | Path) -> None:
    """Draw what was measured for each class as bars, lowest first; of more than 40 classes the 40 lowest.

    Args:
        names: names of the classes.
        measures: name of a measure -> its value for each class, from 0 to 1, or None; the first gives the order.
        path: PNG file to write.
    """
    first = next(iter(measures.values()))
    order = sorted(
        (index for index, value in enumerate(first) if value is not None), key=lambda index: first[index] or 0.0
    )
    drawn = order[:_DRAWN_CLASSES]
    part = f"the {len(drawn)} lowest of {len(order)} classes" if len(order) > len(drawn) else "each class"
    title = f"{' and '.join(measures)} of {part}"
    with style(names) as labels:
        figure = Figure(
            figsize=(8, 0.9 + (0.12 + 0.16 * len(measures)) * max(1, len(drawn))), dpi=120, layout="constrained"
        )
        axis = figure.subplots()
        axis.set_title(title, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        height = 0.8 / len(measures)
        for row, (colour, (measure, values)) in enumerate(zip(LINES * len(measures), measures.items(), strict=False)):
            places = np.arange(len(drawn)) + (row - (len(measures) - 1) / 2) * height
            lengths = [values[index] for index in drawn]
            bars = axis.barh(places, [length or 0.0 for length in lengths], color=colour, height=height, label=measure)
            texts = ["never predicted" if length is None else percent(length) for length in lengths]
            axis.bar_label(bars, texts, padding=4, color=GREY, fontsize=7.5)
        axis.set_yticks(range(len(drawn)), [cut(labels[index], 28) for index in drawn])
        axis.set_ylim(max(1, len(drawn)) - 0.4, -0.6)
        axis.set_xlim(0, 1)
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        if len(measures) > 1:
            axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(measures), frameon=False)
        figure.savefig(path)


def _series(log_history: Sequence[dict[str, float]], name: str) -> Series:
    """Return (step, value) of each entry with this name; values that are not finite leave a gap in the curve."""
    return [
        (entry["step"], entry[name] if math.isfinite(entry[name]) else math.nan)
        for entry in log_history
        if "step" in entry and isinstance(entry.get(name), (int, float))
    ]


__all__ = ["draw_classes", "draw_training"]
