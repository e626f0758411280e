# SPDX-License-Identifier: MIT
"""Measure time and memory of the DCNv3 operator, of InternImage beside ConvNeXt and Swin of the same size, also for
growing images and batches, and of converted segmentation and detection models.

The operator's golden tests run first; nothing is measured if they fail. Competitors take turns in one process, so that
noise of the machine affects all of them; quote the ratios, not the milliseconds.

    python benchmarks/benchmark.py --threads 1 all --output benchmarks/results/cpu.json
    python benchmarks/benchmark.py --parts scaling --output benchmarks/results/cpu_scaling.json
    python benchmarks/benchmark.py --systems converted/* --output benchmarks/results/systems_cpu.json
    python benchmarks/benchmark.py --from benchmarks/results/cpu.json --table table.md --plot chart.png
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from harness.machine import available_cores, processor_name
from harness.measuring import Settings
from harness.models import TINY, ModelCase, internimage_config, measure_models, model_cases
from harness.operators import (
    OperatorCase,
    check_baseline,
    measure_operators,
    operator_cases,
    runnable_backends,
)
from harness.report import can_plot, plot, to_markdown
from harness.scaling import Series, measure_scaling, scaling_series
from harness.systems import measure_systems

from hf_internimage import __version__

ROOT = Path(__file__).resolve().parent.parent
OPERATOR_TESTS = ROOT / "tests" / "ops" / "test_dcnv3_golden.py"
DEFAULT_PARTS = ("operator", "models")
PARTS = (*DEFAULT_PARTS, "scaling")
SYSTEMS = "systems"
BATCHES = (1, 8)


def thread_count(text: str) -> int:
    """Read a number of threads, or "all"."""
    count = available_cores() if text == "all" else int(text)
    if count < 1:
        raise ValueError(text)
    return count


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; end the program with a message if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(DEFAULT_PARTS), help="default: operator and models"
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        default=[],
        help="measure these converted models, each in its own process, instead of operator and models",
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=["t", "s", "b"], default=["t"], help="of InternImage (default: t)"
    )
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases with one of these texts in their name")
    parser.add_argument(
        "--threads", nargs="+", type=thread_count, default=[thread_count("all")], help='numbers or "all" (default)'
    )
    parser.add_argument("--modes", nargs="+", choices=["eager", "compile"], default=["eager"], help="of the models")
    parser.add_argument(
        "--products",
        action="store_true",
        help="also measure the linear layers and dense convolutions of each model alone: the least time it could take",
    )
    parser.add_argument("--seconds", type=float, help="time to repeat each case (default: 20)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda, if there is one"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and models, to try the benchmark itself")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the result here, row by row")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="write the result as Markdown tables")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="write the result as a chart (needs matplotlib)")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE.json", help="show this result; no measuring")
    arguments = parser.parse_args(argv)
    if arguments.source and not (arguments.table or arguments.plot):
        parser.error("--from shows a former result: say where with --table or --plot.")
    if arguments.plot and not can_plot():
        parser.error("--plot needs matplotlib, which is not installed. Run: pip install matplotlib")
    if arguments.seconds is None:
        arguments.seconds = 0.0 if arguments.quick else 20.0
    if arguments.quick:
        arguments.sizes = [TINY]
    if arguments.systems:
        arguments.parts = []
    if arguments.plot and not set(DEFAULT_PARTS) & set(arguments.parts):
        parser.error("--plot draws operator and models, and neither is measured: leave it out.")
    for name in ("parts", "sizes", "threads", "modes"):
        setattr(arguments, name, list(dict.fromkeys(getattr(arguments, name))))
    return arguments


def operator_is_right() -> bool:
    """Return True if the operator passes its tests; print what to do if not.

    Raises: AssertionError if the baseline of the comparison does not equal the operator.
    """
    tests = os.path.relpath(OPERATOR_TESTS, ROOT)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-x", tests]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        print(f"The operator's golden tests fail, so nothing is measured. Run: pytest {shlex.quote(tests)}")
        return False
    check_baseline()
    return True


def device_name(device: str) -> str:
    """Return the name of the GPU or of the processor."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor_name()


def describe(arguments: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Return a result without rows: date, command, device, versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/benchmark.py", *argv]),
        "device": device_name(arguments.device),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "backends": runnable_backends(Settings(arguments.device, arguments.dtype)),
        "versions": {
            "hf_internimage": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **{part: [] for part in (*PARTS, SYSTEMS)},
    }


def choose_cases(arguments: argparse.Namespace) -> tuple[list[OperatorCase], list[ModelCase], list[Series]]:
    """Return the cases of operator, models and scaling that the command line asks for."""
    operators: list[OperatorCase] = []
    models: list[ModelCase] = []
    scaling: list[Series] = []
    for size in arguments.sizes:
        if "operator" in arguments.parts:
            operators += operator_cases(size, internimage_config(size), (1,) if arguments.quick else BATCHES)
        if "models" in arguments.parts:
            models += model_cases(size)
        if "scaling" in arguments.parts:
            scaling += scaling_series(size)
    texts = arguments.cases or [""]
    return (
        [case for case in operators if any(text in case.name for text in texts)],
        [case for case in models if any(text in case.name for text in texts)],
        [case for case in scaling if any(text in case.name for text in texts)],
    )


def measure(
    arguments: argparse.Namespace,
    operators: list[OperatorCase],
    models: list[ModelCase],
    scaling: list[Series],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every row of the result, with the name of its part."""
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        settings = Settings(arguments.device, arguments.dtype, threads, arguments.seconds)
        for row in measure_operators(operators, settings):
            yield "operator", row
        for mode in arguments.modes:
            settings = Settings(
                arguments.device, arguments.dtype, threads, arguments.seconds, mode, products=arguments.products
            )
            for row in measure_models(models, settings):
                yield "models", row
            for row in measure_scaling(scaling, settings):
                yield "scaling", row
        for row in measure_systems(arguments.systems, settings):
            yield SYSTEMS, row


def read_result(path: Path) -> dict[str, Any]:
    """Read a result that `--output` wrote; end the program with a message for any other file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or not {"date", "command", *DEFAULT_PARTS} <= result.keys():
        raise SystemExit(f"{path} is no result of this version of the benchmark; measure again with --output.")
    return result


def write(path: Path, text: str) -> None:
    """Write a text file; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 if nothing could be measured."""
    arguments = read_arguments(argv)
    if arguments.source:
        result = read_result(arguments.source)
    else:
        cases = choose_cases(arguments)
        if not any(cases) and not arguments.systems:
            print("No case has such a name, so nothing is measured.", file=sys.stderr)
            return 1
        if not operator_is_right():
            return 1
        result = describe(arguments, sys.argv[1:] if argv is None else argv)
        print(json.dumps({key: value for key, value in result.items() if key not in (*PARTS, SYSTEMS)}), flush=True)
        for part, row in measure(arguments, *cases):
            result[part].append(row)
            print(json.dumps(row), flush=True)
            if arguments.output:
                write(arguments.output, json.dumps(result, indent=2) + "\n")
    if arguments.table:
        write(arguments.table, to_markdown(result))
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(result, arguments.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
