# SPDX-License-Identifier: MIT
"""Read splits of data for every task: arguments that name them, folders and datasets, held-out and chosen rows."""

import glob
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, IterableDataset, load_dataset
from datasets.table import InMemoryTable
from transformers.utils import logging

from ..image_files import IMAGE_ENDINGS, MAX_PIXELS, list_files, read_bytes
from ..plain_text import listed

logger = logging.get_logger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_STREAM_SHARDS = 1024  # of an image folder


@dataclass
class SourceArguments:
    """Name the data and the part of them to use. Each task derives its own arguments, with its kinds of folders."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset on the Hugging Face Hub, or a local dataset repository."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of that dataset."})
    train_split_name: str | None = field(
        default=None, metadata={"help": "Split to train on; default: the one named train or training."}
    )
    validation_split_name: str | None = field(
        default=None, metadata={"help": "Split to validate on; default: the one named validation, valid, val or dev."}
    )
    train_dir: str | None = field(default=None, metadata={"help": "Folder of training data instead of dataset_name."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder of validation data, of the same kinds."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share to validate on where there is no validation data; 0 for none."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images only, chosen at random."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on this many images only, chosen in the same way."}
    )
    max_image_pixels: int = field(default=MAX_PIXELS, metadata={"help": "Larger images are an error."})
    bad_images: str = field(
        default="stop",
        metadata={
            "help": "Images that cannot be used: stop (the default) at the first that is read; skip them all, and say "
            "so in the results and the card; or list them all in bad_images.txt before the training, and stop if there "
            "are any."
        },
    )
    data_cache_dir: str | None = field(
        default=None, metadata={"help": "Where datasets keeps what it downloads and converts."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.train_val_split < 1:
            raise ValueError(f"train_val_split is {self.train_val_split}, expected at least 0 and less than 1.")
        if self.bad_images not in ("stop", "skip", "list"):
            raise ValueError(f"bad_images is {self.bad_images!r}, expected stop, skip or list.")
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
        """Return the name of train, validation or test among the splits of `dataset_name`; None if it is not there.

        Raises:
            ValueError: if the name in the arguments is not among them.
        """
        name = getattr(self, f"{split}_split_name")
        if name is not None and name not in present:
            raise ValueError(
                f"{self.dataset_name} has no split {name!r}; set {split}_split_name to one of {sorted(present)}."
            )
        return name or next((usual for usual in SPLITS[split] if usual in present), None)

    def load_split(self, split: str) -> tuple[str, Dataset] | None:
        """Return the name and the rows of a split of `dataset_name`; None if it is not there."""
        present = load_dataset(
            self.dataset_name, self.dataset_config_name, revision=self.dataset_revision, cache_dir=self.data_cache_dir
        )
        name = self.name_of_split(split, present)
        return None if name is None else (name, present[name])


def read_splits(
    arguments: SourceArguments,
    splits: Sequence[str],
    read: Callable[[str], Any],
    *,
    divide_training_data: bool = False,
) -> dict[str, Any]:
    """Read the splits that are there.

    Args:
        splits: names of those to read: train, validation, test.
        read: name of a split -> its rows, or None if it is not there.
        divide_training_data: read train also if it is not among `splits`, where validation is not there and a share of
            the training data stands in for it.

    Raises:
        ValueError: if there is none of them, no train although it is among `splits`, or one without rows.
    """
    datasets = {split: read(split) for split in splits}
    missing = "validation" in splits and datasets["validation"] is None
    if divide_training_data and missing and arguments.train_val_split and "train" not in splits:
        datasets["train"] = read("train")
    datasets = {split: dataset for split, dataset in datasets.items() if dataset is not None}
    if not datasets:
        raise ValueError(f"There are no data for {listed(list(splits))}; check dataset_name or the folders' names.")
    if "train" in splits and "train" not in datasets:
        raise ValueError("There are no training data: set train_dir, or train_split_name to a split of the dataset.")
    for split, dataset in datasets.items():
        if isinstance(dataset, Dataset) and not len(dataset):
            raise ValueError(f"Split {split!r} holds no images; check the data.")
    return datasets


def hold_out_validation(
    datasets: dict[str, Any],
    splits: Sequence[str],
    arguments: SourceArguments,
    seed: int,
    labels_of: Callable[[Dataset], np.ndarray] | None = None,
) -> None:
    """Divide train in `datasets` into train and validation, if validation is among `splits` and not there.

    Args:
        datasets: name of a split -> its rows; changed in place.
        arguments: `train_val_split` is the share to hold out.
        seed: of the choice.
        labels_of: train -> (N,) labels, to hold out the same share of each of them and keep at least one to train on.

    Raises:
        ValueError: for a stream, and if no row would be left on either side.
    """
    share, train = arguments.train_val_split, datasets.get("train")
    if train is None or "validation" not in splits or "validation" in datasets or not share:
        return
    if isinstance(train, IterableDataset):
        raise ValueError(
            "A stream cannot be divided into training and validation data: set validation_dir or "
            "validation_split_name, or set train_val_split to 0 to train without."
        )
    generator = np.random.default_rng(seed)
    labels = np.zeros(len(train), int) if labels_of is None else labels_of(train)
    parts = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        most = len(rows) if labels_of is None else len(rows) - 1
        parts.append(rows[: min(round(len(rows) * share), most)])
    held_out = np.sort(np.concatenate(parts))
    if len(held_out) in (0, len(train)):
        raise ValueError(
            f"train_val_split={share} of {len(train)} images is none, or leaves none to train on: change it, or set it "
            "to 0 to train without validation."
        )
    datasets["train"] = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    datasets["validation"] = train.select(held_out)


def choose_samples(datasets: dict[str, Any], arguments: SourceArguments, seed: int) -> dict[str, Any]:
    """Return the splits with at most `max_train_samples` and `max_eval_samples` rows, chosen at random, in their order.

    Of a stream, the first rows are taken.
    """
    chosen = {}
    for split, dataset in datasets.items():
        count = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
        if count is not None and isinstance(dataset, IterableDataset):
            dataset = dataset.take(count)
        elif count is not None:
            dataset = dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count]))
        chosen[split] = dataset
    return chosen


def read_label_names(path: str | Path, unique: bool = True) -> list[str]:
    """Read class names from a text file with one a line, or from JSON: a list, or an object such as {"0": "wall"}.

    Raises:
        ValueError: naming the file, if it holds none, or if `unique` the same one twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names: Any = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a text file or JSON in UTF-8.") from error
    if isinstance(names, dict):
        if set(names) != {str(index) for index in range(len(names))}:
            raise ValueError(f"{path}: has to number its {len(names)} classes from 0 to {len(names) - 1}.")
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: holds no names, expected a list of texts or an object of numbers and texts.")
    names = [name for name in names if name]
    repeated = sorted({name for name in names if names.count(name) > 1}) if unique else []
    if not names or repeated:
        problem = f"names {listed(repeated)} twice" if repeated else "is empty"
        raise ValueError(f"{path}: {problem}; give each class a name.")
    return names


