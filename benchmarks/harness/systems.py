# SPDX-License-Identifier: MIT
"""Measure converted segmentation and detection models on one image, each in a process of its own."""

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor

import hf_internimage  # noqa: F401  makes the Auto classes know InternImage

from .measuring import Settings, rounded, synchronize

IMAGE_SIZE = (480, 640)  # height and width of the image, a usual size in ADE20K and COCO
_AUTO_CLASSES = {
    "mask2former": "AutoModelForUniversalSegmentation",
    "upernet": "AutoModelForSemanticSegmentation",
}


def measure_systems(folders: list[Path], settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row for each folder that `scripts/convert_checkpoint.py` wrote: parameters, input size, seconds, memory.

    An image of 480x640 pixels goes through the folder's image processor and the model. Peak memory is that of the whole
    process, weights included; on a GPU, the memory that PyTorch allocated there.
    """
    for folder in folders:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            yield executor.submit(_measure, folder, settings).result()


@torch.inference_mode()
def _measure(folder: Path, settings: Settings) -> dict[str, Any]:
    torch.set_num_threads(settings.threads)
    start = time.perf_counter()
    config = AutoConfig.from_pretrained(folder)
    auto_class = getattr(transformers, _AUTO_CLASSES.get(config.model_type, "AutoModelForObjectDetection"))
    model = auto_class.from_pretrained(folder, dtype=settings.torch_dtype).eval().to(settings.device)
    load_seconds = time.perf_counter() - start
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").to(settings.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(settings.torch_dtype)
    model(**{name: tensor[..., :64, :64] for name, tensor in inputs.items()})  # the first call loads libraries
    seconds: list[float] = []
    while not seconds or sum(seconds) < settings.seconds:
        start = time.perf_counter()
        model(**inputs)
        synchronize(settings.device)
        seconds.append(time.perf_counter() - start)
    return {
        "name": folder.name,
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "height": inputs["pixel_values"].shape[-2],
        "width": inputs["pixel_values"].shape[-1],
        "threads": settings.threads,
        "runs": len(seconds),
        "load_seconds": rounded(load_seconds),
        "seconds": rounded(float(np.median(seconds))),
        "peak_memory_mib": rounded(_peak_memory(settings.device) / 2**20),
    }


def _peak_memory(device: str) -> int:
    """Return the most bytes that this process has used so far, on the GPU or in the main memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
