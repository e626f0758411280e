# SPDX-License-Identifier: MIT
"""Compose small scenes with known masks and boxes, to train segmentation and detection on a computer without a GPU.

    python -m hf_internimage.training.example_data.scenes scenes
    python -m hf_internimage.training.example_data.scenes scenes --source_dir /usr/share/datasets/fashion-mnist
    python -m hf_internimage.training.example_data.scenes scenes --source digits

Items of Fashion-MNIST (see fashion_mnist.py), the handwritten digits of scikit-learn, or drawn shapes, which
need no data set, are scaled, tinted and placed on textured backgrounds. Five tints have two classes each, so that
neither shape nor colour alone is enough. Training and validation scenes share no item. The same settings give the same
scenes.

Writes OUTPUT/label_names.txt and, in OUTPUT/train and OUTPUT/validation: images/*.png (RGB), masks/*.png (class of each
pixel: 0 for the background, 1 to 10 for items), and annotations.json (in COCO's format, of the visible parts).
"""

import argparse
import colorsys
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ...atomic_write import atomic_write
from .fashion_mnist import CLASS_NAMES as FASHION_ITEMS
from .fashion_mnist import read_split
from .shapes import NAMES as SHAPES
from .shapes import draw_shapes

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
BACKGROUND = "background"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
WORDS = {"fashion": "Fashion-MNIST's items", "digits": "handwritten digits", "shapes": "drawn shapes"}
SPLITS = ("train", "validation")
TINTS = 5
SMALLEST, LARGEST = 0.3, 0.55  # side of an item, as a share of the scene's side
MOST_HIDDEN = 0.3  # share of an earlier item that a later one may hide
ATTEMPTS = 12  # places to try for an item before it is left out


@dataclass
class Scene:
    """A picture and the items in it.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        items: (H, W) uint8, the number of the item that is seen at each pixel, from 1; 0 for the background.
        classes: class of each item, from 0.
    """

    pixels: np.ndarray
    items: np.ndarray
    classes: list[int]

    @property
    def mask(self) -> np.ndarray:
        """Return the class of each pixel, (H, W) uint8: 0 for the background, else the item's class + 1."""
        return np.array([0, *(label + 1 for label in self.classes)], np.uint8)[self.items]


def read_items(source: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read gray pictures of single items (N, S, S) uint8, black around the item, and their classes (N,).

    Raises:
        OSError, ValueError: if the files of Fashion-MNIST are missing or damaged.
    """
    if source == "fashion":
        pictures, classes = read_split(folder, "train" if split == "train" else "test", None)
        return np.pad(pictures, ((0, 0), (2, 2), (2, 2))), classes
    if source == "shapes":
        return draw_shapes(split)
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(pictures)) % 5 == 4
    chosen = held_out if split == "validation" else ~held_out
    return np.pad(pictures[chosen], ((0, 0), (1, 1), (1, 1))), digits.target[chosen]


def texture(size: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a background of pale colours that change slowly, with some noise: (size, size, 3) float32, 0 to 255."""
    result = np.full((size, size, 3), generator.uniform(60, 190), np.float32)
    for cells, strength in ((3, 40.0), (12, 16.0)):
        coarse = generator.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        coarse = 0.6 * coarse.mean(-1, keepdims=True) + 0.4 * coarse
        channels = [
            np.asarray(Image.fromarray(coarse[..., index]).resize((size, size), Image.Resampling.BICUBIC))
            for index in range(3)
        ]
        result += strength * np.stack(channels, -1)
    return result + 5 * generator.standard_normal((size, size, 1), np.float32)


def silhouette(picture: np.ndarray) -> np.ndarray:
    """Return the area of an item, dark stripes and prints on it included: (S, S) uint8, 255 inside, 0 outside."""
    bright = Image.fromarray(np.where(picture > 30, 255, 0).astype(np.uint8))
    return np.asarray(bright.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3)))


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """Resize (S, S) uint8 to (side, side, 1) float32, 0 to 1."""
    resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)[..., None] / 255


