# SPDX-License-Identifier: MIT
"""Measure how time and memory of InternImage and ConvNeXt grow with the resolution and with the batch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from .measuring import LEAST_ROUNDS, Runs, Settings, peak_memory, rounded, start_steps, take_turns, time_ratio, times
from .models import TINY, ModelCase, make_model_step

FAMILIES = ("internimage", "convnext")
SIDES = (224, 448, 896, 1344, 2048)  # pixels of square images
BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Series:
    """Inference in several cases, which are compared with the first of them."""

    size: str
    name: str
    cases: tuple[ModelCase, ...]


def scaling_series(size: str) -> list[Series]:
    """Return the series of a size: growing resolution at batch 1, and growing batch at the smallest resolution."""
    sides, batches = ((32, 64), (1, 2)) if size == TINY else (SIDES, BATCHES)
    return [
        Series(size, "resolution", tuple(_inference(size, side, 1) for side in sides)),
        Series(size, "batch", tuple(_inference(size, sides[0], batch) for batch in batches)),
    ]


def _inference(size: str, side: int, batch: int) -> ModelCase:
    return ModelCase(size, f"{side}, batch {batch}", batch, side, side, training=False)


def measure_scaling(series: list[Series], settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row for each series: speed and peak memory of both models in each case, also per pixel.

    All cases of both models take turns. `settings.seconds` is the least time for each of them: short steps are repeated
    within a round.
    """
    for scaling in series:
        torch.compiler.reset()
        makers = {
            _key(family, case): partial(make_model_step, case, f"{family}_{case.size}", settings)
            for family in FAMILIES
            for case in scaling.cases
        }
        steps, _ = start_steps(makers, lambda key: ())
        runs = take_turns(steps, settings, settings.seconds / LEAST_ROUNDS)
        steps.clear()  # to free memory for its measurement
        yield {
            "size": scaling.size,
            "name": scaling.name,
            "threads": settings.threads,
            "mode": settings.mode,
            "runs": len(runs),
            "models": {
                f"{family}_{scaling.size}": _entries(family, scaling.cases, runs, settings) for family in FAMILIES
            },
        }


def _key(family: str, case: ModelCase) -> str:
    return f"{family}, {case.name}"


def _entries(family: str, cases: tuple[ModelCase, ...], runs: Runs, settings: Settings) -> list[dict[str, Any]]:
    """Return the results of one model: an entry for each case."""
    megapixels = {_key(family, case): case.batch * case.height * case.width / 1e6 for case in cases}
    per_megapixel = [{key: run[key] / pixels for key, pixels in megapixels.items()} for run in runs]
    entries: list[dict[str, Any]] = []
    for case, (key, pixels) in zip(cases, megapixels.items(), strict=True):
        timing = times(runs, key)
        peak = peak_memory(make_model_step, case, f"{family}_{case.size}", settings)
        memory = None if peak is None else rounded(peak / 2**20 / pixels)
        first = entries[0]["memory_mib_per_megapixel"] if entries else memory
        entries.append(
            {
                **asdict(case),
                **timing,
                "images_per_second": rounded(case.batch / timing["milliseconds"] * 1e3),
                "milliseconds_per_megapixel": times(per_megapixel, key)["milliseconds"],
                "time_per_pixel_to_first": time_ratio(per_megapixel, key, _key(family, cases[0])),
                "time_to_convnext": time_ratio(runs, key, _key("convnext", case)),
                "memory_mib_per_megapixel": memory,
                "memory_per_pixel_to_first": rounded(memory / first) if memory is not None and first else None,
            }
        )
    return entries
