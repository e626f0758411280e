# SPDX-License-Identifier: MIT
"""A result of benchmarks/benchmark.py as Markdown tables and as a chart."""

import importlib.util
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CHART_DPI = 150
_LEGEND = (
    "Medians; spread (in parentheses, that of the ratio) is the interquartile range over the median. Ratios are "
    "medians of the ratios of neighbouring runs. Peak memory is what a step needs beyond its model and inputs."
)


def to_markdown(result: Row) -> str:
    """The whole result as Markdown: what was run where, then one table for each series."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['device']}, {result['dtype']}; {versions}; {result['date'][:10]}:", ""]
    lines += [f"    {result['command']}", "", _LEGEND, ""]
    for label, rows in _series(result["models"]):
        lines += [f"### Models: {label}", "", *_model_table(rows), ""]
    for label, rows in _series(result["operator"]):
        lines += [f"### Operator: {label}", "", *_operator_table(rows), ""]
    if result.get("systems"):
        lines += ["### Systems", "", *_system_table(result["systems"]), ""]
    return "\n".join(lines)


def _system_table(rows: list[Row]) -> list[str]:
    lines = _header(
        ["Model", "Input"],
        ["Parameters, M", "Threads", "Seconds an image", "Peak memory, GiB", "Seconds to load"],
    )
    for row in rows:
        numbers = (row["parameters"] / 1e6, row["seconds"], row["peak_memory_mib"] / 1024, row["load_seconds"])
        millions, seconds, memory, load = map(_number, numbers)
        size = f"{row['height']}x{row['width']}"
        lines.append(_line(f"`{row['name']}`", size, millions, str(row["threads"]), seconds, memory, load))
    return lines


def _series(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Neighbouring rows of one size, mode and number of threads, under a label."""
    return [(label, list(group)) for label, group in groupby(rows, key=_series_label)]


def _series_label(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return ", ".join([f"size {row['size'].upper()}", *([row["mode"]] if "mode" in row else []), threads])


def _model_table(rows: list[Row]) -> list[str]:
    lines = _header(
        ["Case", "Model"],
        ["Images/s", "Milliseconds", "Spread", "Time (ConvNeXt = 1)", "Time (Swin = 1)", "Peak memory, MiB"],
    )
    for row in rows:
        for name, got in row["models"].items():
            speed = (_number(got["images_per_second"]), _number(got["milliseconds"]), _percent(got["spread"]))
            ratios = [_ratio(name, got, family) for family in ("convnext", "swin")]
            lines.append(_line(row["name"], f"`{name}`", *speed, *ratios, _number(got["peak_memory_mib"])))
    return lines + _left_out(rows)


def _operator_table(rows: list[Row]) -> list[str]:
    lines = _header(
        ["Case", "Input", "Implementation"],
        ["Milliseconds", "Spread", "Time (grid_sample = 1)", "Peak memory, MiB", "Peak memory (inputs = 1)"],
    )
    for row in rows:
        shape = f"{row['height']}x{row['width']}x{row['channels']}"
        for name, got in row["implementations"].items():
            cells = (_number(got["milliseconds"]), _percent(got["spread"]), _ratio(name, got, "grid_sample"))
            memory = (_number(got["peak_memory_mib"]), _number(got["memory_to_inputs"]))
            lines.append(_line(row["name"], shape, f"`{name}`", *cells, *memory))
    return lines + _left_out(rows)


def _header(texts: list[str], numbers: list[str]) -> list[str]:
    return [_line(*texts, *numbers), _line(*["---"] * len(texts), *["---:"] * len(numbers))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _left_out(rows: list[Row]) -> list[str]:
    """A sentence for each competitor that could not run a case."""
    reasons = [(row["name"], name, reason) for row in rows for name, reason in row["left_out"].items()]
    return [line for case, name, reason in reasons for line in ("", f"Left out of {case}: `{name}` ({reason}).")]


def _number(value: float | None) -> str:
    """Three significant digits, without an exponent; a dash for what was not measured."""
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _ratio(name: str, got: Row, reference: str) -> str:
    """The time in units of the reference's, with the spread of that ratio."""
    ratio = got.get(f"time_to_{reference}")
    if ratio is None:
        return _number(None)
    return "1" if name.startswith(reference) else f"{ratio['ratio']:.2f} ({_percent(ratio['spread'])})"


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # something else stands under that name
        return False


def plot(result: Row, path: Path) -> None:
    """Two panels, where there are rows for them: models relative to ConvNeXt, and the operator's speedups."""
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
    """Time of each model in units of ConvNeXt's."""

    def bars(row: Row) -> dict[str, float]:
        named = {name.replace(f"_{row['size']}", ""): got for name, got in row["models"].items()}
        return {name: got["time_to_convnext"]["ratio"] for name, got in named.items() if "time_to_convnext" in got}

    _draw_bars(axis, result["models"], bars)
    axis.set_ylabel("time (ConvNeXt = 1)")
    axis.set_title("Models of the same size; lower is faster")


def _draw_operator(axis: Any, result: Row) -> None:
    """How many times faster than the grid_sample form each implementation is."""

    def bars(row: Row) -> dict[str, float]:
        return {
            name: 1 / got["time_to_grid_sample"]["ratio"]
            for name, got in row["implementations"].items()
            if name != "grid_sample"
        }

    _draw_bars(axis, result["operator"], bars)
    axis.set_ylabel("speedup (grid_sample = 1)")
    axis.set_title("Operator; higher is faster")


def _draw_bars(axis: Any, rows: list[Row], bars: Callable[[Row], dict[str, float]]) -> None:
    """One group of bars for each row, one colour for each name; a line at 1."""
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
    axis.legend(fontsize="small")