def compose(pictures: np.ndarray, classes: np.ndarray, size: int, most: int, generator: np.random.Generator) -> Scene:
    """Compose a scene of `size` x `size` pixels with 2 to `most` items; fewer where they would hide each other."""
    pixels = texture(size, generator)
    items = np.zeros((size, size), np.uint8)
    areas: list[int] = []
    labels: list[int] = []
    for _ in range(int(generator.integers(2, most + 1))):
        index = int(generator.integers(len(pictures)))
        side = round(size * generator.uniform(SMALLEST, LARGEST))
        gray, opacity = (enlarge(picture, side) for picture in (pictures[index], silhouette(pictures[index])))
        hue = int(classes[index]) % TINTS / TINTS + generator.uniform(-0.05, 0.05)
        colour = colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.45, 0.9), generator.uniform(0.75, 1))
        inside = opacity[..., 0] > 0.5
        for _ in range(ATTEMPTS):
            top, left = (int(generator.integers(size - side + 1)) for _ in range(2))
            place = np.s_[top : top + side, left : left + side]
            hidden = np.bincount(items[place][inside], minlength=len(areas) + 1)[1:]
            left_over = np.bincount(items.ravel(), minlength=len(areas) + 1)[1:] - hidden
            if np.all(left_over >= (1 - MOST_HIDDEN) * np.array(areas)):
                break
        else:
            continue
        shaded = 255 * np.array(colour, np.float32) * (0.25 + 0.75 * gray)
        pixels[place] += opacity * (shaded - pixels[place])
        labels.append(int(classes[index]))
        areas.append(int(inside.sum()))
        items[place][inside] = len(labels)
    return Scene(np.clip(np.round(pixels), 0, 255).astype(np.uint8), items, labels)


def annotate(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Return COCO's annotation of each item, of the part that is seen.

    Boxes are (left, top, width, height) and areas are in pixels; masks are run lengths down the columns.
    """
    annotations: list[dict[str, Any]] = []
    for number, label in enumerate(scene.classes, 1):
        visible = scene.items == number
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        left, top = int(columns[0]), int(rows[0])
        flat = visible.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "area": int(visible.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(visible.shape), "counts": [0, *runs] if flat[0] else runs},
            }
        )
    return annotations


def write_split(folder: Path, source: str, source_dir: Path, split: str, count: int, options: Any) -> None:
    """Write `count` scenes with their masks and annotations."""
    pictures, classes = read_items(source, source_dir, split)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        generator = np.random.default_rng([options.seed, SPLITS.index(split), index])
        scene = compose(pictures, classes, options.size, options.items, generator)
        name = f"{index:05d}.png"
        Image.fromarray(scene.pixels).save(folder / "images" / name, compress_level=1)
        Image.fromarray(scene.mask).save(folder / "masks" / name)
        images.append({"id": index + 1, "file_name": name, "width": options.size, "height": options.size})
        annotations += annotate(scene, index + 1, len(annotations) + 1)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names(source))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def class_names(source: str) -> list[str]:
    """Return the names of the items' classes, in order."""
    return {"fashion": FASHION_ITEMS, "digits": DIGITS, "shapes": SHAPES}[source]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--source",
        choices=["fashion", "digits", "shapes"],
        help=f"default: fashion, if source_dir is given or its files are in {FASHION_FOLDER}; else shapes",
    )
    parser.add_argument(
        "--source_dir",
        type=Path,
        help=f"folder of Fashion-MNIST's four .gz files; default: {FASHION_FOLDER}",
    )
    parser.add_argument("--train", type=int, default=2000, help="training scenes; default: %(default)s")
    parser.add_argument("--validation", type=int, default=200, help="validation scenes; default: %(default)s")
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels; default: %(default)s")
    parser.add_argument("--items", type=int, default=4, help="most items of a scene, from 2; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(argv)
    source = options.source or ("fashion" if options.source_dir or FASHION_FOLDER.is_dir() else "shapes")
    source_dir = options.source_dir or FASHION_FOLDER
    limits = {"train": (1, 99_999), "validation": (1, 99_999), "size": (32, 4096), "items": (2, 20), "seed": (0, 2**32)}
    for name, (least, most) in limits.items():
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} is {getattr(options, name)}, expected {least} to {most}.")
    if options.output.exists():
        print(f"{options.output} exists: give a new folder.", file=sys.stderr)
        return 2
    try:
        with atomic_write(options.output) as folder:
            for split in SPLITS:
                count = getattr(options, split)
                write_split(folder / split, source, source_dir, split, count, options)
                print(f"{options.output.name}/{split}: {count} scenes of {WORDS[source]}")
            names = "\n".join([BACKGROUND, *class_names(source)])
            (folder / "label_names.txt").write_text(f"{names}\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"The scenes cannot be made: {error}", file=sys.stderr)
        return 1
    return 0


__all__ = ["Scene", "annotate", "class_names", "compose", "main", "read_items"]

if __name__ == "__main__":
    sys.exit(main())
