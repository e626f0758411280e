# SPDX-License-Identifier: MIT
"""Read files in COCO's format, and data sets with a column of objects, as rows of images with checked boxes.

The columns are those of `data.DetectionData`; classes are numbered as in the source.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets

from ...plain_text import listed
from ..sources import find_image_column, image_columns

IMAGES = "images"
_BOX_NAMES, _CLASS_NAMES = ("bbox", "boxes"), ("category", "categories", "category_id", "label", "labels")
_MANY, _NEARLY_ALL = 0.25, 0.99  # shares of the boxes
_NEEDED: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


def read_coco(folder: Path, path: Path, refuse_missing: bool = True) -> Dataset:
    """Read the images of a folder, or of the folder images/ in it, with the objects of a file in COCO's format.

    Classes are in the order of the category ids.

    Raises:
        ValueError: naming the file, image or annotation, if one is missing, given twice, or malformed; an image's file
            may be missing without `refuse_missing`, and its row then fails when it is read.
    """
    content = _read_json(path)
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    names = [str(entry["name"]) for entry in categories]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: has several categories of the name {listed(repeated)}.")
    index_of = {entry["id"]: index for index, entry in enumerate(categories)}
    images = {entry["id"]: entry for entry in content["images"]}
    if len(images) < len(content["images"]):
        raise ValueError(f"{path}: several images have the same id.")
    folder = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    paths = {key: folder / entry["file_name"] for key, entry in images.items()}
    missing = [str(file) for file in paths.values() if not file.is_file()] if refuse_missing else []
    if missing:
        raise ValueError(f"{path}: {len(missing)} of its {len(images)} images are not there, such as {missing[0]}.")
    rows = _Rows({key: str(file) for key, file in paths.items()})
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry.get('id')}"
        if entry["image_id"] not in images:
            raise ValueError(f"{where} is of image {entry['image_id']}, which is not among the file's images.")
        if entry["category_id"] not in index_of:
            raise ValueError(
                f"{where} is of category {entry['category_id']}, which is not among the file's categories."
            )
        label, crowd = index_of[entry["category_id"]], bool(entry.get("iscrowd", 0))
        rows.add(entry["image_id"], entry["bbox"], label, entry.get("area"), crowd, where)
    sizes = [(int(entry.get("width") or 0), int(entry.get("height") or 0)) for entry in images.values()]
    columns = rows.columns(names, sizes)
    files = [{"bytes": None, "path": str(file)} for file in paths.values()]
    pictures = Dataset.from_dict({"image": files}, features=Features({"image": Image(decode=False)}))
    return concatenate_datasets([pictures, columns], axis=1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}).") from error
    for part, keys in _NEEDED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path}: is no annotation file in COCO's format, it has no list {part!r}.")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or any(key not in entry for key in keys):
                raise ValueError(f"{path}: entry {number} of {part!r} lacks one of {', '.join(keys)}.")
    return content


def read_column(
    dataset: Any, source: str, *, image_column: str | None, objects_column: str, box_format: str
) -> Dataset:
    """Read the images of a data set, with the objects in one of its columns, as they are kept on the Hub.

    An object has a box (`bbox`) and a class (`category`, a name, a ClassLabel or any number), and may have an area and
    `iscrowd`; a row has a list of objects, or an object of lists.

    Args:
        dataset: any split that `datasets` has read.
        source: its name, for messages.
        image_column: the first one of images if None.
        objects_column: name of the column.
        box_format: xywh or xyxy.

    Raises:
        ValueError: naming the column or row, if one is missing or malformed; if boxes in xywh seem to be in xyxy.
    """
    features, column = dataset.features, objects_column
    image = find_image_column(features, image_column or next(iter(image_columns(features)), None))
    if column not in features:
        raise ValueError(f"{source}: has no column {column!r}; set objects_column_name to one of {sorted(features)}.")
    fields = _object_fields(features[column])
    box_name = next((name for name in _BOX_NAMES if name in fields), None)
    class_name = next((name for name in _CLASS_NAMES if name in fields), None)
    if box_name is None or class_name is None:
        raise ValueError(
            f"{source}: column {column!r} has the fields {sorted(fields)}, expected {_BOX_NAMES[0]} and "
            f"{_CLASS_NAMES[0]}."
        )
    pictures = dataset.select_columns([image]).cast_column(image, Image(decode=False))
    if image != "image":
        pictures = pictures.rename_column(image, "image")
    objects = [_as_columns(row) for row in dataset[column]]
    kind = _item(fields[class_name])
    numbers = sorted({label for row in objects for label in row.get(class_name) or []})
    names = list(kind.names) if isinstance(kind, ClassLabel) else [str(label) for label in numbers]
    index_of = {
        label: index for index, label in enumerate(range(len(names)) if isinstance(kind, ClassLabel) else numbers)
    }
    rows = _Rows({row: f"{source}, row {row}" for row in range(len(dataset))})
    for number, row in enumerate(objects):
        count = len(row.get(box_name) or [])
        for name in (class_name, "area", "iscrowd"):
            if row.get(name) is not None and len(row[name]) != count:
                raise ValueError(f"{source}, row {number}: has {count} boxes, but {len(row[name])} of {name!r}.")
        for index in range(count):
            where = f"{source}, row {number}: object {index}"
            label, box = row[class_name][index], row[box_name][index]
            if label not in index_of:
                raise ValueError(f"{where} is of class {label}, expected 0 to {len(names) - 1}.")
            area, crowd = ((row.get(name) or [None] * count)[index] for name in ("area", "iscrowd"))
            rows.add(number, box, index_of[label], area, bool(crowd), where, box_format)
    has_size = {"width", "height"} <= set(features)
    sizes = list(zip(dataset["width"], dataset["height"], strict=True)) if has_size else [(0, 0)] * len(dataset)
    if box_format == "xywh":
        known = [(row, size) for row, size in zip(rows.objects.values(), sizes, strict=True) if all(size)]
        _refuse_corners([(box, size) for row, size in known for box, *_ in row], source)
    return concatenate_datasets([pictures, rows.columns(names, sizes)], axis=1)


def _refuse_corners(boxes: list[tuple[list[float], tuple[int, int]]], source: str) -> None:
    """Raise ValueError if boxes make no sense in xywh but do in xyxy; each with its image's (width, height)."""
    outside = fitting = 0
    for (left, top, third, fourth), (width, height) in boxes:
        outside += left + third > width + 1 or top + fourth > height + 1
        fitting += left <= third <= width + 1 and top <= fourth <= height + 1
    # Corners taken for sizes leave the image wherever a box's middle is in its right or lower half. Sizes taken for
    # corners are in disorder wherever a box is farther from the edge than it is large.
    if outside > _MANY * len(boxes) and fitting > _NEARLY_ALL * len(boxes):
        raise ValueError(
            f"{source}: {outside} of {len(boxes)} boxes end outside of their image, as (left, top, width, height); is "
            "box_format=xyxy meant?"
        )


