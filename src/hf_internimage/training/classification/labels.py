# SPDX-License-Identifier: MIT
"""Read labels of any kind as class indices, the same for every split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, IterableDataset, LargeList, List, Value

from ...image_files import name_of

_WELL_KNOWN = ("label", "labels", "fine_label", "cls", "class", "category", "target")
_MANY = 1_000_000  # no real data set has as many classes: such numbers are something else


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set, in the order of the model's outputs.

    Attributes:
        keys: values of the classes in the data: strings, or integers where classes have no names.
        names: of the classes, for people.
        multi_label: True if an image has a list of classes.
    """

    keys: tuple[Any, ...]
    names: tuple[str, ...]
    multi_label: bool

    def raw_values(self, feature: Any) -> list[Any]:
        """Return the value of each class in a split with this feature; None for a class that it does not know."""
        leaf = leaf_of(feature)
        if not isinstance(leaf, ClassLabel):
            is_index = pa.types.is_integer(leaf.pa_type) and isinstance(self.keys[0], str)
            return list(range(len(self.keys))) if is_index else list(self.keys)
        if isinstance(self.keys[0], int):
            return [key if key < leaf.num_classes else None for key in self.keys]
        position = {name: index for index, name in enumerate(leaf.names)}
        return [position.get(key) for key in self.keys]


def leaf_of(feature: Any) -> Any:
    """Return the feature of a single label."""
    return feature.feature if isinstance(feature, (List, LargeList)) else feature


def find_label_column(features: Features, name: str | None) -> str:
    """Return the column of the labels: the one given, one with a usual name, or the only one with class names.

    Raises:
        ValueError: listing the columns, if there is none.
    """
    if name is not None:
        if name not in features:
            raise ValueError(f"There is no column {name!r}; set label_column_name to one of {sorted(features)}.")
        return name
    usual = [name for name in _WELL_KNOWN if name in features]
    if usual:
        return usual[0]
    named = [name for name, feature in features.items() if isinstance(leaf_of(feature), ClassLabel)]
    if len(named) == 1:
        return named[0]
    raise ValueError(f"No column is clearly that of the labels; set label_column_name to one of {sorted(features)}.")


def read_vocabulary(
    dataset: Dataset | IterableDataset,
    column: str,
    multi_label: bool | None,
    classes: int | None,
    names: Sequence[str] | None,
) -> Vocabulary:
    """Find the classes of a split from its feature, `names` or `classes`, or else by reading its labels.

    Args:
        dataset: the split that defines the classes.
        column: its column of labels.
        multi_label: None to find out; anything else must agree with the data.
        classes: number of classes where the data hold indices, which a stream cannot be read for.
        names: of the classes, in their order; where the data hold strings, these strings in the order to use.

    Raises:
        ValueError: if the labels are neither strings nor integers, or these arguments disagree with them.
    """
    feature = dataset.features[column]
    leaf = leaf_of(feature)
    is_list = leaf is not feature
    if multi_label is not None and multi_label != is_list:
        kind = "lists of labels" if is_list else "one label an image"
        raise ValueError(f"multi_label is {multi_label}, but column {column!r} holds {kind}; leave multi_label out.")
    keys: list[Any]
    if isinstance(leaf, ClassLabel):
        keys = list(leaf.names or range(leaf.num_classes))
        names = names or [str(key) for key in keys]
    elif isinstance(leaf, Value) and pa.types.is_integer(leaf.pa_type):
        if names is None and classes is None:
            classes = _largest(dataset, column) + 1
        keys = list(range(len(names) if names else int(classes or 0)))
        names = names or [str(key) for key in keys]
    elif isinstance(leaf, Value) and pa.types.is_boolean(leaf.pa_type):
        keys = [False, True]
        names = names or ["False", "True"]
    elif _is_text(leaf):
        keys = sorted(_unique(dataset, column) - {None, ""}) if names is None else list(names)
        names = keys
    else:
        raise ValueError(
            f"Column {column!r} holds {leaf}; labels are strings, integers or lists of these, so set label_column_name."
        )
    if len(names) != len(keys):
        raise ValueError(f"label_names_file has {len(names)} names for the {len(keys)} classes of column {column!r}.")
    if classes is not None and classes != len(keys):
        raise ValueError(f"num_classes is {classes}, but column {column!r} has {len(keys)} classes.")
    if len(keys) < 2 - is_list:
        raise ValueError(
            f"Column {column!r} holds fewer than two classes ({', '.join(names)}); of folders, each class has one."
        )
    return Vocabulary(tuple(keys), tuple(names), is_list)


