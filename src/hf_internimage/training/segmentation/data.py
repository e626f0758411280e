# SPDX-License-Identifier: MIT
"""Images and their segmentation maps, from folders or `datasets`, checked and in one form."""

import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features
from datasets import Image as ImageFeature
from datasets.table import InMemoryTable
from PIL import Image

from ..images import MAX_PIXELS, decode_image, name_of, read_bytes
from ..sources import IMAGE_ENDINGS, SourceArguments, choose, is_image, list_files, listed
from .augmentation import IGNORED_LABEL

_IMAGES, _MASKS = "images", "masks"
_IMAGE_COLUMN, _LABEL_COLUMN = "image", "label"
_LABEL_NAMES = ("label", "annotation", "mask", "segmentation", "semantic_segmentation", "labels")


@dataclass
class SegmentationDataArguments(SourceArguments):
    """Where the images and their segmentation maps are, and which part of them to use."""

    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of training data instead of dataset_name: images/ and masks/, where a map has its image's "
            "name but for the ending, and holds the number of the class of each pixel; 255 is no class."
        },
    )
    image_suffix: str | None = field(
        default=None,
        metadata={
            "help": "End of the images' names that their maps' lack, such as _leftImg8bit.png; default: .jpg etc."
        },
    )
    mask_suffix: str | None = field(
        default=None, metadata={"help": "The same of the maps, such as _gtFine_labelTrainIds.png; others are left out."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images in a dataset; found by its name if not given."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the maps in a dataset; found by its name if not given."}
    )
    label_names_file: str | None = field(
        default=None,
        metadata={
            "help": "Class names in the order of their numbers: a text file with one a line, or JSON: a list, or an "
            'object such as {"0": "wall"}. With reduce_labels, without the first.'
        },
    )
    reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "0 in a map is no class, and 1 the first one, as in ADE20K, Pascal Context and NYU; default: as "
            "the checkpoint's image processor has it, else false."
        },
    )


@dataclass(frozen=True)
class PairTransform:
    """What turns rows of a split into examples, each time they are read, as `Dataset.with_transform` does.

    Attributes:
        prepare: (RGB image, map (H, W) of classes, key) -> `pixel_values` (3, h, w) and `labels` (h, w). The key is a
            list of integers that belongs to the image: the CRC-32 of its encoded bytes.
        classes: how many.
        reduce_labels: see `SegmentationDataArguments`.
        max_pixels: see `images.decode_image`.
    """

    prepare: Callable[[Image.Image, np.ndarray, list[int]], dict[str, torch.Tensor]]
    classes: int
    reduce_labels: bool
    max_pixels: int = MAX_PIXELS

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = zip(batch[_IMAGE_COLUMN], batch[_LABEL_COLUMN], strict=True)
        examples = [self.prepare(*self.read(image, mask)) for image, mask in rows]
        return {name: [example[name] for example in examples] for name in examples[0]}

    def read(
        self, image: dict[str, Any] | None, mask: dict[str, Any] | None
    ) -> tuple[Image.Image, np.ndarray, list[int]]:
        """An image, its map and its key.

        Raises:
            ValueError: naming the file, for what cannot be read, a map of another size or with unknown classes.
        """
        if image is None or mask is None:
            raise ValueError("An example has no image or no map; remove it from the data.")
        data = read_bytes(image)
        pixels = decode_image({"bytes": data, "path": image.get("path")}, self.max_pixels)
        labels = decode_mask(mask)
        if labels.shape != (pixels.height, pixels.width):
            raise ValueError(
                f"{name_of(mask)}: has {labels.shape[1]}x{labels.shape[0]} pixels, its image {name_of(image)} "
                f"{pixels.width}x{pixels.height}; they have to be of one size."
            )
        if self.reduce_labels:
            labels = np.where((labels == 0) | (labels == IGNORED_LABEL), IGNORED_LABEL, labels - 1)
        known = labels[labels != IGNORED_LABEL]
        if known.size and not 0 <= known.min() <= known.max() < self.classes:
            wrong = int(known.min() if known.min() < 0 else known.max()) + self.reduce_labels
            raise ValueError(
                f"{name_of(mask)}: holds class {wrong}, but there are {self.classes} class names "
                f"({'1' if self.reduce_labels else '0'} is the first, {IGNORED_LABEL} no class); correct either."
            )
        return pixels, labels, [zlib.crc32(data)]


