# SPDX-License-Identifier: MIT
"""Measure InternImage on each backend beside ConvNeXt of the same size, for benchmarks/gpu_check.py."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from .gpu import compiler, failures, free_memory, peak_mib
from .measuring import Settings, rounded, start_steps, take_turns, time_ratio, times
from .models import CHANNELS_LAST, TINY, ModelCase, make_model_step
from .steps import Budget, Row

DTYPE = "bfloat16"
BATCHES = (64, 1)
COMPILED_SIZES = ("t", "b", TINY)  # compiled first; the others if time remains
SECONDS = 2.0  # time to repeat each case
LEARNING_RATE = 1e-4
_EXPECTED_SECONDS = {"eager": 10.0, "compile": 45.0}  # for a case


def gpu_model_cases(sizes: tuple[str, ...]) -> list[tuple[ModelCase, str]]:
    """Return cases with their mode, the most important ones first."""
    cases = {}
    for mode in ("eager", "compile"):
        for size in sizes:
            side, batches = (32, (2, 1)) if size == TINY else (224, BATCHES)
            cases[mode, size] = [
                (
                    ModelCase(
                        size, f"{side}, batch {batch}{', training step' * training}", batch, side, side, training
                    ),
                    mode,
                )
                for batch in batches
                for training in (False, True)
            ]
    first = sizes[0]
    order = [("eager", first), ("compile", first)]
    order += [("eager", size) for size in sizes[1:]]
    order += [("compile", size) for size in sizes[1:] if size in COMPILED_SIZES]
    order += [("compile", size) for size in sizes[1:] if size not in COMPILED_SIZES]
    return [case for key in order for case in cases[key]]


def competitors(size: str, mode: str, backends: tuple[str, ...]) -> list[str]:
    """Return the names of the models: InternImage on each backend, and ConvNeXt.

    In eager mode, ConvNeXt is also measured in channels_last, the memory format in which convolutions are fastest.
    """
    names = [f"internimage_{size} ({backend})" for backend in backends] + [f"convnext_{size}"]
    return names + ([f"convnext_{size}{CHANNELS_LAST}"] if mode == "eager" else [])


def measure_gpu_models(
    cases: list[tuple[ModelCase, str]], backends: tuple[str, ...], device: str, budget: Budget, seconds: float
) -> Iterator[Row]:
    """Yield a row for each case: time, images per second, peak memory and ratio to ConvNeXt's time of every model."""
    is_cuda = torch.device(device).type == "cuda"
    for case, mode in cases:
        title = f"{case.size.upper()}, {mode}, {case.name}"
        if reason := budget.refusal(mode, _EXPECTED_SECONDS[mode] if is_cuda else 0.0):
            yield {"name": title, "not_run": reason}
            continue
        start = time.perf_counter()
        settings = Settings(device, DTYPE, seconds=seconds, mode=mode, compiler=compiler(device))
        yield {**measure_model_case(case, settings, backends), "name": title}
        budget.record(mode, time.perf_counter() - start)


def _make_step(case: ModelCase, name: str, settings: Settings) -> Any:
    return make_model_step(case, name, settings, LEARNING_RATE if case.training else None)


def measure_model_case(case: ModelCase, settings: Settings, backends: tuple[str, ...]) -> Row:
    """Return the row of one case."""
    names = competitors(case.size, settings.mode, backends)
    makers = {name: partial(_make_step, case, name, settings) for name in names}
    ours = tuple(name for name in makers if name.startswith("internimage"))
    # An error of one model must not lose the results of the others; ConvNeXt may be unable to run a case.
    steps, left_out = start_steps(makers, lambda name: (Exception,))
    row: Row = {**asdict(case), "mode": settings.mode, "dtype": settings.dtype, "left_out": left_out}
    row |= failures(left_out, ours)
    if not steps:
        return row
    runs = take_turns(steps, settings)
    reference = f"convnext_{case.size}"
    row |= {"runs": len(runs), "models": {}}
    for name, step in steps.items():
        timing = times(runs, name)
        row["models"][name] = {
            **timing,
            "images_per_second": rounded(case.batch / timing["milliseconds"] * 1e3),
            "peak_memory_mib": peak_mib(step, settings.device),
            **({"time_to_convnext": time_ratio(runs, name, reference)} if reference in steps else {}),
        }
    steps.clear()
    makers.clear()
    free_memory(settings.device)
    return row


def warm_up_jobs(sizes: tuple[str, ...], backends: tuple[str, ...], device: str) -> Iterator[Any]:
    """Yield calls that compile everything ahead of the measurements."""
    settings = Settings(device, DTYPE, mode="compile", compiler=compiler(device))
    for case, mode in gpu_model_cases(sizes):
        if mode == "compile" and case.size in COMPILED_SIZES:
            for name in competitors(case.size, mode, backends):
                yield lambda case=case, name=name: _make_step(case, name, settings)()
