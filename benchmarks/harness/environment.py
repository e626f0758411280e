# SPDX-License-Identifier: MIT
"""The environment part of benchmarks/gpu_check.py: what machine this is, what runs on it, how long a first call takes.

`first_call` and `sanitizer_target` import neither transformers nor the models.
"""

import importlib.metadata
import itertools
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_internimage.ops import BackendError, dcnv3

from .steps import ROW, Row, add_row, emit, end, start_python

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# How far results of a correct kernel may be from float64, by the largest element; half types round their results.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
_PACKAGES = ("torch", "triton", "transformers", "numpy", "safetensors", "huggingface_hub", "pytest", "hypothesis")


def describe_environment(out: Path, backends: tuple[str, ...], device: str) -> Iterator[Row]:
    """The machine, versions, the package's own report, and the first calls of each backend."""
    yield {"name": "device", **_device(device)}
    yield {"name": "versions", **_versions()}
    yield {"name": "report", "text": _report()}
    with tempfile.TemporaryDirectory(prefix="gpu_check_cold_") as folder:
        for state in ("cold", "warm"):
            yield from _first_calls(out, backends, device, state, Path(folder))


def _device(device: str) -> dict[str, Any]:
    if torch.device(device).type != "cuda":
        return {"kind": device, "device": platform.processor() or platform.machine()}
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; for a dry run use --device cpu --quick.")
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": device,
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "multiprocessors": properties.multi_processor_count,
        "devices": torch.cuda.device_count(),
        "driver": _driver(),
    }


def _driver() -> str | None:
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else None


def _versions() -> dict[str, Any]:
    from hf_internimage import __version__

    found: dict[str, Any] = {"hf_internimage": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nvrtc": _nvrtc()}
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found


def _nvrtc() -> str | None:
    from hf_internimage.ops import nvrtc

    if reason := nvrtc.why_not():
        return reason
    try:
        return ".".join(map(str, nvrtc.version()))
    except nvrtc.CompileError as error:
        return str(error)


def _report() -> str:
    from hf_internimage.env import describe

    return describe()


def _first_calls(out: Path, backends: tuple[str, ...], device: str, state: str, folder: Path) -> Iterator[Row]:
    """Seconds of the first forward and backward call in a new process, for all backends at once."""
    processes = {}
    for backend in backends:
        caches = {
            name: str(folder / backend / name)
            for name in ("HF_INTERNIMAGE_CACHE", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
        }
        command = [sys.argv[0], str(out), "--step", "first_call", "--device", device, "--backend", backend]
        processes[backend] = start_python(command, {**os.environ, **caches}, apart=False)
    for backend, process in processes.items():
        try:
            text, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            text = "no answer within 60 s"
        end(process)
        rows: list[Row] = []
        for line in text.splitlines():
            if line.startswith(ROW):
                add_row(rows, line)
        name = f"first calls, {backend}, {state} cache"
        if rows:
            yield {**rows[-1], "name": name}
        else:
            yield {"name": name, "failed": (text.strip().splitlines() or ["it said nothing"])[-1]}


def first_call(backend: str, device: str) -> None:
    """Time the first calls of this process; the device itself is awake before."""
    value, offset, mask = (torch.randn(2, 14, 14, count).to(device).bfloat16() for count in (64, 72, 36))
    for tensor in (value, offset, mask):
        tensor.requires_grad_()
    wait(device)
    start = time.perf_counter()
    try:
        output = dcnv3(value, offset, mask, groups=4, softmax=True, backend=backend)
        wait(device)
        forward = time.perf_counter() - start
        output.sum().backward()
        wait(device)
    except BackendError as error:
        emit({"name": backend, "failed": str(error)})
        return
    total = time.perf_counter() - start
    emit({"name": backend, "forward_seconds": round(forward, 3), "backward_seconds": round(total - forward, 3)})


@dataclass(frozen=True)
class HostileCall:
    """A small call for compute-sanitizer to watch."""

    dtype: torch.dtype
    depth: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    size: tuple[int, int]
    softmax: bool


def hostile_calls() -> list[HostileCall]:
    """Every dtype, with numbers of channels and pixels that fill no block, and kernel sizes that are not unrolled."""
    shapes = (
        (16, 4, (3, 3), (1, 1), (7, 5), True),
        (16, 4, (3, 3), (1, 1), (7, 5), False),
        (5, 2, (3, 2), (2, 1), (6, 9), False),
        (64, 1, (3, 3), (1, 1), (9, 4), True),
        (3, 3, (1, 4), (1, 1), (1, 8), False),
        (8, 1, (5, 5), (2, 2), (5, 5), True),
    )
    return [HostileCall(dtype, *shape) for dtype, shape in itertools.product(DTYPES, shapes)]


def sanitizer_target(backend: str, device: str) -> int:
    """Make the hostile calls, forward and backward; returns how many were wrong, and says so of each."""
    wrong = 0
    calls = hostile_calls()
    for call in calls:
        if problem := wrong_result(call, backend, device):
            wrong += 1
            print(f"wrong: {call}: {problem}")
    print(f"checked {len(calls)} calls of {backend}, {wrong} wrong")
    return wrong


def wrong_result(call: HostileCall, backend: str, device: str) -> str | None:
    """What is wrong with the output or a gradient, beside the reference in float64; or None.

    Some offsets are huge or no numbers at all.
    """
    torch.manual_seed(0)
    padding = (call.kernel_size[0] // 2, call.kernel_size[1] // 2)
    sides = zip(call.size, padding, call.kernel_size, call.stride, strict=True)
    out = [(side + 2 * pad - width) // step + 1 for side, pad, width, step in sides]
    taps = call.groups * math.prod(call.kernel_size)
    offset = torch.randn(2, *out, taps * 2).mul(2).round() + 0.25 + torch.rand(2, *out, taps * 2) / 4
    hostile = torch.tensor([math.nan, math.inf, -math.inf, 6e4, -6e4, 1e4, -1e4])
    places = torch.arange(0, offset.numel(), 11)
    offset.view(-1)[places] = hostile[torch.arange(len(places)) % len(hostile)]
    features = call.groups * call.depth
    tensors = [torch.randn(2, *call.size, features), offset, torch.randn(2, *out, taps), torch.randn(2, *out, features)]
    tensors = [tensor.to(call.dtype) for tensor in tensors]
    results = []
    for place, name, dtype in ((device, backend, call.dtype), ("cpu", "torch", torch.float64)):
        *leaves, grad_output = (tensor.to(device=place, dtype=dtype) for tensor in tensors)
        for leaf in leaves:
            leaf.requires_grad_()
        output = dcnv3(
            *leaves,
            groups=call.groups,
            kernel_size=call.kernel_size,
            stride=call.stride,
            padding=padding,
            softmax=call.softmax,
            backend=name,
        )
        gradients = torch.autograd.grad(output, leaves, grad_output)
        results.append([tensor.detach().cpu().double() for tensor in (output, *gradients)])
    for what, got, want in zip(("output", "grad_value", "grad_offset", "grad_mask"), *results, strict=True):
        error, largest = (got - want).abs().max().item(), want.abs().max().item()
        if not error <= TOLERANCE[call.dtype] * max(1.0, largest):
            return f"{what} is off by {error:.3g} of {largest:.3g}"
    return None


def wait(device: str) -> None:
    """For the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
