# SPDX-License-Identifier: MIT
"""Describe the machine and time the first calls of each backend, for benchmarks/gpu_check.py.

`first_call` imports neither transformers nor the models.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_internimage.ops import BackendError, dcnv3

from .machine import available_cores, processor_name
from .measuring import synchronize
from .steps import ROW, Row, add_row, emit, end, start_python

_PACKAGES = ("torch", "triton", "transformers", "numpy", "safetensors", "huggingface_hub", "pytest", "hypothesis")


def describe_environment(out: Path, backends: tuple[str, ...], device: str) -> Iterator[Row]:
    """Yield the device, the versions, the package's own report, and the first calls of each backend."""
    yield {"name": "device", **_device(device)}
    yield {"name": "versions", **_versions()}
    yield {"name": "report", "text": _report()}
    with tempfile.TemporaryDirectory(prefix="gpu_check_cold_") as folder:
        for state in ("cold", "warm"):
            yield from _first_calls(out, backends, device, state, Path(folder))


def _device(device: str) -> dict[str, Any]:
    if torch.device(device).type != "cuda":
        return {"kind": device, "device": processor_name()}
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

    versions: dict[str, Any] = {"hf_internimage": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nvrtc": _nvrtc()}
    return versions | {"cores": available_cores()}


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
    """Yield the seconds of the first forward and backward call in a new process, for all backends at once."""
    processes = {}
    for backend in backends:
        caches = {
            name: str(folder / backend / name)
            for name in ("HF_INTERNIMAGE_CACHE", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
        }
        command = [sys.argv[0], str(out), "--step", "first_call", "--device", device, "--backend", backend]
        processes[backend] = start_python(command, {**os.environ, **caches}, own_group=False)
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
            yield {"name": name, "failed": (text.strip().splitlines() or ["it printed nothing"])[-1]}


def first_call(backend: str, device: str) -> None:
    """Time the first calls of this process; the device is initialised before."""
    value, offset, mask = (torch.randn(2, 14, 14, count).to(device).bfloat16() for count in (64, 72, 36))
    for tensor in (value, offset, mask):
        tensor.requires_grad_()
    synchronize(device)
    start = time.perf_counter()
    try:
        output = dcnv3(value, offset, mask, groups=4, softmax=True, backend=backend)
        synchronize(device)
        forward = time.perf_counter() - start
        output.sum().backward()
        synchronize(device)
    except BackendError as error:
        emit({"name": backend, "failed": str(error)})
        return
    total = time.perf_counter() - start
    emit({"name": backend, "forward_seconds": round(forward, 3), "backward_seconds": round(total - forward, 3)})
