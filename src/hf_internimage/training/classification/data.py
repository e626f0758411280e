# SPDX-License-Identifier: MIT
"""Image classification data of any kind that `datasets` reads, checked and in one form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset, load_dataset_builder
from datasets.fingerprint import Hasher
from PIL.Image import Image as PILImage
from transformers.utils import logging

from ..images import MAX_PIXELS, ImageTransform, ProcessorPixels
from ..sources import SourceArguments, choose, is_image, keep_stream, listed, read_folder
from .labels import Vocabulary, encode_labels, find_label_column, has_labels, label_array, read_vocabulary

logger = logging.get_logger(__name__)


@dataclass
class DataArguments(SourceArguments):
    """Where the images and labels are, and which part of them to use."""

    test_split_name: str | None = field(
        default=None, metadata={"help": "Split to test on; found by its usual names if not given."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of training data instead of dataset_name: a folder of images for each class, images with a "
            "metadata.csv or metadata.jsonl, Parquet files, or webdataset shards (.tar)."
        },
    )
    test_dir: str | None = field(default=None, metadata={"help": "Folder of test data, likewise."})
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
        default=None, metadata={"help": "Validate and test on this many images only, chosen likewise."}
    )
    max_image_pixels: int = field(
        default=MAX_PIXELS,
        metadata={"help": "Larger JPEG files are decoded at a reduced size; other larger images are an error."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("shuffle_buffer", "num_classes")


@dataclass
class LoadedData:
    """Splits with images undecoded and labels as class indices, the same in all.

    Attributes:
        train: a `Dataset`, or an `IterableDataset` if streamed (see `streams.TrainingStream`); None if not asked for.
        validation, test: a `Dataset`, or None if not asked for or not there.
        image_column: {"bytes": ..., "path": ...} of each image.
        label_column: int64, or a list of it for each image if `multi_label`.
        label_names: in the order of the indices.
        multi_label: whether each image has any number of labels.
        max_pixels: see `images.decode_image`.
    """

    train: Dataset | IterableDataset | None
    validation: Dataset | None
    test: Dataset | None
    image_column: str
    label_column: str
    label_names: list[str]
    multi_label: bool
    max_pixels: int = MAX_PIXELS
    _counts: np.ndarray | None = field(default=None, init=False, repr=False)

    def transform(self, prepare: Callable[[PILImage, list[int]], torch.Tensor]) -> ImageTransform:
        """For `Dataset.with_transform` or `TrainingStream`: examples of a split -> `pixel_values` and `labels`."""
        return ImageTransform(
            prepare, self.image_column, self.label_column, len(self.label_names), self.multi_label, self.max_pixels
        )

    def evaluation_transform(self, processor: Any) -> ImageTransform:
        """The transform that prepares images with an image processor and nothing else."""
        return self.transform(ProcessorPixels(processor))

    def class_counts(self) -> np.ndarray:
        """Training images of each class, (classes,); an image with several labels counts for each.

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
        """Weights (classes,), float32, that make all classes count alike; their mean over the images is 1.

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
    arguments: DataArguments, seed: int = 0, splits: Sequence[str] = ("train", "validation", "test")
) -> LoadedData:
    """The data that the arguments describe, with every label checked (those of a stream while it is read).

    Classes and their order come from the training split, or from the first of `splits` if that is not among them;
    other splits are matched by class name. Without validation data, a share of each class of the training data is held
    out. While training is streamed, the other splits are still kept on disk, since they are read again and again.

    Let the main process of a machine run this first (`TrainingArguments.main_process_first`): it fills the cache.

    Args:
        arguments: where the data are.
        seed: of the held-out share and of the choice of `max_train_samples`.
        splits: which of train, validation and test to load; those that are not there are None.

    Raises:
        ValueError: in one sentence naming the file or column, for anything that is wrong with the data.
    """
    found = {split: _find(arguments, split) for split in splits}
    found = {split: dataset for split, dataset in found.items() if dataset is not None}
    if not found:
        raise ValueError(f"There are no data for {listed(list(splits))}; check dataset_name or the folders' names.")
    if "train" in splits and "train" not in found:
        raise ValueError("There are no training data: set train_dir, or train_split_name to a split of the dataset.")

    first: Any = found.get("train", next(iter(found.values())))
    image_column = _find_image_column(first.features, arguments.image_column_name)
    label_column = find_label_column(first.features, arguments.label_column_name)
    names = _read_names(arguments.label_names_file) if arguments.label_names_file else None
    vocabulary = read_vocabulary(first, label_column, arguments.multi_label, arguments.num_classes, names)
    test = found.get("test")
    if test is not None and len(found) > 1 and not has_labels(test, label_column):
        logger.warning("The test data have no labels; they are left out.")
        del found["test"]
    prepared = {
        split: _prepare(dataset, split, image_column, label_column, vocabulary) for split, dataset in found.items()
    }

    train = prepared.get("train")
    if train is not None and "validation" in splits and "validation" not in prepared and arguments.train_val_split:
        if isinstance(train, IterableDataset):
            raise ValueError(
                "A stream cannot be divided into training and validation data: set validation_dir or "
                "validation_split_name, or set train_val_split to 0 to train without."
            )
        train, prepared["validation"] = _hold_out(train, label_column, vocabulary, arguments.train_val_split, seed)
    if train is not None:
        train = _first(train, arguments.max_train_samples, seed)
    for split in ("validation", "test"):
        if split in prepared:
            prepared[split] = _first(prepared[split], arguments.max_eval_samples, seed)
    data = LoadedData(
        train,
        prepared.get("validation"),
        prepared.get("test"),
        image_column,
        label_column,
        list(vocabulary.names),
        vocabulary.multi_label,
        arguments.max_image_pixels,
    )
    if isinstance(data.train, Dataset) and arguments.max_train_samples is None:
        empty = [data.label_names[index] for index in np.flatnonzero(data.class_counts() == 0)]
        if empty:
            logger.warning(f"There is no training image of {listed(empty)}.")
    return data


def _find(arguments: DataArguments, split: str) -> Dataset | IterableDataset | None:
    """A split as `datasets` reads it, or None if it is not there."""
    streaming = arguments.streaming and split == "train"
    if arguments.dataset_name is None:
        folder = getattr(arguments, f"{split}_dir")
        return None if folder is None else read_folder(folder, streaming, arguments.data_cache_dir)
    options: dict[str, Any] = {"revision": arguments.dataset_revision, "cache_dir": arguments.data_cache_dir}
    if arguments.streaming:
        builder = load_dataset_builder(arguments.dataset_name, arguments.dataset_config_name, **options)
        present = builder.as_streaming_dataset()
    else:
        present = load_dataset(arguments.dataset_name, arguments.dataset_config_name, **options)
    name = arguments.name_of_split(split, present)
    if name is None or not arguments.streaming or streaming:
        return None if name is None else present[name]
    key = Hasher.hash([builder.cache_dir, name, arguments.max_eval_samples])
    return keep_stream(present[name], arguments.max_eval_samples, key, arguments.data_cache_dir)


def _find_image_column(features: Features | None, wanted: str | None) -> str:
    if features is None:
        raise ValueError("The stream does not say which columns it has; set streaming to False.")
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"There is no column {wanted!r}; set image_column_name to one of {sorted(features)}.")
        return wanted
    found = [name for name, feature in features.items() if is_image(feature)]
    if len(found) != 1:
        what = f"Columns {found} hold images" if found else "No column holds images"
        raise ValueError(f"{what}; set image_column_name to one of {found or sorted(features)}.")
    return found[0]


def _prepare(
    dataset: Dataset | IterableDataset, split: str, image_column: str, label_column: str, vocabulary: Vocabulary
) -> Any:
    """The two columns, with images undecoded and labels encoded."""
    for column in (image_column, label_column):
        if column not in dataset.features:
            raise ValueError(f"Split {split!r} has no column {column!r}, only {sorted(dataset.features)}.")
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"Split {split!r} holds no images; check the data.")
    feature = dataset.features[image_column]
    if not is_image(feature) and feature not in (Value("string"), Value("binary")):
        raise ValueError(f"Column {image_column!r} holds {feature}, not images; set image_column_name.")
    dataset = dataset.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))
    return encode_labels(dataset, split, label_column, image_column, vocabulary)


def _hold_out(train: Dataset, column: str, vocabulary: Vocabulary, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Training data, and a random share of them; of each class the same, where images have one label."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(len(train), int) if vocabulary.multi_label else label_array(train, column)
    held = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(round(len(rows) * share), len(rows) - 1)])
    chosen = np.sort(np.concatenate(held))
    if not len(chosen):
        raise ValueError(
            f"train_val_split={share} of {len(train)} images is none of any class: raise it, or set it to 0 to train "
            "without validation."
        )
    return train.select(np.setdiff1d(np.arange(len(train)), chosen)), train.select(chosen)


def _first(dataset: Any, count: int | None, seed: int) -> Any:
    if count is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(count)
    return choose(dataset, count, seed)


def _read_names(path: str) -> list[str]:
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a text file in UTF-8.") from error
    return names


__all__ = ["DataArguments", "LoadedData", "load_data"]
