# SPDX-License-Identifier: MIT
"""Read encoded images of any kind as RGB, and turn rows of a split into examples; errors name the image's file."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DownloadConfig, IterableDataset
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

MAX_PIXELS = 178_956_970  # Pillow's own limit
_JPEG_FACTORS = (2, 4, 8)  # by which libjpeg can reduce while it decodes
_CHECKED_AT_ONCE = 256

Encoded = dict[str, Any]  # as `datasets` gives undecoded images: {"bytes": ..., "path": ...}


def name_of(image: Any) -> str:
    """Return an image's path for messages, or a phrase for one without a path."""
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, (str, Path)) else None
    return "an image without a file name" if path is None else str(path)


def read_bytes(image: Encoded) -> bytes:
    """Return the encoded bytes of an undecoded image, from memory, disk or the network.

    Raises:
        ValueError: naming the file, if there is none or it cannot be read.
    """
    if image.get("bytes") is not None:
        return image["bytes"]
    path = image.get("path")
    if path is None:
        raise ValueError("An image has neither bytes nor a path; remove that row from the data.")
    try:
        with xopen(path, "rb", download_config=DownloadConfig()) if "://" in path else open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); restore or remove the file.") from error


def decode_image(image: Encoded | bytes | str | Path | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode any image as 8-bit RGB, upright.

    Transparency is composited on white, as transformers' image processors do. Gray of 16 bits loses its low byte.
    32-bit integers up to 255 are taken as they are, larger ones as 16 bits; floats as 0 to 1 or, if larger, 0 to 255.
    The EXIF orientation is applied; of animations, the first frame is taken. transformers' pipelines drop transparency
    and clip 16 bits: give them what this returns.

    Args:
        image: an undecoded image of `datasets`, encoded bytes, a path, or a Pillow image.
        max_pixels: a JPEG with more is decoded at a half, quarter or eighth of its sides; any other image is an error.

    Raises:
        ValueError: naming the file, if it is unreadable, truncated, empty, too large or of an unknown range.
    """
    name = name_of(image)
    if isinstance(image, (str, Path)):
        image = read_bytes({"path": str(image)})
    elif isinstance(image, dict):
        image = read_bytes(image)
    if image == b"":
        raise ValueError(f"{name}: is empty (0 bytes); replace or remove the file.")
    try:
        opened = _open(image, max_pixels) if isinstance(image, bytes) else image
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened))
    except _WrongPixelsError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # damaged bytes can make Pillow's parsers raise anything
        raise ValueError(f"{name}: cannot be decoded ({error}); replace or remove the file.") from error


class _WrongPixelsError(ValueError):
    """A readable image that cannot be used; the message lacks only the file's name."""


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow refuses twice this
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        if not data.startswith(b"\xff\xd8"):
            raise _WrongPixelsError(_too_large(str(error), max_pixels)) from error
        image = JpegImageFile(io.BytesIO(data))
    width, height = image.size
    if width * height <= max_pixels:
        return image
    if isinstance(image, JpegImageFile):
        for factor in _JPEG_FACTORS:
            if width * height <= max_pixels * factor**2:
                image.draft(None, (width // factor, height // factor))
                return image
    raise _WrongPixelsError(_too_large(f"{width}x{height} pixels", max_pixels))


def _too_large(size: str, max_pixels: int) -> str:
    return (
        f"is too large ({size.rstrip('.')}; the limit is {max_pixels:,} pixels): make it smaller, or raise "
        "max_image_pixels if the file is trusted."
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise _WrongPixelsError(f"has no pixels ({image.width}x{image.height}); replace or remove the file.")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    lowest, highest = float(values.min()), float(values.max())
    if values.dtype.kind == "i" and lowest >= 0 and highest < 2**16:
        return (values >> (8 if highest > 255 else 0)).astype(np.uint8)
    if values.dtype.kind == "f" and lowest >= 0 and highest <= 255:
        return np.round(values * (255 if highest <= 1 else 1)).astype(np.uint8)
    raise _WrongPixelsError(
        f"has 32-bit pixels from {lowest:g} to {highest:g}, a range that says nothing of black and white; convert it "
        "to 8 or 16 bits."
    )


def read_image(image: Encoded, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, bytes]:
    """Return an undecoded image as `decode_image` makes it, and its encoded bytes.

    Raises:
        ValueError: naming the file, as `decode_image` and `read_bytes`.
    """
    data = read_bytes(image)
    return decode_image({"bytes": data, "path": image.get("path")}, max_pixels), data


@dataclass(frozen=True)
class RowTransform:
    """Turn rows of a split into examples each time they are read, as `Dataset.with_transform` does.

    Each task derives its `DatasetTransform` with its own `one`.

    Attributes:
        prepare: an image with its annotations and a key -> inputs of a model. The key is a list of integers that
            belongs to the image: the CRC-32 of its encoded bytes, and the key that `one` is called with.
        max_pixels: see `decode_image`.
    """

    prepare: Callable[..., Any]
    max_pixels: int = MAX_PIXELS

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        examples = [self.one(row) for row in rows]
        return {name: [example[name] for example in examples] for name in examples[0]}

    def one(self, row: dict[str, Any], *key: int) -> dict[str, Any]:
        """Return the example of a single row; `key` is appended to the image's."""
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
    dataset: Any, image_column: str, max_pixels: int = MAX_PIXELS, workers: int = 8
) -> Iterator[tuple[int, str]]:
    """Decode every image of a split as `load_data` gives it; yield the row and the error text of each that fails."""

    def problem(image: Encoded | None) -> str | None:
        try:
            if image is None:
                return f"No image in column {image_column!r}; remove that row from the data."
            decode_image(image, max_pixels)
        except ValueError as error:
            return str(error)
        return None

    rows = dataset if isinstance(dataset, IterableDataset) else dataset.select_columns([image_column])
    with ThreadPoolExecutor(workers) as pool:
        row = 0
        for batch in rows.iter(_CHECKED_AT_ONCE):
            for error_text in pool.map(problem, batch[image_column]):
                if error_text is not None:
                    yield row, error_text
                row += 1


__all__ = [
    "MAX_PIXELS",
    "Augmented",
    "RowTransform",
    "check_images",
    "decode_image",
    "name_of",
    "read_bytes",
    "read_image",
    "target_size",
]
