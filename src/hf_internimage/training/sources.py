# SPDX-License-Identifier: MIT
"""Folders and streams -> splits of `datasets`."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, load_dataset
from transformers.utils import logging

from .images import read_bytes

logger = logging.get_logger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_IMAGE_ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
_IMAGE_ENDINGS |= {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
_STREAM_SHARDS = 1024  # of an image folder


def read_folder(folder: Path, streaming: bool, cache_dir: str | None) -> Dataset | IterableDataset:
    """What a folder holds, recognised by its files."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; give one that holds images, Parquet files or .tar files.")
    files = sorted(path for path in folder.rglob("*") if not _hidden(path, folder))
    kinds = {
        "parquet": [path for path in files if path.suffix == ".parquet" and path.name != "metadata.parquet"],
        "webdataset": [path for path in files if path.suffix == ".tar"],
        "imagefolder": [path for path in files if path.name.partition(".")[0] == "metadata" and path.is_file()],
    }
    present = [kind for kind, paths in kinds.items() if paths]
    if len(present) > 1:
        some = ", ".join(str(kinds[kind][0]) for kind in present)
        raise ValueError(f"{folder}: holds data of several kinds ({some}); keep them in separate folders.")
    if not present:
        return _read_class_folders(folder, files, streaming)
    kind = present[0]
    paths = files if kind == "imagefolder" else kinds[kind]
    data_files = [glob.escape(str(path)) for path in paths if path.is_file()]
    return load_dataset(kind, data_files={"train": data_files}, split="train", streaming=streaming, cache_dir=cache_dir)


def _read_class_folders(folder: Path, files: list[Path], streaming: bool) -> Dataset | IterableDataset:
    """One class for each folder in `folder`, in the order of their names; images may lie deeper."""
    names = [path.name for path in files if path.is_dir() and path.parent == folder]
    usual = {name for split in SPLITS.values() for name in split}
    if names and usual.issuperset(map(str.lower, names)):
        raise ValueError(f"{folder}: holds splits, not classes ({listed(names)}); set train_dir, validation_dir, ...")
    images = [path for path in files if path.suffix.lower() in _IMAGE_ENDINGS and path.is_file()]
    if not images:
        raise ValueError(f"{folder}: holds no images, Parquet files or .tar files; check the path.")
    loose = next((path for path in images if path.parent == folder), None)
    if loose is not None:
        raise ValueError(f"{loose}: belongs to no class; put it into a folder named after its class.")
    others = [path for path in files if path.is_file() and path.suffix.lower() not in _IMAGE_ENDINGS]
    if others:
        logger.warning(
            f"Left out {len(others)} files in {folder} that are no images by their names, such as {others[0]}."
        )
    classes = {name: index for index, name in enumerate(names)}
    labels = [classes[path.relative_to(folder).parts[0]] for path in images]
    empty = [str(folder / name) for name, index in classes.items() if index not in set(labels)]
    if empty:
        raise ValueError(f"{listed(empty)}: holds no image; add images of that class or remove the folder.")
    columns = {"image": [{"bytes": None, "path": str(path)} for path in images], "label": labels}
    dataset = Dataset.from_dict(
        columns, features=Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    )
    if not streaming:
        return dataset
    mixed = dataset.shuffle(seed=0).flatten_indices(keep_in_memory=True)  # a shard of each class would mix badly
    return mixed.to_iterable_dataset(num_shards=min(_STREAM_SHARDS, len(mixed)))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def keep_stream(stream: IterableDataset, count: int | None, key: str, cache_dir: str | None) -> Dataset:
    """The first images of a stream, downloaded once into the cache, where `key` identifies them."""
    images = [name for name, feature in stream.features.items() if is_image(feature)]
    for name in images:
        stream = stream.cast_column(name, Image(decode=False))
    stream = stream if count is None else stream.take(count)

    def read() -> Any:
        for example in stream:
            for name in images:
                if example[name] is not None:
                    example[name] = {"bytes": read_bytes(example[name]), "path": example[name]["path"]}
            yield example

    return Dataset.from_generator(read, features=stream.features, cache_dir=cache_dir, fingerprint=key)


def is_image(feature: Any) -> bool:
    """Also a struct of bytes and path, which is how images look in Parquet files of other writers."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names for a message, the first few of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


__all__ = ["SPLITS", "is_image", "keep_stream", "listed", "read_folder"]
