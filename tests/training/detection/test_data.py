# SPDX-License-Identifier: MIT
"""Detection data: files in COCO's format and data sets with a column of objects, good ones and bad ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from support.detection_scenes import NAMES, coco, load, scene, write
from transformers.utils import logging

from hf_internimage import InternImageDetectionImageProcessor
from hf_internimage.training.detection.augmentation import DetectionAugmentation, DetectionAugmentationArguments
from hf_internimage.training.detection.data import DetectionDataArguments, load_data
from hf_internimage.training.images import Augmented


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    coco(folder / "train", 8)
    coco(folder / "validation", 4, first=8, ids=(1, 2))
    return folder


def test_coco_files(scenes):
    data = load(train_dir=scenes / "train", validation_dir=scenes / "validation")
    assert data.label_names == NAMES
    assert (len(data.train), len(data.validation), data.test) == (8, 4, None)
    row = data.train[2]
    assert Path(row["image"]["path"]).name == "02.png"
    assert (row["width"], row["height"], row["image_id"]) == (48, 40, 2)
    assert row["boxes"] == scene(2)[1]
    assert (row["classes"], row["areas"], row["crowds"]) == ([0, 1], [100, 101], [False, False])


def test_annotations_elsewhere_and_category_order(scenes, tmp_path):
    """Classes are in the order of the ids, which may have gaps; COCO keeps images and annotations apart."""
    content = json.loads((scenes / "train" / "annotations.json").read_text())
    content["categories"] = [{"id": 90, "name": "owl"}, *content["categories"][::-1]]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = load(train_dir=scenes / "train" / "images", train_annotations=tmp_path / "instances.json", train_val_split=0)
    assert data.label_names == ["square", "disc", "owl"]
    assert data.train[0]["classes"] == [0, 1]
    assert data.validation is None


def test_other_splits_are_matched_by_name(scenes, tmp_path):
    coco(tmp_path / "validation", 2, ids=(8, 3))  # other ids and order
    data = load(train_dir=scenes / "train", validation_dir=tmp_path / "validation")
    assert data.validation[0]["classes"] == [0, 1]
    assert data.validation[0]["boxes"] == scene(0)[1]
    coco(tmp_path / "other", 2, names=["square", "ring"])
    with pytest.raises(ValueError, match="'validation' has objects of the class 'ring', which is none of square, disc"):
        load(train_dir=scenes / "train", validation_dir=tmp_path / "other")
    names = ["owl", "disc", "square"]
    arguments = DetectionDataArguments(validation_dir=str(scenes / "validation"))
    data = load_data(arguments, splits=["validation"], label_names=names)
    assert data.label_names == names
    assert data.validation[0]["classes"] == [2, 1]


def test_a_share_is_held_out(scenes):
    data = load_data(DetectionDataArguments(train_dir=str(scenes / "train"), train_val_split=0.25), seed=1)
    assert (len(data.train), len(data.validation)) == (6, 2)
    ids = [*data.train["image_id"], *data.validation["image_id"]]
    assert sorted(ids) == list(range(8))
    again = load_data(DetectionDataArguments(train_dir=str(scenes / "train"), train_val_split=0.25), seed=1)
    assert data.validation["image_id"][:] == again.validation["image_id"][:]
    alone = DetectionDataArguments(train_dir=str(scenes / "train"), train_val_split=0.25, train_without_objects=False)
    evaluated = load_data(alone, seed=1, splits=["validation"], label_names=NAMES[::-1])
    assert evaluated.train is None
    assert evaluated.validation["image_id"][:] == data.validation["image_id"][:]
    assert evaluated.validation[0]["classes"] == [1, 0]
    few = DetectionDataArguments(train_dir=str(scenes / "train"), train_val_split=0, max_train_samples=3)
    assert len(load_data(few).train) == 3
    both = DetectionDataArguments(train_dir=str(scenes / "train"), train_val_split=0.25, max_train_samples=4)
    chosen = load_data(both, seed=1)  # of what is left after the share
    assert chosen.validation["image_id"][:] == data.validation["image_id"][:]
    assert len(chosen.train) == 4
    assert set(chosen.train["image_id"]) < set(data.train["image_id"])


def broken(change):
    """Return a function that damages a good annotation file by `change`."""

    def of(content, folder):
        change(content)
        write(folder, content)

    return of


BAD = {
    "no list 'annotations'": broken(lambda content: content.pop("annotations")),
    "entry 0 of 'images' lacks one of id, file_name": broken(lambda content: content["images"][0].pop("file_name")),
    "cannot be read as JSON": lambda content, folder: (folder / "annotations.json").write_text('{"images": ['),
    "1 of its 3 images are not there, such as .*01.png": lambda content, folder: (folder / "images/01.png").unlink(),
    "several images have the same id": broken(lambda content: content["images"][1].update(id=100)),
    "annotation 2 is of image 7, which": broken(lambda content: content["annotations"][2].update(image_id=7)),
    "annotation 3 is of category 4, which": broken(lambda content: content["annotations"][3].update(category_id=4)),
    "several categories of the name square": broken(lambda content: content["categories"][1].update(name="square")),
    r"annotation 0 on .*00.png has the box \[1, 2, -3, 4\]": broken(
        lambda content: content["annotations"][0].update(bbox=[1, 2, -3, 4])
    ),
    r"annotation 1 on .*00.png has the box \[1, 2, 3\]": broken(
        lambda content: content["annotations"][1].update(bbox=[1, 2, 3])
    ),
    r"annotation 5 on .*02.png has the box \[1, 2, nan, 4\]": broken(
        lambda content: content["annotations"][5].update(bbox=[1, 2, float("nan"), 4])
    ),
    "annotation 4 on .*02.png has .* the area much": broken(
        lambda content: content["annotations"][4].update(area="much")
    ),
    "The 3 training images have no object": broken(lambda content: content["annotations"].clear()),
}


@pytest.mark.parametrize("message", BAD)
def test_annotations_that_are_wrong(message, tmp_path):
    content = coco(tmp_path / "train", 3)
    BAD[message](content, tmp_path / "train")
    with pytest.raises(ValueError, match=message):
        load(train_dir=tmp_path / "train", train_val_split=0)


def test_validation_without_an_object_is_refused(scenes, tmp_path):
    content = coco(tmp_path / "validation", 2)
    write(tmp_path / "validation", {**content, "annotations": []})
    with pytest.raises(ValueError, match="Split 'validation' has no object in 2 images"):
        load(train_dir=scenes / "train", validation_dir=tmp_path / "validation")


def test_objects_that_cannot_be_trained_on(tmp_path, caplog):
    """They are reported once and left out of training; COCO's measure still has them."""
    content = coco(tmp_path / "train", 3)
    content["annotations"][0]["bbox"] = [60, 5, 10, 10]  # right of the image
    content["annotations"][3]["bbox"] = [5, 5, 0, 10]
    content["annotations"][5]["iscrowd"] = 1
    content["images"].append({"id": 7, "file_name": "02.png"})
    write(tmp_path / "train", content)
    logging.enable_propagation()
    try:
        data = load(train_dir=tmp_path / "train", train_val_split=0)
        assert "2 training images have objects that are empty or outside the image, such as" in caplog.text
        assert "00.png" in caplog.text
        fewer = load(train_dir=tmp_path / "train", train_val_split=0, train_without_objects=False)
        assert len(fewer.train) == 3
        assert "1 training images without an object are left out" in caplog.text
    finally:
        logging.disable_propagation()
    assert len(data.train) == 4
    kept = [row["labels"]["class_labels"].tolist() for row in data.train.with_transform(augmented(data))]
    assert kept == [[1], [0], [0], []]
    processed = data.train.with_transform(data.evaluation_transform(InternImageDetectionImageProcessor()))
    assert [row["labels"]["class_labels"].tolist() for row in processed] == kept
    assert data.train[0]["boxes"][0] == [60, 5, 10, 10]


