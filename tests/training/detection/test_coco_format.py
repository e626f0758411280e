# SPDX-License-Identifier: MIT
"""Objects as they are written in files and columns: names of fields, areas, crowds, orders of boxes."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset
from PIL import Image
from support.detection_scenes import NAMES, coco, load, write

from hf_internimage.training.detection import data as detection_data
from hf_internimage.training.detection.coco_format import _refuse_corners, read_coco, read_column
from hf_internimage.training.detection.data import DetectionDataArguments, load_data

BOX = [1.0, 2.0, 3.0, 4.0]


def column(objects, box_format="xywh", objects_column="objects", **columns):
    images = [{"bytes": b"", "path": f"{row}.png"} for row in range(len(objects))]
    rows = Dataset.from_dict({"image": images, "objects": objects, **columns})
    return read_column(rows, "source", image_column="image", objects_column=objects_column, box_format=box_format)


@pytest.mark.parametrize("boxes", ["bbox", "boxes"])
@pytest.mark.parametrize("classes", ["category", "categories", "category_id", "label", "labels"])
def test_names_of_the_fields_of_an_object(boxes, classes):
    rows = column([{boxes: [BOX, BOX], classes: [7, 3]}])
    assert rows[0]["boxes"] == [BOX, BOX]
    assert rows.features["classes"].feature.names == ["3", "7"]
    assert rows[0]["classes"] == [1, 0]


def test_areas_and_crowds_of_a_column():
    rows = column([{"bbox": [BOX, BOX, BOX], "category": [0, 0, 0], "area": [5.0, None, 0.0], "iscrowd": [1, 0, None]}])
    assert (rows[0]["areas"], rows[0]["crowds"]) == ([5.0, 12.0, 0.0], [True, False, False])
    rows = column([{"bbox": [BOX], "category": [0]}, {"bbox": [], "category": []}], box_format="xyxy")
    assert [row["boxes"] for row in rows] == [[[1.0, 2.0, 2.0, 2.0]], []]
    assert [row["areas"] for row in rows] == [[4.0], []]
    assert [row["crowds"] for row in rows] == [[False], []]
    assert [row["image_id"] for row in rows] == [0, 1]
    assert (rows["width"][:], rows["height"][:]) == ([0, 0], [0, 0])
    sized = column([{"bbox": [BOX], "category": [0]}], width=[48], height=[40])
    assert (sized["width"][:], sized["height"][:]) == ([48], [40])
    for name in ("area", "iscrowd"):
        with pytest.raises(ValueError, match=f"source, row 0: has 1 boxes, but 2 of '{name}'"):
            column([{"bbox": [BOX], "category": [0], name: [1, 1]}])


@pytest.mark.parametrize(
    ("box", "box_format"),
    [([1, 2, -1, 4], "xywh"), ([1, 2, 3, -1], "xywh"), ([3, 2, 2, 4], "xyxy"), ([1, 4, 2, 3], "xyxy")],
)
def test_boxes_of_negative_size(box, box_format):
    with pytest.raises(ValueError, match=rf"row 0: object 0 on source, row 0 .* in the order {box_format} with"):
        column([{"bbox": [[float(number) for number in box]], "category": [0]}], box_format=box_format)
    column(
        [{"bbox": [[1.0, 2.0, 0.0, 0.0] if box_format == "xywh" else [1.0, 2.0, 1.0, 2.0]], "category": [0]}],
        box_format,
    )


INSIDE, OUTSIDE, BORDER = (2, 2, 5, 5), (10, 10, 20, 20), (10, 2, 15, 15)
FAR = (20, 20, 3, 3)  # no corners: in disorder


@pytest.mark.parametrize(
    ("boxes", "refused"),
    [
        ([OUTSIDE], True), ([OUTSIDE, INSIDE, INSIDE, INSIDE], False), ([OUTSIDE, OUTSIDE, INSIDE, INSIDE], True),
        ([BORDER], False), ([OUTSIDE] * 99 + [FAR], False), ([OUTSIDE] * 199 + [FAR], True), ([], False),
        ([(2, 10, 5, 20)], True), ([(10, 2, 20, 5)], True), ([(10, 10, 25, 25)], True), ([(10, 10, 26, 20)], False),
        ([(10, 10, 20, 26)], False),
    ],
)  # fmt: skip
def test_boxes_that_are_corners(boxes, refused):
    sized = [(list(box), (24, 24)) for box in boxes]
    if refused:
        outside = sum(box not in (INSIDE, FAR) for box in boxes)
        with pytest.raises(ValueError, match=f"^source: {outside} of {len(boxes)} boxes end outside of their image"):
            _refuse_corners(sized, "source")
    else:
        _refuse_corners(sized, "source")


def test_corners_are_meant_only_where_sizes_are_known():
    objects = [{"bbox": [[10.0, 10.0, 20.0, 20.0]], "category": [0]}]
    with pytest.raises(ValueError, match="is box_format=xyxy meant"):
        column(objects, width=[24], height=[24])
    column(objects, width=[0], height=[24])
    column(objects)
    column(objects, box_format="xyxy", width=[24], height=[24])


def test_objects_of_a_file(tmp_path):
    content = coco(tmp_path, 2)
    first, second, third, fourth = content["annotations"]
    del first["area"], first["iscrowd"], content["images"][0]["width"], content["images"][1]["height"]
    second.update(area=7, iscrowd=1)
    third["bbox"] = [1, 2, 0, 4]
    fourth["area"] = None
    write(tmp_path, content)
    rows = read_coco(tmp_path, tmp_path / "annotations.json")
    width, height = first["bbox"][2:]
    assert rows[0]["areas"] == [width * height, 7.0]
    assert rows[0]["crowds"] == [False, True]
    assert rows[1]["areas"][1] == fourth["bbox"][2] * fourth["bbox"][3]
    assert (rows["width"][:], rows["height"][:]) == ([0, 48], [40, 0])
    assert rows["image_id"][:] == [0, 1]
    (tmp_path / "images" / "01.png").unlink()
    with pytest.raises(ValueError, match=r"1 of its 2 images are not there, such as .*01\.png"):
        read_coco(tmp_path, tmp_path / "annotations.json")
    assert len(read_coco(tmp_path, tmp_path / "annotations.json", refuse_missing=False)) == 2


def test_images_beside_the_file_or_in_their_own_folder(tmp_path):
    content = coco(tmp_path, 1)
    assert read_coco(tmp_path, tmp_path / "annotations.json")[0]["image"]["path"] == str(tmp_path / "images" / "00.png")
    (tmp_path / "images" / "00.png").rename(tmp_path / "00.png")
    (tmp_path / "images").rmdir()
    assert read_coco(tmp_path, tmp_path / "annotations.json")[0]["image"]["path"] == str(tmp_path / "00.png")
    for part, name in (("categories", "name"), ("categories", "id"), ("annotations", "bbox"), ("images", "id")):
        broken = json.loads(json.dumps(content))
        del broken[part][0][name]
        write(tmp_path, broken)
        with pytest.raises(ValueError, match=f"entry 0 of '{part}' lacks one of .*{name}"):
            read_coco(tmp_path, tmp_path / "annotations.json")
    for text in ("[1]", "null", '{"images": 3}'):
        (tmp_path / "annotations.json").write_text(text)
        with pytest.raises(ValueError, match="is no annotation file in COCO's format, it has no list 'images'"):
            read_coco(tmp_path, tmp_path / "annotations.json")


@pytest.mark.parametrize(("bad_images", "refused"), [("stop", True), ("skip", False), ("list", False)])
def test_missing_images_are_refused_at_once_only_if_the_first_stops(bad_images, refused, tmp_path):
    coco(tmp_path / "train", 3)
    (tmp_path / "train" / "images" / "01.png").unlink()
    options = {"train_dir": tmp_path / "train", "train_val_split": 0, "bad_images": bad_images}
    if refused:
        with pytest.raises(ValueError, match="1 of its 3 images are not there"):
            load(**options)
    else:
        assert len(load(**options).train) == 3


def test_what_a_column_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(detection_data, "read_column", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr(detection_data, "read_folder", lambda *given: given)
    own = {
        "image_column_name": "photo",
        "objects_column_name": "things",
        "box_format": "xyxy",
        "data_cache_dir": "cache",
    }
    options = {"image_column": "photo", "objects_column": "things", "box_format": "xyxy"}
    detection_data._read_split(DetectionDataArguments(test_dir="absent", **own), "test")
    assert calls.pop() == ((("absent", False, "cache"), "absent"), options)
    assert detection_data._read_split(DetectionDataArguments(test_dir="absent"), "train") is None
    named = DetectionDataArguments(dataset_name="me/data", **own)
    monkeypatch.setattr(DetectionDataArguments, "load_split", lambda self, split: ("dev", split))
    detection_data._read_split(named, "validation")
    assert calls.pop() == (("validation", "me/data, dev"), options)
    monkeypatch.setattr(DetectionDataArguments, "load_split", lambda self, split: None)
    assert detection_data._read_split(named, "validation") is None


def test_classes_of_a_model_without_names(tmp_path):
    coco(tmp_path / "validation", 2)
    arguments = DetectionDataArguments(validation_dir=str(tmp_path / "validation"), max_image_pixels=5000)
    data = load_data(arguments, splits=["validation"], label_names=["LABEL_0", "LABEL_1"])
    assert data.label_names == NAMES
    assert data.reader.max_pixels == 5000
    assert (data.train, data.test) == (None, None)
    with pytest.raises(ValueError, match="The model has 3 classes without names, the data have 2: which are the same"):
        load_data(arguments, splits=["validation"], label_names=["LABEL_0", "LABEL_1", "LABEL_2"])


def test_an_image_that_is_not_there(tmp_path):
    row = {"image": None, "width": 0, "height": 0, "boxes": [], "classes": [], "areas": [], "crowds": []}
    reader = SimpleNamespace(read=lambda image: (Image.new("RGB", (4, 3)), b""), max_pixels=99)
    with pytest.raises(ValueError, match="a row without an image: remove it from the data"):
        detection_data.read_objects(row, reader)
    row["image"] = {"path": "a.png"}
    _, target, _ = detection_data.read_objects(row, reader)  # of no known size
    assert {name: values.shape for name, values in target.items()} == {
        "boxes": (0, 4), "classes": (0,), "areas": (0,), "crowds": (0,),
    }  # fmt: skip
    detection_data.read_objects({**row, "width": 4, "height": 3}, reader)
    for size in ({"width": 4, "height": 2}, {"width": 5, "height": 3}):
        with pytest.raises(ValueError, match=r"a\.png: has 4x3 pixels, .* by its annotations; its boxes would be"):
            detection_data.read_objects({**row, **size}, reader)
