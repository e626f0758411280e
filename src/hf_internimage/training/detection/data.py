# SPDX-License-Identifier: MIT
"""Detection data from any source: splits with the same classes, and what turns their rows into examples."""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, List
from PIL.Image import Image as PILImage
from PIL.JpegImagePlugin import JpegImageFile
from transformers.utils import logging

from ..images import MAX_PIXELS, decode_image, name_of, read_bytes
from ..sources import SPLITS, SourceArguments, choose, listed, read_folder
from .coco_format import read_coco, read_column

logger = logging.get_logger(__name__)

ANNOTATIONS = "annotations.json"
_SMALLEST_SIDE = 1.0  # pixels; objects of less are not trained on

Target = dict[str, np.ndarray]  # of one image: boxes (n, 4) left, top, width, height in pixels; classes, areas, crowds


@dataclass
class DetectionDataArguments(SourceArguments):
    """Where the images and boxes are, and which part of them to use."""

    test_split_name: str | None = field(
        default=None, metadata={"help": "Split to test on; found by its usual names if not given."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of training data instead of dataset_name: annotations.json in COCO's format with the "
            "images beside it or in images/, or images with a metadata.jsonl, or Parquet files."
        },
    )
    test_dir: str | None = field(default=None, metadata={"help": "Folder of test data, likewise."})
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
        default=True, metadata={"help": "Also train on images without an object; the original does not."}
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
    `areas` (pixels) and `crowds` (whether it is a group, which is neither trained on nor counted as missed).

    Attributes:
        train, validation, test: None if not asked for or not there.
        label_names: in the order of the classes.
        max_pixels: see `images.decode_image`.
    """

    train: Dataset | None
    validation: Dataset | None
    test: Dataset | None
    label_names: list[str]
    max_pixels: int = MAX_PIXELS

    def training_transform(self, augment: Callable[[PILImage, Target, list[int]], dict[str, Any]]) -> "ReadObjects":
        """For `Dataset.with_transform`: examples as `augment` makes them, without crowds."""
        return ReadObjects(augment, self.max_pixels)

    def evaluation_transform(self, processor: Any) -> "ReadObjects":
        """The same by the image processor and nothing else."""
        return ReadObjects(ProcessedObjects(processor), self.max_pixels)


@dataclass(frozen=True)
class ReadObjects:
    """What turns rows of a split into what `detection.Collate` takes, each time they are read.

    Attributes:
        prepare: (RGB image, objects, key) -> `pixel_values` (3, H, W) and `labels`, a dict of `class_labels` (n,) and
            `boxes` (n, 4), (centre x, centre y, width, height) as fractions of the image. The key is a list with the
            CRC-32 of the image's encoded bytes. `image_id` (1,) and `orig_size` (2,) are added to the labels.
        max_pixels: see `images.decode_image`.
    """

    prepare: Callable[[PILImage, Target, list[int]], dict[str, Any]]
    max_pixels: int = MAX_PIXELS

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        examples = [self.one(row) for row in rows]
        return {name: [example[name] for example in examples] for name in ("pixel_values", "labels")}

    def one(self, row: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError naming the file, for an image that is unreadable or of another size than annotated."""
        image, target, data = read_objects(row, self.max_pixels)
        example = self.prepare(image, target, [zlib.crc32(data)])
        labels = {**example["labels"], "image_id": torch.tensor([row["image_id"]])}
        labels["orig_size"] = torch.tensor([image.height, image.width])
        return {"pixel_values": example["pixel_values"], "labels": labels}


