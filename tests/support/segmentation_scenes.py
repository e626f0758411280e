# SPDX-License-Identifier: MIT
"""Tiny scenes with maps of their classes."""

import numpy as np
from PIL import Image

from hf_internimage.training.segmentation.data import SegmentationDataArguments

NAMES = ["background", "square", "disc"]


def scene(seed, height=32, width=32):
    """Draw a red square and a green disc on gray noise; return the image and its map of classes."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(90, 130, (height, width, 3))
    labels = np.zeros((height, width), np.uint8)
    down, across = np.mgrid[:height, :width]
    top, left = generator.integers(2, height // 2), generator.integers(2, width // 3)
    inside = (abs(down - top - 6) < 9) & (abs(across - left - 4) < 9)
    labels[inside] = 1
    inside = (down - height + 9) ** 2 + (across - width + 9) ** 2 < 120
    labels[inside] = 2
    pixels[labels == 1] = (220, 40, 40)
    pixels[labels == 2] = (30, 200, 60)
    labels[:2] = 255
    return Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(labels)


def write(folder, count, first=0, **size):
    """Write a folder of so many scenes and their maps; return it."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(first, first + count):
        image, mask = scene(index, **size)
        image.save(folder / "images" / f"{index:02d}.png")
        mask.save(folder / "masks" / f"{index:02d}.png")
    return folder


def write_all(folder):
    """Write scenes to train on and to validate with, and the class names; return the folder."""
    write(folder / "train", 8, height=40, width=48)
    write(folder / "validation", 3, 100, height=40, width=48)
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


def arguments(folder, **changes):
    """Return arguments that name the scenes of `write_all` to train on."""
    return SegmentationDataArguments(
        **{"train_dir": str(folder / "train"), "label_names_file": str(folder / "names.txt"), **changes}
    )