def check_label_names(
    model_names: Sequence[str] | None, data_names: Sequence[str], data_classes: str, advice: str
) -> None:
    """Raise ValueError unless the classes of the data are a model's, in its order; any classes do without a model.

    A model's LABEL_0, LABEL_1, ... fit any names of the same number.

    Args:
        data_classes: "the data's 3", for the message.
        advice: how to go on, for the message.
    """
    if model_names is None or list(model_names) == list(data_names):
        return
    if len(model_names) == len(data_names) and are_unnamed(model_names):
        return
    raise ValueError(
        f"The model's {len(model_names)} classes ({', '.join(model_names[:3])}...) are not {data_classes} "
        f"({', '.join(data_names[:3])}...) in that order: {advice}."
    )


def are_unnamed(label_names: Sequence[str]) -> bool:
    """Return True for the names that transformers gives to classes without one."""
    return list(label_names) == [f"LABEL_{index}" for index in range(len(label_names))]


def find_image_column(
    features: Features | None,
    name: str | None,
    setting: str = "image_column_name",
    usual_names: Sequence[str] = (),
) -> str:
    """Return the name of a column of images: the one given, the first of `usual_names`, or without these the only one.

    Raises:
        ValueError: naming the setting and its choices, if there is no such column, or the choice is not clear; with
            `usual_names` also for a given column of something else.
    """
    if features is None:
        raise ValueError("The stream does not say which columns it has; set streaming to False.")
    columns = image_columns(features)
    if name is not None:
        if usual_names and name not in columns:
            raise ValueError(f"Column {name!r} is none of images; set {setting} to one of {columns}.")
        if name not in features:
            raise ValueError(f"There is no column {name!r}; set {setting} to one of {sorted(features)}.")
        return name
    choices = [column for column in usual_names if column in columns] if usual_names else columns
    if choices and (usual_names or len(choices) == 1):
        return choices[0]
    if not columns:
        raise ValueError(f"No column holds images; set {setting} to one of {sorted(features)}.")
    problem = "No column is recognised" if usual_names else f"Columns {columns} hold images"
    raise ValueError(f"{problem}; set {setting} to one of {columns}.")


def image_columns(features: Features) -> list[str]:
    """Return the names of the columns that hold images."""
    return [name for name, feature in features.items() if is_image(feature)]


def read_folder(folder: str, streaming: bool, cache_dir: str | None) -> Dataset | IterableDataset:
    """Read a folder by the kind of its files: a folder of images for each class, or files that `datasets` reads.

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


def _read_class_folders(
    folder: str, images: list[str], others: list[str], streaming: bool
) -> Dataset | IterableDataset:
    """Read one class for each folder in `folder`, in the order of their names; images may lie deeper."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    usual = {name for split in SPLITS.values() for name in split}
    if names and usual.issuperset(map(str.lower, names)):
        first = next((name for name in names if name.lower() in SPLITS["train"]), names[0])
        raise ValueError(
            f"{folder}: holds splits, not classes ({listed(names)}); set train_dir, validation_dir and test_dir: "
            f"--train_dir {os.path.join(folder, first)}, and so on."
        )
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
    """Download the first images of a stream into the cache, where `key` identifies them; at once if they are there."""
    images = image_columns(stream.features)
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
    """Return True for images, and for structs of bytes and path, as Parquet files of other writers have them."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


__all__ = [
    "SPLITS",
    "SourceArguments",
    "are_unnamed",
    "check_label_names",
    "choose_samples",
    "find_image_column",
    "hold_out_validation",
    "image_columns",
    "is_image",
    "keep_stream",
    "read_folder",
    "read_label_names",
    "read_splits",
]
