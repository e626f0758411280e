# SPDX-License-Identifier: MIT
"""Where validation data are looked for, and what is said if they are not there."""

import re

import pytest

from hf_internimage.reproduction.data import ValidationData, find_data
from hf_internimage.reproduction.protocols import ADE20K, CITYSCAPES, COCO, IMAGENET


def make(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")


@pytest.mark.parametrize("place", ["", "val/", "validation/", "imagenet/val/", "ILSVRC/Data/CLS-LOC/val/"])
def test_imagenet(place, tmp_path):
    make(tmp_path, *(f"{place}n{number:08d}/a.JPEG" for number in range(1000)))
    assert find_data(IMAGENET, tmp_path) == ValidationData(tmp_path / place)


def test_a_part_of_imagenet_is_refused(tmp_path):
    make(tmp_path, *(f"val/n{number:08d}/a.JPEG" for number in range(100)))
    with pytest.raises(ValueError, match=r"val: has folders of 100 classes, expected ImageNet's 1000"):
        find_data(IMAGENET, tmp_path)


@pytest.mark.parametrize("root", ["", "ADEChallengeData2016/", "ade20k/", "ade20k/ADEChallengeData2016/"])
def test_ade20k(root, tmp_path):
    make(tmp_path, f"{root}images/validation/a.jpg", f"{root}annotations/validation/a.png")
    found = find_data(ADE20K, tmp_path)
    assert found == ValidationData(tmp_path / root / "images/validation", tmp_path / root / "annotations/validation")


def test_cityscapes(tmp_path):
    make(tmp_path, "leftImg8bit/val/a/a_leftImg8bit.png", "gtFine/val/a/a_gtFine_labelIds.png")
    with pytest.raises(ValueError, match="make them with csCreateTrainIdLabelImgs"):
        find_data(CITYSCAPES, tmp_path)
    make(tmp_path, "gtFine/val/a/a_gtFine_labelTrainIds.png")
    found = find_data(CITYSCAPES, tmp_path)
    assert (found.images, found.annotations) == (tmp_path / "leftImg8bit/val", tmp_path / "gtFine/val")
    assert (found.image_suffix, found.mask_suffix) == ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")


@pytest.mark.parametrize("images", ["val2017", "images/val2017"])
def test_coco(images, tmp_path):
    make(tmp_path, f"coco/{images}/a.jpg", "coco/annotations/instances_val2017.json")
    annotations = tmp_path / "coco/annotations/instances_val2017.json"
    assert find_data(COCO, tmp_path) == ValidationData(tmp_path / "coco" / images, annotations)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (IMAGENET, "val/ with a folder for each class, such as n01440764"),
        (ADE20K, "images/validation and annotations/validation"),
        (COCO, "val2017 and annotations/instances_val2017.json"),
    ],
)
def test_missing_data(dataset, expected, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path}: holds no validation data of {dataset}, expected {expected}.")
    ):
        find_data(dataset, tmp_path)