def _is_text(leaf: Any) -> bool:
    kind = getattr(leaf, "pa_type", None)
    return isinstance(leaf, Value) and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _values(dataset: Dataset | IterableDataset, column: str) -> pa.Array:
    """Return all labels of a split as one Arrow array, without reading images."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"Column {column!r} of a stream has no class names, and a stream is not read twice to find them: "
            "set label_names_file, or num_classes where the labels are numbers."
        )
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _flat(values: pa.Array) -> pa.Array:
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    return values.flatten() if is_list or pa.types.is_fixed_size_list(values.type) else values


def _unique(dataset: Dataset | IterableDataset, column: str) -> set:
    return set(pc.unique(_flat(_values(dataset, column))).to_pylist())


def _largest(dataset: Dataset | IterableDataset, column: str) -> int:
    largest = pc.max(_flat(_values(dataset, column))).as_py()
    if largest is None or not 0 <= largest < _MANY:
        raise ValueError(
            f"The largest label of column {column!r} is {largest}; labels count from 0, so set label_column_name."
        )
    return largest


def has_labels(dataset: Dataset | IterableDataset, column: str) -> bool:
    """Return True if a split has any label; test data are often published without, as nulls or as -1."""
    return column in dataset.features and not _unique(dataset, column) <= {None, -1, ""}


def encode_labels(
    dataset: Any, split: str, column: str, image_column: str, vocabulary: Vocabulary
) -> Dataset | IterableDataset:
    """Return the split with class indices of `vocabulary` in its column of labels: int64, or lists of it.

    A stream is encoded, and its labels checked, while it is read.

    Raises:
        ValueError: naming the file, for a label that is missing, unknown or out of range.
    """
    feature = dataset.features[column]
    leaf = leaf_of(feature)
    kinds = [_is_text(leaf) and not isinstance(vocabulary.keys[0], str), not isinstance(leaf, (ClassLabel, Value))]
    if any(kinds) or (leaf is not feature) != vocabulary.multi_label:
        raise ValueError(f"Column {column!r} of split {split!r} holds {feature}, unlike that of the training data.")
    raw = vocabulary.raw_values(feature)
    encoded = List(Value("int64")) if vocabulary.multi_label else Value("int64")
    check = _Labels({key: index for index, key in enumerate(raw) if key is not None}, split, column, image_column)
    if isinstance(dataset, IterableDataset):
        return dataset.map(check, features=Features({**dataset.features, column: encoded}))

    values = _values(dataset, column)
    flat = _flat(values)
    indices = pc.index_in(flat, value_set=pa.array(raw, type=flat.type), skip_nulls=True)
    repeated = vocabulary.multi_label and any(len(set(row)) < len(row) for row in values.to_pylist() if row)
    if values.null_count or indices.null_count or repeated:
        for row, label in enumerate(values.to_pylist()):
            if check.problem(label):
                check({column: label, image_column: dataset[row][image_column]}, leaf)
    new: Any = indices.to_numpy(zero_copy_only=False)
    if vocabulary.multi_label:
        ends = np.cumsum([len(row) for row in values.to_pylist()])
        new = [part.tolist() for part in np.split(new, ends[:-1])]
    elif feature == encoded and np.array_equal(new, flat.to_numpy(zero_copy_only=False)):
        return dataset
    return dataset.remove_columns(column).add_column(column, new, feature=encoded)


@dataclass(frozen=True)
class _Labels:
    """Encode the labels of single examples; made for `IterableDataset.map`."""

    table: dict[Any, int]
    split: str
    column: str
    image_column: str

    def problem(self, label: Any) -> str | None:
        """Return the error of a label as text; None for a good one."""
        if label is None or label == "":
            return "has no label"
        labels = label if isinstance(label, list) else [label]
        for one in labels:
            if one not in self.table:
                return f"has the label {one!r}, which is none of the {len(self.table)} classes"
        if len(set(labels)) < len(labels):
            return f"has a label twice in {labels} (labels are lists of classes, not vectors of zeros and ones)"
        return None

    def __call__(self, example: dict[str, Any], leaf: Any = None) -> dict[str, Any]:
        label = example[self.column]
        problem = self.problem(label)
        if problem is not None:
            if isinstance(leaf, ClassLabel) and leaf.names and isinstance(label, int) and 0 <= label < len(leaf.names):
                problem = f"has the label {leaf.names[label]!r}, which the training data lack"
            raise ValueError(
                f"{name_of(example[self.image_column])}: {problem}; correct column {self.column!r} of split "
                f"{self.split!r}, or remove the image."
            )
        table = self.table
        return {**example, self.column: [table[one] for one in label] if isinstance(label, list) else table[label]}


def label_array(dataset: Dataset, column: str) -> np.ndarray:
    """Return the labels of an encoded split one after the other, (N,) int64; lists of labels are joined."""
    return _flat(_values(dataset, column)).to_numpy(zero_copy_only=False)


__all__ = [
    "Vocabulary",
    "encode_labels",
    "find_label_column",
    "has_labels",
    "label_array",
    "leaf_of",
    "read_vocabulary",
]
