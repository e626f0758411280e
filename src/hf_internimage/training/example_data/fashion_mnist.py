# SPDX-License-Identifier: MIT
"""Turn the files of Fashion-MNIST into data for `hf-internimage train classification`.

    python -m hf_internimage.training.example_data.fashion_mnist /usr/share/datasets/fashion-mnist fashion_mnist

Writes OUTPUT/train and OUTPUT/test: Parquet files of 60,000 and 10,000 PNG images of 28x28 pixels, or with
`--format folder` a folder of images for each class. The four .gz files come with Debian's package
dataset-fashion-mnist, or from https://github.com/zalandoresearch/fashion-mnist (H. Xiao, K. Rasul and R. Vollgraf,
arXiv:1708.07747; MIT licence).
"""

import argparse
import gzip
import io
import sys
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from ...atomic_write import atomic_write

CLASS_NAMES = [
    "T-shirt or top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
_FILE_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes from an IDX file: two zeros, a type, the number of dimensions, their sizes, the values.

    Raises: ValueError for a file of another format.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes; take it from Fashion-MNIST itself.")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(source: Path, split: str, per_class: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, 28, 28) and labels (N,), both uint8, of the split "train" or "test".

    `per_class` keeps the first images of each class; None keeps all.
    """
    images = read_idx(source / f"{_FILE_PREFIX[split]}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{_FILE_PREFIX[split]}-labels-idx1-ubyte.gz")
    if per_class is not None:
        rows = [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]
        chosen = np.sort(np.concatenate(rows))
        images, labels = images[chosen], labels[chosen]
    return images, labels


def write_folder(images: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """Write a folder of PNG images for each class."""
    for name in CLASS_NAMES:
        (folder / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        PILImage.fromarray(image).save(folder / CLASS_NAMES[label] / f"{index:05d}.png")


def write_parquet(images: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """Write Parquet files of at most about 10,000 PNG images, with their labels."""

    def png(image: np.ndarray) -> dict[str, bytes]:
        buffer = io.BytesIO()
        PILImage.fromarray(image).save(buffer, "PNG")
        return {"bytes": buffer.getvalue()}

    features = Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES)})
    rows = {"image": [png(image) for image in images], "label": labels.tolist()}
    folder.mkdir(parents=True)
    data = Dataset.from_dict(rows, features=features)
    shards = max(1, len(images) // 10_000)
    for index in range(shards):
        data.shard(shards, index, contiguous=True).to_parquet(folder / f"{index:05d}-of-{shards:05d}.parquet")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the four .gz files")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--format", choices=["parquet", "folder"], default="parquet", help="default: %(default)s")
    parser.add_argument("--per-class", type=int, help="images of each class and split; default: all")
    options = parser.parse_args(argv)
    write = write_folder if options.format == "folder" else write_parquet
    if options.output.exists():
        print(f"{options.output} exists: give a new folder.", file=sys.stderr)
        return 2
    try:
        splits = {split: read_split(options.source, split, options.per_class) for split in _FILE_PREFIX}
    except (OSError, ValueError) as error:
        print(f"Fashion-MNIST cannot be read: {error}", file=sys.stderr)
        return 1
    with atomic_write(options.output) as folder:
        for split, (images, labels) in splits.items():
            write(images, labels, folder / split)
            print(f"{folder.name}/{split}: {len(images)} images")
    return 0


__all__ = ["CLASS_NAMES", "main", "read_idx", "read_split", "write_folder", "write_parquet"]

if __name__ == "__main__":
    sys.exit(main())
