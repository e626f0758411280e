# SPDX-License-Identifier: MIT
"""Scenes of scripts/prepare_scenes.py: masks, boxes and annotations agree; the same settings give the same files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.golden_data import load_module
from support.paths import SCRIPTS

from hf_internimage.training.example_data import fashion_mnist, shapes
from hf_internimage.training.example_data import scenes as example_scenes

SETTINGS = ["--source=digits", "--train=6", "--validation=3", "--size=64"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "made"
    assert example_scenes.main([str(folder), *SETTINGS]) == 0
    return folder


@pytest.mark.parametrize(("script", "module"), [("scenes", example_scenes), ("fashion_mnist", fashion_mnist)])
def test_scripts_call_the_package(script, module):
    assert load_module(SCRIPTS / f"prepare_{script}.py").main is module.main


def annotations(folder):
    return json.loads((folder / "annotations.json").read_text())


def decode(segmentation):
    """A mask of run lengths down the columns, zeros first."""
    counts = segmentation["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape(segmentation["size"], order="F").astype(bool)


def test_files(scenes):
    assert (scenes / "label_names.txt").read_text().split()[:3] == ["background", "zero", "one"]
    for split, count in (("train", 6), ("validation", 3)):
        content = annotations(scenes / split)
        assert [image["file_name"] for image in content["images"]] == [f"{index:05d}.png" for index in range(count)]
        assert [category["id"] for category in content["categories"]] == list(range(1, 11))
        assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
        for image in content["images"]:
            picture = Image.open(scenes / split / "images" / image["file_name"])
            mask = Image.open(scenes / split / "masks" / image["file_name"])
            assert (picture.mode, mask.mode, picture.size, mask.size) == ("RGB", "L", (64, 64), (64, 64))


def test_annotations_are_of_the_mask(scenes):
    content = annotations(scenes / "train")
    masks = {}
    for image in content["images"]:
        masks[image["id"]] = np.asarray(Image.open(scenes / "train" / "masks" / image["file_name"]))
    covered = {identity: np.zeros_like(mask) for identity, mask in masks.items()}
    assert len(content["annotations"]) >= 2 * len(masks)
    for annotation in content["annotations"]:
        visible = decode(annotation["segmentation"])
        assert (masks[annotation["image_id"]][visible] == annotation["category_id"]).all()
        assert annotation["area"] == visible.sum() > 20
        left, top, width, height = annotation["bbox"]
        rows, columns = np.nonzero(visible)
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
        assert not covered[annotation["image_id"]][visible].any()
        covered[annotation["image_id"]][visible] = annotation["category_id"]
    for identity, mask in masks.items():
        np.testing.assert_array_equal(covered[identity], mask)


def test_seed_decides(scenes, tmp_path):
    assert example_scenes.main([str(tmp_path / "same"), *SETTINGS[:1], "--train=2", "--validation=3", "--size=64"]) == 0
    assert example_scenes.main([str(tmp_path / "other"), *SETTINGS, "--seed=1"]) == 0
    first = Path("train", "images", "00000.png")
    assert (tmp_path / "same" / first).read_bytes() == (scenes / first).read_bytes()
    assert (tmp_path / "other" / first).read_bytes() != (scenes / first).read_bytes()
    validation = Path("validation", "annotations.json")
    assert (tmp_path / "same" / validation).read_bytes() == (scenes / validation).read_bytes()
    corners = []  # of the background: items are drawn over it
    for split in ("train", "validation"):
        with Image.open(scenes / split / "images" / "00000.png") as image:
            corners.append({image.getpixel(at) for at in ((0, 0), (63, 0), (0, 63), (63, 63))})
    assert not corners[0] & corners[1], "each split has random numbers of its own"


def test_items_hide_little_of_each_other():
    pictures, classes = example_scenes.read_items("digits", Path(), "train")
    for seed in range(8):
        alone = example_scenes.compose(pictures, classes, 64, 20, np.random.default_rng(seed))
        assert 2 <= len(alone.classes) <= 20
        assert set(np.unique(alone.items)) == set(range(len(alone.classes) + 1))


@pytest.mark.parametrize(("source", "count"), [("digits", 1797), ("shapes", 500)])
def test_splits_share_no_item(source, count):
    train, validation = (example_scenes.read_items(source, Path(), split)[0] for split in ("train", "validation"))
    assert len(train) + len(validation) == count
    assert not {picture.tobytes() for picture in train} & {picture.tobytes() for picture in validation}


@pytest.mark.parametrize("argument", ["--size=16", "--items=1", "--train=0", "--seed=-1"])
def test_refuses_settings(argument, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example_scenes.main([str(tmp_path / "new"), argument])
    assert argument.replace("=", " is ") in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_refuses_what_is_there_or_missing(scenes, tmp_path, capsys):
    assert example_scenes.main([str(scenes), *SETTINGS]) == 2
    assert "exists: give a new folder" in capsys.readouterr().err
    assert example_scenes.main([str(tmp_path / "new"), f"--source_dir={tmp_path}"]) == 1
    assert "The scenes cannot be made" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_shapes_differ():
    """Pictures of a class are more like each other than like those of any other class, on average."""
    pictures, classes = shapes.draw_shapes("train")
    assert set(classes) == set(range(len(shapes.NAMES)))
    means = np.stack([pictures[classes == label].mean(0) for label in range(len(shapes.NAMES))])
    held_out, truth = shapes.draw_shapes("validation")
    distances = ((held_out[:, None] - means) ** 2).mean((2, 3))  # (N, classes)
    assert (distances.argmin(1) == truth).mean() > 0.8


def test_works_without_any_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example_scenes, "FASHION_FOLDER", tmp_path / "absent")
    assert example_scenes.main([str(tmp_path / "made"), "--train=2", "--validation=1", "--size=64"]) == 0
    assert "made/train: 2 scenes of drawn shapes" in capsys.readouterr().out
    assert (tmp_path / "made" / "label_names.txt").read_text().split() == ["background", *shapes.NAMES]
    categories = annotations(tmp_path / "made" / "train")["categories"]
    assert [category["name"] for category in categories] == shapes.NAMES
