# SPDX-License-Identifier: MIT
"""Show a result of benchmarks/benchmark.py as Markdown tables and as a chart."""

import importlib.util
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from .markdown import left_out_sentences, number, percent, table

Row = dict[str, Any]
CHART_DPI = 150
_LEGEND = (
    "Medians; spread (in parentheses, that of the ratio) is the interquartile range over the median. Ratios are "
    "medians of the ratios of neighbouring runs. Peak memory is what a step needs beyond its model and inputs."
)


def to_markdown(result: Row) -> str:
    """Return the whole result as Markdown: the machine and the command, then one table for each series."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['device']}, {result['dtype']}; {versions}; {result['date'][:10]}:", ""]
    lines += [f"    {result['command']}", "", _LEGEND, ""]
    for label, rows in _series(result["models"]):
        lines += [f"### Models: {label}", "", *_model_table(rows), ""]
    for label, rows in _series(result["operator"]):
        lines += [f"### Operator: {label}", "", *_operator_table(rows), ""]
    for row in result.get("scaling", []):
        lines += [f"### Scaling with the {row['name']}: {_series_label(row)}", "", *_scaling_table(row), ""]
    if result.get("systems"):
        lines += ["### Systems", "", *_system_table(result["systems"]), ""]
    return "\n".join(lines)


def _system_table(rows: list[Row]) -> list[str]:
    cells = []
    for row in rows:
        numbers = (row["parameters"] / 1e6, row["seconds"], row["peak_memory_mib"] / 1024, row["load_seconds"])
        millions, seconds, memory, load = map(number, numbers)
        size = f"{row['height']}x{row['width']}"
        cells.append((f"`{row['name']}`", size, millions, str(row["threads"]), seconds, memory, load))
    heads = ["Parameters, M", "Threads", "Seconds an image", "Peak memory, GiB", "Seconds to load"]
    return table(["Model", "Input"], heads, cells)


def _series(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Group neighbouring rows of one size, mode and number of threads, under a label."""
    return [(label, list(group)) for label, group in groupby(rows, key=_series_label)]


