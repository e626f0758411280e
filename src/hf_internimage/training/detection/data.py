# SPDX-License-Identifier: MIT
"""Read detection data from any source: splits with the same classes, rows, examples and batches."""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, List
from PIL.Image import Image as PILImage
from PIL.JpegImagePlugin import JpegImageFile
from transformers.utils import logging

from ...image_files import BadImageError, name_of
from ...models.resizing import multiple_size
from ...plain_text import listed
from ..images import ImageReader, RowTransform
from ..sources import (
    SPLITS,
    SourceArguments,
    are_unnamed,
    choose_samples,
    hold_out_validation,
    read_folder,
    read_splits,
)
from .coco_format import read_coco, read_column

logger = logging.get_logger(__name__)

ANNOTATIONS = "annotations.json"
_SMALLEST_SIDE = 1.0  # pixels; objects of less are not trained on
_SIZE_DIVISOR = 32  # sides of batches are multiples of it

Target = dict[str, np.ndarray]  # of one image: boxes (n, 4) left, top, width, height in pixels; classes, areas, crowds


@dataclass
class DetectionDataArguments(SourceArguments):
    """Name the images and boxes, and the part of them to use."""

    test_split_name: str | None = field(
        default=None, metadata={"help": "Split to test on; default: the one named test or testing."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of training data instead of dataset_name: annotations.json in COCO's format with the "
            "images beside it or in images/, or images with a metadata.jsonl, or Parquet files."
        },
    )
    test_dir: str | None = field(default=None, metadata={"help": "Folder of test data, of the same kinds."})
    train_annotations: str | None = field(
        default=None, metadata={"help": "COCO's annotation file for the images in train_dir, if it lies elsewhere."}
    )
    validation_annotations: str | None = field(default=None, metadata={"help": "The same for validation_dir."})
    test_annotations: str | None = field(default=None, metadata={"help": "The same for test_dir."})
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images; found by its type if not given."}
    )
    objects_column_name: str = field(
        default="objects", metadata={"help": "Column of the objects: their boxes (bbox), classes (category), areas."}
    )
    box_format: str = field(
        default="xywh",
        metadata={
            "help": "Boxes of that column in pixels: xywh for (left, top, width, height) as in COCO, xyxy for (left, "
            "top, right, bottom)."
        },
    )
    train_without_objects: bool = field(
        default=True, metadata={"help": "Whether to train on images without an object as well; the original does not."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box_format not in ("xywh", "xyxy"):
            raise ValueError(f"box_format is {self.box_format!r}, expected xywh or xyxy.")
        for split in SPLITS:
            if getattr(self, f"{split}_annotations") and not getattr(self, f"{split}_dir"):
                raise ValueError(f"{split}_annotations is set without {split}_dir, the folder of its images.")


@dataclass
class DetectionData:
    """Splits with images undecoded and objects in columns, classes numbered alike in all.

    Columns: `image` ({"bytes": ..., "path": ...}), `image_id` (the row's number in the source), `width` and `height` (0
    where the source does not say), and of the image's objects `boxes` (left, top, width, height in pixels), `classes`,
    `areas` (pixels) and `crowds` (True for a group, which is neither trained on nor counted as missed).

    Attributes:
        train, validation, test: None if not loaded or not there.
        label_names: in the order of the classes.
        reader: reads the images.
    """

    train: Dataset | None
    validation: Dataset | None
    test: Dataset | None
    label_names: list[str]
    reader: ImageReader = field(default_factory=ImageReader)

    def training_transform(
        self, augmentation: Callable[[PILImage, Target, list[int]], dict[str, Any]]
    ) -> "DatasetTransform":
        """Return the transform of rows into examples that `augmentation` makes of an image, its objects and a key."""
        return DatasetTransform(augmentation, self.reader)

    def evaluation_transform(self, processor: Any) -> "DatasetTransform":
        """Return the transform of rows into examples by an image processor and nothing else."""
        return DatasetTransform(ProcessorTransform(processor), self.reader.for_processor(processor))


@dataclass(frozen=True)
class DatasetTransform(RowTransform):
    """Turn rows of a split into `pixel_values` and `labels`, as `prepare` makes them.

    `image_id` (1,) and `orig_size` (2,), height and width in pixels, are added to the labels.

    Attributes:
        prepare: (RGB image, objects, key) -> `pixel_values` (3, H, W) and `labels`, a dict of `class_labels` (n,) and
            `boxes` (n, 4), (centre x, centre y, width, height) as fractions of the image.
    """

    prepare: Callable[[PILImage, Target, list[int]], dict[str, Any]]

    def read(self, row: dict[str, Any]) -> tuple[PILImage, Target, bytes]:
        """Return the image of a row, its objects, and the image's encoded bytes; raises as `read_objects`."""
        return read_objects(row, self.reader)

    def one(self, row: dict[str, Any], *key: int) -> dict[str, Any]:
        image, target, data = self.read(row)
        example = self.prepare(image, target, [zlib.crc32(data), *key])
        labels = {**example["labels"], "image_id": torch.tensor([row["image_id"]])}
        labels["orig_size"] = torch.tensor([image.height, image.width])
        return {"pixel_values": example["pixel_values"], "labels": labels}


def read_objects(row: dict[str, Any], reader: ImageReader) -> tuple[PILImage, Target, bytes]:
    """Return the image of a row of a split, its objects, and its encoded bytes.

    Raises:
        BadImageError: naming the file, if it is unreadable, too large (which `decode_image` reads at a reduced size if
            it is a JPEG), or of another size than annotated.
    """
    if row["image"] is None:
        raise BadImageError("a row without an image: remove it from the data.")
    image, data = reader.read(row["image"])
    max_pixels = reader.max_pixels
    if data.startswith(b"\xff\xd8") and math.prod(JpegImageFile(io.BytesIO(data)).size) > max_pixels:
        raise BadImageError(f"{name_of(row['image'])}: has more than {max_pixels:,} pixels; raise max_image_pixels.")
    if row["width"] and image.size != (row["width"], row["height"]):
        raise BadImageError(
            f"{name_of(row['image'])}: has {image.width}x{image.height} pixels, {row['width']}x{row['height']} by its "
            "annotations; its boxes would be wrong."
        )
    target = {
        "boxes": np.array(row["boxes"], np.float64).reshape(-1, 4),
        "classes": np.array(row["classes"], np.int64),
        "areas": np.array(row["areas"], np.float64),
        "crowds": np.array(row["crowds"], bool),
    }
    return image, target, data


@dataclass(frozen=True)
class ProcessorTransform:
    """Prepare images and objects by the image processor and nothing else: `prepare` of a `DatasetTransform`."""

    processor: Any

    def __call__(self, image: PILImage, target: Target, key: list[int]) -> dict[str, Any]:
        columns = zip(*(target[name].tolist() for name in ("boxes", "classes", "areas", "crowds")), strict=True)
        objects = [
            {"bbox": box, "category_id": label, "area": area, "iscrowd": int(crowd)}
            for box, label, area, crowd in columns
        ]
        annotations = {"image_id": 0, "annotations": objects}
        processed = self.processor(image, annotations=annotations, do_pad=False, return_tensors="pt")
        labels = processed["labels"][0]
        return {
            "pixel_values": processed["pixel_values"][0],
            "labels": {name: labels[name] for name in ("class_labels", "boxes")},
        }


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad examples to a batch.

    `pixel_values` (N, 3, H, W): images padded with 0 to the right and below to the largest one, and to multiples of 32;
    `pixel_mask` (N, H, W) int64: 1 on the image; `labels`: a list of dicts.
    """
    images = [example["pixel_values"] for example in examples]
    sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
    height, width = multiple_size(sides[0], sides[1], _SIZE_DIVISOR)
    pads = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
    masks = [torch.ones(image.shape[1:], dtype=torch.int64) for image in images]
    return {
        "pixel_values": torch.stack([F.pad(image, pad) for image, pad in zip(images, pads, strict=True)]),
        "pixel_mask": torch.stack([F.pad(mask, pad) for mask, pad in zip(masks, pads, strict=True)]),
        "labels": [example["labels"] for example in examples],
    }


def load_data(
    arguments: DetectionDataArguments,
    seed: int = 0,
    splits: Sequence[str] = ("train", "validation", "test"),
    label_names: Sequence[str] | None = None,
) -> DetectionData:
    """Read the data that the arguments name, with every annotation checked.

    Classes and their order come from the training split, or from the first of `splits` if that is not among them: in
    COCO's files the order of the category ids, which may have gaps. Other splits are matched by class name. Objects
    that are empty or outside their image stay: training leaves them out, COCO's measure does not.

    Args:
        arguments: names of the data.
        seed: of the held-out share and of the choice of `max_train_samples`.
        splits: train, validation and test, or some of them; those that are not there are None. A share of the training
            data is held out for validation also if only validation is among them.
        label_names: the classes in their order, such as a model's; the data may lack some. LABEL_0, ... fit any names.

    Raises:
        ValueError: in one sentence naming the file, image or column, for anything that is wrong with the data.
    """
    datasets = read_splits(arguments, splits, partial(_read_split, arguments), divide_training_data=True)
    names = label_names
    if names is None or are_unnamed(names):
        names = _names(datasets.get("train", next(iter(datasets.values()))))
    if label_names is not None and len(label_names) != len(names):
        raise ValueError(
            f"The model has {len(label_names)} classes without names, the data have {len(names)}: which are the same "
            "cannot be told."
        )
    datasets = {split: _renumbered(dataset, split, list(names)) for split, dataset in datasets.items()}
    hold_out_validation(datasets, splits, arguments, seed)
    if "train" in splits:
        datasets["train"] = _trainable(datasets["train"], arguments)
    else:
        datasets.pop("train", None)
    datasets = choose_samples(datasets, arguments, seed)
    for split in ("validation", "test"):
        if split in datasets and not any(datasets[split]["boxes"]):
            raise ValueError(f"Split {split!r} has no object in {len(datasets[split])} images to measure by.")
    return DetectionData(
        train=datasets.get("train"),
        validation=datasets.get("validation"),
        test=datasets.get("test"),
        label_names=list(names),
        reader=ImageReader(arguments.max_image_pixels),
    )


def usable(target: Target, width: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the objects to train on: boxes (n, 4) left, top, right, bottom in pixels, clipped to the image, and rows.

    Rows (n,) are their numbers in `target`. Left out, as in the original, are crowds and objects that are less than a
    pixel wide or high within the image.
    """
    limits = np.array([width, height] * 2)
    corners = np.concatenate([target["boxes"][:, :2], target["boxes"][:, :2] + target["boxes"][:, 2:]], 1)
    corners = corners.clip(0, limits)
    kept = (corners[:, 2:] - corners[:, :2] >= _SMALLEST_SIDE).all(1) & ~target["crowds"]
    return corners[kept], np.flatnonzero(kept)


def _read_split(arguments: DetectionDataArguments, split: str) -> Dataset | None:
    """Read a split in our columns, classes numbered as in its source, or return None if it is not there."""
    if arguments.dataset_name is None:
        folder = getattr(arguments, f"{split}_dir")
        if folder is None:
            return None
        path = Path(getattr(arguments, f"{split}_annotations") or Path(folder, ANNOTATIONS))
        if path.exists() or getattr(arguments, f"{split}_annotations"):
            return read_coco(Path(folder), path, refuse_missing=arguments.bad_images == "stop")
        return _read_column(read_folder(folder, False, arguments.data_cache_dir), arguments, folder)
    named = arguments.load_split(split)
    return None if named is None else _read_column(named[1], arguments, f"{arguments.dataset_name}, {named[0]}")


def _read_column(dataset: Any, arguments: DetectionDataArguments, source: str) -> Dataset:
    return read_column(
        dataset,
        source,
        image_column=arguments.image_column_name,
        objects_column=arguments.objects_column_name,
        box_format=arguments.box_format,
    )


def _names(dataset: Dataset) -> list[str]:
    return list(dataset.features["classes"].feature.names)


def _renumbered(dataset: Dataset, split: str, names: list[str]) -> Dataset:
    """Return a split with its classes numbered as in `names`, by their own names."""
    own = _names(dataset)
    if own == names:
        return dataset
    index_of = {name: index for index, name in enumerate(names)}
    classes = dataset["classes"]
    used = {own[label] for row in classes for label in row}
    if unknown := sorted(used - set(names)):
        raise ValueError(f"Split {split!r} has objects of the class {unknown[0]!r}, which is none of {listed(names)}.")
    feature = List(ClassLabel(names=names))
    column = [[index_of[own[label]] for label in row] for row in classes]
    return dataset.remove_columns("classes").add_column("classes", column, feature=feature)


def _trainable(train: Dataset, arguments: DetectionDataArguments) -> Dataset:
    """Return the training data, without images that have no object if asked to; warn of all that is left out."""
    counts = np.zeros(len(train), int)
    skipped: list[str] = []
    sides = train.select_columns(["width", "height", "boxes", "crowds"])
    for index, row in enumerate(sides):
        target = {"boxes": np.array(row["boxes"], np.float64).reshape(-1, 4), "crowds": np.array(row["crowds"], bool)}
        kept = usable(target, row["width"] or np.inf, row["height"] or np.inf)[1]
        counts[index] = len(kept)
        if len(kept) + int(target["crowds"].sum()) < len(target["boxes"]):
            skipped.append(name_of(train[index]["image"]))
    if skipped:
        logger.warning(
            f"{len(skipped)} training images have objects that are empty or outside the image, such as {skipped[0]}; "
            "they are not trained on."
        )
    if not counts.any():
        raise ValueError(f"The {len(train)} training images have no object; check the annotations.")
    if not arguments.train_without_objects and not counts.all():
        logger.warning(f"{int((counts == 0).sum())} training images without an object are left out.")
        train = train.select(np.flatnonzero(counts))
    return train


__all__ = [
    "DatasetTransform",
    "DetectionData",
    "DetectionDataArguments",
    "ProcessorTransform",
    "Target",
    "collate",
    "load_data",
    "read_objects",
    "usable",
]