def decode_mask(mask: dict[str, Any]) -> np.ndarray:
    """The numbers in an undecoded map: (H, W) int64. Of an image with a palette, the indices.

    Raises:
        ValueError: naming the file, if it cannot be decoded or has several channels.
    """
    name, data = name_of(mask), read_bytes(mask)
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
    except Exception as error:  # damaged bytes can make Pillow's parsers raise anything
        raise ValueError(f"{name}: cannot be decoded ({error}); replace or remove the file.") from error
    if len(opened.getbands()) != 1 or opened.mode == "F":
        raise ValueError(f"{name}: is {opened.mode}, but a map has the class's number of each pixel in one channel.")
    return np.asarray(opened).astype(np.int64)


@dataclass(frozen=True)
class ProcessorPair:
    """A `PairTransform.prepare` that is the image processor and nothing else; labels are at the network's size."""

    processor: Any

    def __call__(self, image: Image.Image, labels: np.ndarray, key: list[int]) -> dict[str, torch.Tensor]:
        prepared = self.processor(image, segmentation_maps=labels, do_reduce_labels=False, return_tensors="pt")
        return {name: prepared[name][0] for name in ("pixel_values", "labels")}


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of examples.

    Raises:
        ValueError: if they have several sizes.
    """
    sizes = sorted({tuple(example["labels"].shape) for example in examples})
    if len(sizes) > 1:
        raise ValueError(
            f"Images of a batch come out in several sizes, such as {sizes[0]} and {sizes[1]}: set "
            "per_device_eval_batch_size to 1."
        )
    return {name: torch.stack([example[name] for example in examples]) for name in ("pixel_values", "labels")}


@dataclass
class SegmentationData:
    """Splits with images and maps undecoded: columns `image` and `label` of {"bytes": ..., "path": ...}.

    Attributes:
        train, validation: None if not asked for or not there.
        label_names: in the order of the classes, without the one that `reduce_labels` takes away.
        reduce_labels, max_pixels: see `SegmentationDataArguments`.
    """

    train: Dataset | None
    validation: Dataset | None
    label_names: list[str]
    reduce_labels: bool
    max_pixels: int = MAX_PIXELS

    def transform(
        self, prepare: Callable[[Image.Image, np.ndarray, list[int]], dict[str, torch.Tensor]]
    ) -> PairTransform:
        """For `Dataset.with_transform`."""
        return PairTransform(prepare, len(self.label_names), self.reduce_labels, self.max_pixels)


def load_data(
    arguments: SegmentationDataArguments,
    seed: int = 0,
    splits: Sequence[str] = ("train", "validation"),
    label_names: Sequence[str] | None = None,
) -> SegmentationData:
    """The data that the arguments describe. Maps are looked into when they are read.

    Args:
        arguments: where the data are.
        seed: of the held-out share and of the choice of `max_train_samples`.
        splits: which of train and validation to load.
        label_names: of the classes if `label_names_file` is not set.

    Raises:
        ValueError: in one sentence naming the file, for anything that is wrong with the data.
    """
    if arguments.label_names_file is not None:
        label_names = read_label_names(Path(arguments.label_names_file))
    if label_names is None:
        raise ValueError("Set label_names_file: images and maps do not say what the classes are called.")
    if len(label_names) > IGNORED_LABEL:
        raise ValueError(f"There are {len(label_names)} classes, expected at most 255: 255 in a map is no class.")
    found = {split: _find(arguments, split) for split in ("train", "validation")}
    if "train" in splits and found["train"] is None:
        raise ValueError("There are no training data: set train_dir, or train_split_name to a split of the dataset.")
    for split, dataset in found.items():
        if dataset is not None and not len(dataset):
            raise ValueError(f"Split {split!r} holds no images; check the data.")
    train, validation = found["train"], found["validation"]
    if train is not None and validation is None and arguments.train_val_split:
        order = np.random.default_rng(seed).permutation(len(train))
        held_out = round(len(train) * arguments.train_val_split)
        if held_out in (0, len(train)):
            raise ValueError(
                f"train_val_split={arguments.train_val_split} of {len(train)} images leaves none to train on or to "
                "validate with: change it, or set it to 0 to train without validation."
            )
        train, validation = train.select(np.sort(order[held_out:])), train.select(np.sort(order[:held_out]))
    return SegmentationData(
        choose(train, arguments.max_train_samples, seed) if "train" in splits else None,
        choose(validation, arguments.max_eval_samples, seed) if "validation" in splits else None,
        list(label_names),
        bool(arguments.reduce_labels),
        arguments.max_image_pixels,
    )


def read_label_names(path: Path) -> list[str]:
    """Class names from a text file or from JSON, see `SegmentationDataArguments`.

    Raises:
        ValueError: naming the file, if there are none or one is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names: Any = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a text file or JSON in UTF-8.") from error
    if isinstance(names, dict):
        if set(names) != {str(index) for index in range(len(names))}:
            raise ValueError(f"{path}: has to number its {len(names)} classes from 0 to {len(names) - 1}.")
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: holds no names, expected a list of texts or an object of numbers and texts.")
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        what = f"names {listed(twice)} twice" if twice else "is empty"
        raise ValueError(f"{path}: {what}; give each class a name.")
    return names