def _object_fields(feature: Any) -> dict[str, Any]:
    """Return the features of an object's fields, from a list of objects or an object of lists."""
    feature = _item(feature)
    return feature if isinstance(feature, dict) else {}


def _item(feature: Any) -> Any:
    """Return the feature of a list's items; other features as they are."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", feature)


def _as_columns(row: Any) -> dict[str, Any]:
    """Return one image's objects as a dict of lists, from a dict of lists or a list of dicts."""
    if isinstance(row, dict):
        return row
    return {name: [entry[name] for entry in row] for name in (row[0] if row else ())}


class _Rows:
    """Collect checked objects image by image.

    Args:
        names: an image's key -> its name for messages.
    """

    def __init__(self, names: dict[Any, str]) -> None:
        self.names = names
        self.objects: dict[Any, list[tuple[list[float], int, float, bool]]] = {key: [] for key in names}

    def add(self, key: Any, box: Any, label: int, area: Any, crowd: bool, where: str, box_format: str = "xywh") -> None:
        """Add an object to the image of this key; raise ValueError for a box or area that is malformed."""
        try:
            first, second, third, fourth = (float(number) for number in box)
            size = None if area is None else float(area)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} on {self.names[key]} has the box {box} and the area {area}: {error}.") from error
        if box_format == "xyxy":
            third, fourth = third - first, fourth - second
        numbers = [first, second, third, fourth]
        if not all(map(math.isfinite, (*numbers, size or 0.0))) or third < 0 or fourth < 0:
            raise ValueError(
                f"{where} on {self.names[key]} has the box {list(box)}, expected finite numbers in the order "
                f"{box_format} with no negative width or height."
            )
        self.objects[key].append((numbers, label, third * fourth if size is None else size, crowd))

    def columns(self, label_names: list[str], sizes: Iterable[tuple[int, int]]) -> Dataset:
        """Return the columns of all objects, with the images' (width, height)."""
        rows = list(self.objects.values())
        widths, heights = zip(*sizes, strict=True) if rows else ((), ())
        features = Features(
            {
                "image_id": Value("int64"),
                "width": Value("int64"),
                "height": Value("int64"),
                "boxes": List(List(Value("float64"))),
                "classes": List(ClassLabel(names=label_names)),
                "areas": List(Value("float64")),
                "crowds": List(Value("bool")),
            }
        )
        columns = ("boxes", "classes", "areas", "crowds")
        return Dataset.from_dict(
            {"image_id": list(range(len(rows))), "width": list(widths), "height": list(heights)}
            | {name: [[entry[index] for entry in row] for row in rows] for index, name in enumerate(columns)},
            features=features,
        )


__all__ = ["read_coco", "read_column"]
