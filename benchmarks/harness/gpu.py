# SPDX-License-Identifier: MIT
"""Time on the GPU itself, by CUDA events, and what to compare it with: the bandwidth of a copy.

Every timed call finds the GPU's cache full of other, unmodified data (a large buffer is read just before), and its
launches already queued (the GPU waits for half a millisecond before that), as in the middle of a busy model. On other
devices, where this serves to try the scripts, a clock on the wall does.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .measuring import LEAST_ROUNDS, Runs, Step, rounded

MOST_ROUNDS = 100
HEAD_START = 1_000_000  # cycles that the GPU waits while calls are queued: about half a millisecond
_COPIES = 20


@dataclass(frozen=True)
class Timed:
    """`run(prepare())` where only `run` counts."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


class Clock:
    """Measures calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        if self.is_cuda:
            cache = torch.cuda.get_device_properties(self.device).L2_cache_size
            self._others = torch.zeros(max(4 * cache, 2**28) // 4, dtype=torch.float32, device=self.device)
            self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, timed: Timed) -> float:
        """How long one call takes."""
        state = timed.prepare()
        if not self.is_cuda:
            start = time.perf_counter()
            timed.run(state)
            return time.perf_counter() - start
        torch.cuda._sleep(HEAD_START)
        self._others.sum()
        self._start.record()
        timed.run(state)
        self._stop.record()
        torch.cuda.synchronize(self.device)
        return self._start.elapsed_time(self._stop) / 1e3

    def take_turns(self, timed: Mapping[str, Timed], seconds: float) -> Runs:
        """Seconds of every call, the calls taking turns (ABCABC...), for so long and at least `LEAST_ROUNDS` times."""
        for each in timed.values():
            self.seconds(each)
        runs: Runs = []
        start = time.perf_counter()
        while len(runs) < LEAST_ROUNDS or (len(runs) < MOST_ROUNDS and time.perf_counter() - start < seconds):
            runs.append({name: self.seconds(each) for name, each in timed.items()})
        return runs


def copy_bandwidth(clock: Clock, size: int) -> float:
    """Bytes per second, read and written, of a copy of `size` bytes on the device."""
    source = torch.ones(size // 4, dtype=torch.float32, device=clock.device)
    target = torch.empty_like(source)
    copy = Timed(lambda _: target.copy_(source))
    found = [clock.seconds(copy) for _ in range(_COPIES)]
    return 2 * source.numel() * 4 / statistics.median(found[_COPIES // 4 :])


def shortest_call(clock: Clock) -> float:
    """Seconds that this measures for a kernel with nothing to do; no result can be below."""
    one = torch.zeros(1, device=clock.device)
    add = Timed(lambda _: one.add_(1))
    return statistics.median(clock.seconds(add) for _ in range(2 * _COPIES))


def host_seconds(step: Step, device: str, calls: int) -> float:
    """Seconds of the processor's time for one call, without waiting for the device; the median of several series."""
    found = []
    for _ in range(7):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        found.append((time.perf_counter() - start) / calls)
        synchronize(device)
    return statistics.median(found)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(step: Step, device: str) -> float | None:
    """MiB that a warm step needs on the GPU beyond what exists before it; None elsewhere."""
    if torch.device(device).type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return rounded((torch.cuda.max_memory_allocated(device) - before) / 2**20)


def compiler(device: str) -> str:
    """torch.compile's backend; where there is no GPU, one that only tries the way there."""
    return "inductor" if torch.device(device).type == "cuda" else "aot_eager"


def free_memory(device: str) -> None:
    """Give back what nothing uses any more."""
    torch.compiler.reset()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
