# SPDX-License-Identifier: MIT
"""Measure the time and memory of steps, for operators and models alike. A step is a call without arguments."""

import ctypes
import gc
import math
import multiprocessing
import os
import statistics
import time
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], object]
MakeStep = Callable[[Any, str, "Settings"], Step]  # takes a case and the name of a competitor
Runs = list[dict[str, float]]  # one entry for each round: seconds of every competitor

LEAST_ROUNDS = 5
SHORTEST_SAMPLE = 5e-3  # seconds; shorter steps are repeated within a sample
MOST_CALLS = 1000
WARM_UPS = 2
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Settings:
    """Settings of a series of measurements.

    Attributes:
        device, dtype: names of the device and of the type of all tensors.
        threads: threads of PyTorch on the CPU.
        seconds: time to repeat each case.
        mode: "eager" or "compile"; for models only.
        compiler: backend of torch.compile.
        products: also measure the models' matrix products alone.
    """

    device: str
    dtype: str
    threads: int = 1
    seconds: float = 0.0
    mode: str = "eager"
    compiler: str = "inductor"
    products: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of PyTorch."""
        return getattr(torch, self.dtype)


def compile_separately(function: Callable[..., torch.Tensor], **options: Any) -> Callable[..., torch.Tensor]:
    """Return `function` compiled under a code object of its own.

    torch.compile stores its results by code object, and could give one competitor the graph of another that differs
    only in the operator's backend. Everything is in one graph, so that no inner code object is shared either.
    """
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    return torch.compile(copy, dynamic=False, fullgraph=True, **options)


def start_steps(
    makers: Mapping[str, Callable[[], Step]], allowed_errors: Callable[[str], tuple[type[Exception], ...]]
) -> tuple[dict[str, Step], dict[str, str]]:
    """Make every step and run it once; return the steps that run, and the reasons why the others do not.

    Only errors that `allowed_errors(name)` lists may leave a competitor out; any other ends the benchmark.
    """
    steps: dict[str, Step] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            step = make()
            step()
        except allowed_errors(name) as error:
            left_out[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
        else:
            steps[name] = step
    return steps, left_out


def take_turns(steps: dict[str, Step], settings: Settings, sample: float = 0.0) -> Runs:
    """Return the seconds per call of every step; the steps take turns (ABCABC...), and noise affects all of them.

    A sample repeats a step that is shorter than `sample` seconds, or than SHORTEST_SAMPLE.
    """
    sample = max(sample, SHORTEST_SAMPLE)
    calls = {name: _calls_per_sample(step, settings.device, sample) for name, step in steps.items()}
    runs: Runs = []
    start = time.perf_counter()
    while len(runs) < LEAST_ROUNDS or time.perf_counter() - start < settings.seconds:
        runs.append({name: _seconds(step, settings.device, calls[name]) for name, step in steps.items()})
    return runs


def _calls_per_sample(step: Step, device: str, sample: float) -> int:
    """Return the number of calls for one sample of so many seconds."""
    _seconds(step, device)
    return min(MOST_CALLS, math.ceil(sample / max(_seconds(step, device), 1e-9)))


def _seconds(step: Step, device: str, calls: int = 1) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: str) -> None:
    """Wait until the device has done all its work."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def times(runs: Runs, name: str) -> dict[str, float]:
    """Return the median milliseconds, and their spread: interquartile range over median."""
    seconds = [run[name] for run in runs]
    return {"milliseconds": rounded(statistics.median(seconds) * 1e3), "spread": spread(seconds)}


def time_ratio(runs: Runs, name: str, reference: str) -> dict[str, float]:
    """Return the median of the ratios of neighbouring runs, and their spread."""
    ratios = [run[name] / run[reference] for run in runs]
    return {"ratio": rounded(statistics.median(ratios)), "spread": spread(ratios)}


def spread(values: list[float]) -> float:
    """Return the interquartile range over the median."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return rounded((third - first) / median)


def rounded(value: float) -> float:
    """Return four significant digits of a number."""
    return float(f"{value:.4g}")


def peak_memory(make_step: MakeStep, case: Any, name: str, settings: Settings) -> int | None:
    """Return the bytes that a step needs at its peak beyond what exists before it, measured in a process of its own.

    The step's first calls, which load libraries and may compile, do not count. Returns None where the system cannot
    tell.
    """
    kind = torch.device(settings.device).type
    if kind != "cuda" and not (kind == "cpu" and os.access(_CLEAR_REFS, os.W_OK)):
        return None
    with ProcessPoolExecutor(1, mp_context=_processes()) as executor:
        return executor.submit(peak_memory_here, make_step, case, name, settings).result()


def _processes() -> BaseContext:
    """Return the way to start new processes; where the system can, they start with the imports done."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.swin.modeling_swin", "hf_internimage"])
    return context


def peak_memory_here(make_step: MakeStep, case: Any, name: str, settings: Settings) -> int:
    """Return the same as `peak_memory`, measured in this process."""
    torch.set_num_threads(settings.threads)
    step = make_step(case, name, settings)
    for _ in range(WARM_UPS):
        step()
    gc.collect()
    if torch.device(settings.device).type == "cuda":
        return cuda_peak_memory(step, settings.device)
    # Memory that earlier calls freed must go back to the system, or the step would reuse it unseen.
    return_free_memory = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if return_free_memory is not None:
        return_free_memory(0)
    _CLEAR_REFS.write_text("5")  # Linux: forget the peak so far
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def cuda_peak_memory(step: Step, device: str) -> int:
    """Return the bytes that a warm step needs on the GPU at its peak beyond what exists before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
