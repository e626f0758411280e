# SPDX-License-Identifier: MIT
"""Read encoded images of any kind as RGB, and turn rows of a split into examples; errors name the image's file."""

import io
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DownloadConfig, IterableDataset
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from transformers.utils import logging

from ..models.rgb_images import WrongPixelsError, is_read_otherwise, to_rgb

logger = logging.get_logger(__name__)

MAX_PIXELS = 178_956_970  # Pillow's own limit
_JPEG_FACTORS = (2, 4, 8)  # by which libjpeg can reduce while it decodes
_CHECKED_AT_ONCE = 256
_FLAGS = 2**20  # bytes to tell images apart by their CRC-32

Encoded = dict[str, Any]  # as `datasets` gives undecoded images: {"bytes": ..., "path": ...}


class BadImageError(ValueError):
    """An image that cannot be used, by a fault of its own file; the message begins with the file's name."""


def name_of(image: Any) -> str:
    """Return an image's path for messages, or a phrase for one without a path."""
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, (str, Path)) else None
    return "an image without a file name" if path is None else str(path)


def read_bytes(image: Encoded) -> bytes:
    """Return the encoded bytes of an undecoded image, from memory, disk or the network.

    Raises:
        BadImageError: naming the file, if there is none or it cannot be read.
    """
    if image.get("bytes") is not None:
        return image["bytes"]
    path = image.get("path")
    if path is None:
        raise BadImageError(f"{name_of(image)}: has neither bytes nor a path; remove that row from the data.")
    try:
        with xopen(path, "rb", download_config=DownloadConfig()) if "://" in path else open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = error.strerror or error
        raise BadImageError(f"{path}: cannot be read ({reason}); restore or remove the file.") from error


def decode_image(image: Encoded | bytes | str | Path | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode any image as 8-bit RGB, upright.

    Its mode is converted by `rgb_images.to_rgb`, as in our image processors. The EXIF orientation is applied; of
    animations, the first frame is taken. transformers' pipelines drop transparency and clip 16 bits: give them what
    this returns.

    Args:
        image: an undecoded image of `datasets`, encoded bytes, a path, or a Pillow image.
        max_pixels: a JPEG with more is decoded at a half, quarter or eighth of its sides; any other image is an error.

    Raises:
        BadImageError: naming the file, if it is unreadable, truncated, empty, too large or of an unknown range.
    """
    name = name_of(image)
    if isinstance(image, (str, Path)):
        image = read_bytes({"path": str(image)})
    elif isinstance(image, dict):
        image = read_bytes(image)
    return _decode(image, name, max_pixels)[1]


def _decode(image: bytes | Image.Image, name: str, max_pixels: int) -> tuple[Image.Image, Image.Image]:
    """Return an image upright in its own mode, and as RGB; raises as `decode_image`."""
    if image == b"":
        raise BadImageError(f"{name}: is empty (0 bytes); replace or remove the file.")
    try:
        opened = _open(image, name, max_pixels) if isinstance(image, bytes) else image
        opened.load()
        upright: Image.Image = ImageOps.exif_transpose(opened)
        return upright, to_rgb(upright)
    except BadImageError:
        raise
    except WrongPixelsError as error:
        raise BadImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImageError(f"{name}: cannot be decoded (no known format); replace or remove the file.") from error
    except Exception as error:  # damaged bytes can make Pillow's parsers raise anything
        raise BadImageError(f"{name}: cannot be decoded ({error}); replace or remove the file.") from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow refuses twice this
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        if not data.startswith(b"\xff\xd8"):
            raise BadImageError(f"{name}: {_too_large(str(error), max_pixels)}") from error
        image = JpegImageFile(io.BytesIO(data))
    width, height = image.size
    if width * height <= max_pixels:
        return image
    if isinstance(image, JpegImageFile):
        for factor in _JPEG_FACTORS:
            if width * height <= max_pixels * factor**2:
                image.draft(None, (width // factor, height // factor))
                return image
    raise BadImageError(f"{name}: {_too_large(f'{width}x{height} pixels', max_pixels)}")


def _too_large(size: str, max_pixels: int) -> str:
    return (
        f"is too large ({size.rstrip('.')}; the limit is {max_pixels:,} pixels): make it smaller, or raise "
        "max_image_pixels if the file is trusted."
    )


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
        size = dict(getattr(processor, "size", None) or {})
        limited = size.get("height") or size.get("longest_edge") or size.get("max_height")
        short_side = None if limited or not getattr(processor, "do_resize", False) else size.get("shortest_edge")
        return replace(self, short_side=short_side)

    def read(self, image: Encoded) -> tuple[Image.Image, bytes]:
        """Return an undecoded image as `decode_image` makes it, and its encoded bytes; warn of the first that differs.

        Raises:
            BadImageError: naming the file, as `decode_image` and `read_bytes`, and if the image processor would resize
                it to more than `max_pixels`.
        """
        data, name = read_bytes(image), name_of(image)
        upright, rgb = _decode(data, name, self.max_pixels)
        if self.short_side is not None:
            factor = self.short_side / min(rgb.size)
            width, height = (round(side * factor) for side in rgb.size)
            if width * height > self.max_pixels:
                raise BadImageError(f"{name}: {_too_large(f'{width}x{height} pixels after resizing', self.max_pixels)}")
        if is_read_otherwise(upright, rgb):
            if not self.read_otherwise.any():
                logger.warning(
                    f"{name}: is of 16 bits or transparent. Pipelines of transformers read such images as other pixels "
                    "than this script and our image processors: give them what "
                    "hf_internimage.models.rgb_images.to_rgb makes of Pillow's image."
                )
            self.read_otherwise[zlib.crc32(data) % len(self.read_otherwise)] = 1
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
    "MAX_PIXELS",
    "Augmented",
    "BadImageError",
    "ImageReader",
    "RowTransform",
    "check_images",
    "decode_image",
    "name_of",
    "read_bytes",
    "target_size",
]
