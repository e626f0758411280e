# SPDX-License-Identifier: MIT
"""Exponential moving average (EMA) of a model's weights; the averages are evaluated and published."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint import save as save_shards
from torch.distributed.tensor import DTensor

FILE_NAME = "averaged_weights.safetensors"
FOLDER_NAME = "averaged_weights"


class WeightAverage:
    """Hold float32 averages of every floating-point parameter and persistent buffer of a model.

    The averages begin as the weights; each update sets average <- decay * average + (1 - decay) * weight. Parameters
    sharded by FSDP2 are averaged shard by shard.

    Args:
        model: the model in training, already sharded and on its device.
        decay: share of the old average that stays, between 0 and 1.
        warmup: use at most (1 + step) / (10 + step) as the decay, so that a short training forgets the first weights:
            the averages then reach over about a ninth of the steps until `decay` is reached.

    Raises:
        ValueError: for a decay outside 0 to 1.

    Source: timm's ModelEma, as InternImage's recipe uses it, without warm-up; the warm-up is that of TensorFlow's
    ExponentialMovingAverage (num_updates).
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = False) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay is {decay}, expected a number between 0 and 1 (0.9999 in the original).")
        self.decay, self.warmup = decay, warmup
        self.weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self.averages = {name: tensor.detach().float().clone() for name, tensor in self.weights.items()}

    @property
    def sharded(self) -> bool:
        """Return whether FSDP2 has sharded the model."""
        return any(isinstance(tensor, DTensor) for tensor in self.averages.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the model's present weights, those after `step` steps of the whole training."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        averages = [_local(tensor) for tensor in self.averages.values()]
        weights = [_local(tensor).float() for tensor in self.weights.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def apply(self) -> None:
        """Replace the model's weights by the averages."""
        self._copy_to_model(self.averages)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model for this context, and its own weights back after it."""
        own_weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._copy_to_model(self.averages)
        try:
            yield
        finally:
            self._copy_to_model(own_weights)

    @torch.no_grad()
    def _copy_to_model(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            _local(weight).copy_(_local(values[name]))

    def save(self, folder: Path, *, main: bool) -> None:
        """Write the averages into a checkpoint's folder; all processes have to call this.

        The result is one safetensors file, written by the process with `main`. For a sharded model it is a folder of
        shards, which a run with another number of processes can read, too.
        """
        if self.sharded:
            save_shards(dict(self.averages), storage_writer=FileSystemWriter(folder / FOLDER_NAME))
        elif main:
            unfinished_file = folder / f".{FILE_NAME}"
            save_file({name: tensor.contiguous() for name, tensor in self.averages.items()}, unfinished_file)
            unfinished_file.replace(folder / FILE_NAME)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read averages that `save` wrote.

        Raises:
            FileNotFoundError: if the checkpoint has no averages of this kind.
            ValueError: if they belong to another model.
        """
        name = FOLDER_NAME if self.sharded else FILE_NAME
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}: train it on without ema_decay, or anew.")
        if self.sharded:
            load_shards(dict(self.averages), storage_reader=FileSystemReader(folder / FOLDER_NAME))
            return
        saved = load_file(folder / FILE_NAME)
        if differing := sorted(set(saved) ^ set(self.averages)):
            raise ValueError(f"{folder / FILE_NAME} is of another model: it differs in {differing[:3]}.")
        for name, average in self.averages.items():
            average.copy_(saved[name])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


__all__ = ["WeightAverage"]