def _series_label(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return ", ".join([f"size {row['size'].upper()}", *([row["mode"]] if "mode" in row else []), threads])


def _model_table(rows: list[Row]) -> list[str]:
    cells = []
    for row in rows:
        for name, result in row["models"].items():
            speed = (number(result["images_per_second"]), number(result["milliseconds"]), percent(result["spread"]))
            ratios = [_ratio(name, result, family) for family in ("convnext", "swin")]
            cells.append((row["name"], f"`{name}`", *speed, *ratios, number(result["peak_memory_mib"])))
    heads = ["Images/s", "Milliseconds", "Spread", "Time (ConvNeXt = 1)", "Time (Swin = 1)", "Peak memory, MiB"]
    return table(["Case", "Model"], heads, cells) + left_out_sentences(rows)


def _scaling_table(row: Row) -> list[str]:
    cells = []
    for name, entries in row["models"].items():
        for entry in entries:
            speed = (number(entry["images_per_second"]), number(entry["milliseconds_per_megapixel"]))
            ratios = (_with_spread(entry["time_per_pixel_to_first"]), _ratio(name, entry, "convnext"))
            memory = (number(entry["memory_mib_per_megapixel"]), number(entry["memory_per_pixel_to_first"]))
            cells.append((entry["name"], f"`{name}`", *speed, *ratios, *memory))
    heads = ["Images/s", "Milliseconds a megapixel", "Time a pixel (first = 1)", "Time (ConvNeXt = 1)"]
    heads += ["Peak memory, MiB a megapixel", "Peak memory a pixel (first = 1)"]
    return table(["Case", "Model"], heads, cells)


def _operator_table(rows: list[Row]) -> list[str]:
    cells = []
    for row in rows:
        shape = f"{row['height']}x{row['width']}x{row['channels']}"
        for name, result in row["implementations"].items():
            speed = (number(result["milliseconds"]), percent(result["spread"]), _ratio(name, result, "grid_sample"))
            memory = (number(result["peak_memory_mib"]), number(result["memory_to_inputs"]))
            cells.append((row["name"], shape, f"`{name}`", *speed, *memory))
    heads = ["Milliseconds", "Spread", "Time (grid_sample = 1)", "Peak memory, MiB", "Peak memory (inputs = 1)"]
    return table(["Case", "Input", "Implementation"], heads, cells) + left_out_sentences(rows)


def _ratio(name: str, result: Row, reference: str) -> str:
    """Return the ratio to the reference's time, with the spread of that ratio."""
    ratio = result.get(f"time_to_{reference}")
    if ratio is None:
        return number(None)
    is_reference = name.startswith(reference) and not name.endswith(")")
    return "1" if is_reference else _with_spread(ratio)


def _with_spread(ratio: Row) -> str:
    return f"{ratio['ratio']:.2f} ({percent(ratio['spread'])})"


def can_plot() -> bool:
    """Return True if matplotlib is installed."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # another object has that name in sys.modules
        return False


def plot(result: Row, path: Path) -> None:
    """Draw a panel of the models' times relative to ConvNeXt and a panel of the operator's speedups, if measured."""
    from matplotlib.figure import Figure

    panels = [draw for part, draw in (("models", _draw_models), ("operator", _draw_operator)) if result[part]]
    longest = max(len(result["models"]), len(result["operator"]))
    figure = Figure(figsize=(max(8.0, 1.2 * longest + 1), 4.5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)
    for draw, axis in zip(panels, axes[:, 0], strict=True):
        draw(axis, result)
    figure.suptitle(f"{result['device']}, {result['dtype']}", fontsize="medium")
    figure.savefig(path, dpi=CHART_DPI)


def _draw_models(axis: Any, result: Row) -> None:
    """Draw the ratio of each model's time to ConvNeXt's."""

    def bars(row: Row) -> dict[str, float]:
        return {
            name.replace(f"_{row['size']}", ""): result["time_to_convnext"]["ratio"]
            for name, result in row["models"].items()
            if "time_to_convnext" in result
        }

    _draw_bars(axis, result["models"], bars)
    axis.set_ylabel("time (ConvNeXt = 1)")
    axis.set_title("Models of the same size; lower is faster")


def _draw_operator(axis: Any, result: Row) -> None:
    """Draw the speedup of each implementation over the one with grid_sample."""

    def bars(row: Row) -> dict[str, float]:
        return {
            name: 1 / result["time_to_grid_sample"]["ratio"]
            for name, result in row["implementations"].items()
            if name != "grid_sample"
        }

    _draw_bars(axis, result["operator"], bars)
    axis.set_ylabel("speedup (grid_sample = 1)")
    axis.set_title("Operator; higher is faster")


def _draw_bars(axis: Any, rows: list[Row], bars: Callable[[Row], dict[str, float]]) -> None:
    """Draw one group of bars for each row, in one colour for each name, and a line at 1."""
    groups = [bars(row) for row in rows]
    names = list(dict.fromkeys(name for group in groups for name in group))
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        places = [place for place, group in enumerate(groups) if name in group]
        centres = [place + (index - (len(names) - 1) / 2) * width for place in places]
        drawn = axis.bar(centres, [groups[place][name] for place in places], width, label=name)
        axis.bar_label(drawn, fmt="%.2f", fontsize="x-small")
    several = len(_series(rows)) > 1
    labels = [f"{row['name']}, {_series_label(row)}" if several else row["name"] for row in rows]
    axis.set_xticks(
        range(len(rows)), [label.replace(", ", "\n").replace(" and ", "\nand ") for label in labels], fontsize="small"
    )
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_ylim(top=axis.get_ylim()[1] * 1.12)  # room for the legend above the bars
    axis.legend(fontsize="small", ncols=max(1, len(names)), loc="upper center")
