# SPDX-License-Identifier: MIT
"""Find the validation images of the data sets in the folders that their makers' archives have."""

import re
from dataclasses import dataclass
from pathlib import Path

from .protocols import ADE20K, CITYSCAPES, COCO, IMAGENET

_WORDNET = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ValidationData:
    """Validation images of a data set.

    Attributes:
        images: folder of the images.
        annotations: folder of the maps of classes, or COCO's file; None for ImageNet, whose folders are the classes.
        image_suffix, mask_suffix: ends of the names that images and maps do not share; None for .jpg and .png.
    """

    images: Path
    annotations: Path | None = None
    image_suffix: str | None = None
    mask_suffix: str | None = None


# Of images and annotations, below the folder that the user names.
_PLACES = {
    IMAGENET: (("", ""), ("val", ""), ("validation", ""), ("ILSVRC/Data/CLS-LOC/val", "")),
    ADE20K: (
        ("images/validation", "annotations/validation"),
        ("ADEChallengeData2016/images/validation", "ADEChallengeData2016/annotations/validation"),
    ),
    CITYSCAPES: (("leftImg8bit/val", "gtFine/val"),),
    COCO: (
        ("val2017", "annotations/instances_val2017.json"),
        ("images/val2017", "annotations/instances_val2017.json"),
    ),
}
_OWN_FOLDERS = {IMAGENET: "imagenet", ADE20K: "ade20k", CITYSCAPES: "cityscapes", COCO: "coco"}
_SUFFIXES = {CITYSCAPES: ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")}


def find_data(dataset: str, folder: Path) -> ValidationData:
    """Return the validation data of a data set in `folder`, or in the folder of its name there, such as ade20k/.

    Raises:
        ValueError: naming the places that were looked at, if the data are not there; for a part of ImageNet's classes,
            and for Cityscapes without the maps of training ids.
    """
    roots = (folder, folder / _OWN_FOLDERS[dataset])
    places = [(root / images, root / annotations) for root in roots for images, annotations in _PLACES[dataset]]
    for images, annotations in places:
        if dataset == IMAGENET:
            if _is_imagenet(images):
                return ValidationData(images)
        elif images.is_dir() and annotations.exists():
            image_suffix, mask_suffix = _SUFFIXES.get(dataset, (None, None))
            if mask_suffix and next(annotations.rglob(f"*{mask_suffix}"), None) is None:
                raise ValueError(
                    f"{annotations}: has no files that end with {mask_suffix}; make them with csCreateTrainIdLabelImgs "
                    "of the package cityscapesscripts."
                )
            return ValidationData(images, annotations, image_suffix, mask_suffix)
    if dataset == IMAGENET:
        expected = "val/ with a folder for each class, such as n01440764"
    else:
        expected = " and ".join(map(str, _PLACES[dataset][0]))
    raise ValueError(f"{folder}: holds no validation data of {dataset}, expected {expected}.")


def _is_imagenet(folder: Path) -> bool:
    """Return True for a folder with ImageNet's 1000 classes, False for one without any.

    Raises:
        ValueError: for another number of them, whose order would not be that of the models' outputs.
    """
    if not folder.is_dir():
        return False
    count = sum(1 for child in folder.iterdir() if _WORDNET.fullmatch(child.name))
    if count not in (0, _IMAGENET_CLASSES):
        raise ValueError(
            f"{folder}: has folders of {count} classes, expected ImageNet's {_IMAGENET_CLASSES}: the outputs of the "
            "models are in the order of all of them."
        )
    return count > 0


__all__ = ["ValidationData", "find_data"]
