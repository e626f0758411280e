# SPDX-License-Identifier: MIT
"""Read images and their segmentation maps from folders or `datasets`, check them and bring them into one form."""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetInfo, Features
from datasets import Image as ImageFeature
from datasets.table import InMemoryTable
from PIL import Image

from ...image_files import IMAGE_ENDINGS, BadImageError, list_files, name_of, read_bytes
from ...plain_text import listed
from ..images import ImageReader, RowTransform
from ..sources import (
    SourceArguments,
    check_label_names,
    choose_samples,
    find_image_column,
    hold_out_validation,
    read_label_names,
    read_splits,
)
from .augmentation import IGNORED_LABEL

_IMAGES, _MASKS = "images", "masks"
_IMAGE_COLUMN, _LABEL_COLUMN = "image", "label"
_LABEL_NAMES = ("label", "annotation", "mask", "segmentation", "semantic_segmentation", "labels")


@dataclass
class SegmentationDataArguments(SourceArguments):
    """Name the images and their segmentation maps, and the part of them to use."""

    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of training data instead of dataset_name: images/ and masks/. A map has the name of its "
            "image, with another ending; its pixels are numbers of classes, and 255 is no class."
        },
    )
    image_suffix: str | None = field(
        default=None,
        metadata={
            "help": "End of image names that the names of maps do not have, such as _leftImg8bit.png; default: .jpg "
            "and other endings."
        },
    )
    mask_suffix: str | None = field(
        default=None,
        metadata={"help": "The same for maps, such as _gtFine_labelTrainIds.png; other files are left out."},
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


@dataclass(frozen=True, kw_only=True)
class DatasetTransform(RowTransform):
    """Turn rows of a split into `pixel_values` and `labels`, as `prepare` makes them.

    Attributes:
        prepare: (RGB image, map (H, W) of classes, key) -> `pixel_values` (3, h, w) and `labels` (h, w).
        classes: number of them.
        reduce_labels: see `SegmentationDataArguments`.
    """

    prepare: Callable[[Image.Image, np.ndarray, list[int]], dict[str, torch.Tensor]]
    classes: int
    reduce_labels: bool

    def one(self, row: dict[str, Any], *key: int) -> dict[str, torch.Tensor]:
        image, labels, data = self.read(row)
        return self.prepare(image, labels, [zlib.crc32(data), *key])

    def read(self, row: dict[str, Any]) -> tuple[Image.Image, np.ndarray, bytes]:
        """Return the image of a row, its map (H, W) of classes, and the image's encoded bytes.

        Raises:
            BadImageError: naming the file, for an image or a map that cannot be read, or that differ in size.
            ValueError: naming the file, for a map with unknown classes.
        """
        image, mask = row[_IMAGE_COLUMN], row[_LABEL_COLUMN]
        if image is None or mask is None:
            raise BadImageError("a row without an image or a map: remove it from the data.")
        pixels, data = self.reader.read(image)
        labels = decode_mask(mask)
        if labels.shape != (pixels.height, pixels.width):
            raise BadImageError(
                f"{name_of(mask)}: has {labels.shape[1]}x{labels.shape[0]} pixels, its image {name_of(image)} "
                f"{pixels.width}x{pixels.height}; they have to be of one size."
            )
        unlabelled = labels == IGNORED_LABEL
        if self.reduce_labels:
            unlabelled, labels = unlabelled | (labels == 0), labels - 1
        known = labels[~unlabelled]
        if known.size and not 0 <= known.min() <= known.max() < self.classes:
            wrong = int(known.min() if known.min() < 0 else known.max()) + self.reduce_labels
            raise ValueError(
                f"{name_of(mask)}: holds class {wrong}, but there are {self.classes} class names "
                f"({'1' if self.reduce_labels else '0'} is the first, {IGNORED_LABEL} no class); correct either."
            )
        return pixels, np.where(unlabelled, IGNORED_LABEL, labels), data


def decode_mask(mask: dict[str, Any]) -> np.ndarray:
    """Return the numbers in an undecoded map: (H, W) int64. Of an image with a palette, the indices.

    Raises:
        BadImageError: naming the file, if it cannot be decoded or has several channels.
    """
    name, data = name_of(mask), read_bytes(mask)
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
    except Exception as error:  # damaged bytes can make Pillow's parsers raise anything
        raise BadImageError(f"{name}: cannot be decoded ({error}); replace or remove the file.") from error
    if len(opened.getbands()) != 1 or opened.mode == "F":
        raise BadImageError(f"{name}: is {opened.mode}, but a map has the class's number of each pixel in one channel.")
    return np.asarray(opened).astype(np.int64)


@dataclass(frozen=True)
class ProcessorTransform:
    """Prepare images and maps by the image processor and nothing else: `prepare` of a `DatasetTransform`.

    Labels come at the size that the processor gives the image.
    """

    processor: Any

    def __call__(self, image: Image.Image, labels: np.ndarray, key: list[int]) -> dict[str, torch.Tensor]:
        prepared = self.processor(image, segmentation_maps=labels, do_reduce_labels=False, return_tensors="pt")
        return {name: prepared[name][0] for name in ("pixel_values", "labels")}


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack examples to a batch: `pixel_values` (N, 3, H, W) and `labels` (N, H, W).

    Examples of several sizes, as evaluation has them, are padded to the right and below to the largest one, with labels
    of no class; `sizes` (N, 2) then holds the height and width of each.
    """
    sizes = torch.tensor([example["labels"].shape for example in examples])
    height, width = sizes.amax(0).tolist()
    pads = [(0, width - w, 0, height - h) for h, w in sizes.tolist()]
    batch = {
        name: torch.stack([F.pad(example[name], pad, value=value) for example, pad in zip(examples, pads, strict=True)])
        for name, value in (("pixel_values", 0), ("labels", IGNORED_LABEL))
    }
    return batch if (sizes == sizes[0]).all() else {**batch, "sizes": sizes}


@dataclass
class SegmentationData:
    """Splits with images and maps undecoded: columns `image` and `label` of {"bytes": ..., "path": ...}.

    Attributes:
        train, validation: None if not loaded or not there.
        label_names: in the order of the classes, without the one that `reduce_labels` takes away.
        reduce_labels: see `SegmentationDataArguments`.
        reader: reads the images.
    """

    train: Dataset | None
    validation: Dataset | None
    label_names: list[str]
    reduce_labels: bool
    reader: ImageReader = field(default_factory=ImageReader)

    def training_transform(
        self, augmentation: Callable[[Image.Image, np.ndarray, list[int]], dict[str, torch.Tensor]]
    ) -> DatasetTransform:
        """Return the transform of rows into examples that `augmentation` makes of an image, its map and a key."""
        return DatasetTransform(
            prepare=augmentation,
            classes=len(self.label_names),
            reduce_labels=self.reduce_labels,
            reader=self.reader,
        )

    def evaluation_transform(self, processor: Any) -> DatasetTransform:
        """Return the transform of rows into examples by an image processor and nothing else."""
        return replace(
            self.training_transform(ProcessorTransform(processor)), reader=self.reader.for_processor(processor)
        )


def load_data(
    arguments: SegmentationDataArguments,
    seed: int = 0,
    splits: Sequence[str] = ("train", "validation"),
    label_names: Sequence[str] | None = None,
) -> SegmentationData:
    """Read the data that the arguments name. Maps are looked into when they are read.

    Args:
        arguments: names of the data.
        seed: of the held-out share and of the choice of `max_train_samples`.
        splits: train and validation, or one of them; one that is not there is None. A share of the training data is
            held out for validation also if only validation is among them.
        label_names: the classes in their order, such as a model's; those of `label_names_file` have to be the same.
            LABEL_0, ... fit any names.

    Raises:
        ValueError: in one sentence naming the file, for anything that is wrong with the data.
    """
    names = label_names
    if arguments.label_names_file is not None:
        names = read_label_names(arguments.label_names_file)
        classes = f"the {len(names)} of label_names_file"
        check_label_names(label_names, names, classes, "take a model of these classes")
    if names is None:
        raise ValueError("Set label_names_file: images and maps do not say what the classes are called.")
    if len(names) > IGNORED_LABEL:
        raise ValueError(f"There are {len(names)} classes, expected at most 255: 255 in a map is no class.")
    datasets = read_splits(arguments, splits, partial(_read_split, arguments), divide_training_data=True)
    hold_out_validation(datasets, splits, arguments, seed)
    datasets = choose_samples(datasets, arguments, seed)
    return SegmentationData(
        train=datasets.get("train") if "train" in splits else None,
        validation=datasets.get("validation"),
        label_names=list(names),
        reduce_labels=bool(arguments.reduce_labels),
        reader=ImageReader(arguments.max_image_pixels),
    )


def _read_split(arguments: SegmentationDataArguments, split: str) -> Dataset | None:
    """Read a split with both columns, undecoded, or return None if it is not there."""
    if arguments.dataset_name is None:
        folder = getattr(arguments, f"{split}_dir")
        return None if folder is None else read_pairs(Path(folder), arguments.image_suffix, arguments.mask_suffix)
    named = arguments.load_split(split)
    return None if named is None else _two_columns(named[1], arguments)


def _two_columns(dataset: Dataset, arguments: SegmentationDataArguments) -> Dataset:
    """Return the images and maps of a dataset as columns `image` and `label`."""
    features = dataset.features
    image = find_image_column(features, arguments.image_column_name, usual_names=[_IMAGE_COLUMN])
    label = find_image_column(features, arguments.label_column_name, "label_column_name", _LABEL_NAMES)
    dataset = dataset.select_columns([image, label]).rename_columns({image: _IMAGE_COLUMN, label: _LABEL_COLUMN})
    for column in (_IMAGE_COLUMN, _LABEL_COLUMN):
        dataset = dataset.cast_column(column, ImageFeature(decode=False))
    return dataset


def read_pairs(folder: Path, image_suffix: str | None = None, mask_suffix: str | None = None) -> Dataset:
    """Read the images in `folder`/images and the maps of the same names in `folder`/masks, as `pair_files` does."""
    return pair_files(folder / _IMAGES, folder / _MASKS, image_suffix, mask_suffix)


def pair_files(
    image_folder: Path, mask_folder: Path, image_suffix: str | None = None, mask_suffix: str | None = None
) -> Dataset:
    """Read the images in a folder and the maps of the same names in another, in the order of the names.

    Raises:
        ValueError: naming the folder or file, if an image or map has no partner, or two.
    """
    images, masks = _by_stem(image_folder, image_suffix), _by_stem(mask_folder, mask_suffix)
    pairs = ((images, masks, "map", mask_folder), (masks, images, "image", image_folder))
    for these, others, partner, place in pairs:
        alone = [these[stem] for stem in these if stem not in others]
        if alone:
            raise ValueError(f"{listed(alone)}: has no {partner} of its name in {place}; add it, or remove the file.")
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
    """Return the image files in order, by their path in the folder without the suffix."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; a folder of data holds {_IMAGES}/ and {_MASKS}/.")
    files: dict[str, str] = {}
    for path in map(Path, list_files(str(folder))):
        if suffix is None and path.suffix.lower() in IMAGE_ENDINGS:
            stem = path.relative_to(folder).with_suffix("").as_posix()
        elif suffix is not None and path.name.endswith(suffix):
            stem = path.relative_to(folder).as_posix().removesuffix(suffix)
        else:
            continue
        if stem in files:
            raise ValueError(f"{files[stem]} and {path} are both called {stem}; remove or rename one.")
        files[stem] = str(path)
    if not files:
        raise ValueError(f"{folder}: holds no images{f' that end with {suffix}' if suffix else ''}; check the path.")
    return files


__all__ = [
    "DatasetTransform",
    "ProcessorTransform",
    "SegmentationData",
    "SegmentationDataArguments",
    "collate",
    "decode_mask",
    "load_data",
    "pair_files",
    "read_pairs",
]
