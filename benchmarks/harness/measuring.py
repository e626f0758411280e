# SPDX-License-Identifier: MIT
"""How time and memory are measured, for operators and models alike. A step is a call without arguments."""

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
MakeStep = Callable[[Any, str, "Settings"], Step]  # of a case and a competitor's name
Runs = list[dict[str, float]]  # one entry for each round: the seconds of every competitor

LEAST_ROUNDS = 5
SHORTEST_SAMPLE = 5e-3  # seconds; shorter steps are repeated within a sample
MOST_CALLS = 1000
WARM_UPS = 2
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Settings:
    """What holds for a whole series of measurements."""

    device: str
    dtype: str
    threads: int = 1
    seconds: float = 0.0  # how long to repeat each case
    mode: str = "eager"  # or "compile"; models only
    compiler: str = "inductor"  # of torch.compile

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)


def compiled_by_itself(function: Callable[..., torch.Tensor], **options: Any) -> Callable[..., torch.Tensor]:
    """`function` compiled under a code object of its own.

    torch.compile keeps its results by code object, and could serve one competitor with the graph of another that
    differs only in the operator's backend. In one graph, so that no inner code object is shared either.
    """
    assert isinstance(function, types.FunctionType)
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    return torch.compile(own, dynamic=False, fullgraph=True, **options)


def start_steps(
    makers: Mapping[str, Callable[[], Step]], excused: Callable[[str], tuple[type[Exception], ...]]
) -> tuple[dict[str, Step], dict[str, str]]:
    """Make every step and run it once: those that run, and for the others why they do not.

    Only errors that `excused(name)` lists may leave a competitor out; any other ends the benchmark.
    """
    steps: dict[str, Step] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            step = make()
            step()
        except excused(name) as error:
            left_out[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
        else:
            steps[name] = step
    return steps, left_out


def take_turns(steps: dict[str, Step], settings: Settings) -> Runs:
    """Seconds per call of every step, the steps taking turns (ABCABC...), so that noise meets all of them."""
    calls = {name: _calls_in_a_sample(step, settings.device) for name, step in steps.items()}
    runs: Runs = []
    start = time.perf_counter()
    while len(runs) < LEAST_ROUNDS or time.perf_counter() - start < settings.seconds:
        runs.append({name: _seconds(step, settings.device, calls[name]) for name, step in steps.items()})
    return runs


def _calls_in_a_sample(step: Step, device: str) -> int:
    """How often to call a step for one sample that the clock can tell from noise."""
    _seconds(step, device)
    return min(MOST_CALLS, math.ceil(SHORTEST_SAMPLE / max(_seconds(step, device), 1e-9)))


def _seconds(step: Step, device: str, calls: int = 1) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def _synchronize(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def times(runs: Runs, name: str) -> dict[str, float]:
    """Median milliseconds, and their spread: interquartile range over median."""
    seconds = [run[name] for run in runs]
    return {"milliseconds": rounded(statistics.median(seconds) * 1e3), "spread": spread(seconds)}


def time_ratio(runs: Runs, name: str, reference: str) -> dict[str, float]:
    """The median of the ratios of neighbouring runs, and their spread."""
    ratios = [run[name] / run[reference] for run in runs]
    return {"ratio": rounded(statistics.median(ratios)), "spread": spread(ratios)}


def spread(values: list[float]) -> float:
    """Interquartile range over median."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return rounded((third - first) / median)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def peak_memory(make_step: MakeStep, case: Any, name: str, settings: Settings) -> int | None:
    """Bytes that a step needs at its peak beyond what exists before it, measured in a process of its own.

    The step's first calls, which load libraries and may compile, do not count. None where the system cannot tell.
    """
    kind = torch.device(settings.device).type
    if kind != "cuda" and not (kind == "cpu" and os.access(_CLEAR_REFS, os.W_OK)):
        return None
    with ProcessPoolExecutor(1, mp_context=_processes()) as executor:
        return executor.submit(_peak_memory_here, make_step, case, name, settings).result()


def _processes() -> BaseContext:
    """New processes that, where the system can, start with the imports done but nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.swin.modeling_swin", "hf_internimage"])
    return context


def _peak_memory_here(make_step: MakeStep, case: Any, name: str, settings: Settings) -> int:
    torch.set_num_threads(settings.threads)
    step = make_step(case, name, settings)
    for _ in range(WARM_UPS):
        step()
    gc.collect()
    if torch.device(settings.device).type == "cuda":
        torch.cuda.synchronize(settings.device)
        torch.cuda.reset_peak_memory_stats(settings.device)
        before = torch.cuda.memory_allocated(settings.device)
        step()
        torch.cuda.synchronize(settings.device)
        return torch.cuda.max_memory_allocated(settings.device) - before
    # What earlier calls freed must go back to the system, or the next would take it from there unseen.
    return_free_memory = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if return_free_memory is not None:
        return_free_memory(0)
    _CLEAR_REFS.write_text("5")  # Linux: forget the peak so far
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
