# SPDX-License-Identifier: MIT
"""Export systems on InternImage and on ConvNeXt of one size, measure the files beside PyTorch, and print a table.

    python benchmarks/export_speed.py exports  # writes the files to exports/, or takes those that are there
    python benchmarks/export_speed.py exports --targets onnxruntime --seconds 60
    python benchmarks/export_speed.py exports --systems classifier backbone upernet mask2former dino \
        --targets onnx onnxruntime openvino torchscript --minutes 14 --output benchmarks/results/exports.json
    python benchmarks/export_speed.py exports --quick  # tiny models, to try the program

All models have random weights, and InternImage offsets of about a pixel. Those of a system take turns on one image, for
each number of threads. A ratio is the median of the ratios of neighbouring runs: time over that of the system on
ConvNeXt in the same runtime. A program that stops before its end goes on with the systems that --output lacks.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness.export_systems import SYSTEMS, build
from harness.machine import processor_name
from harness.markdown import DASH, number, one_line, table
from harness.measuring import Runs, Settings, take_turns, time_ratio, times
from harness.models import CONVNEXT, TINY

from hf_internimage.exporting import TARGETS, ExportError, export

EAGER = "PyTorch, eager"
# Target -> what its files need at run time.
NEEDS = {
    EAGER: "torch",
    "onnx": "onnxruntime",
    "onnxruntime": "onnxruntime, and the library in the folder",
    "openvino": "openvino",
    "torchscript": "torch",
    "aoti": "PyTorch's C++ library, this kind of processor",
}
_DEFAULT_TARGETS = ("onnx", "onnxruntime", "openvino")
_SAME_AS = {"onnxruntime": "onnx"}  # targets that write the same file for models without our operator
_TITLES = {"internimage": "InternImage", "convnext": "ConvNeXt"}
_QUICK: dict[str, Any] = {"model_size": TINY, "size": 64, "threads": [1], "seconds": 0.0}


class Entry(NamedTuple):
    """A line of the table: a model in PyTorch, or in a file."""

    system: str
    family: str
    target: str

    @property
    def name(self) -> str:
        """Return a name for files and measurements."""
        return f"{self.system}_{self.family}_{self.target}"

    @property
    def reference(self) -> "Entry":
        """Return the system on ConvNeXt in the same runtime."""
        return Entry(self.system, "convnext", _SAME_AS.get(self.target, self.target))


def entries(system: str, targets: list[str]) -> list[Entry]:
    """Return the lines of a system: InternImage in PyTorch and all targets, then what it is compared with."""
    ours = [Entry(system, "internimage", target) for target in (EAGER, *targets)]
    return [*ours, *dict.fromkeys(entry.reference for entry in ours)]


def report(entry: Entry, size: str, side: int, folder: Path) -> dict[str, Any]:
    """Return the report of an export, which is made if it is missing."""
    path = folder / entry.name
    if not (path / "export.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = build(entry.system, entry.family, size)
        print(export(model, path, target=entry.target, size=side), file=sys.stderr)
    return json.loads((path / "export.json").read_text())


def start(entry: Entry, size: str, pixels: torch.Tensor, folder: Path) -> Callable[[], object]:
    """Return a call that runs the model on one image with PyTorch's number of threads."""
    if entry.target == EAGER:
        return torch.no_grad()(partial(build(entry.system, entry.family, size), pixel_values=pixels))
    path = folder / entry.name
    module = import_module(f"hf_internimage.exporting.targets.{TARGETS[entry.target].module}")
    return partial(module.load(path / json.loads((path / "export.json").read_text())["file"]), pixels)


def measure(listed: list[Entry], size: str, side: int, folder: Path, threads: int, seconds: float) -> Runs:
    """Return the seconds of each line, in turns."""
    torch.set_num_threads(threads)
    pixels = torch.randn(1, 3, side, side)
    steps = {entry.name: start(entry, size, pixels, folder) for entry in listed}
    return take_turns(steps, Settings("cpu", "float32", threads=threads, seconds=seconds))


