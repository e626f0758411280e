# SPDX-License-Identifier: MIT
"""The operator part of benchmarks/gpu_check.py: forward and backward apart, at the shapes of T, B and L, on the GPU."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from .gpu import Clock, Timed, compiler, copy_bandwidth, free_memory, host_seconds, peak_mib, shortest_call
from .measuring import Settings, compiled_by_itself, rounded, start_steps, time_ratio, times
from .models import TINY, internimage_config
from .operators import YARDSTICK, Operator, dcnv3_by_backend, dcnv3_by_grid_sample, operator_cases, random_inputs
from .steps import Budget, Row

BATCHES = {"t": 64, "b": 64, "l": 16, TINY: 2}
COMPILED, MAX_AUTOTUNE = ", compiled", ", max-autotune"
SECONDS = 0.4  # of taking turns, for each case
_GUESSES = {"plain": 4.0, "compiled": 25.0}  # seconds for a case


@dataclass(frozen=True)
class GpuOperatorCase:
    """One direction of a call: 3x3 taps, stride 1, padding 1, with softmax. `offsets` are "normal" or "zero"."""

    size: str
    stage: int
    batch: int
    height: int
    width: int
    channels: int
    groups: int
    dtype: str
    offsets: str
    backward: bool

    @property
    def name(self) -> str:
        """What the row is called."""
        offsets = "" if self.offsets == "normal" else f", {self.offsets} offsets"
        direction = "backward" if self.backward else "forward"
        return f"{self.size.upper()} stage {self.stage}, batch {self.batch}, {self.dtype}{offsets}, {direction}"

    def least_bytes(self) -> int:
        """What must be moved: forward, value, offset and mask in and the output out; backward, those three and the
        output's gradient in, and three gradients out."""
        pixels = self.batch * self.height * self.width
        maps, samples = (3, 2) if self.backward else (2, 1)
        itemsize = torch.empty((), dtype=getattr(torch, self.dtype)).itemsize
        return pixels * itemsize * (maps * self.channels + samples * self.groups * 27)


def gpu_operator_cases(sizes: tuple[str, ...]) -> list[GpuOperatorCase]:
    """All cases, the most telling ones first."""
    found = []
    for size in sizes:
        for shape in operator_cases(size, internimage_config(size), (BATCHES[size],)):
            kinds = [("bfloat16", "normal"), ("float32", "normal")]
            if size in ("t", TINY):
                kinds += [("bfloat16", "zero"), *([("float16", "normal")] if shape.stage == 1 else [])]
            for dtype, offsets in kinds:
                fields = {key: part for key, part in asdict(shape).items() if key != "backward"}
                found.append(GpuOperatorCase(**fields, dtype=dtype, offsets=offsets, backward=shape.backward))
    order = [(True, "bfloat16", "normal"), (False, "bfloat16", "normal")]

    def importance(case: GpuOperatorCase) -> tuple[int, int, int]:
        first_size = case.size == sizes[0]
        kind = (first_size, case.dtype, case.offsets)
        return order.index(kind) if kind in order else 2 + (not first_size), case.stage, sizes.index(case.size)

    return sorted(found, key=importance)


def implementations(case: GpuOperatorCase, backends: tuple[str, ...], device: str) -> list[str]:
    """Who takes part: ours in all cases; compiled forms of the PyTorch ones, which take long to make, in few."""
    if case.offsets == "zero":
        return list(backends)
    names = [*backends, "torch", YARDSTICK]
    first_kind = case.dtype == "bfloat16"
    if (case.size in ("t", TINY) and first_kind) or (case.stage == 1 and case.dtype != "float16"):
        names.append("torch" + COMPILED)
    if case.stage == 1 and first_kind:
        names.append(YARDSTICK + COMPILED)
        if case.size == "t" and torch.device(device).type == "cuda":
            names += ["torch" + MAX_AUTOTUNE, YARDSTICK + MAX_AUTOTUNE]
    return names


def _options(name: str, device: str) -> dict[str, Any]:
    """torch.compile's options for an implementation."""
    if torch.device(device).type != "cuda":
        return {"backend": compiler(device)}
    return {"mode": "max-autotune-no-cudagraphs"} if name.endswith(MAX_AUTOTUNE) else {}