def augmented(data, **changes):
    arguments = DetectionAugmentationArguments(**{"crop_probability": 0.0, **changes})
    augmentation = DetectionAugmentation(InternImageDetectionImageProcessor(), arguments)
    return data.training_transform(Augmented(augmentation, 0))


def test_an_image_of_another_size_than_annotated_is_named(tmp_path):
    coco(tmp_path / "train", 3)
    scene(0, 50, 40)[0].save(tmp_path / "train" / "images" / "01.png")
    data = load(train_dir=tmp_path / "train", train_val_split=0)
    with pytest.raises(ValueError, match=r"01.png: has 50x40 pixels, 48x40 by its annotations"):
        data.train.with_transform(augmented(data))[1]


def test_large_jpeg_images_are_refused(tmp_path):
    """At a reduced size, as for classification, their boxes would be wrong."""
    coco(tmp_path / "train", 1)
    content = json.loads((tmp_path / "train" / "annotations.json").read_text())
    content["images"] = [{"id": 100, "file_name": "00.jpg"}]
    write(tmp_path / "train", content)
    scene(0)[0].save(tmp_path / "train" / "images" / "00.jpg")
    data = load(train_dir=tmp_path / "train", train_val_split=0, max_image_pixels=1919)  # one less than it has
    with pytest.raises(ValueError, match=r"00.jpg: has more than 1,919 pixels; raise max_image_pixels"):
        data.train.with_transform(augmented(data))[0]
    enough = load(train_dir=tmp_path / "train", train_val_split=0, max_image_pixels=1920)
    assert len(enough.train.with_transform(augmented(enough))[0]["labels"]["boxes"]) == 2


