# SPDX-License-Identifier: MIT
"""Measure the operator's forward and backward pass on the GPU, at the shapes of T, B and L."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from .gpu import Clock, Timed, compiler, copy_bandwidth, failures, free_memory, host_seconds, peak_mib, shortest_call
from .measuring import Settings, compile_separately, rounded, start_steps, time_ratio, times
from .models import TINY, internimage_config
from .operators import BASELINE, Operator, dcnv3_by_backend, dcnv3_by_grid_sample, operator_cases, random_inputs
from .steps import Budget, Row

BATCHES = {"t": 64, "b": 64, "l": 16, TINY: 2}
COMPILED, MAX_AUTOTUNE = ", compiled", ", max-autotune"
SECONDS = 0.4  # time to repeat each case
_EXPECTED_SECONDS = {"plain": 4.0, "compiled": 25.0}  # for a case


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
        """Return the name of the row."""
        offsets = "" if self.offsets == "normal" else f", {self.offsets} offsets"
        direction = "backward" if self.backward else "forward"
        return f"{self.size.upper()} stage {self.stage}, batch {self.batch}, {self.dtype}{offsets}, {direction}"

    def least_bytes(self) -> int:
        """Return the bytes that must be moved.

        Forward reads value, offset and mask and writes the output. Backward reads those three and the output's gradient
        and writes three gradients.
        """
        pixels = self.batch * self.height * self.width
        maps, samples = (3, 2) if self.backward else (2, 1)
        itemsize = torch.empty((), dtype=getattr(torch, self.dtype)).itemsize
        return pixels * itemsize * (maps * self.channels + samples * self.groups * 27)


def gpu_operator_cases(sizes: tuple[str, ...]) -> list[GpuOperatorCase]:
    """Return all cases, the most important ones first."""
    cases = []
    for size in sizes:
        for shape in operator_cases(size, internimage_config(size), (BATCHES[size],)):
            kinds = [("bfloat16", "normal"), ("float32", "normal")]
            if size in ("t", TINY):
                kinds += [("bfloat16", "zero"), *([("float16", "normal")] if shape.stage == 1 else [])]
            for dtype, offsets in kinds:
                fields = {key: part for key, part in asdict(shape).items() if key != "backward"}
                cases.append(GpuOperatorCase(**fields, dtype=dtype, offsets=offsets, backward=shape.backward))
    order = [(True, "bfloat16", "normal"), (False, "bfloat16", "normal")]

    def importance(case: GpuOperatorCase) -> tuple[int, int, int]:
        first_size = case.size == sizes[0]
        kind = (first_size, case.dtype, case.offsets)
        return order.index(kind) if kind in order else 2 + (not first_size), case.stage, sizes.index(case.size)

    return sorted(cases, key=importance)


def implementations(case: GpuOperatorCase, backends: tuple[str, ...], device: str) -> list[str]:
    """Return the names of the implementations to measure in a case.

    The backends are measured in all cases; compiled forms of the PyTorch ones, which take long to compile, in few.
    """
    if case.offsets == "zero":
        return list(backends)
    names = [*backends, "torch", BASELINE]
    first_kind = case.dtype == "bfloat16"
    if (case.size in ("t", TINY) and first_kind) or (case.stage == 1 and case.dtype != "float16"):
        names.append("torch" + COMPILED)
    if case.stage == 1 and first_kind:
        names.append(BASELINE + COMPILED)
        if case.size == "t" and torch.device(device).type == "cuda":
            names += ["torch" + MAX_AUTOTUNE, BASELINE + MAX_AUTOTUNE]
    return names


def _options(name: str, device: str) -> dict[str, Any]:
    """Return the options of torch.compile for an implementation."""
    if torch.device(device).type != "cuda":
        return {"backend": compiler(device)}
    return {"mode": "max-autotune-no-cudagraphs"} if name.endswith(MAX_AUTOTUNE) else {}


def make_timed(case: GpuOperatorCase, name: str, device: str) -> Timed:
    """Return a forward call of an implementation, or a backward call for all three inputs."""
    settings = Settings(device, case.dtype)
    shape = (case.batch, case.height, case.width, case.channels)
    inputs = random_inputs(shape, case.groups, settings.torch_dtype, device)
    if case.offsets == "zero":
        inputs[1].zero_()
    label = name.partition(",")[0]
    operator: Operator = dcnv3_by_grid_sample if label == BASELINE else partial(dcnv3_by_backend, backend=label)

    def call(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return operator(value, offset, mask, case.groups)

    function = call if label == name else compile_separately(call, **_options(name, device))

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
    """Yield the limits of the device, the processor's time for a call, then a row for each case."""
    clock = Clock(device)
    ceilings = measure_ceilings(clock)
    yield {"name": "ceilings", **ceilings}
    yield {"name": "host time of a call", "microseconds": measure_host_time(backends, device, clock.is_cuda)}
    for case in cases:
        names = implementations(case, backends, device)
        kind = "compiled" if any("," in name for name in names) else "plain"
        if reason := budget.refusal(kind, _EXPECTED_SECONDS[kind] if clock.is_cuda else 0.0):
            yield {"name": case.name, "not_run": reason}
            continue
        start = time.perf_counter()
        yield measure_case(case, names, clock, ceilings["copy_bytes_per_second"], seconds, backends)
        budget.record(kind, time.perf_counter() - start)


def measure_ceilings(clock: Clock) -> dict[str, float]:
    """Return the bandwidth of a copy, and the time of a kernel with nothing to do."""
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
    """Return the row of a case: time, share of the bandwidth's limit and memory of each implementation.

    Ratios are to the time of the first implementation.
    """
    device = str(clock.device)
    timed: dict[str, Timed] = {}

    def first_call(name: str) -> None:
        timed[name] = make_timed(case, name, device)
        clock.seconds(timed[name])

    makers = {name: lambda name=name: partial(first_call, name) for name in names}
    # An error of one must not lose the results of the others; a baseline may need too much memory or not compile.
    steps, left_out = start_steps(makers, lambda name: (Exception,))
    timed = {name: timed[name] for name in steps}
    row: Row = {"name": case.name, **asdict(case), "left_out": left_out, **failures(left_out, backends)}
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
    """Return the microseconds of the processor's time for an eager call, without and with gradients."""
    calls = 200 if is_cuda else 5
    microseconds: dict[str, dict[str, float]] = {}
    for name in (*backends, "torch"):
        inputs = random_inputs((1, 4, 4, 32), 2, torch.float32, device)
        step = partial(dcnv3_by_backend, *inputs, groups=2, backend=name)
        try:
            step()
        except Exception:
            continue  # the rows of the cases say why
        microseconds[name] = {"forward": rounded(host_seconds(step, device, calls) * 1e6)}
        for tensor in inputs:
            tensor.requires_grad_()
        microseconds[name]["forward_with_gradients"] = rounded(host_seconds(step, device, calls) * 1e6)
        both = Timed(partial(_gradients, inputs, torch.ones_like(inputs[0])), step)
        whole = partial(_whole, both)
        microseconds[name]["forward_and_backward"] = rounded(host_seconds(whole, device, calls) * 1e6)
    return microseconds


def warm_up_jobs(sizes: tuple[str, ...], backends: tuple[str, ...], device: str) -> Iterator[Any]:
    """Yield calls that compile everything ahead of the measurements."""
    for case in gpu_operator_cases(sizes):
        for name in implementations(case, backends, device):
            if name.endswith(COMPILED):  # max-autotune measures while it compiles, which takes a quiet GPU
                yield lambda case=case, name=name: _whole(make_timed(case, name, device))