def make_timed(case: GpuOperatorCase, name: str, device: str) -> Timed:
    """One call, forward, or backward for all three inputs, by an implementation."""
    settings = Settings(device, case.dtype)
    shape = (case.batch, case.height, case.width, case.channels)
    inputs = random_inputs(shape, case.groups, settings.torch_dtype, device)
    if case.offsets == "zero":
        inputs[1].zero_()
    label = name.partition(",")[0]
    operator: Operator = dcnv3_by_grid_sample if label == YARDSTICK else partial(dcnv3_by_backend, backend=label)

    def call(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return operator(value, offset, mask, case.groups)

    function = call if label == name else compiled_by_itself(call, **_options(name, device))

    def forward(_: Any) -> torch.Tensor:
        with torch.inference_mode():
            return function(*inputs)

    if not case.backward:
        return Timed(forward)
    for tensor in inputs:
        tensor.requires_grad_()
    return Timed(partial(_gradients, inputs, torch.randn_like(inputs[0])), lambda: function(*inputs))


def _gradients(inputs: tuple[torch.Tensor, ...], grad_output: torch.Tensor, output: torch.Tensor) -> None:
    torch.autograd.grad(output, inputs, grad_output)


def measure_gpu_operators(
    cases: list[GpuOperatorCase], backends: tuple[str, ...], device: str, budget: Budget, seconds: float
) -> Iterator[Row]:
    """What the device can do, what a call costs the processor, then a row for each case."""
    clock = Clock(device)
    ceilings = measure_ceilings(clock)
    yield {"name": "ceilings", **ceilings}
    yield {"name": "host time of a call", "microseconds": measure_host_time(backends, device, clock.is_cuda)}
    for case in cases:
        names = implementations(case, backends, device)
        kind = "compiled" if any("," in name for name in names) else "plain"
        if reason := budget.refusal(kind, _GUESSES[kind] if clock.is_cuda else 0.0):
            yield {"name": case.name, "not_run": reason}
            continue
        start = time.perf_counter()
        yield measure_case(case, names, clock, ceilings["copy_bytes_per_second"], seconds, backends)
        budget.took(kind, time.perf_counter() - start)


def measure_ceilings(clock: Clock) -> dict[str, float]:
    """The bandwidth of a copy, and what a kernel with nothing to do takes."""
    size = 2**22
    if clock.is_cuda:
        size = min(2**31, torch.cuda.get_device_properties(clock.device).total_memory // 16)
        copy_bandwidth(clock, size)  # the clocks rise under load
    return {
        "copy_bytes_per_second": rounded(copy_bandwidth(clock, size)),
        "shortest_call_microseconds": rounded(shortest_call(clock) * 1e6),
    }


def measure_case(
    case: GpuOperatorCase,
    names: list[str],
    clock: Clock,
    bandwidth: float,
    seconds: float,
    backends: tuple[str, ...],
) -> Row:
    """Time, fraction of the bandwidth's floor, memory of each implementation; the first one is the ratios' unit."""
    device = str(clock.device)
    timed: dict[str, Timed] = {}

    def first_call(name: str) -> None:
        timed[name] = make_timed(case, name, device)
        clock.seconds(timed[name])

    makers = {name: lambda name=name: partial(first_call, name) for name in names}
    # Whatever goes wrong with one must not lose the others; yardsticks may be too large, or beyond the compiler.
    steps, left_out = start_steps(makers, lambda name: (Exception,))
    failed = {name: reason for name, reason in left_out.items() if name in backends}
    timed = {name: timed[name] for name in steps}
    row: Row = {"name": case.name, **asdict(case), "left_out": left_out}
    if failed:
        row["failed"] = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    if not timed:
        return row
    runs = clock.take_turns(timed, seconds)
    floor = case.least_bytes() / bandwidth
    reference = next(iter(timed))
    row |= {"floor_milliseconds": rounded(floor * 1e3), "runs": len(runs), "implementations": {}}
    for name, each in timed.items():
        timing = times(runs, name)
        row["implementations"][name] = {
            **timing,
            "floor_fraction": rounded(floor * 1e3 / timing["milliseconds"]),
            f"time_to_{reference}": time_ratio(runs, name, reference),
            "peak_memory_mib": peak_mib(partial(_whole, each), device),
        }
    timed.clear()
    free_memory(device)
    return row


def _whole(timed: Timed) -> None:
    timed.run(timed.prepare())


def measure_host_time(backends: tuple[str, ...], device: str, is_cuda: bool) -> dict[str, dict[str, float]]:
    """Microseconds of the processor's time that an eager call takes, without and with gradients wanted."""
    calls = 200 if is_cuda else 5
    found: dict[str, dict[str, float]] = {}
    for name in (*backends, "torch"):
        inputs = random_inputs((1, 4, 4, 32), 2, torch.float32, device)
        step = partial(dcnv3_by_backend, *inputs, groups=2, backend=name)
        try:
            step()
        except Exception:
            continue  # the cases say why
        found[name] = {"forward": rounded(host_seconds(step, device, calls) * 1e6)}
        for tensor in inputs:
            tensor.requires_grad_()
        found[name]["forward_with_gradients"] = rounded(host_seconds(step, device, calls) * 1e6)
        both = Timed(partial(_gradients, inputs, torch.ones_like(inputs[0])), step)
        whole = partial(_whole, both)
        found[name]["forward_and_backward"] = rounded(host_seconds(whole, device, calls) * 1e6)
    return found


def warm_up_jobs(sizes: tuple[str, ...], backends: tuple[str, ...], device: str) -> Iterator[Any]:
    """What to compile ahead of measuring, as calls without arguments."""
    for case in gpu_operator_cases(sizes):
        for name in implementations(case, backends, device):
            if name.endswith(COMPILED):  # max-autotune measures while it compiles, which takes a quiet GPU
                yield lambda case=case, name=name: _whole(make_timed(case, name, device))