def _find(arguments: SegmentationDataArguments, split: str) -> Dataset | None:
    """A split with both columns, undecoded, or None if it is not there."""
    if arguments.dataset_name is None:
        folder = getattr(arguments, f"{split}_dir")
        return None if folder is None else read_pairs(Path(folder), arguments.image_suffix, arguments.mask_suffix)
    found = arguments.load_split(split)
    return None if found is None else _two_columns(found[1], arguments)


def _two_columns(dataset: Dataset, arguments: SegmentationDataArguments) -> Dataset:
    """The images and maps of a dataset as columns `image` and `label`."""
    pictures = [name for name, feature in dataset.features.items() if is_image(feature)]
    image = arguments.image_column_name or (_IMAGE_COLUMN if _IMAGE_COLUMN in pictures else None)
    label = arguments.label_column_name or next((name for name in _LABEL_NAMES if name in pictures), None)
    for setting, column in (("image_column_name", image), ("label_column_name", label)):
        if column not in pictures:
            what = "No column is recognised" if column is None else f"Column {column!r} is none of images"
            raise ValueError(f"{what}; set {setting} to one of {pictures}.")
    dataset = dataset.select_columns([image, label]).rename_columns({image: _IMAGE_COLUMN, label: _LABEL_COLUMN})
    for column in (_IMAGE_COLUMN, _LABEL_COLUMN):
        dataset = dataset.cast_column(column, ImageFeature(decode=False))
    return dataset


def read_pairs(folder: Path, image_suffix: str | None = None, mask_suffix: str | None = None) -> Dataset:
    """The images in `folder`/images with the maps of the same names in `folder`/masks, in the order of their names.

    Raises:
        ValueError: naming the folder or file, if an image or map has no partner, or two.
    """
    images = _by_stem(folder / _IMAGES, image_suffix)
    masks = _by_stem(folder / _MASKS, mask_suffix)
    for these, others, what, place in ((images, masks, "map", _MASKS), (masks, images, "image", _IMAGES)):
        alone = [these[stem] for stem in these if stem not in others]
        if alone:
            raise ValueError(
                f"{listed(alone)}: has no {what} of its name in {folder / place}; add it, or remove the file."
            )
    kind = ImageFeature(decode=False)
    features = Features({_IMAGE_COLUMN: kind, _LABEL_COLUMN: kind})
    nothing = pa.nulls(len(images), pa.binary())
    columns = [
        pa.StructArray.from_arrays(
            [nothing, pa.array([files[stem] for stem in images], pa.string())], ["bytes", "path"]
        )
        for files in (images, masks)
    ]
    table = InMemoryTable.from_arrays(columns, schema=features.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=features))


def _by_stem(folder: Path, suffix: str | None) -> dict[str, str]:
    """Image files by their path in the folder without the suffix, in order."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; a folder of data holds {_IMAGES}/ and {_MASKS}/.")
    found: dict[str, str] = {}
    for path in map(Path, list_files(str(folder))):
        if suffix is None and path.suffix.lower() in IMAGE_ENDINGS:
            stem = path.relative_to(folder).with_suffix("").as_posix()
        elif suffix is not None and path.name.endswith(suffix):
            stem = path.relative_to(folder).as_posix().removesuffix(suffix)
        else:
            continue
        if stem in found:
            raise ValueError(f"{found[stem]} and {path} are both called {stem}; remove or rename one.")
        found[stem] = str(path)
    if not found:
        raise ValueError(f"{folder}: holds no images{f' that end with {suffix}' if suffix else ''}; check the path.")
    return found


__all__ = [
    "PairTransform",
    "ProcessorPair",
    "SegmentationData",
    "SegmentationDataArguments",
    "collate",
    "decode_mask",
    "load_data",
    "read_label_names",
    "read_pairs",
]
