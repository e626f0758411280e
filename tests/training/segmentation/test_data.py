# SPDX-License-Identifier: MIT
"""Segmentation data: folders of images and maps, data sets with two columns of images, class names, errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from support.segmentation_scenes import arguments, scene, write, write_all

from hf_internimage.image_files import BadImageError
from hf_internimage.training.segmentation import data as segmentation_data
from hf_internimage.training.segmentation.data import (
    SegmentationDataArguments,
    collate,
    decode_mask,
    load_data,
    read_pairs,
)
from hf_internimage.training.sources import read_label_names


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("scenes"))


def test_pairs_by_name(scenes, tmp_path):
    pairs = read_pairs(scenes / "train")
    assert [Path(row["image"]["path"]).name for row in pairs] == [f"{index:02d}.png" for index in range(8)]
    assert all(Path(row["label"]["path"]).parts[-2:] == ("masks", Path(row["image"]["path"]).name) for row in pairs)
    # names as Cityscapes has them, in folders
    for name, end in (("images/bonn/a", "_left.png"), ("masks/bonn/a", "_ids.png"), ("masks/bonn/a", "_color.png")):
        path = tmp_path / f"{name}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    (row,) = read_pairs(tmp_path, "_left.png", "_ids.png")
    assert (Path(row["image"]["path"]).name, Path(row["label"]["path"]).name) == ("a_left.png", "a_ids.png")


def examples(loaded, split):
    transform = loaded.training_transform(lambda image, labels, key: {"image": image, "labels": labels, "key": key})
    return getattr(loaded, split).with_transform(transform)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "masks/01.png").unlink(), "images/01.png: has no map of its name in"),
        (lambda folder: (folder / "images/03.png").unlink(), "masks/03.png: has no image of its name in"),
        (lambda folder: (folder / "masks/01.bmp").write_bytes(b""), "are both called 01"),
        (lambda folder: shutil.rmtree(folder / "masks"), "masks: is not a folder"),
        (lambda folder: [path.unlink() for path in (folder / "images").iterdir()], "images: holds no images"),
    ],
)
def test_refuses_folders(damage, message, tmp_path):
    damage(write(tmp_path / "train", 4))
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "train")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (30, 32)), r"masks/01.png: has 30x32 pixels, its image .*images/01.png 32x32"),
        (Image.new("L", (32, 32), 3), "masks/01.png: holds class 3, but there are 3 class names"),
        (Image.new("RGB", (32, 32)), "masks/01.png: is RGB, but a map has"),
        (None, "masks/01.png: cannot be decoded"),
    ],
    ids=["size", "class", "channels", "damaged"],
)
def test_refuses_maps(mask, message, tmp_path, scenes):
    write(tmp_path / "train", 4)
    path = tmp_path / "train" / "masks" / "01.png"
    path.write_bytes(b"nothing") if mask is None else mask.save(path)
    loaded = load_data(arguments(tmp_path, label_names_file=str(scenes / "names.txt"), train_val_split=0))
    rows = examples(loaded, "train")
    assert rows[0]["labels"].shape == (32, 32)
    with pytest.raises(ValueError, match=message):
        rows[1]


@pytest.mark.parametrize(
    ("reduce_labels", "number", "first"),
    [(False, 3, 0), (False, 254, 0), (False, 256, 0), (True, 4, 1), (True, 254, 1), (True, 256, 1)],
)
def test_a_wrong_class_is_named_by_the_number_in_the_map(reduce_labels, number, first, tmp_path, scenes):
    write(tmp_path / "train", 4)
    mask = Image.new("L" if number < 256 else "I;16", (32, 32), 2 + reduce_labels)
    mask.save(tmp_path / "train" / "masks" / "00.png")
    mask.putpixel((5, 7), number)
    mask.save(tmp_path / "train" / "masks" / "01.png")
    settings = {"label_names_file": str(scenes / "names.txt"), "reduce_labels": reduce_labels, "train_val_split": 0}
    rows = examples(load_data(arguments(tmp_path, **settings)), "train")
    assert np.unique(rows[0]["labels"]).tolist() == [2]
    with pytest.raises(ValueError, match=rf"01\.png: holds class {number}, but there are 3 class names \({first} is"):
        rows[1]


@pytest.mark.parametrize(
    ("suffixes", "message"),
    [
        (("_left.png", ".png"), "images: holds no images that end with _left.png; check"),
        ((".png", "_ids.png"), "masks: holds no images that end with _ids.png; check"),
    ],
)
def test_a_suffix_that_no_file_has_is_named(suffixes, message, scenes):
    with pytest.raises(ValueError, match=message):
        read_pairs(scenes / "train", *suffixes)


def test_maps_of_any_kind_are_numbers(tmp_path):
    classes = np.array([[0, 1], [7, 255]], np.uint8)
    plain, palette, wide = tmp_path / "l.png", tmp_path / "p.png", tmp_path / "i.png"
    Image.fromarray(classes).save(plain)
    coloured = Image.fromarray(classes).convert("P")
    coloured.putpalette([value for index in range(256) for value in (255 - index, index, 3)])
    coloured.putdata(classes.ravel().tolist())
    coloured.save(palette)
    Image.fromarray(classes.astype(np.uint16) + 300).save(wide)
    for path, shift in ((plain, 0), (palette, 0), (wide, 300)):
        decoded = decode_mask({"bytes": None, "path": str(path)})
        assert decoded.dtype == np.int64
        assert (decoded == classes.astype(int) + shift).all()


def test_images_of_several_sizes_are_padded():
    examples = [
        {"pixel_values": torch.ones(3, *size), "labels": torch.zeros(size, dtype=torch.int64)}
        for size in ((4, 6), (4, 6), (5, 3))
    ]
    assert {name: tuple(values.shape) for name, values in collate(examples[:2]).items()} == {
        "pixel_values": (2, 3, 4, 6),
        "labels": (2, 4, 6),
    }
    batch = collate(examples)
    assert batch["sizes"].tolist() == [[4, 6], [4, 6], [5, 3]]
    for pixels, labels, (height, width) in zip(batch["pixel_values"], batch["labels"], batch["sizes"], strict=True):
        assert (pixels.shape, labels.shape) == ((3, 5, 6), (5, 6))
        assert pixels[:, :height, :width].all()
        assert pixels.sum() == 3 * height * width
        assert not labels[:height, :width].any()
        assert (labels == 255).sum() == 30 - height * width


def test_reduced_labels(scenes):
    names = ["square", "disc"]
    loaded = load_data(
        arguments(scenes, label_names_file=None, reduce_labels=True, train_val_split=0), label_names=names
    )
    whole = load_data(arguments(scenes, train_val_split=0))
    reduced, full = examples(loaded, "train")[0]["labels"], examples(whole, "train")[0]["labels"]
    assert set(np.unique(full)) == {0, 1, 2, 255}
    assert (reduced == np.select([full == 1, full == 2], [0, 1], 255)).all()


def test_held_out_and_chosen(scenes):
    loaded = load_data(arguments(scenes, train_val_split=0.25, max_train_samples=4), seed=1)
    again = load_data(arguments(scenes, train_val_split=0.25, max_train_samples=4), seed=1)
    paths = [[row["image"]["path"] for row in split] for split in (loaded.train, loaded.validation, again.train)]
    assert (len(paths[0]), len(paths[1])) == (4, 2)
    assert not set(paths[0]) & set(paths[1])
    assert paths[0] == paths[2]


def test_datasets_with_two_columns_of_images(scenes, tmp_path):
    rows = read_pairs(scenes / "train")
    columns = {
        "picture": [{"bytes": Path(row["image"]["path"]).read_bytes(), "path": None} for row in rows],
        "annotation": [{"bytes": Path(row["label"]["path"]).read_bytes(), "path": None} for row in rows],
        "number": list(range(8)),
    }
    features = Features({"picture": ImageFeature(), "annotation": ImageFeature(), "number": rows.features.get("n")})
    features = Features({name: kind for name, kind in features.items() if kind is not None})
    data = Dataset.from_dict({name: columns[name] for name in features}, features=features)
    (tmp_path / "repository").mkdir()
    data.to_parquet(tmp_path / "repository" / "train.parquet")
    options = {
        "train_dir": None,
        "dataset_name": str(tmp_path / "repository"),
        "label_names_file": str(scenes / "names.txt"),
        "data_cache_dir": str(tmp_path / "cache"),
    }
    with pytest.raises(ValueError, match=r"No column is recognised; set image_column_name to one of \['picture'"):
        load_data(arguments(scenes, **options))
    with pytest.raises(ValueError, match=r"'number' is none of images; set label_column_name"):
        load_data(arguments(scenes, **options, image_column_name="picture", label_column_name="number"))
    loaded = load_data(arguments(scenes, **options, image_column_name="picture", train_val_split=0))
    example, expected = examples(loaded, "train")[3], scene(3, 40, 48)
    assert (np.asarray(example["image"]) == np.asarray(expected[0])).all()
    assert (example["labels"] == np.asarray(expected[1])).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n", "is empty"),
        ("a.txt", "one\ntwo\none\n", "names one twice"),
        ("a.json", '{"0": "one", "2": "two"}', "number its 2 classes from 0 to 1"),
        ("a.json", '"one"', "holds no names"),
        ("a.json", "[1", "cannot be read"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_refuses_names(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_names(tmp_path / name)


def test_names(tmp_path):
    (tmp_path / "a.json").write_text('{"1": "b", "0": "a"}')
    assert read_label_names(tmp_path / "a.json") == ["a", "b"]
    (tmp_path / "b.json").write_text('["a", "b"]')
    assert read_label_names(tmp_path / "b.json") == ["a", "b"]


def test_255_classes_are_the_most(scenes):
    """255 in a map is no class."""
    named = arguments(scenes, label_names_file=None, train_val_split=0)
    names = [f"class {index}" for index in range(256)]
    assert len(load_data(named, label_names=names[:255]).label_names) == 255
    with pytest.raises(ValueError, match="There are 256 classes, expected at most 255"):
        load_data(named, label_names=names)


@pytest.mark.parametrize("name", ["label", "annotation", "mask", "segmentation", "semantic_segmentation", "labels"])
def test_usual_names_of_the_column_of_maps(name):
    features = Features({"image": ImageFeature(), "zzz": ImageFeature(), name: ImageFeature()})
    rows = Dataset.from_dict(
        {column: [{"bytes": column.encode(), "path": None}] for column in features}, features=features
    )
    found = segmentation_data._two_columns(rows, SegmentationDataArguments(dataset_name="a"))
    assert found[0] == {"image": {"bytes": b"image", "path": None}, "label": {"bytes": name.encode(), "path": None}}
    given = SegmentationDataArguments(dataset_name="a", image_column_name=name, label_column_name="image")
    assert segmentation_data._two_columns(rows, given)[0]["label"]["bytes"] == b"image"


def test_what_pairs_and_named_datasets_are_asked_for(monkeypatch):
    monkeypatch.setattr(segmentation_data, "read_pairs", lambda *given: given)
    own = {"image_suffix": "_left.png", "mask_suffix": "_ids.png"}
    pairs = segmentation_data._read_split(SegmentationDataArguments(validation_dir="a", **own), "validation")
    assert pairs == (Path("a"), "_left.png", "_ids.png")
    assert segmentation_data._read_split(SegmentationDataArguments(validation_dir="a"), "train") is None
    monkeypatch.setattr(SegmentationDataArguments, "load_split", lambda self, split: None)
    assert segmentation_data._read_split(SegmentationDataArguments(dataset_name="a"), "train") is None


@pytest.mark.parametrize(
    ("mode", "taken"), [("L", True), ("P", True), ("1", True), ("I", True), ("F", False), ("LA", False)]
)
def test_a_map_has_whole_numbers_in_one_channel(mode, taken, tmp_path):
    Image.new(mode, (3, 2)).save(tmp_path / "a.tif")
    if taken:
        assert decode_mask({"bytes": None, "path": str(tmp_path / "a.tif")}).shape == (2, 3)
    else:
        with pytest.raises(BadImageError, match=rf"a\.tif: is {mode}, but a map has the class's number of each pixel"):
            decode_mask({"bytes": None, "path": str(tmp_path / "a.tif")})


def test_rows_without_an_image_or_a_map(scenes):
    loaded = load_data(arguments(scenes, train_val_split=0, max_image_pixels=5000))
    assert loaded.reader.max_pixels == 5000
    row, transform = loaded.train[0], loaded.training_transform(None)
    assert transform.reader is loaded.reader
    for column in ("image", "label"):
        with pytest.raises(BadImageError, match="a row without an image or a map: remove it from the data"):
            transform.read({**row, column: None})
    assert load_data(arguments(scenes, train_val_split=0)).reduce_labels is False
    with pytest.raises(ValueError, match=r"are not the 3 of label_names_file .*: take a model of these classes"):
        load_data(arguments(scenes), label_names=["a", "b", "c"])