OBJECTS = {
    "lists of numbers": ({"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=NAMES))}, [0, 1]),
    "list of objects": ([{"bbox": List(Value("int64")), "label": Value("string")}], NAMES),
    "numbers without names": ({"bbox": List(List(Value("float32"))), "category_id": List(Value("int64"))}, [18, 63]),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_data_sets_with_a_column_of_objects(kind, tmp_path):
    feature, labels = OBJECTS[kind]
    rows = []
    for index in range(4):
        image, boxes = scene(index)
        image.save(tmp_path / f"{index}.png")
        if isinstance(feature, list):
            objects = [{"bbox": box, "label": label} for box, label in zip(boxes, labels, strict=True)]
        else:
            objects = {"bbox": boxes, next(name for name in feature if name != "bbox"): labels}
        rows.append(
            {"picture": (tmp_path / f"{index}.png").read_bytes(), "width": 48, "height": 40, "objects": objects}
        )
    if not isinstance(feature, list):
        rows[3]["objects"] = {name: [] for name in feature}
    features = Features(
        {"picture": Value("binary"), "width": Value("int64"), "height": Value("int64"), "objects": feature}
    )
    data = Dataset.from_list(rows, features=features).cast_column("picture", ImageFeature())
    (tmp_path / "train").mkdir()
    data.to_parquet(tmp_path / "train" / "0.parquet")
    loaded = load(train_dir=tmp_path / "train", train_val_split=0, data_cache_dir=tmp_path / "cache")
    assert loaded.label_names == {"numbers without names": ["18", "63"], "list of objects": sorted(NAMES)}.get(
        kind, NAMES
    )
    row = loaded.train[1]
    assert row["boxes"] == scene(1)[1]
    assert row["areas"] == [144, 169]
    assert [loaded.label_names[label] for label in row["classes"]] == [
        str(label) for label in labels
    ] or kind.startswith("lists of")
    example = loaded.train.with_transform(augmented(loaded, flip_probability=0.0))[1]
    x, y, w, h = scene(1)[1][0]
    expected = [(x + w / 2) / 48, (y + h / 2) / 40, w / 48, h / 40]
    order = example["labels"]["class_labels"].tolist().index(row["classes"][0])
    torch.testing.assert_close(example["labels"]["boxes"][order], torch.tensor(expected), atol=1e-6, rtol=0)


def test_corners_and_wrong_columns(tmp_path):
    image, boxes = scene(0)
    image.save(tmp_path / "0.png")
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    sizes = {}

    def data(**objects):
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        (tmp_path / "train").mkdir()
        rows = {"image": [str(tmp_path / "0.png")], "objects": [objects], **sizes}
        rows = Dataset.from_dict(rows).cast_column("image", ImageFeature())
        rows.to_parquet(tmp_path / "train" / "0.parquet")
        return {"train_dir": tmp_path / "train", "train_val_split": 0, "data_cache_dir": tmp_path / "cache"}

    good = data(bbox=corners, category=[0, 1])
    assert load(**good, box_format="xyxy").train[0]["boxes"] == boxes
    with pytest.raises(ValueError, match=r"no column 'things'; set objects_column_name to one of .'image', 'objects'."):
        load(**good, objects_column_name="things")
    with pytest.raises(ValueError, match=r"row 0: object 0 on .* expected finite numbers in the order xyxy"):
        load(**data(bbox=[[9, 9, 3, 12]], category=[0]), box_format="xyxy")
    sizes.update(width=[48], height=[40])
    with pytest.raises(ValueError, match=r"1 of 2 boxes end outside .* is box_format=xyxy meant"):
        load(**data(bbox=corners, category=[0, 1]))
    for whole in ([[30, 20, 18, 20], [1, 2, 60, 3]], boxes, [[0, 0, 48, 40]]):  # the second by mistake
        assert load(**data(bbox=whole, category=[0] * len(whole))).train[0]["boxes"] == whole
    sizes.clear()
    with pytest.raises(ValueError, match="row 0: has 2 boxes, but 1 of 'category'"):
        load(**data(bbox=corners, category=[0]))
    with pytest.raises(ValueError, match=r"has the fields \['area', 'category'\], expected bbox and category"):
        load(**data(area=[1.0], category=[0]))
