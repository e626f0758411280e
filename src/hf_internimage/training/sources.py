# SPDX-License-Identifier: MIT
"""Where data come from, for every task: arguments that name them, and folders and streams -> splits of `datasets`."""

import glob
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, IterableDataset, load_dataset
from datasets.table import InMemoryTable
from transformers.utils import logging

from .images import MAX_PIXELS, read_bytes

logger = logging.get_logger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
IMAGE_ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
IMAGE_ENDINGS |= {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_STREAM_SHARDS = 1024  # of an image folder


@dataclass
class SourceArguments:
    """Where data are and which part of them to use, whatever the task; each task derives its own, with its folders."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset on the Hugging Face Hub, or a local dataset repository."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of that dataset."})
    train_split_name: str | None = field(
        default=None, metadata={"help": "Split to train on; found by its usual names if not given."}
    )
    validation_split_name: str | None = field(
        default=None, metadata={"help": "Split to validate on; found by its usual names if not given."}
    )
    train_dir: str | None = field(default=None, metadata={"help": "Folder of training data instead of dataset_name."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder of validation data, likewise."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share to validate on where there is no validation data; 0 for none."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images only, chosen at random."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on this many images only, chosen likewise."}
    )
    max_image_pixels: int = field(default=MAX_PIXELS, metadata={"help": "Larger images are an error."})
    data_cache_dir: str | None = field(
        default=None, metadata={"help": "Where datasets keeps what it downloads and converts."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.train_val_split < 1:
            raise ValueError(f"train_val_split is {self.train_val_split}, expected at least 0 and less than 1.")
        self.check_positive("max_train_samples", "max_eval_samples", "max_image_pixels")
        folders = [name for name in (f"{split}_dir" for split in SPLITS) if getattr(self, name, None)]
        if self.dataset_name is None and not folders:
            raise ValueError("No data: set dataset_name, or train_dir and its like.")
        if self.dataset_name is not None and folders:
            raise ValueError(f"dataset_name and {folders[0]} are both set; choose one of them.")

    def check_positive(self, *names: str) -> None:
        """Raise ValueError naming the first of these numbers that is set, and to less than 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1.")

    def name_of_split(self, split: str, present: Collection[str]) -> str | None:
        """The name that train, validation or test has among the splits of `dataset_name`; None if it is not there.

        Raises:
            ValueError: if the name that was given is not among them.
        """
        wanted = getattr(self, f"{split}_split_name")
        if wanted is not None and wanted not in present:
            raise ValueError(
                f"{self.dataset_name} has no split {wanted!r}; set {split}_split_name to one of {sorted(present)}."
            )
        return wanted or next((name for name in SPLITS[split] if name in present), None)

    def load_split(self, split: str) -> tuple[str, Dataset] | None:
        """The name and the rows of a split of `dataset_name`; None if it is not there."""
        present = load_dataset(
            self.dataset_name, self.dataset_config_name, revision=self.dataset_revision, cache_dir=self.data_cache_dir
        )
        name = self.name_of_split(split, present)
        return None if name is None else (name, present[name])


def choose(dataset: Any, count: int | None, seed: int) -> Any:
    """So many rows of a Dataset chosen at random, in their order; all if None. No dataset (None) stays none."""
    if dataset is None or count is None:
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count]))


def read_folder(folder: str, streaming: bool, cache_dir: str | None) -> Dataset | IterableDataset:
    """What a folder holds, recognised by its files: a folder of images for each class, or files that datasets reads.

    Raises:
        ValueError: naming the folder or file, if it holds nothing of this, several kinds, or a class without images.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: is not a folder; give one that holds images, Parquet files or .tar files.")
    files = list_files(folder)
    images = [path for path in files if os.path.splitext(path)[1].lower() in IMAGE_ENDINGS]
    kinds = {
        "imagefolder": [path for path in files if os.path.basename(path) in _METADATA],
        "parquet": [path for path in files if path.endswith(".parquet") and os.path.basename(path) not in _METADATA],
        "webdataset": [path for path in files if path.endswith(".tar")],
    }
    present = [kind for kind, paths in kinds.items() if paths]
    if not present:
        return _read_class_folders(folder, images, sorted(set(files) - set(images)), streaming)
    if len(present) > 1 or (images and present != ["imagefolder"]):
        some = [*(kinds[kind][0] for kind in present), *images]
        raise ValueError(
            f"{folder}: holds data of several kinds ({some[0]}, {some[1]}); keep them in separate folders."
        )
    (kind,) = present
    patterns = [glob.escape(path) for path in (files if kind == "imagefolder" else kinds[kind])]
    return load_dataset(kind, data_files={"train": patterns}, split="train", streaming=streaming, cache_dir=cache_dir)


def list_files(folder: str) -> list[str]:
    """All files below a folder, but hidden ones; the same order everywhere."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _read_class_folders(
    folder: str, images: list[str], others: list[str], streaming: bool
) -> Dataset | IterableDataset:
    """One class for each folder in `folder`, in the order of their names; images may lie deeper."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    usual = {name for split in SPLITS.values() for name in split}
    if names and usual.issuperset(map(str.lower, names)):
        raise ValueError(f"{folder}: holds splits, not classes ({listed(names)}); set train_dir, validation_dir, ...")
    if not images:
        raise ValueError(f"{folder}: holds no images, Parquet files or .tar files; check the path.")
    index_of = {name: index for index, name in enumerate(names)}
    start = len(os.path.join(folder, ""))
    labels = [index_of.get(path[start:].partition(os.sep)[0]) for path in images]
    if None in labels:
        loose = images[labels.index(None)]
        raise ValueError(f"{loose}: belongs to no class; put it into a folder named after its class.")
    empty = [os.path.join(folder, names[index]) for index in sorted(set(index_of.values()) - set(labels))]
    if empty:
        raise ValueError(f"{listed(empty)}: holds no image; add images of that class or remove the folder.")
    if others:
        logger.warning(
            f"Left out {len(others)} files in {folder} that are no images by their names, such as {others[0]}."
        )
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    # Dataset.from_dict would look at every file.
    paths = pa.StructArray.from_arrays([pa.nulls(len(images), pa.binary()), pa.array(images)], ["bytes", "path"])
    table = InMemoryTable.from_arrays([paths, pa.array(labels)], schema=features.arrow_schema)
    dataset = Dataset(table, info=DatasetInfo(features=features))
    if not streaming:
        return dataset
    mixed = dataset.shuffle(seed=0).flatten_indices(keep_in_memory=True)  # a shard of each class would mix badly
    return mixed.to_iterable_dataset(num_shards=min(_STREAM_SHARDS, len(mixed)))


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


__all__ = [
    "IMAGE_ENDINGS",
    "SPLITS",
    "SourceArguments",
    "choose",
    "is_image",
    "keep_stream",
    "list_files",
    "listed",
    "read_folder",
]
