# SPDX-License-Identifier: MIT
"""Measure the speed of a model on this machine: milliseconds a batch, images a second, peak memory on GPUs."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .devices import DTYPES, find_device
from .models import auto
from .models.configuration_internimage import SIZES, InternImageConfig
from .models.modeling_internimage import InternImageForImageClassification
from .ops.dcnv3 import backend_for
from .ops.registry import demanded_backend
from .prediction import loading

_DEFAULT_SIDE = 512  # pixels, of models that are no classifiers
_WARM_UPS, _LEAST_ROUNDS = 2, 5


@dataclass(frozen=True)
class Speed:
    """The speed of a model's inference.

    Attributes:
        backend: of InternImage's operator; None for models without it.
        device: "cpu", or the name of the GPU.
        dtype: of weights and images.
        threads: of PyTorch; None on a GPU.
        compiled: whether by torch.compile.
        batch_size: images at a time.
        image_size: height and width in pixels.
        milliseconds: of one batch, the median.
        spread: interquartile range of the milliseconds over their median.
        images_per_second: by the median.
        peak_memory_mib: most memory that PyTorch had on the GPU, weights included; None on the CPU.
    """

    backend: str | None
    device: str
    dtype: str
    threads: int | None
    compiled: bool
    batch_size: int
    image_size: tuple[int, int]
    milliseconds: float
    spread: float
    images_per_second: float
    peak_memory_mib: float | None


def load_model(name: str) -> PreTrainedModel:
    """Return the model of a folder or repository, or a classifier of a size ("t" ... "g") with random weights.

    Raises: as `hf_internimage.prediction.loading.load`.
    """
    return random_model(name) if name.lower() in SIZES else loading.load(name)


def random_model(size: str) -> InternImageForImageClassification:
    """Return a new classifier of a released size, with offsets of about a pixel as in a trained one."""
    model = InternImageForImageClassification(InternImageConfig.from_size(size))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".offset.weight", ".mask.weight")):
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    return model


def measure_speed(
    model: PreTrainedModel,
    *,
    batch_sizes: Sequence[int] = (1,),
    image_size: tuple[int, int] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    backends: Sequence[str | None] = (None,),
    compile_model: bool = False,
    seconds: float = 3.0,
) -> Iterator[Speed]:
    """Measure a model's forward pass on random images, with each batch size and each backend.

    The backends take turns, so that a busy machine slows all of them alike; compiled models are measured one after the
    other.

    Args:
        model: is moved to the device, in evaluation mode.
        batch_sizes: images at a time.
        image_size: height and width in pixels; the classifier's own, 512 pixels of other models, if None.
        dtype: of weights and images: "float32", "bfloat16" or "float16".
        device: such as "cpu" or "cuda"; the best there is if None.
        backends: of InternImage's operator; None is the one that it chooses.
        compile_model: measure the model compiled by torch.compile.
        seconds: time to repeat each backend and batch size, after the first calls; at least five calls.

    Raises:
        BackendError: for a backend that cannot run here.
        ValueError: for a device that PyTorch does not find.
    """
    place = find_device(device)
    model.to(device=place, dtype=DTYPES[dtype])  # type: ignore[call-arg]
    model.eval()
    height, width = image_size or _own_image_size(model.config)
    forward = torch.compile(model, dynamic=False) if compile_model else model
    for batch_size in batch_sizes:
        pixels = torch.randn(batch_size, _channels(model.config), height, width).to(place, DTYPES[dtype])

        def call(backend: str | None, pixels: torch.Tensor = pixels) -> None:
            with torch.inference_mode(), demanded_backend(backend):
                forward(pixel_values=pixels)
                _wait_for(place)

        for group in [[backend] for backend in backends] if compile_model else [list(backends)]:
            torch.compiler.reset()  # a compiled model keeps its backend
            peaks = {backend: _warm_up(call, backend, place) for backend in group}
            for backend, times in _take_turns(call, group, seconds).items():
                milliseconds = 1e3 * statistics.median(times)
                first, median, third = statistics.quantiles(times, n=4, method="inclusive")
                yield Speed(
                    backend=_backend_of(model, backend, place, dtype),
                    device=torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
                    dtype=dtype,
                    threads=torch.get_num_threads() if place.type == "cpu" else None,
                    compiled=compile_model,
                    batch_size=batch_size,
                    image_size=(height, width),
                    milliseconds=milliseconds,
                    spread=(third - first) / median,
                    images_per_second=1e3 * batch_size / milliseconds,
                    peak_memory_mib=peaks[backend],
                )


def _warm_up(call: Callable[[str | None], None], backend: str | None, device: torch.device) -> float | None:
    """Make the first calls, which may compile; return the peak memory of the last one in MiB, None on the CPU."""
    for _ in range(_WARM_UPS):
        call(backend)
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    call(backend)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _take_turns(
    call: Callable[[str | None], None], backends: Sequence[str | None], seconds: float
) -> dict[str | None, list[float]]:
    """Return the seconds of each call by backend; the backends take turns."""
    times: dict[str | None, list[float]] = {backend: [] for backend in backends}
    begin = time.perf_counter()
    while len(times[backends[0]]) < _LEAST_ROUNDS or time.perf_counter() - begin < seconds * len(backends):
        for backend in backends:
            start = time.perf_counter()
            call(backend)
            times[backend].append(time.perf_counter() - start)
    return times


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _own_image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or _DEFAULT_SIDE
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _channels(config: Any) -> int:
    return getattr(getattr(config, "backbone_config", None) or config, "num_channels", 3)


def _backend_of(model: PreTrainedModel, backend: str | None, device: torch.device, dtype: str) -> str | None:
    """Return the backend that runs, None for a model without InternImage's operator."""
    types = {getattr(getattr(module, "config", None), "model_type", None) for module in model.modules()}
    if not types & auto.model_types("AutoBackbone"):
        return None
    return backend or backend_for(device.type, dtype)


__all__ = ["Speed", "load_model", "measure_speed", "random_model"]