def rows_of(system: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Export and measure a system; return its lines, of which those that cannot be exported have a reason."""
    size, side = options.model_size, options.size or SYSTEMS[system].side
    rows: dict[Entry, dict[str, Any]] = {}
    for entry in entries(system, options.targets):
        row: dict[str, Any] = {**entry._asdict(), "size": size, "side": side, "needs": NEEDS[entry.target], "times": {}}
        rows[entry] = row
        if entry.target == EAGER:
            row["sizes"] = "any"
            continue
        try:
            details = report(entry, size, side, options.folder)
        except ExportError as error:
            row["left_out"] = str(error)
            continue
        divisor = details["size_divisor"]
        row["sizes"] = ("any" if divisor == 1 else f"multiples of {divisor}") if details["dynamic"] else "one"
        row["error"] = max(e for comparison in details["comparisons"] for e in comparison["relative_error"].values())
        row["megabytes"] = details["megabytes"]
    listed = [entry for entry, row in rows.items() if "left_out" not in row]
    for threads in options.threads:
        runs = measure(listed, size, side, options.folder, threads, options.seconds)
        for entry in listed:
            timing: dict[str, Any] = {**times(runs, entry.name), "rounds": len(runs)}
            if entry.reference in listed:
                timing["of_convnext"] = time_ratio(runs, entry.name, entry.reference.name)["ratio"]
            rows[entry]["times"][str(threads)] = timing
    return list(rows.values())


def line(row: dict[str, Any], threads: list[int]) -> list[str]:
    """Return the cells of a line."""
    head = SYSTEMS[row["system"]].title
    error, megabytes = row.get("error"), row.get("megabytes")
    cells = [
        f"{_TITLES[row['family']]}-{row['size'].upper()}{', ' if head else ''}{head}",
        row["target"],
        row.get("sizes", DASH),
        "" if error is None else f"{error:.0e}",
        "" if megabytes is None else number(megabytes),
        row["needs"],
    ]
    for count in threads:
        timing = row["times"].get(str(count), {})
        ratio = timing.get("of_convnext")
        cells += [number(timing.get("milliseconds")), DASH if ratio is None else f"{ratio:.2f}"]
    return cells


def to_markdown(rows: list[dict[str, Any]], threads: list[int]) -> str:
    """Return the table, what is left out of it and why, and what it was measured on."""
    heads = [head for n in threads for head in (f"ms, {n} thread{'s' if n > 1 else ''}", "of ConvNeXt")]
    lines = table(["Model", "Target", "Sizes", "Error", "MB", "Needs"], heads, (line(row, threads) for row in rows))
    for row in rows:
        if "left_out" in row:
            name = f"{_TITLES[row['family']]}, {row['system']}"
            lines += ["", f"Not exported: {name}, to {row['target']} ({one_line(row['left_out'])})."]
    sides = ", ".join(dict.fromkeys(f"{row['side']}x{row['side']}" for row in rows))
    rounds = sorted({timing["rounds"] for row in rows for timing in row["times"].values()})
    counts = "-".join(str(count) for count in dict.fromkeys((rounds[0], rounds[-1])))
    return "\n".join(
        [*lines, "", f"{processor_name()}, PyTorch {torch.__version__}, {sides}, batch 1; medians of {counts} rounds."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure exported models beside PyTorch.")
    parser.add_argument("folder", type=Path, help="where the exported files are, or go to")
    known = [target for target in TARGETS if target in NEEDS]
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["classifier"], help="default: classifier")
    default = " ".join(_DEFAULT_TARGETS)
    parser.add_argument("--targets", nargs="+", choices=known, default=_DEFAULT_TARGETS, help=f"default: {default}")
    parser.add_argument("--model-size", choices=CONVNEXT, default="t", help="default: %(default)s")
    parser.add_argument("--size", type=int, help="side of the image in pixels (default: 224; 256 for heads)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of threads (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no system after so many")
    parser.add_argument("--output", type=Path, help="JSON file of all lines, written after each system")
    parser.add_argument("--quick", action="store_true", help="tiny models, one thread; the times mean nothing")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(_QUICK)
    rows: list[dict[str, Any]] = []
    if options.output is not None and options.output.exists():
        rows = json.loads(options.output.read_text())["rows"]
    end = time.monotonic() + 60 * options.minutes
    for system in options.systems:
        if any(row["system"] == system for row in rows):
            continue
        if time.monotonic() > end:
            print(f"{system} was not begun: run the program again.", file=sys.stderr)
            continue
        rows += rows_of(system, options)
        if options.output is not None:
            about = {"processor": processor_name(), "torch": torch.__version__, "rows": rows}
            options.output.write_text(json.dumps(about, indent=2) + "\n")
    if rows:
        print(to_markdown(rows, options.threads))


if __name__ == "__main__":
    main()