def read_objects(row: dict[str, Any], max_pixels: int = MAX_PIXELS) -> tuple[PILImage, Target, bytes]:
    """The image of a row of a split, its objects, and its encoded bytes.

    Raises:
        ValueError: naming the file, if it is unreadable, too large (which `decode_image` reads at a reduced size if it
            is a JPEG), or of another size than annotated.
    """
    data = read_bytes(row["image"])
    image = decode_image({"bytes": data, "path": row["image"].get("path")}, max_pixels)
    if data.startswith(b"\xff\xd8") and math.prod(JpegImageFile(io.BytesIO(data)).size) > max_pixels:
        raise ValueError(f"{name_of(row['image'])}: has more than {max_pixels:,} pixels; raise max_image_pixels.")
    if row["width"] and image.size != (row["width"], row["height"]):
        raise ValueError(
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
class ProcessedObjects:
    """A `ReadObjects.prepare` that is an image processor of transformers, for evaluation."""

    processor: Any

    def __call__(self, image: PILImage, target: Target, key: list[int]) -> dict[str, Any]:
        columns = zip(*(target[name].tolist() for name in ("boxes", "classes", "areas", "crowds")), strict=True)
        annotations = [
            {"bbox": box, "category_id": label, "area": area, "iscrowd": int(crowd)}
            for box, label, area, crowd in columns
        ]
        found = self.processor(
            image, annotations={"image_id": 0, "annotations": annotations}, do_pad=False, return_tensors="pt"
        )
        labels = found["labels"][0]
        return {
            "pixel_values": found["pixel_values"][0],
            "labels": {name: labels[name] for name in ("class_labels", "boxes")},
        }


def load_detection_data(
    arguments: DetectionDataArguments,
    seed: int = 0,
    splits: Sequence[str] = ("train", "validation", "test"),
    label_names: list[str] | None = None,
) -> DetectionData:
    """The data that the arguments describe, with every annotation checked.

    Classes and their order come from the training split, or from the first of `splits` if that is not among them: in
    COCO's files the order of the category ids, which may have gaps. Other splits are matched by class name. Objects
    that are empty or outside their image stay: training leaves them out, COCO's measure does not.

    Args:
        arguments: where the data are.
        seed: of the held-out share and of the choice of `max_train_samples`.
        splits: which of train, validation and test to load; those that are not there are None. A share of the training
            data is held out for validation also where those are not to be loaded.
        label_names: the classes in the order wanted, such as a model's; the data may lack some.

    Raises:
        ValueError: in one sentence naming the file, image or column, for anything that is wrong with the data.
    """
    sources = {split: _find(arguments, split) for split in splits}
    held_out = "validation" in splits and sources["validation"] is None and arguments.train_val_split > 0
    if held_out and "train" not in splits:  # what a training with these arguments would hold out
        sources["train"] = _find(arguments, "train")
    found = {split: dataset for split, dataset in sources.items() if dataset is not None}
    if not found:
        raise ValueError(f"There are no data for {listed(list(splits))}; check dataset_name or the folders' names.")
    if "train" in splits and "train" not in found:
        raise ValueError("There are no training data: set train_dir, or train_split_name to a split of the dataset.")
    first: Any = found.get("train", next(iter(found.values())))
    names = _names(first) if label_names is None else label_names
    prepared: dict[str, Any] = {}
    for split, dataset in found.items():
        if not len(dataset):
            raise ValueError(f"Split {split!r} holds no images; check the data.")
        prepared[split] = _renumbered(dataset, split, names)
    train = prepared.get("train")
    if train is not None:
        if held_out:
            held = round(len(train) * arguments.train_val_split)
            if not 0 < held < len(train):
                raise ValueError(
                    f"train_val_split={arguments.train_val_split} of {len(train)} images leaves no image to validate "
                    "or to train on: change it, or set it to 0 to train without validation."
                )
            order = np.random.default_rng(seed).permutation(len(train))
            train, prepared["validation"] = train.select(np.sort(order[held:])), train.select(np.sort(order[:held]))
        if "train" in splits:
            prepared["train"] = choose(_trainable(train, arguments), arguments.max_train_samples, seed)
        else:
            del prepared["train"]
    for split in ("validation", "test"):
        if split in prepared:
            prepared[split] = choose(prepared[split], arguments.max_eval_samples, seed)
            if not any(prepared[split]["boxes"]):
                raise ValueError(f"Split {split!r} has no object in {len(prepared[split])} images to measure by.")
    return DetectionData(
        prepared.get("train"), prepared.get("validation"), prepared.get("test"), names, arguments.max_image_pixels
    )


def usable(target: Target, width: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Objects to train on: (n, 4) left, top, right, bottom in pixels, clipped to the image, and which ones they are.

    Left out are crowds, and what is less than a pixel wide or high within the image, as in the original.
    """
    limits = np.array([width, height] * 2)
    corners = np.concatenate([target["boxes"][:, :2], target["boxes"][:, :2] + target["boxes"][:, 2:]], 1)
    corners = corners.clip(0, limits)
    kept = (corners[:, 2:] - corners[:, :2] >= _SMALLEST_SIDE).all(1) & ~target["crowds"]
    return corners[kept], np.flatnonzero(kept)


# ---- Sources ----


def _find(arguments: DetectionDataArguments, split: str) -> Dataset | None:
    """A split in our columns, classes numbered as in its source, or None if it is not there."""
    if arguments.dataset_name is None:
        folder = getattr(arguments, f"{split}_dir")
        if folder is None:
            return None
        path = Path(getattr(arguments, f"{split}_annotations") or Path(folder, ANNOTATIONS))
        if path.exists() or getattr(arguments, f"{split}_annotations"):
            return read_coco(Path(folder), path)
        return _read_column(read_folder(folder, False, arguments.data_cache_dir), arguments, folder)
    found = arguments.load_split(split)
    return None if found is None else _read_column(found[1], arguments, f"{arguments.dataset_name}, {found[0]}")


def _read_column(dataset: Any, arguments: DetectionDataArguments, source: str) -> Dataset:
    return read_column(
        dataset,
        source,
        image_column=arguments.image_column_name,
        objects_column=arguments.objects_column_name,
        box_format=arguments.box_format,
    )


# ---- One form ----


def _names(dataset: Dataset) -> list[str]:
    return list(dataset.features["classes"].feature.names)


def _renumbered(dataset: Dataset, split: str, names: list[str]) -> Dataset:
    """Classes numbered as in `names`, by their own names."""
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
    """The training data; says what is left out, and drops images without an object if asked to."""
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
    "DetectionData",
    "DetectionDataArguments",
    "ProcessedObjects",
    "ReadObjects",
    "Target",
    "load_detection_data",
    "read_objects",
    "usable",
]
