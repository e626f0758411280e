# SPDX-License-Identifier: MIT
"""Fill torch.compile's disk cache for the benchmarks of benchmarks/gpu_check.py while its tests run."""

import itertools

import torch

from . import gpu_models, gpu_operators
from .gpu import free_memory

LEAST_MEMORY = 100 * 2**30  # of a GPU that holds several models in training beside the tests
MOST_OF_MEMORY = 0.6  # for all workers together


def warm_up(
    operator_sizes: tuple[str, ...],
    model_sizes: tuple[str, ...],
    backends: tuple[str, ...],
    device: str,
    worker: int,
    workers: int,
) -> None:
    """Every `workers`-th job: the first size's models, the operator, other models."""
    if device == "cuda":
        if torch.cuda.get_device_properties(device).total_memory < LEAST_MEMORY:
            return
        torch.cuda.set_per_process_memory_fraction(MOST_OF_MEMORY / workers)
    jobs = itertools.chain(
        gpu_models.warm_up_jobs(model_sizes[:1], backends, device),
        gpu_operators.warm_up_jobs(operator_sizes, backends, device),
        gpu_models.warm_up_jobs(model_sizes[1:], backends, device) if model_sizes[1:] else (),
    )
    for job in itertools.islice(jobs, worker, None, workers):
        try:
            job()
        except Exception as error:  # whoever measures meets it again, and says so
            print(f"{type(error).__name__}: {error}")
        free_memory(device)
