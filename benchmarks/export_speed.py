# SPDX-License-Identifier: MIT
"""Export InternImage and ConvNeXt of one size, measure the files beside PyTorch, and print a Markdown table.

    python benchmarks/export_speed.py exports  # writes the files to exports/, or takes those that are there
    python benchmarks/export_speed.py exports --targets onnxruntime --seconds 60

Both models have random weights, and InternImage offsets of about a pixel. All take turns on one image, for each number
of threads. A ratio is the median of the ratios of neighbouring runs: time over that of ConvNeXt in the same runtime.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness.machine import processor_name
from harness.markdown import number, table
from harness.measuring import Runs, Settings, take_turns, time_ratio, times
from harness.models import CONVNEXT, FAMILIES

from hf_internimage.exporting import TARGETS, export

EAGER = "PyTorch, eager"
# Target -> what its files need at run time.
NEEDS = {
    "onnx": "onnxruntime",
    "onnxruntime": "onnxruntime, and the library in the folder",
    "openvino": "openvino",
}
_SAME_AS = {"onnxruntime": "onnx"}  # targets that write the same file for models without our operator
_TITLES = {"internimage": "InternImage", "convnext": "ConvNeXt"}


class Entry(NamedTuple):
    """A line of the table: a model in PyTorch, or in a file."""

    family: str
    target: str

    @property
    def name(self) -> str:
        """Return a name for files and measurements."""
        return f"{self.family}_{self.target}"

    @property
    def reference(self) -> "Entry":
        """Return ConvNeXt in the same runtime."""
        return Entry("convnext", _SAME_AS.get(self.target, self.target))


def entries(targets: list[str]) -> list[Entry]:
    """Return the lines of the table: InternImage in PyTorch and all targets, then what it is compared with."""
    ours = [Entry("internimage", target) for target in (EAGER, *targets)]
    return [*ours, *dict.fromkeys(entry.reference for entry in ours)]


def model(family: str, size: str) -> Any:
    """Return a model with the same random weights at each call."""
    torch.manual_seed(0)
    return FAMILIES[family](size).eval()


def report(entry: Entry, size: str, side: int, folder: Path) -> dict[str, Any]:
    """Return the report of an export, which is made if it is missing."""
    path = folder / entry.name
    if not (path / "export.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(export(model(entry.family, size), path, target=entry.target, size=side), file=sys.stderr)
    return json.loads((path / "export.json").read_text())


def start(entry: Entry, size: str, pixels: torch.Tensor, folder: Path) -> Callable[[], object]:
    """Return a call that runs the model on one image with PyTorch's number of threads."""
    if entry.target == EAGER:
        return torch.no_grad()(partial(model(entry.family, size), pixels))
    path = folder / entry.name
    module = import_module(f"hf_internimage.exporting.targets.{TARGETS[entry.target].module}")
    return partial(module.load(path / json.loads((path / "export.json").read_text())["file"]), pixels)


def measure(listed: list[Entry], size: str, side: int, folder: Path, threads: int, seconds: float) -> Runs:
    """Return the seconds of each line, in turns."""
    torch.set_num_threads(threads)
    pixels = torch.randn(1, 3, side, side)
    steps = {entry.name: start(entry, size, pixels, folder) for entry in listed}
    return take_turns(steps, Settings("cpu", "float32", threads=threads, seconds=seconds))


def line(entry: Entry, size: str, details: dict[str, Any] | None, measured: dict[int, Runs]) -> list[str]:
    """Return the cells of a line."""
    cells = [f"{_TITLES[entry.family]}-{size.upper()}", entry.target]
    if details is None:
        cells += ["any", "", "", "torch"]
    else:
        error = max(e for comparison in details["comparisons"] for e in comparison["relative_error"].values())
        needs = NEEDS.get(entry.target, entry.target)
        cells += ["any" if details["dynamic"] else "one", f"{error:.0e}", number(details["megabytes"]), needs]
    for runs in measured.values():
        ratio = time_ratio(runs, entry.name, entry.reference.name)["ratio"]
        cells += [number(times(runs, entry.name)["milliseconds"]), f"{ratio:.2f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure exported models beside PyTorch.")
    parser.add_argument("folder", type=Path, help="where the exported files are, or go to")
    known = [target for target in TARGETS if target in NEEDS]
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=known, help=f"default: {' '.join(known)}")
    parser.add_argument("--model-size", choices=CONVNEXT, default="t", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of threads (default: %(default)s)")
    options = parser.parse_args()
    listed = entries(options.targets)
    size, side, folder = options.model_size, options.size, options.folder
    details = {entry: report(entry, size, side, folder) for entry in listed if entry.target != EAGER}
    measured = {n: measure(listed, size, side, folder, n, options.seconds) for n in options.threads}
    heads = [head for n in measured for head in (f"ms, {n} thread{'s' if n > 1 else ''}", "of ConvNeXt")]
    texts = ["Model", "Target", "Sizes", "Error", "MB", "Needs"]
    rows = [line(entry, size, details.get(entry), measured) for entry in listed]
    print("\n".join(table(texts, heads, rows)))
    rounds = ", ".join(str(len(runs)) for runs in measured.values())
    print(f"\n{processor_name()}, PyTorch {torch.__version__}, {side}x{side}, batch 1; medians of {rounds} rounds.")


if __name__ == "__main__":
    main()
