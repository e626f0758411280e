# SPDX-License-Identifier: MIT
"""Tiny scenes with boxes, and their annotation files in COCO's format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hf_internimage.training.detection.data import DetectionDataArguments, load_data

NAMES = ["square", "disc"]


def scene(seed, width=48, height=40):
    """Draw a red square and a green disc on gray noise; return the image and their boxes (left, top, width, height)."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(90, 130, (height, width, 3))
    down, across = np.mgrid[:height, :width]
    left, top = int(generator.integers(0, width // 2 - 13)), int(generator.integers(0, height - 12))
    pixels[top : top + 12, left : left + 12] = (220, 40, 40)
    middle = (int(generator.integers(width // 2 + 7, width - 7)), int(generator.integers(7, height - 7)))
    pixels[(across - middle[0]) ** 2 + (down - middle[1]) ** 2 <= 36] = (30, 200, 60)
    boxes = [[left, top, 12, 12], [middle[0] - 6, middle[1] - 6, 13, 13]]
    return Image.fromarray(pixels.astype(np.uint8)), boxes


def coco(folder, count, first=0, ids=(3, 8), names=NAMES):
    """Write a folder of scenes with annotations.json; return the content of that file."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)]
    for index in range(first, first + count):
        image, boxes = scene(index)
        image.save(folder / "images" / f"{index:02d}.png")
        entry = {"id": 100 - index, "file_name": f"{index:02d}.png", "width": image.width, "height": image.height}
        content["images"].append(entry)
        for label, box in enumerate(boxes):
            key = len(content["annotations"])
            content["annotations"].append(
                {
                    "id": key,
                    "image_id": entry["id"],
                    "category_id": ids[label],
                    "bbox": box,
                    "area": 100 + label,
                    "iscrowd": 0,
                }
            )
    write(folder, content)
    return content


def write(folder, content):
    (folder / "annotations.json").write_text(json.dumps(content))


def load(**kwargs):
    values = {name: str(value) if isinstance(value, Path) else value for name, value in kwargs.items()}
    return load_data(DetectionDataArguments(**values))
