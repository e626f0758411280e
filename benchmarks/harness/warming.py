# SPDX-License-Identifier: MIT
"""Fill the disk cache of torch.compile while tests run, for the measurements of benchmarks/gpu_check.py."""

import itertools

import torch

from . import gpu_models, gpu_operators
from .gpu import free_memory

LEAST_MEMORY = 100 * 2**30  # bytes of a GPU that can hold several models in training beside the tests
MEMORY_SHARE = 0.6  # of all workers together


def warm_up(
    operator_sizes: tuple[str, ...],
    model_sizes: tuple[str, ...],
    backends: tuple[str, ...],
    device: str,
    worker: int,
    workers: int,
) -> None:
    """Compile every `workers`-th of the jobs: models of the first size, the operator, other models."""
    if device == "cuda":
        if torch.cuda.get_device_properties(device).total_memory < LEAST_MEMORY:
            return
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE / workers)
    jobs = itertools.chain(
        gpu_models.warm_up_jobs(model_sizes[:1], backends, device),
        gpu_operators.warm_up_jobs(operator_sizes, backends, device),
        gpu_models.warm_up_jobs(model_sizes[1:], backends, device) if model_sizes[1:] else (),
    )
    for job in itertools.islice(jobs, worker, None, workers):
        try:
            job()
        except Exception as error:  # the measurement fails in the same way, and reports it
            print(f"{type(error).__name__}: {error}")
        free_memory(device)
