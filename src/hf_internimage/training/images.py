# SPDX-License-Identifier: MIT
"""Read encoded images of any kind as RGB, and turn rows of a split into examples; errors name the image's file."""

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from transformers.utils import logging

from ..image_files import (
    MAX_PIXELS,
    BadImageError,
    Encoded,
    check_resized,
    decode_in_both_modes,
    name_of,
    read_bytes,
    unlimited_short_side,
)
from ..models.rgb_images import is_read_otherwise

logger = logging.get_logger(__name__)

_CHECKED_AT_ONCE = 256
_FLAGS = 2**20  # bytes to tell images apart by their CRC-32


@dataclass(frozen=True)
class ImageReader:
    """Read undecoded images by the rules of a run, and remember what its results and its card have to say of them.

    Attributes:
        max_pixels: see `decode_image`.
        short_side: pixels to which the image processor resizes the short side, whatever the long one becomes.
        left_out: name of a split -> error texts of its images that were left out.
        read_otherwise: the images that pipelines of transformers read as other pixels: flags at the remainder of their
            bytes' CRC-32, in memory that worker processes share.
    """

    max_pixels: int = MAX_PIXELS
    short_side: int | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    read_otherwise: torch.Tensor = field(
        default_factory=lambda: torch.zeros(_FLAGS, dtype=torch.uint8).share_memory_(), repr=False
    )

    def for_processor(self, processor: Any) -> "ImageReader":
        """Return a reader that shares the memory of this one and refuses what the image processor cannot resize."""
        return replace(self, short_side=unlimited_short_side(processor))

    def read(self, image: Encoded) -> tuple[Image.Image, bytes]:
        """Return an undecoded image as `decode_image` makes it, and its encoded bytes; warn of the first that differs.

        Raises:
            BadImageError: naming the file, as `decode_image` and `read_bytes`, and if the image processor would resize
                it to more than `max_pixels`.
        """
        data, name = read_bytes(image), name_of(image)
        upright, rgb = decode_in_both_modes(data, name, self.max_pixels)
        check_resized(rgb.size, self.short_side, name, self.max_pixels)
        if is_read_otherwise(upright, rgb):
            is_first = not self.read_otherwise.any()
            self.read_otherwise[zlib.crc32(data) % len(self.read_otherwise)] = 1
            if is_first:
                logger.warning(
                    f"{name} has 16 bits or transparency. Nothing to do here; pipelines need "
                    "hf_internimage.models.rgb_images.to_rgb(image)."
                )
        return rgb, data


@dataclass(frozen=True)
class RowTransform:
    """Turn rows of a split into examples each time they are read, as `Dataset.with_transform` does.

    Each task derives its `DatasetTransform` with its own `one`.

    Attributes:
        prepare: an image with its annotations and a key -> inputs of a model. The key is a list of integers that
            belongs to the image: the CRC-32 of its encoded bytes, and the key that `one` is called with.
        reader: reads its images.
    """

    prepare: Callable[..., Any]
    reader: ImageReader = field(default_factory=ImageReader)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        examples = [self.one(row) for row in rows]
        return {name: [example[name] for example in examples] for name in examples[0]}

    def read(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """Return the image of a row, its annotations, and the image's encoded bytes.

        Raises:
            BadImageError: naming the file, for an image that cannot be used.
            ValueError: naming the file, for annotations that cannot be used.
        """
        raise NotImplementedError

    def one(self, row: dict[str, Any], *key: int) -> dict[str, Any]:
        """Return the example of a single row, raising as `read`; `key` is appended to the image's."""
        raise NotImplementedError


class Augmented:
    """Augment training examples anew in every epoch, by nothing but the example, the epoch and the seed.

    Call it with an example's parts, the last of them its key (see `RowTransform`): it calls `augmentation` with the
    other parts and the list of seed, epoch and key.

    Args:
        augmentation: an example's parts and a list of seeds -> inputs of a model.
        seed: of the whole training.

    Attributes:
        epoch: a tensor that worker processes share; set it with `fill_`.
    """

    def __init__(self, augmentation: Callable[..., Any], seed: int) -> None:
        self.augmentation, self.seed = augmentation, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, *example: Any) -> Any:
        *parts, key = example
        return self.augmentation(*parts, [self.seed, int(self.epoch), *key])


def target_size(processor: Any) -> tuple[int, int]:
    """Return the height and width in pixels of the images that an image processor makes."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    if "height" in dict(size):
        return size["height"], size["width"]
    return size["shortest_edge"], size["shortest_edge"]


def check_images(
    rows: Dataset | IterableDataset, read: Callable[[dict[str, Any]], Any], workers: int = 8
) -> Iterator[tuple[int, str]]:
    """Read every row by `read` of a `RowTransform`; yield the number and the error text of each bad image."""

    def problem(row: dict[str, Any]) -> str | None:
        try:
            read(row)
        except BadImageError as error:
            return " ".join(str(error).split())
        return None

    with ThreadPoolExecutor(workers) as pool:
        number = 0
        for batch in rows.iter(_CHECKED_AT_ONCE):
            columns: dict[str, list] = dict(batch)
            batch_rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            for error_text in pool.map(problem, batch_rows):
                if error_text is not None:
                    yield number, error_text
                number += 1


__all__ = [
    "Augmented",
    "ImageReader",
    "RowTransform",
    "check_images",
    "target_size",
]
