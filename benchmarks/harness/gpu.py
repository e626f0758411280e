# SPDX-License-Identifier: MIT
"""Measure time on the GPU by CUDA events, and the bandwidth of a copy to compare it with.

Before every timed call, the GPU's cache is filled with other data (a large buffer is read), and the call's launches are
already queued (the GPU waits for half a millisecond first), as in the middle of a busy model. Other devices, which only
serve to try the program, are timed by the clock of the system.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .measuring import LEAST_ROUNDS, Runs, Step, cuda_peak_memory, rounded, synchronize

MOST_ROUNDS = 100
HEAD_START = 1_000_000  # cycles that the GPU waits while calls are queued: about half a millisecond
_COPIES = 20


@dataclass(frozen=True)
class Timed:
    """A call to time: `run(prepare())`, in which only `run` is timed."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


class Clock:
    """Measure calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        if self.is_cuda:
            cache = torch.cuda.get_device_properties(self.device).L2_cache_size
            self._other_data = torch.zeros(max(4 * cache, 2**28) // 4, dtype=torch.float32, device=self.device)
            self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, timed: Timed) -> float:
        """Return the seconds of one call."""
        state = timed.prepare()
        if not self.is_cuda:
            start = time.perf_counter()
            timed.run(state)
            return time.perf_counter() - start
        torch.cuda._sleep(HEAD_START)
        self._other_data.sum()
        self._start.record()
        timed.run(state)
        self._stop.record()
        torch.cuda.synchronize(self.device)
        return self._start.elapsed_time(self._stop) / 1e3

    def take_turns(self, timed: Mapping[str, Timed], seconds: float) -> Runs:
        """Return the seconds of every call; the calls take turns (ABCABC...) for so many seconds.

        There are at least `LEAST_ROUNDS` and at most `MOST_ROUNDS` rounds.
        """
        for call in timed.values():
            self.seconds(call)
        runs: Runs = []
        start = time.perf_counter()
        while len(runs) < LEAST_ROUNDS or (len(runs) < MOST_ROUNDS and time.perf_counter() - start < seconds):
            runs.append({name: self.seconds(call) for name, call in timed.items()})
        return runs


def copy_bandwidth(clock: Clock, size: int) -> float:
    """Return the bytes per second, read and written, of a copy of `size` bytes on the device."""
    source = torch.ones(size // 4, dtype=torch.float32, device=clock.device)
    target = torch.empty_like(source)
    copy = Timed(lambda _: target.copy_(source))
    seconds = [clock.seconds(copy) for _ in range(_COPIES)]
    return 2 * source.numel() * 4 / statistics.median(seconds[_COPIES // 4 :])


def shortest_call(clock: Clock) -> float:
    """Return the seconds that are measured for a kernel with nothing to do: the least that a result can be."""
    one = torch.zeros(1, device=clock.device)
    add = Timed(lambda _: one.add_(1))
    return statistics.median(clock.seconds(add) for _ in range(2 * _COPIES))


def host_seconds(step: Step, device: str, calls: int) -> float:
    """Return the seconds of the processor's time for one call, without waiting for the device.

    That is the median of several series of so many calls.
    """
    seconds = []
    for _ in range(7):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        seconds.append((time.perf_counter() - start) / calls)
        synchronize(device)
    return statistics.median(seconds)


def peak_mib(step: Step, device: str) -> float | None:
    """Return the MiB that a warm step needs on the GPU beyond what exists before it; None on other devices."""
    if torch.device(device).type != "cuda":
        return None
    gc.collect()
    return rounded(cuda_peak_memory(step, device) / 2**20)


def compiler(device: str) -> str:
    """Return the backend of torch.compile: without a GPU, one that compiles nothing and only tries the way there."""
    return "inductor" if torch.device(device).type == "cuda" else "aot_eager"


def failures(left_out: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the field of a row that says which of these competitors failed, and why; empty if none did."""
    reasons = [f"{name}: {left_out[name]}" for name in names if name in left_out]
    return {"failed": "; ".join(reasons)} if reasons else {}


def free_memory(device: str) -> None:
    """Free the memory of compiled code and of tensors that are no longer used."""
    torch.compiler.reset()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
