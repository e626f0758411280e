# SPDX-License-Identifier: MIT
"""Build the parts of a model card that come from the JSON of an evaluation, whose fields are checked here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .card_blocks import markdown_table, percent, table_cell

FOLDER_TYPE = "imagefolder"  # what `datasets` calls a folder of images
_MISSING = object()
_LISTED_CLASSES = 20


@dataclass(frozen=True)
class EvaluatedData:
    """The data of an evaluation, without the names of folders around them.

    Attributes:
        repository: data set on the Hub; None for a folder.
        name: for people.
        config, split, revision: part of it.
    """

    repository: str | None
    name: str
    config: str | None
    split: str
    revision: str | None


def evaluated_data(result: Mapping[str, Any], repository: str | None = None) -> EvaluatedData:
    """Return the data of an evaluation's result.

    Args:
        repository: data set on the Hub; by default the result's, unless that is a folder.

    Raises: ValueError for a missing field.
    """
    source = str(field(result, "dataset", "name"))
    if repository is None and is_repository(source) and source != FOLDER_TYPE and not Path(source).exists():
        repository = source
    return EvaluatedData(
        repository,
        repository or PurePosixPath(source.replace("\\", "/")).name or "local images",
        field(result, "dataset", "config", default=None),
        str(field(result, "dataset", "split")),
        field(result, "dataset", "revision", default=None),
    )


def evaluation_facts(
    result: Mapping[str, Any], data: EvaluatedData, image_format: str = "RGB, {}x{}"
) -> list[tuple[str, str]]:
    """Return rows of a card on the data and the run of an evaluation; what its result lacks of the run is left out.

    Args:
        image_format: text with places for the two sides of the images in pixels.

    Raises: ValueError for a result without samples or dtype.
    """
    parts = dict.fromkeys(str(part) for part in (data.name, data.config, data.split, data.revision) if part)
    facts = [
        ("Evaluated on", ", ".join(parts)),
        ("Images", f"{number(result, 'samples', least=1):,}"),
    ]
    facts += [("Input", image_format.format(*image_size(result))), ("Computed in", str(field(result, "dtype")))]
    for label, name in (("Device", "device"), ("Operator's backend", "backend"), ("Batch size", "batch_size")):
        value = field(result, name, default=None)
        if value is not None:
            facts.append((label, str(value)))
    if field(result, "images_per_second", default=None) is not None:
        facts.append(("Images per second", f"{number(result, 'images_per_second', least=0):.4g}"))
    versions = field(result, "versions", default={})
    if versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if field(result, "date", default=None) is not None:
        facts.append(("Date", str(field(result, "date"))))
    return [(label, table_cell(value)) for label, value in facts]


def class_table(result: Mapping[str, Any]) -> str:
    """Return a table of what was measured for each class, in Markdown; "" if the result has nothing of the kind.

    Of more than 20 classes it has the 20 with the lowest values.
    """
    heads: tuple[str, ...]
    if rows := field(result, "per_class", default=None):
        heads = ("Class", "Images", "Precision", "Recall")
        cells = [(row["class"], f"{row['images']:,}", row["precision"], row["recall"]) for row in rows]
    elif values := field(result, "class_iou", default=None):
        heads, cells = ("Class", "IoU"), list(values.items())
    elif values := field(result, "map_per_class", default=None):
        heads, cells = ("Class", "Average precision"), list(values.items())
    else:
        return ""
    title = "Each class:"
    measured = [row for row in cells if row[-1] is not None]
    if len(measured) > _LISTED_CLASSES:
        measured = sorted(measured, key=lambda row: row[-1])[:_LISTED_CLASSES]
        title = f"The {_LISTED_CLASSES} of {len(cells):,} classes with the lowest values:"
    if not measured:
        return ""
    texts = [[_class_cell(value) for value in row] for row in measured]
    return f"{title}\n\n{markdown_table(heads, texts)}"


def _class_cell(value: Any) -> str:
    if value is None:
        return "-"
    return percent(value) if isinstance(value, (int, float)) else table_cell(value)


def is_repository(name: str) -> bool:
    """Return True if the Hub allows this name for a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def field(result: Mapping[str, Any], *path: str, default: Any = _MISSING) -> Any:
    """Return a field of the evaluation's result by its path, or the default if it is missing.

    Raises: ValueError for a missing field without a default.
    """
    value: Any = result
    for name in path:
        value = value.get(name, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            if default is not _MISSING:
                return default
            raise ValueError(f"The result of the evaluation has no {'.'.join(path)}; evaluate the model again.")
    return value


def number(result: Mapping[str, Any], *path: str, least: float | None = None, most: float | None = None) -> Any:
    """Return a finite number of the evaluation's result, from `least` to `most`.

    Raises: ValueError for a missing field or another value.
    """
    value = field(result, *path)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or (least is not None and value < least)
        or (most is not None and value > most)
    ):
        bounds = "" if least is None else f" of at least {least}" + ("" if most is None else f" and at most {most}")
        raise ValueError(f"{'.'.join(path)} of the evaluation's result is {value!r}, expected a number{bounds}.")
    return value


def image_size(result: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (height, width) of the evaluated images, in pixels.

    Raises: ValueError if the result does not hold them.
    """
    sides = field(result, "image_size")
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(isinstance(s, int) and s >= 1 for s in sides):
        raise ValueError(f"image_size of the evaluation's result is {sides!r}, expected [height, width] in pixels.")
    return sides[0], sides[1]


__all__ = [
    "FOLDER_TYPE",
    "EvaluatedData",
    "class_table",
    "evaluated_data",
    "evaluation_facts",
    "field",
    "image_size",
    "is_repository",
    "number",
]
