# SPDX-License-Identifier: MIT
"""Fashion-MNIST's files as data of the scripts, with a few pictures in files of its format; scenes of its items."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from hf_internimage.training.example_data import fashion_mnist, scenes
from hf_internimage.training.sources import read_folder

NAMES = [
    "T-shirt or top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def idx(values, kind=8):
    header = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def write_source(folder, counts=(30, 20)):
    """Write the four files; return split -> images and labels."""
    folder.mkdir()
    splits = {}
    for (split, prefix), count in zip((("train", "train"), ("test", "t10k")), counts, strict=True):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) * 7 % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        splits[split] = images, labels
    return splits


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


def test_arrays_of_files(tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "a.gz").write_bytes(idx(values))
    read = fashion_mnist.read_idx(tmp_path / "a.gz")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)
    (tmp_path / "b.gz").write_bytes(idx(values, kind=9))
    with pytest.raises(ValueError, match=r"b\.gz is no IDX file of bytes; take it from Fashion-MNIST itself"):
        fashion_mnist.read_idx(tmp_path / "b.gz")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("per_class", [None, 1, 2, 99])
def test_images_of_a_split(split, per_class, source, tmp_path):
    images, labels = fashion_mnist.read_split(tmp_path / "source", split, per_class)
    expected = [
        row for row, label in enumerate(source[split][1])
        if per_class is None or (source[split][1][:row] == label).sum() < per_class
    ]  # fmt: skip
    np.testing.assert_array_equal(images, source[split][0][expected])
    np.testing.assert_array_equal(labels, source[split][1][expected])


def test_a_folder_for_each_class(source, tmp_path, capsys):
    arguments = [str(tmp_path / "source"), str(tmp_path / "new" / "out"), "--format", "folder", "--per-class", "2"]
    assert fashion_mnist.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("/test: 20 images")
    for split in ("train", "test"):
        folder = tmp_path / "new" / "out" / split
        assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
        files = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
        assert [path.stem for path in files] == [f"{index:05d}" for index in range(20)]
        for file, image, label in zip(files, *source[split], strict=False):
            assert file.parent.name == NAMES[label]
            np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    assert read_folder(str(tmp_path / "new" / "out" / "test"), False, None).features["label"].names == sorted(NAMES)


def test_parquet_files(source, tmp_path, capsys):
    assert fashion_mnist.main([str(tmp_path / "source"), str(tmp_path / "out")]) == 0
    assert [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["30 images", "20 images"]
    for split in ("train", "test"):
        (file,) = (tmp_path / "out" / split).iterdir()
        assert file.name == "00000-of-00001.parquet"
        rows = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.features["label"].names == NAMES
        assert rows["label"][:] == source[split][1].tolist()
        np.testing.assert_array_equal(np.stack([np.asarray(row["image"]) for row in rows]), source[split][0])


@pytest.mark.parametrize(("count", "shards"), [(9_999, 1), (19_999, 1), (20_000, 2)])
def test_parquet_files_of_about_ten_thousand(count, shards, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Dataset, "to_parquet", lambda self, path: written.append((path.name, self["label"][:])))
    labels = np.arange(count) % 10
    fashion_mnist.write_parquet(np.zeros((count, 1, 1), np.uint8), labels, tmp_path / "a" / "b")
    assert [name for name, _ in written] == [f"{index:05d}-of-{shards:05d}.parquet" for index in range(shards)]
    assert [label for _, part in written for label in part] == labels.tolist()


def test_what_is_there_or_missing(source, tmp_path, capsys):
    assert fashion_mnist.main([str(tmp_path / "source"), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path} exists: give a new folder.\n"
    (tmp_path / "source" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert fashion_mnist.main([str(tmp_path / "source"), str(tmp_path / "out")]) == 1
    assert "Fashion-MNIST cannot be read: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- Scenes ----


def test_items_of_fashion_are_padded(source, tmp_path):
    for split, own in (("train", "train"), ("validation", "test")):
        pictures, classes = scenes.read_items("fashion", tmp_path / "source", split)
        np.testing.assert_array_equal(pictures[:, 2:-2, 2:-2], source[own][0])
        assert pictures.shape[1:] == (32, 32)
        assert pictures[:, :2].max() == pictures[:, :, -2:].max() == 0
        np.testing.assert_array_equal(classes, source[own][1])
    assert scenes.class_names("fashion") == fashion_mnist.CLASS_NAMES == NAMES
    pictures, _ = scenes.read_items("digits", Path(), "validation")
    assert (len(pictures), pictures.shape[1:], pictures.max()) == (359, (10, 10), 255)


def test_run_lengths_begin_with_zeros_and_boxes_hold_the_visible_part():
    items = np.array([[1, 0, 2], [1, 0, 2], [0, 0, 0]], np.uint8)
    scene = scenes.Scene(np.zeros((3, 3, 3), np.uint8), items, [7, 2])
    assert scene.mask.tolist() == [[8, 0, 3], [8, 0, 3], [0, 0, 0]]
    first, second = scenes.annotate(scene, 5, 40)
    assert first == {
        "id": 40, "image_id": 5, "category_id": 8, "bbox": [0, 0, 1, 2], "area": 2, "iscrowd": 0,
        "segmentation": {"size": [3, 3], "counts": [0, 2, 7]},
    }  # fmt: skip
    assert (second["id"], second["category_id"], second["bbox"]) == (41, 3, [2, 0, 1, 2])
    assert second["segmentation"]["counts"] == [6, 2, 1]


def test_no_item_is_hidden_by_more_than_its_share():
    """As large as an item was when it was laid down, no more than 30 % of it is covered by those after it."""
    pictures = np.pad(np.full((1, 8, 8), 255, np.uint8), ((0, 0), (1, 1), (1, 1)))
    most = 0.0
    for seed in range(30):
        scene = scenes.compose(pictures, np.array([3]), 64, 20, np.random.default_rng(seed))
        assert scene.classes == [3] * len(scene.classes)
        assert (scene.pixels.shape, scene.pixels.dtype) == ((64, 64, 3), np.uint8)
        for number in range(1, len(scene.classes) + 1):
            rows, columns = np.nonzero(scene.items == number)
            whole = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            most = max(most, 1 - len(rows) / whole)
    assert 0.1 < most < 0.5


@pytest.mark.parametrize(
    ("argument", "taken"),
    [
        ("--size=31", False), ("--size=4097", False), ("--items=21", False), ("--items=1", False),
        ("--train=100000", False),
        ("--validation=0", False), ("--size=32", True), ("--items=2", True), ("--items=20", True),
    ],
)  # fmt: skip
def test_ends_of_the_settings(argument, taken, tmp_path, capsys):
    few = ["--source=digits", "--train=1", "--validation=1", "--size=32"]
    arguments = [str(tmp_path / "new"), *few, argument]
    if taken:
        assert scenes.main(arguments) == 0
        side = Image.open(io.BytesIO((tmp_path / "new" / "train" / "images" / "00000.png").read_bytes())).size
        assert side == (32, 32)
        assert (tmp_path / "new" / "label_names.txt").read_text().split("\n")[0] == "background"
    else:
        with pytest.raises(SystemExit, match="2"):
            scenes.main(arguments)
        assert f"{argument.replace('=', ' is ')}, expected " in capsys.readouterr().err
