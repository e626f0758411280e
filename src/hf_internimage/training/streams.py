# SPDX-License-Identifier: MIT
"""Read training data while training: each process reads its own shards, again and again."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import TrainingArguments
from transformers.utils import logging

from ..image_files import BadImageError
from .images import RowTransform

logger = logging.get_logger(__name__)


class TrainingStream(TorchIterableDataset):
    """Give one process an endless stream of prepared training examples.

    Shards are divided among processes, and among the workers of each, so that in each pass over the data every example
    is read once, by one of them. Each pass has another order. The stream does not end after a pass: processes whose
    shards hold fewer examples would otherwise wait for each other, and an interrupted training could not go on where
    it was. A training ends by `max_steps`.

    Read it through `loader`; accelerate would divide it a second time.

    Args:
        stream: training data of `load_data`.
        transform: row -> example; the number of the pass, from 0, is appended to the key of each image.
        seed: of the order.
        buffer_size: encoded images each worker keeps to choose from.
        rank, world_size: number of this process, and how many there are.
        bad_images_file: leave bad images out and, in the first pass, add their errors to this file; None to raise them.

    Raises:
        ValueError: while it is read, if no image of a pass can be used.
    """

    def __init__(
        self,
        stream: IterableDataset,
        transform: RowTransform,
        seed: int,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        bad_images_file: Path | None = None,
    ) -> None:
        if stream.num_shards < world_size and hasattr(stream, "reshard"):  # not in early versions 4 of datasets
            stream = stream.reshard()
        self.shared = stream.num_shards < world_size
        if self.shared and rank == 0:
            logger.warning(
                f"The training data have {stream.num_shards} shards for {world_size} processes: each process reads all "
                "of them and uses its part; divide the data into more files to read each once."
            )
        self.stream, self.transform, self.seed, self.buffer_size = stream, transform, seed, buffer_size
        self.rank, self.world_size = rank, world_size
        self.bad_images_file = bad_images_file

    @property
    def num_shards(self) -> int:
        """The number of this process's shards; more workers than that have nothing to read."""
        return self._pass(0).num_shards

    def loader(self, arguments: TrainingArguments, batch_size: int, collate: Any) -> DataLoader:
        """Return the loader that Trainer's `get_train_dataloader` has to return for this stream."""
        workers = min(arguments.dataloader_num_workers, self.num_shards)
        return DataLoader(
            self,
            batch_size=batch_size,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=arguments.dataloader_pin_memory,
            prefetch_factor=arguments.dataloader_prefetch_factor if workers else None,
        )

    def _pass(self, number: int) -> IterableDataset:
        # The same seed everywhere: all processes divide the same order of shards.
        stream = self.stream.shuffle(seed=self.seed + number, buffer_size=self.buffer_size)
        if self.world_size == 1:
            return stream
        if self.shared:
            return split_dataset_by_node(stream, self.rank, self.world_size)
        return stream.shard(num_shards=self.world_size, index=self.rank, contiguous=False)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in count():
            used = bad = 0
            for row in self._pass(number):
                try:
                    example = self.transform.one(row, number)
                except BadImageError as error:
                    if self.bad_images_file is None:
                        raise
                    bad += 1
                    if number == 0:
                        _leave_out(str(error), self.bad_images_file)
                    continue
                used += 1
                yield example
            if bad and not used:
                raise ValueError(f"None of the {bad} images of the training data that a worker reads can be used.")
            if not used:  # a worker without a shard
                return


def _leave_out(error: str, file: Path) -> None:
    logger.warning(f"Left out of the training data: {error}")
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(f"train: {' '.join(error.split())}\n")


__all__ = ["TrainingStream"]
