# SPDX-License-Identifier: MIT
"""InternImage-T beside transformers' ConvNeXt-T in one run: time and peak memory, forward and training step.

The operator's golden tests run first; nothing is measured if they fail. Both models take turns, so that a noisy
machine is noisy for both; quote the ratio, not the milliseconds.

    python scripts/benchmark.py --output benchmarks/results/cpu.json
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import ConvNextConfig, ConvNextForImageClassification

from hf_internimage import InternImageConfig, InternImageForImageClassification, __version__

ROOT = Path(__file__).resolve().parent.parent
# name: (batch, height, width, training)
CASES = {
    "224, batch 1": (1, 224, 224, False),
    "224, batch 8": (8, 224, 224, False),
    "800x1280, batch 1": (1, 800, 1280, False),
    "224, batch 2, training step": (2, 224, 224, True),
}


def internimage() -> nn.Module:
    """InternImage-T with offsets of about a pixel, as a trained model has; fresh ones would all be zero."""
    model = InternImageForImageClassification(InternImageConfig.from_size("t"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".offset.weight" in name or ".mask.weight" in name:
                parameter.normal_(0, 1 / parameter.shape[1] ** 0.5)
    return model


def convnext() -> nn.Module:
    return ConvNextForImageClassification(ConvNextConfig(num_labels=1000))  # type: ignore[call-arg]


MODELS: dict[str, Callable[[], nn.Module]] = {"internimage_t": internimage, "convnext_t": convnext}


def make_step(model: nn.Module, case: str, device: str) -> Callable[[], None]:
    """One forward pass, or one forward and backward pass, on a random batch."""
    batch, height, width, training = CASES[case]
    pixel_values = torch.randn(batch, 3, height, width, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def forward() -> None:
        with torch.inference_mode():
            model(pixel_values)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model(pixel_values, labels=labels).loss.backward()

    model.train(training)
    return train if training else forward


def seconds(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_times(case: str, device: str, budget: float) -> dict[str, Any]:
    """Median milliseconds of both models taking turns, and the median of the ratios of neighbouring runs."""
    steps = {name: make_step(build().to(device), case, device) for name, build in MODELS.items()}
    for step in steps.values():
        seconds(step, device)
    runs: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(runs) < 5 or time.perf_counter() - start < budget:
        runs.append({name: seconds(step, device) for name, step in steps.items()})
    ratios = [run["internimage_t"] / run["convnext_t"] for run in runs]
    return {
        "milliseconds": {name: round(statistics.median(run[name] for run in runs) * 1e3, 1) for name in MODELS},
        "time_ratio": round(statistics.median(ratios), 2),
        "runs": len(runs),
    }


def peak_memory(name: str, case: str, device: str) -> float:
    """MiB that the first step of a fresh process needs beyond the model and its input."""
    step = make_step(MODELS[name]().to(device), case, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = status("VmRSS")
    step()
    return (status("VmHWM") - before) / 2**10


def peak_memory_elsewhere(name: str, case: str, device: str) -> float | None:
    """`peak_memory` in a process of its own; None where the system cannot tell."""
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--device", device, "--memory-of", name, case]
    return round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=20, help="how long to repeat each case")
    parser.add_argument("--output", type=Path, help="also write the result to this JSON file")
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.memory_of:
        name, case = arguments.memory_of
        print(peak_memory(name, case, arguments.device))
        return 0

    tests = [sys.executable, "-m", "pytest", "-q", "--no-header", str(ROOT / "tests" / "test_dcnv3_golden.py")]
    if subprocess.run(tests, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        print("The operator's golden tests fail, so nothing is measured. Run: pytest tests/test_dcnv3_golden.py")
        return 1
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "versions": {
            "hf_internimage": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "cases": {},
    }
    print(json.dumps({key: value for key, value in result.items() if key != "cases"}))
    for case in CASES:
        row = compare_times(case, arguments.device, arguments.seconds)
        row["peak_memory_mib"] = {name: peak_memory_elsewhere(name, case, arguments.device) for name in MODELS}
        result["cases"][case] = row
        print(f"{case}: {json.dumps(row)}", flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
