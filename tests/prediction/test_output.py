# SPDX-License-Identifier: MIT
"""The files that are written, read again by the programs that they are for."""

import csv
import json

import numpy as np
import pytest
from faster_coco_eval import COCO
from faster_coco_eval import mask as coco_masks
from PIL import Image
from support.prediction_models import NAMES, picture

from hf_internimage.prediction import Classification, Detection, Segment, Segmentation, Source
from hf_internimage.prediction.coco import run_lengths
from hf_internimage.prediction.drawing import class_colours
from hf_internimage.prediction.output import files_for, new_folder

TASKS = {
    "classification": ("image-classification", "semantic"),
    "segmentation": ("image-segmentation", "semantic"),
    "instances": ("image-segmentation", "instance"),
    "detection": ("object-detection", "semantic"),
}


def files(folder, task, names=NAMES):
    return files_for(*TASKS[task])(folder, "me/model", names)


def read_json(path):
    return json.loads(path.read_text())


# ---- The folder ----


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_folder(None).name == "predictions"
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions-2").mkdir()
    assert new_folder(None).name == "predictions-3"
    assert new_folder("predictions").name == "predictions"  # empty
    (tmp_path / "predictions" / "a").touch()
    (tmp_path / "file").touch()
    for name in ("predictions", "file"):
        with pytest.raises(ValueError, match=f"^{name}: is not an empty folder; name a new one, or remove it first"):
            new_folder(name)


def test_files_of_one_name_get_numbers(tmp_path):
    output = files(tmp_path / "out", "detection")
    paths = ["a/cat.jpg", "b/cat.png", "b/Cat.jpg", "cat-2.jpg", None, None]
    names = [output.new_name(Source(path)) for path in paths]
    assert names == ["cat", "cat-2", "Cat-3", "cat-2-2", "image", "image-2"]
    assert output.new_name(Source("a/film.mp4", frame=30)) == "film_000030"


# ---- Classification ----


