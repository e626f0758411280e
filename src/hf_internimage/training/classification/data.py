# SPDX-License-Identifier: MIT
"""Read image classification data of any kind that `datasets` reads, check them and bring them into one form."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, IterableDataset, Value, load_dataset_builder
from datasets.fingerprint import Hasher
from PIL.Image import Image as PILImage
from transformers.utils import logging

from ...image_files import MAX_PIXELS, BadImageError
from ...plain_text import listed
from ..images import ImageReader, RowTransform
from ..sources import (
    SourceArguments,
    check_label_names,
    choose_samples,
    find_image_column,
    hold_out_validation,
    is_image,
    keep_stream,
    read_folder,
    read_label_names,
    read_splits,
)
from .labels import Vocabulary, encode_labels, find_label_column, has_labels, label_array, read_vocabulary

logger = logging.get_logger(__name__)


@dataclass
class ClassificationDataArguments(SourceArguments):
    """Name the images and labels, and the part of them to use."""

    test_split_name: str | None = field(
        default=None, metadata={"help": "Split to test on; default: the one named test or testing."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of training data instead of dataset_name: a folder of images for each class, images with a "
            "metadata.csv or metadata.jsonl, Parquet files, or webdataset shards (.tar)."
        },
    )
    test_dir: str | None = field(default=None, metadata={"help": "Folder of test data, of the same kinds."})
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images; found by its type if not given."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels; found by its name or type if not given."}
    )
    label_names_file: str | None = field(
        default=None, metadata={"help": "Text file with one class name a line, in the order of the classes."}
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "Number of classes, for streams whose labels are numbers without names."}
    )
    multi_label: bool | None = field(
        default=None, metadata={"help": "Whether images have lists of labels; found from the data if not given."}
    )
    train_val_split: float = field(
        default=0.15,
        metadata={"help": "Share of each class to validate on where there is no validation data; 0 for none."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training data while training instead of downloading them first; needs max_steps."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Encoded images each process that reads a stream keeps to choose from."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images only, chosen at random (a stream: the first ones)."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on this many images only, chosen in the same way."}
    )
    max_image_pixels: int = field(
        default=MAX_PIXELS,
        metadata={"help": "Larger JPEG files are decoded at a reduced size; other larger images are an error."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("shuffle_buffer", "num_classes")


@dataclass(frozen=True, kw_only=True)
class DatasetTransform(RowTransform):
    """Turn rows of a split into `pixel_values`, as `prepare` makes them, and `labels`.

    Labels are class indices, or float32 rows (classes,) of zeros and ones.

    Attributes:
        prepare: (RGB image, key) -> float tensor (3, H, W).
        image_column, label_column: names of the columns.
        classes: number of them.
        multi_label: True if images have lists of labels.
    """

    prepare: Callable[[PILImage, list[int]], torch.Tensor]
    image_column: str
    label_column: str
    classes: int
    multi_label: bool

    def read(self, row: dict[str, Any]) -> tuple[PILImage, Any, bytes]:
        """Return the image of a row, its label or labels, and the image's encoded bytes.

        Raises:
            BadImageError: naming the file, for an image that cannot be used.
        """
        if row[self.image_column] is None:
            raise BadImageError(f"a row without an image: column {self.image_column!r} is empty; remove the row.")
        image, data = self.reader.read(row[self.image_column])
        return image, row[self.label_column], data

    def one(self, row: dict[str, Any], *key: int) -> dict[str, Any]:
        image, labels, data = self.read(row)
        if self.multi_label:
            indices, labels = labels, torch.zeros(self.classes)
            labels[indices] = 1
        return {"pixel_values": self.prepare(image, [zlib.crc32(data), *key]), "labels": labels}


@dataclass(frozen=True)
class ProcessorTransform:
    """Prepare images by the image processor and nothing else: `prepare` of a `DatasetTransform`, for evaluation."""

    processor: Any

    def __call__(self, image: PILImage, key: list[int]) -> torch.Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


@dataclass
class ClassificationData:
    """Splits with images undecoded and labels as class indices, the same in all.

    Attributes:
        train: a `Dataset`, or an `IterableDataset` if streamed (see `streams.TrainingStream`); None if not loaded.
        validation, test: a `Dataset`, or None if not loaded or not there.
        image_column: {"bytes": ..., "path": ...} of each image.
        label_column: int64, or a list of it for each image if `multi_label`.
        label_names: in the order of the indices.
        multi_label: True if each image has any number of labels.
        reader: reads the images.
    """

    train: Dataset | IterableDataset | None
    validation: Dataset | None
    test: Dataset | None
    label_names: list[str]
    image_column: str
    label_column: str
    multi_label: bool
    reader: ImageReader = field(default_factory=ImageReader)
    _counts: np.ndarray | None = field(default=None, init=False, repr=False)

    def training_transform(self, augmentation: Callable[[PILImage, list[int]], torch.Tensor]) -> DatasetTransform:
        """Return the transform of rows into examples whose pixels `augmentation` makes of an image and its key."""
        return DatasetTransform(
            prepare=augmentation,
            image_column=self.image_column,
            label_column=self.label_column,
            classes=len(self.label_names),
            multi_label=self.multi_label,
            reader=self.reader,
        )

    def evaluation_transform(self, processor: Any) -> DatasetTransform:
        """Return the transform of rows into examples by an image processor and nothing else."""
        return replace(
            self.training_transform(ProcessorTransform(processor)), reader=self.reader.for_processor(processor)
        )

    def class_counts(self) -> np.ndarray:
        """Return the number of training images of each class, (classes,); one with several labels counts for each.

        Raises:
            ValueError: if the training data are a stream.
        """
        if not isinstance(self.train, Dataset):
            raise ValueError("The training data are a stream, whose classes are not counted; set streaming to False.")
        if self._counts is None:
            labels = label_array(self.train, self.label_column)
            self._counts = np.bincount(labels, minlength=len(self.label_names))
        return self._counts

    def class_weights(self) -> torch.Tensor:
        """Return weights (classes,), float32, that make all classes count alike; their mean over the images is 1.

        With several labels an image, the weight of a class is that of its sum over images that have it.

        Raises:
            ValueError: naming the classes without an image, or if the training data are a stream.
        """
        counts = self.class_counts()
        empty = [name for name, count in zip(self.label_names, counts, strict=True) if not count]
        if empty:
            raise ValueError(f"No training image of {listed(empty)}: class weights need images of every class.")
        return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()


def load_data(
    arguments: ClassificationDataArguments,
    seed: int = 0,
    splits: Sequence[str] = ("train", "validation", "test"),
    label_names: Sequence[str] | None = None,
) -> ClassificationData:
    """Read the data that the arguments name, with every label checked (those of a stream while it is read).

    Classes and their order come from the training split, or from the first of `splits` if that is not among them;
    other splits are matched by class name. Without validation data, a share of each class of the training data is held
    out. While training is streamed, the other splits are still kept on disk, since they are read again and again.

    Let the main process of a machine run this first (`TrainingArguments.main_process_first`): it fills the cache.

    Args:
        arguments: names of the data.
        seed: of the held-out share and of the choice of `max_train_samples`.
        splits: train, validation and test, or some of them; those that are not there are None.
        label_names: the classes that the data must have in this order, such as a model's; LABEL_0, ... fit any names.

    Raises:
        ValueError: in one sentence naming the file or column, for anything that is wrong with the data.
    """
    datasets = read_splits(arguments, splits, partial(_read_split, arguments))
    first: Any = datasets.get("train", next(iter(datasets.values())))
    image_column = find_image_column(first.features, arguments.image_column_name)
    file = arguments.label_names_file
    names = read_label_names(file, unique=False) if file else None
    label_column = find_label_column(first.features, arguments.label_column_name)
    vocabulary = read_vocabulary(first, label_column, arguments.multi_label, arguments.num_classes, names)
    test = datasets.get("test")
    if test is not None and len(datasets) > 1 and not has_labels(test, label_column):
        logger.warning("The test data have no labels; they are left out.")
        del datasets["test"]
    for split, dataset in datasets.items():
        datasets[split] = _prepare(dataset, split, image_column, label_column, vocabulary)

    def labels_of(train: Dataset) -> np.ndarray:
        return np.zeros(len(train), int) if vocabulary.multi_label else label_array(train, label_column)

    hold_out_validation(datasets, splits, arguments, seed, labels_of)
    datasets = choose_samples(datasets, arguments, seed)
    data = ClassificationData(
        train=datasets.get("train"),
        validation=datasets.get("validation"),
        test=datasets.get("test"),
        label_names=list(vocabulary.names),
        image_column=image_column,
        label_column=label_column,
        multi_label=vocabulary.multi_label,
        reader=ImageReader(arguments.max_image_pixels),
    )
    classes = f"the data's {len(data.label_names)}"
    check_label_names(
        label_names, data.label_names, classes, "use `hf-internimage evaluate`, which matches them by name"
    )
    if isinstance(data.train, Dataset) and arguments.max_train_samples is None:
        empty = [data.label_names[index] for index in np.flatnonzero(data.class_counts() == 0)]
        if empty:
            logger.warning(f"There is no training image of {listed(empty)}.")
    return data


def _read_split(arguments: ClassificationDataArguments, split: str) -> Dataset | IterableDataset | None:
    """Read a split with the columns it has, or return None if it is not there."""
    streaming = arguments.streaming and split == "train"
    if arguments.dataset_name is None:
        folder = getattr(arguments, f"{split}_dir")
        return None if folder is None else read_folder(folder, streaming, arguments.data_cache_dir)
    if not arguments.streaming:
        named = arguments.load_split(split)
        return None if named is None else named[1]
    builder = load_dataset_builder(
        arguments.dataset_name,
        arguments.dataset_config_name,
        revision=arguments.dataset_revision,
        cache_dir=arguments.data_cache_dir,
    )
    streams = builder.as_streaming_dataset()
    name = arguments.name_of_split(split, streams)
    if name is None or streaming:
        return None if name is None else streams[name]
    key = Hasher.hash([builder.cache_dir, name, arguments.max_eval_samples])
    return keep_stream(streams[name], arguments.max_eval_samples, key, arguments.data_cache_dir)


def _prepare(
    dataset: Dataset | IterableDataset, split: str, image_column: str, label_column: str, vocabulary: Vocabulary
) -> Any:
    """Keep the two columns, with images undecoded and labels encoded."""
    for column in (image_column, label_column):
        if column not in dataset.features:
            raise ValueError(f"Split {split!r} has no column {column!r}, only {sorted(dataset.features)}.")
    feature = dataset.features[image_column]
    if not is_image(feature) and feature not in (Value("string"), Value("binary")):
        raise ValueError(f"Column {image_column!r} holds {feature}, not images; set image_column_name.")
    dataset = dataset.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))
    return encode_labels(dataset, split, label_column, image_column, vocabulary)


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack examples to a batch: `pixel_values` (N, 3, H, W), and `labels` (N,) int64 or (N, classes) float32."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.stack([torch.as_tensor(example["labels"]) for example in examples]),
    }


__all__ = [
    "ClassificationData",
    "ClassificationDataArguments",
    "DatasetTransform",
    "ProcessorTransform",
    "collate",
    "load_data",
]
