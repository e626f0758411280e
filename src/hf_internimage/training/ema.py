# SPDX-License-Identifier: MIT
"""Exponential moving average (EMA) of a model's weights, which is what gets evaluated and published."""

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
    """Float32 averages of every floating-point parameter and persistent buffer of a model.

    After each optimizer step, average <- decay * average + (1 - decay) * weight, from the first weights on. Parameters
    sharded by FSDP2 are averaged shard by shard.

    Args:
        model: the model as it is trained (already sharded, on its device).
        decay: share of the old average that stays, 0 to 1.

    Raises:
        ValueError: for a decay outside 0 to 1.

    Source: timm's ModelEma (without warm-up), as InternImage's recipe uses it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay is {decay}, expected a number between 0 and 1 (0.9999 in the original).")
        self.decay = decay
        self.weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self.averages = {name: tensor.detach().float().clone() for name, tensor in self.weights.items()}

    @property
    def sharded(self) -> bool:
        return any(isinstance(tensor, DTensor) for tensor in self.averages.values())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        averages = [_local(tensor) for tensor in self.averages.values()]
        weights = [_local(tensor).float() for tensor in self.weights.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    def apply(self) -> None:
        """Put the averages into the model, for good."""
        self._put(self.averages)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages within this context, its own weights after it."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put(self.averages)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            _local(weight).copy_(_local(values[name]))

    def save(self, folder: Path, *, main: bool) -> None:
        """Write the averages into a checkpoint's folder; every process has to call this.

        One safetensors file, or a folder of shards that a run with another number of processes can read, too.
        """
        if self.sharded:
            save_shards(dict(self.averages), storage_writer=FileSystemWriter(folder / FOLDER_NAME))
        elif main:
            unfinished = folder / f".{FILE_NAME}"
            save_file({name: tensor.contiguous() for name, tensor in self.averages.items()}, unfinished)
            unfinished.replace(folder / FILE_NAME)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if the checkpoint has no averages of this kind.
            ValueError: if they are those of another model.
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
    """The part of a tensor this process holds; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


__all__ = ["WeightAverage"]