def test_tables_of_classes(tmp_path):
    output = files(tmp_path, "classification")
    predictions = [
        Classification("a/one.png", ["cat", "dog, or so"], [0.75, 0.25]),
        Classification("a/Zwei ü.png", ["ant"], [1 / 3]),
        Classification("film.mp4", [], [], frame=7),
    ]
    for prediction in predictions:
        output.add(Source(prediction.path, prediction.frame, picture()), prediction)
    assert output.summary() == "most probable: cat 1, ant 1"
    names = output.finish(["bad.png: is empty"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [prediction.path for prediction in predictions]
    assert rows[0] == {
        "path": "a/one.png", "frame": "", "label": "cat", "score": "0.750000", "label_2": "dog, or so",
        "score_2": "0.250000",
    }  # fmt: skip
    assert [rows[1]["score"], rows[1]["label_2"], rows[2]["frame"]] == ["0.333333", None, "7"]
    content = read_json(tmp_path / "predictions.json")
    assert content["images"][0] == {"path": "a/one.png", "labels": ["cat", "dog, or so"], "scores": [0.75, 0.25]}
    assert content["images"][2] == {"path": "film.mp4", "frame": 7, "labels": [], "scores": []}
    assert (content["model"], content["left_out"]) == ("me/model", ["bad.png: is empty"])


def test_a_contact_sheet_shows_images_from_all_over(tmp_path):
    output = files(tmp_path, "classification")
    for index in range(200):
        name = f"{index:03d}.png"
        output.add(Source(name, image=Image.new("RGB", (8, 8))), Classification(name, ["cat"], [1.0]))
    shown = [int(name[:3]) for _, name, _ in output._tiles]
    assert shown == list(range(0, 200, 4))


# ---- Segmentation ----


def test_label_maps_are_class_numbers_in_colours(tmp_path):
    output = files(tmp_path, "segmentation")
    label_map = np.zeros((40, 48), np.uint8)
    label_map[:10], label_map[10:12] = 3, 4
    output.add(Source("a/street.jpg", image=picture()), Segmentation("a/street.jpg", label_map, NAMES))
    assert output.summary() == "pixels: ant 70.0%, dog 25.0%, eel 5.0%"
    assert output.finish([]) == ["predictions.json", "legend.png", "label_maps/", "overlays/"]
    with Image.open(tmp_path / "label_maps" / "street.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == label_map).all()
        assert image.convert("RGB").getpixel((0, 0)) == tuple(class_colours(5)[3].tolist())
    with Image.open(tmp_path / "overlays" / "street.jpg") as image:
        assert image.size == (48, 40)
    content = read_json(tmp_path / "predictions.json")
    (row,) = content["images"]
    assert row["shares"] == {"ant": 0.7, "dog": 0.25, "eel": 0.05}
    assert (row["label_map"], row["overlay"]) == ("label_maps/street.png", "overlays/street.jpg")
    assert content["classes"][3] == {
        "index": 3,
        "name": "dog",
        "colour": "#{:02x}{:02x}{:02x}".format(*class_colours(5)[3]),
    }
    with Image.open(tmp_path / "legend.png") as legend:
        pixels = np.asarray(legend)
    occurs = [(pixels == colour).all(axis=2).sum() > 200 for colour in class_colours(5)]
    assert occurs == [True, False, False, True, True]


def test_label_maps_of_many_classes_have_16_bits(tmp_path):
    names = [f"class {index}" for index in range(300)]
    output = files(tmp_path, "segmentation", names)
    label_map = np.full((40, 48), 299, np.uint16)
    label_map[0] = 65535  # no class
    output.add(Source("a.png", image=picture()), Segmentation("a.png", label_map, names))
    output.finish([])
    with Image.open(tmp_path / "label_maps" / "a.png") as image:
        assert image.mode == "I;16"
        assert (np.asarray(image) == label_map).all()
    assert read_json(tmp_path / "predictions.json")["images"][0]["shares"] == {"class 299": 0.975}


def test_panoptic_segments_have_a_map_of_their_own(tmp_path):
    output = files(tmp_path, "segmentation")
    label_map, segment_map = np.full((40, 48), 255, np.uint8), np.zeros((40, 48), np.int32)
    label_map[:9], segment_map[:9] = 2, 1
    segments = [Segment(1, "cat", 0.5)]
    prediction = Segmentation("a.png", label_map, NAMES, segment_map, segments)
    output.add(Source("a.png", image=picture()), prediction)
    assert "segment_maps/" in output.finish([])
    with Image.open(tmp_path / "segment_maps" / "a.png") as image:
        assert (np.asarray(image) == segment_map).all()
    (row,) = read_json(tmp_path / "predictions.json")["images"]
    assert row["segments"] == [{"id": 1, "label": "cat", "score": 0.5}]


# ---- Detection ----


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_are_cocos(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((37, 53)) < (0.5, 0.02, 0.98, 0.0, 1.0, 0.3)[seed]
    if seed == 5:
        mask = np.kron(mask, np.ones((20, 30))).astype(bool)  # long runs
    encoded = run_lengths(mask)
    expected = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded == {"size": list(expected["size"]), "counts": expected["counts"].decode()}
    assert (coco_masks.decode(encoded) == mask).all()


@pytest.mark.parametrize("has_masks", [False, True])
def test_coco_reads_the_detections(has_masks, tmp_path):
    output = files(tmp_path, "instances" if has_masks else "detection")
    boxes = np.array([[1, 2, 11.5, 22], [5, 5, 40, 30]], np.float32)
    masks = np.zeros((2, 40, 48), bool)
    masks[0, 2:22, 1:11], masks[1, 5:30, 5:40] = True, True
    scores, classes = np.array([0.9, 0.4], np.float32), np.array([3, 0])
    for name in ("a/x.png", "b/x.png"):
        detection = Detection(name, boxes, scores, ["dog", "ant"], masks if has_masks else None, classes, (40, 48))
        output.add(Source(name, image=picture()), detection)
    assert output.summary() == "objects: 4 (dog 2, ant 2)"
    names = output.finish(["bad.png: is empty"])
    assert names == ["predictions.json", "images.json", "boxes/"]
    assert sorted(path.name for path in (tmp_path / "boxes").iterdir()) == ["x-2.jpg", "x.jpg"]
    images = read_json(tmp_path / "images.json")
    assert images["info"]["left_out"] == ["bad.png: is empty"]
    assert [image["file_name"] for image in images["images"]] == ["a/x.png", "b/x.png"]
    coco = COCO(images).loadRes(str(tmp_path / "predictions.json"))
    assert coco.loadCats(3)[0]["name"] == "dog"
    assert coco.getImgIds() == [1, 2]
    first = coco.loadAnns(coco.getAnnIds(imgIds=[1]))[0]
    assert first["bbox"] == [1, 2, 10.5, 20]
    assert first["score"] == pytest.approx(0.9)
    if has_masks:
        assert (coco.annToMask(first) == masks[0]).all()


def test_images_without_objects(tmp_path):
    output = files(tmp_path, "detection")
    empty = np.zeros((0, 4), np.float32)
    detection = Detection("a.png", empty, empty[:, 0], [], None, np.zeros(0, np.int64), (40, 48))
    output.add(Source("a.png", image=picture()), detection)
    assert output.summary() == "objects: none; a lower --threshold shows weaker ones"
    output.finish([])
    assert read_json(tmp_path / "predictions.json") == []
    assert len(read_json(tmp_path / "images.json")["images"]) == 1


def test_pictures_too_large_for_jpeg_are_png(tmp_path):
    output = files(tmp_path, "segmentation")
    for name, width in (("long", 65_501), ("short", 65_500)):
        image = Image.new("RGB", (width, 1))
        output.add(
            Source(f"{name}.png", image=image), Segmentation(f"{name}.png", np.zeros((1, width), np.uint8), NAMES)
        )
    output.finish([])
    overlays = [row["overlay"] for row in read_json(tmp_path / "predictions.json")["images"]]
    assert overlays == ["overlays/long.png", "overlays/short.jpg"]
    assert all((tmp_path / overlay).is_file() for overlay in overlays)
