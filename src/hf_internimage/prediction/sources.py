# SPDX-License-Identifier: MIT
"""Read the images to predict: files, folders, patterns, frames of videos, and images in memory."""

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..image_files import (
    IMAGE_ENDINGS,
    MAX_PIXELS,
    BadImageError,
    check_name,
    check_resized,
    decode_image,
    decode_in_both_modes,
    list_files,
    name_of,
)
from ..models.rgb_images import WrongPixelsError, to_8_bits

VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
OUTPUT_FILE = "predictions.json"  # every output folder has it
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
_READERS = min(4, os.cpu_count() or 1)  # threads that decode files
_READ_AHEAD = 2 * _READERS  # images


@dataclass(frozen=True)
class Source:
    """An image to predict, or the reason why there is none.

    Attributes:
        path: the image's or video's file; None for an image in memory.
        frame: number of the frame in its video, from 0; None for an image.
        image: 8-bit RGB, upright; None if the file cannot be used.
        problem: the error if the file cannot be used; it begins with the path.
    """

    path: str | None
    frame: int | None = None
    image: Image.Image | None = None
    problem: str | None = None


def list_inputs(images: Any) -> list[Any]:
    """Return the files and the images in memory that a caller asks for, in the order given.

    Args:
        images: a path; a folder, for all images and videos below it in the order of their names, except in the output
            folders of earlier predictions; a pattern such as
            "photos/*.jpg"; a Pillow image; an array or tensor; or a list of these.

    Returns: paths, Pillow images and arrays.

    Raises:
        ValueError: naming the input, if there is no such file, if a folder or pattern gives none, or if there is none
            at all.
        TypeError: for an input of another kind.
        ImportError: if there are videos and no PyAV.
    """
    inputs = list(_expand(images))
    if videos := [item for item in inputs if is_video(item)]:
        _import_av(videos[0])
    if not inputs:
        raise ValueError("There are no images: give a file, a folder, a pattern such as 'photos/*.jpg', or a list.")
    return inputs


def is_video(item: Any) -> bool:
    """Return True for the path of a video."""
    return isinstance(item, str) and os.path.splitext(item)[1].lower() in VIDEO_ENDINGS


def read_sources(
    inputs: Sequence[Any], *, every: int = 1, max_pixels: int = MAX_PIXELS, short_side: int | None = None
) -> Iterator[Source]:
    """Read what `list_inputs` returns, in its order; threads decode some files ahead.

    Args:
        inputs: paths, Pillow images and arrays.
        every: of a video, every so many frames one is taken, beginning with the first.
        max_pixels: see `image_files.decode_image`.
        short_side: that of `image_files.check_resized`; an image that becomes too large is left out.

    Raises:
        ValueError: for an image in memory that cannot be used.
    """
    pending: deque[Future[Source]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for item in inputs:
                if is_video(item):
                    while pending:
                        yield pending.popleft().result()
                    yield from _read_video(item, every)
                    continue
                pending.append(pool.submit(_read_image, item, max_pixels, short_side))
                if len(pending) > _READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _expand(images: Any) -> Iterator[Any]:
    if isinstance(images, (str, Path)):
        yield from _expand_path(os.fspath(images))
    elif isinstance(images, Image.Image):
        yield images
    elif hasattr(images, "__array__"):  # numpy's arrays, tensors
        if images.ndim == 4:
            yield from images
        else:
            yield images
    elif isinstance(images, Iterable):
        for image in images:
            yield from _expand(image)
    else:
        raise TypeError(
            f"An image is given as {type(images).__name__}; give a path, a Pillow image, an array, or a list of these."
        )


def _expand_path(path: str) -> Iterator[str]:
    check_name(path)
    if os.path.isdir(path):
        files = [
            file for file in _without_outputs(list_files(path), path) if _ending(file) in IMAGE_ENDINGS | VIDEO_ENDINGS
        ]
        if not files:
            raise ValueError(f"{path}: holds no image or video; check the folder.")
        yield from files
    elif os.path.exists(path):
        yield path
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise ValueError(f"{path}: matches no file; check the pattern.")
        for match in matches:
            if not os.path.isdir(match):
                check_name(match)
                yield match  # a link to nothing, too: reading it says so
            elif "**" not in path:  # else the files in the folder match by themselves
                yield from _expand_path(match)
    else:
        raise ValueError(f"{path}: there is no such file or folder.")


def _without_outputs(files: list[str], folder: str) -> list[str]:
    """Return the files that are not in the output folder of an earlier prediction somewhere below `folder`."""
    places = {os.path.dirname(file) for file in files if os.path.basename(file) == OUTPUT_FILE}
    outputs = tuple(os.path.join(place, "") for place in places - {os.path.dirname(os.path.join(folder, ""))})
    return [file for file in files if not file.startswith(outputs)] if outputs else files


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _read_image(item: Any, max_pixels: int, short_side: int | None) -> Source:
    path = item if isinstance(item, str) else str(getattr(item, "filename", "")) or None
    try:
        if isinstance(item, str):
            image = decode_image(item, max_pixels)
        else:
            given = item if isinstance(item, Image.Image) else _from_array(item)
            image = decode_in_both_modes(given, name_of(path), max_pixels)[1]
        check_resized(image.size, short_side, name_of(path), max_pixels)
        return Source(path, image=image)
    except BadImageError as error:
        if path is None:
            raise
        return Source(path, problem=" ".join(str(error).split()))


def _from_array(array: Any) -> Image.Image:
    """Return an array or tensor as a Pillow image.

    Shapes: (H, W), (H, W, C) or (C, H, W), with 1, 3 or 4 channels. Values: 8 bits; 16 bits, of which the upper 8 are
    taken; floats from 0 to 1 or, if larger, to 255.

    Raises: WrongPixelsError for other shapes and values.
    """
    values = np.asarray(array.cpu() if hasattr(array, "cpu") else array)
    if values.ndim == 3 and values.shape[-1] not in _CHANNELS and values.shape[0] in _CHANNELS:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[-1] not in _CHANNELS):
        raise WrongPixelsError(
            f"An array of an image has the shape {np.shape(array)}, expected (height, width) or (height, width, 3)."
        )
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    if values.dtype != np.uint8:
        values = to_8_bits(values)
    return Image.fromarray(np.ascontiguousarray(values))


def _import_av(path: str) -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{path}: videos are read by PyAV, which is not installed: pip install "hf-internimage[video]"'
        ) from error
    return av


def _read_video(path: str, every: int) -> Iterator[Source]:
    """Decode a video; after an error come no more frames, but a source with the problem."""
    av = _import_av(path)
    number = -1
    try:
        with av.open(path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    image = frame.to_image()
                    yield Source(path, number, image.rotate(frame.rotation, expand=True) if frame.rotation else image)
    except (av.FFmpegError, IndexError) as error:  # IndexError: a file without pictures
        where = "cannot be decoded" if number < 0 else f"cannot be decoded after frame {number}"
        reason = "it has no pictures" if isinstance(error, IndexError) else getattr(error, "strerror", None) or error
        yield Source(path, problem=f"{path}: {where} ({reason}); replace or remove the file.")
    else:
        if number < 0:
            yield Source(path, problem=f"{path}: has no frames; replace or remove the file.")


__all__ = ["OUTPUT_FILE", "VIDEO_ENDINGS", "Source", "is_video", "list_inputs", "read_sources"]
