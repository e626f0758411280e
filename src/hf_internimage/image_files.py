# SPDX-License-Identifier: MIT
"""Find image files in folders, and decode images of any kind as RGB; errors name the file."""

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from .models.rgb_images import WrongPixelsError, to_rgb

IMAGE_ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
IMAGE_ENDINGS |= {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
MAX_PIXELS = 178_956_970  # Pillow's own limit
_JPEG_FACTORS = (2, 4, 8)  # by which libjpeg can reduce while it decodes

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
        with _open_remote(path) if "://" in path else open(path, "rb") as file:
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
    return decode_in_both_modes(image, name, max_pixels)[1]


def decode_in_both_modes(image: bytes | Image.Image, name: str, max_pixels: int) -> tuple[Image.Image, Image.Image]:
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


def unlimited_short_side(processor: Any) -> int | None:
    """Return the pixels to which an image processor resizes the short side, if the long one may become any length."""
    size = dict(getattr(processor, "size", None) or {})
    is_limited = size.get("height") or size.get("longest_edge") or size.get("max_height")
    return None if is_limited or not getattr(processor, "do_resize", False) else size.get("shortest_edge")


def check_resized(size: tuple[int, int], short_side: int | None, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise BadImageError for an image that an image processor would resize to more than `max_pixels`.

    Args:
        size: width and height of the image.
        short_side: that of `unlimited_short_side`.
        name: name of the image for the message.
    """
    if short_side is None:
        return
    width, height = (round(side * short_side / min(size)) for side in size)
    if width * height > max_pixels:
        raise BadImageError(f"{name}: {_too_large(f'{width}x{height} pixels after resizing', max_pixels)}")


def _too_large(size: str, max_pixels: int) -> str:
    return (
        f"is too large ({size.rstrip('.')}; the limit is {max_pixels:,} pixels): make it smaller, or raise "
        "max_image_pixels if the file is trusted."
    )


def list_files(folder: str) -> list[str]:
    """Return the paths of all files below a folder except hidden ones, in the same order everywhere.

    Raises:
        ValueError: for a link to a folder that it was reached through, and for a name that is not UTF-8.
    """
    paths = []
    ways = {folder: [Path(folder).resolve()]}  # path of a folder -> where it and the folders above it really are
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        way = ways.pop(parent)
        for name in folders:
            path = os.path.join(parent, name)
            place = way[-1] / name
            if os.path.islink(path):
                place = place.resolve()
                if any(each.is_relative_to(place) for each in way):
                    raise ValueError(f"{path} is a link to a folder around it, which never ends; remove the link.")
            ways[path] = [*way, place]
        paths += [os.path.join(parent, name) for name in sorted(names) if not name.startswith(".")]
    for path in paths:
        check_name(path)
    return paths


def check_name(path: str) -> None:
    """Raise ValueError for a path that cannot be written down, because a name in it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path!a} is a name that is not UTF-8; rename the file.") from error


def _open_remote(path: str) -> Any:
    """Open a file of the network by the package `datasets`, which the extra `train` brings."""
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    return xopen(path, "rb", download_config=DownloadConfig())


__all__ = [
    "IMAGE_ENDINGS",
    "MAX_PIXELS",
    "BadImageError",
    "Encoded",
    "check_name",
    "check_resized",
    "decode_image",
    "decode_in_both_modes",
    "list_files",
    "name_of",
    "read_bytes",
    "unlimited_short_side",
]
