# SPDX-License-Identifier: MIT
"""Draw the curves of a training."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .plot_style import LIGHT, LINES, style

_NOT_METRICS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def draw_training(log_history: Sequence[dict[str, float]], path: str | Path) -> None:
    """Draw losses, evaluation metrics and the learning rate by step.

    Args:
        log_history: `log_history` of Trainer's state.
        path: PNG file to write.
    """
    losses = {"training": _series(log_history, "loss"), "evaluation": _series(log_history, "eval_loss")}
    names = sorted({name for entry in log_history for name in entry if name.startswith("eval_")})
    names = [name for name in names if not name.endswith(_NOT_METRICS)]
    metrics = {name.removeprefix("eval_").replace("_", " "): _series(log_history, name) for name in names}
    panels = {
        "loss": {name: series for name, series in losses.items() if series},
        "metrics": {name: series for name, series in metrics.items() if series},
        "learning rate": {"": _series(log_history, "learning_rate")},
    }
    panels = {title: lines for title, lines in panels.items() if any(lines.values())}
    with style():
        figure = Figure(figsize=(8, 0.6 + 2.3 * max(1, len(panels))), dpi=120, layout="constrained")
        axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
        if not panels:
            axes[0].set_axis_off()
            axes[0].text(0, 0.5, "Nothing was logged.")
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            for colour, (name, series) in zip(LINES * len(lines), lines.items(), strict=False):
                steps, values = zip(*series, strict=True)
                marker = "o" if len(series) <= 40 else ""
                axis.plot(steps, values, color=colour, label=name, marker=marker, markersize=3, linewidth=1.4)
            axis.set_title(title, loc="left")
            axis.grid(color=LIGHT, linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            if len(lines) > 1 or title in ("loss", "metrics"):
                axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path)


def _series(log_history: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """Return (step, value) of each entry with this name; values that are not finite leave a gap in the curve."""
    return [
        (entry["step"], entry[name] if math.isfinite(entry[name]) else math.nan)
        for entry in log_history
        if "step" in entry and isinstance(entry.get(name), (int, float))
    ]


__all__ = ["draw_training"]
