# SPDX-License-Identifier: MIT
"""Columns and kinds of labels, and what named datasets and streams are asked for."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_internimage.training.classification import data as classification_data
from hf_internimage.training.classification.data import (
    ClassificationData,
    ClassificationDataArguments,
    collate,
)
from hf_internimage.training.classification.labels import (
    Vocabulary,
    encode_labels,
    find_label_column,
    has_labels,
    label_array,
    read_vocabulary,
)
from hf_internimage.training.images import ImageReader

USUAL = ("label", "labels", "fine_label", "cls", "class", "category", "target")
NAMES = ["ant", "bee", "cat"]


def rows(labels, feature):
    images = [{"bytes": b"", "path": f"{row}.png"} for row in range(len(labels))]
    features = Features({"image": Image(decode=False), "label": feature})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def vocabulary(labels, feature, multi_label=None, classes=None, names=None):
    return read_vocabulary(rows(labels, feature), "label", multi_label, classes, names)


def encoded(labels, feature, of):
    return encode_labels(rows(labels, feature), "train", "label", "image", of)["label"][:]


# ---- Columns ----


@pytest.mark.parametrize("index", range(len(USUAL)))
def test_usual_names_of_the_column_of_labels(index):
    features = Features({name: Value("int64") for name in ("id", *USUAL[index:][::-1])})
    assert find_label_column(features, None) == USUAL[index]  # the first of them
    assert find_label_column(features, "id") == "id"


def test_a_column_of_classes_is_that_of_the_labels_if_it_is_the_only_one():
    kinds = {"a": Value("string"), "b": ClassLabel(names=NAMES), "c": List(ClassLabel(names=NAMES))}
    assert find_label_column(Features({"a": kinds["a"], "b": kinds["b"]}), None) == "b"
    assert find_label_column(Features({"a": kinds["a"], "c": kinds["c"]}), None) == "c"
    for features in (kinds, {"a": kinds["a"]}):
        with pytest.raises(ValueError, match=r"No column is clearly that of the labels; set label_column_name to one"):
            find_label_column(Features(features), None)
    with pytest.raises(ValueError, match=r"There is no column 'z'; set label_column_name to one of \['a', 'b', 'c'\]"):
        find_label_column(Features(kinds), "z")


# ---- Classes ----


@pytest.mark.parametrize(
    ("labels", "feature", "options", "keys", "names"),
    [
        ([2, 0], Value("int64"), {}, (0, 1, 2), ("0", "1", "2")),
        ([2, 0], Value("uint8"), {"classes": 5}, (0, 1, 2, 3, 4), ("0", "1", "2", "3", "4")),
        ([2, 0], Value("int64"), {"names": NAMES}, (0, 1, 2), tuple(NAMES)),
        (["b", "a", None, ""], Value("string"), {}, ("a", "b"), ("a", "b")),
        (["b", "a"], Value("string"), {"names": ["b", "a", "z"]}, ("b", "a", "z"), ("b", "a", "z")),
        ([True], Value("bool"), {}, (False, True), ("False", "True")),
        ([True], Value("bool"), {"names": ["no", "yes"]}, (False, True), ("no", "yes")),
        ([0], ClassLabel(names=NAMES), {}, tuple(NAMES), tuple(NAMES)),
        ([0], ClassLabel(names=NAMES), {"names": ["x", "y", "z"], "classes": 3}, tuple(NAMES), ("x", "y", "z")),
        ([0], ClassLabel(num_classes=2), {}, ("0", "1"), ("0", "1")),
        ([[0], []], List(Value("int64")), {}, (0,), ("0",)),  # of several labels, one class is enough
        ([["b"], ["a", "b"]], List(Value("string")), {"multi_label": True}, ("a", "b"), ("a", "b")),
    ],
)
def test_classes_of_a_column(labels, feature, options, keys, names):
    found = vocabulary(labels, feature, **options)
    assert (found.keys, found.names) == (keys, names)
    assert found.multi_label is isinstance(feature, List)


@pytest.mark.parametrize(
    ("labels", "feature", "options", "message"),
    [
        ([0, 0], Value("int64"), {}, r"Column 'label' holds fewer than two classes \(0\)"),
        ([[], []], List(Value("int64")), {}, "The largest label of column 'label' is None"),
        ([-1, -2], Value("int64"), {}, "The largest label of column 'label' is -1; labels count from 0"),
        ([10**6], Value("int64"), {}, "The largest label of column 'label' is 1000000"),
        ([0, 1], Value("int64"), {"classes": 3, "names": NAMES[:2]}, "num_classes is 3, but column 'label' has 2"),
        ([0, 1], ClassLabel(names=NAMES), {"classes": 2}, "num_classes is 2, but column 'label' has 3 classes"),
        ([0, 1], ClassLabel(names=NAMES), {"names": ["x"]}, "label_names_file has 1 names for the 3 classes"),
        ([0.5], Value("float32"), {}, r"Column 'label' holds Value\('float32'\); labels are strings, integers or"),
        ([[0], [1]], List(Value("int64")), {"multi_label": False}, "multi_label is False, .* holds lists of labels"),
        ([0, 1], Value("int64"), {"multi_label": True}, "multi_label is True, .* holds one label an image"),
    ],
)
def test_columns_without_classes(labels, feature, options, message):
    assert len(vocabulary([10**6 - 1], Value("int64"), multi_label=False).keys) == 10**6
    with pytest.raises(ValueError, match=message):
        vocabulary(labels, feature, **options)


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        ([-1, -1], Value("int64"), False), ([None, -1], Value("int64"), False), ([-1, 0], Value("int64"), True),
        (["", None], Value("string"), False), (["", "a"], Value("string"), True), ([[]], List(Value("int64")), False),
        ([[], [3]], List(Value("int64")), True),
    ],
)  # fmt: skip
def test_splits_without_labels(labels, feature, expected):
    assert has_labels(rows(labels, feature), "label") is expected
    assert has_labels(rows(labels, feature), "absent") is False


# ---- Indices ----


@pytest.mark.parametrize(
    ("labels", "feature", "keys", "expected"),
    [
        (["b", "a"], Value("string"), ("a", "b"), [1, 0]),
        ([1, 0], ClassLabel(names=["b", "a"]), ("a", "b"), [0, 1]),  # by name
        ([1, 0], ClassLabel(names=["x", "y"]), (0, 1, 2), [1, 0]),
        ([1, 0], Value("int32"), ("a", "b"), [1, 0]),  # numbers of the classes
        ([True, False], Value("bool"), (False, True), [1, 0]),
        ([["b", "a"], [], ["a"]], List(Value("string")), ("a", "b"), [[1, 0], [], [0]]),
    ],
)
def test_labels_become_indices(labels, feature, keys, expected):
    of = Vocabulary(keys, tuple(map(str, keys)), isinstance(feature, List))
    assert encoded(labels, feature, of) == expected
    split = encode_labels(rows(labels, feature), "train", "label", "image", of)
    kind = split.features["label"]
    assert (kind.feature if isinstance(feature, List) else kind) == Value("int64")
    flat = [label for row in expected for label in row] if isinstance(feature, List) else expected
    assert label_array(split, "label").tolist() == flat


@pytest.mark.parametrize(
    ("labels", "feature", "keys", "message"),
    [
        (["a", "z"], Value("string"), ("a", "b"), "1.png: has the label 'z', which is none of the 2 classes; correct"),
        (["a", None], Value("string"), ("a", "b"), "1.png: has no label; correct column 'label' of split 'train', or"),
        ([0, 2], Value("int64"), ("a", "b"), "1.png: has the label 2, which is none of the 2 classes"),
        ([0, 1], ClassLabel(names=["a", "z"]), ("a", "b"), "1.png: has the label 'z', which the training data lack"),
        ([0, 2], ClassLabel(names=["x", "y", "z"]), (0, 1), "1.png: has the label 'z', which the training data lack"),
        ([[0], [1, 1]], List(Value("int64")), (0, 1), r"1.png: has a label twice in \[1, 1\] \(labels are lists of cl"),
        ([[0], None], List(Value("int64")), (0, 1), "1.png: has no label"),
    ],
)
def test_labels_that_are_no_classes(labels, feature, keys, message):
    of = Vocabulary(keys, tuple(map(str, keys)), isinstance(feature, List))
    with pytest.raises(ValueError, match=f"^{message}"):
        encoded(labels, feature, of)


@pytest.mark.parametrize(
    ("labels", "feature", "keys", "multi_label"),
    [
        (["a"], Value("string"), (0, 1), False), ([{"bytes": b"", "path": None}], Image(decode=False), (0, 1), False),
        ([[0]], List(Value("int64")), (0, 1), False), ([0], Value("int64"), (0, 1), True),
    ],
)  # fmt: skip
def test_labels_of_another_kind_than_those_of_the_training(labels, feature, keys, multi_label):
    of = Vocabulary(keys, tuple(map(str, keys)), multi_label)
    text = re.escape("Column 'label' of split 'train' holds")
    with pytest.raises(ValueError, match=f"^{text} .*, unlike that of the training data"):
        encoded(labels, feature, of)


# ---- Data ----


def data(labels, feature=None, multi_label=False):
    return ClassificationData(rows(labels, feature or Value("int64")), None, None, NAMES, "image", "label", multi_label)


def test_counts_and_weights_of_classes():
    assert data([0, 0, 1]).class_counts().tolist() == [2, 1, 0]
    several = data([[0, 1], [1], [2], []], List(Value("int64")), multi_label=True)
    assert several.class_counts().tolist() == [1, 2, 1]
    weights = data([0, 0, 1, 2, 2, 2]).class_weights()
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, [1.0, 2.0, 2 / 3])
    with pytest.raises(ValueError, match="No training image of cat: class weights need images of every class"):
        data([0, 0, 1]).class_weights()
    stream = data([0, 1])
    stream.train = stream.train.to_iterable_dataset()
    with pytest.raises(ValueError, match="The training data are a stream, whose classes are not counted"):
        stream.class_counts()


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_of_an_example(multi_label):
    of = data([0])
    of.multi_label = multi_label
    transform = of.training_transform(lambda image, key: (image, key))
    reader = SimpleNamespace(read=lambda image: (image, b"abc"))
    object.__setattr__(transform, "reader", reader)
    example = transform.one({"image": "picture", "label": [2, 0] if multi_label else 1}, 5, 6)
    assert example["pixel_values"] == ("picture", [891568578, 5, 6])  # the CRC-32 of the bytes
    if multi_label:
        assert example["labels"].tolist() == [1.0, 0.0, 1.0]
        assert example["labels"].dtype == torch.float32
    else:
        assert example["labels"] == 1
    with pytest.raises(ValueError, match="a row without an image: column 'image' is empty; remove the row"):
        transform.read({"image": None, "label": 1})


def test_batches_of_labels():
    pixels = torch.zeros(3, 2, 2)
    batch = collate([{"pixel_values": pixels, "labels": 1}, {"pixel_values": pixels, "labels": 0}])
    assert (batch["pixel_values"].shape, batch["labels"].tolist()) == ((2, 3, 2, 2), [1, 0])
    assert batch["labels"].dtype == torch.int64
    batch = collate([{"pixel_values": pixels, "labels": torch.tensor([0.0, 1.0])}])
    assert batch["labels"].tolist() == [[0.0, 1.0]]


class Builder:
    cache_dir = "of the builder"

    def as_streaming_dataset(self):
        return {"train": "stream", "dev": "other stream"}


def test_streams_are_asked_for_as_the_arguments_say(monkeypatch):
    calls = []

    def noting(name, result):
        def call(*given, **options):
            calls.append((name, given, options))
            return result

        return call

    for name, result in (("load_dataset_builder", Builder()), ("keep_stream", "kept"), ("read_folder", "folder")):
        monkeypatch.setattr(classification_data, name, noting(name, result))
    own = {
        "dataset_name": "me/data",
        "dataset_config_name": "small",
        "dataset_revision": "v2",
        "data_cache_dir": "cache",
    }
    arguments = ClassificationDataArguments(**own, streaming=True, max_eval_samples=7)
    assert classification_data._read_split(arguments, "train") == "stream"
    asked = ("load_dataset_builder", ("me/data", "small"), {"revision": "v2", "cache_dir": "cache"})
    assert calls == [asked]
    assert classification_data._read_split(arguments, "test") is None
    assert classification_data._read_split(arguments, "validation") == "kept"
    name, (stream, count, key, cache), _ = calls[-1]
    assert (name, stream, count, cache) == ("keep_stream", "other stream", 7, "cache")
    fewer = ClassificationDataArguments(**own, streaming=True, max_eval_samples=6)
    classification_data._read_split(fewer, "validation")
    assert calls[-1][1][2] != key  # other images are kept apart
    classification_data._read_split(arguments, "validation")
    assert calls[-1][1][2] == key
    for split, streaming in (("train", True), ("validation", False), ("test", False)):
        folders = {"train_dir": "a", "validation_dir": "b", "test_dir": "c", "data_cache_dir": "cache"}
        of_folders = ClassificationDataArguments(**folders, streaming=True)
        assert classification_data._read_split(of_folders, split) == "folder"
        assert calls[-1] == ("read_folder", (folders[f"{split}_dir"], streaming, "cache"), {})
    assert classification_data._read_split(ClassificationDataArguments(train_dir="a"), "test") is None


@pytest.mark.parametrize("name", ["shuffle_buffer", "num_classes", "max_train_samples"])
def test_numbers_of_a_classifiers_data(name):
    assert getattr(ClassificationDataArguments(train_dir="a", **{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        ClassificationDataArguments(train_dir="a", **{name: 0})
    assert ImageReader().max_pixels == 178_956_970
