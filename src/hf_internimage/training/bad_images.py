# SPDX-License-Identifier: MIT
"""Find the images that cannot be used: leave them out, or list them all (`--bad_images`), and say so in the results."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import PartialState
from accelerate.utils import gather_object
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from transformers.utils import logging

from ..atomic_write import atomic_write
from ..plain_text import listed
from .images import ImageReader, check_images
from .sources import SPLITS

logger = logging.get_logger(__name__)

FILE_NAME = "bad_images.txt"  # in the output folder; each line is a split, a colon and the error of an image


def without_bad_images(data: Any, choice: str, processor: Any, folder: Path | None) -> Any:
    """Return the data of a task without the images that cannot be used, as `bad_images` in the arguments says.

    Each process checks its share, and all of them have to call this. A stream loses its bad images while it is read,
    see `streams.TrainingStream`.

    Args:
        data: of the task, as its `load_data` returns them.
        choice: "stop" (the first bad image that is read is an error, so nothing is done here), "skip" or "list".
        processor: image processor for evaluation.
        folder: output folder for `bad_images.txt`; None to write no file.

    Raises:
        ValueError: with "list", naming all bad images; with "skip", if a split has no others.
    """
    state = PartialState()
    if folder is not None and state.is_local_main_process:
        Path(folder, FILE_NAME).unlink(missing_ok=True)  # of an earlier run
    if choice == "stop":
        return data
    read, kept = data.evaluation_transform(processor).read, {}
    bad: dict[str, list[str]] = {}
    for split in SPLITS:
        rows = getattr(data, split, None)
        if rows is None or (choice == "skip" and isinstance(rows, IterableDataset)):
            continue
        first, step = state.process_index, state.num_processes
        if isinstance(rows, IterableDataset):
            share: Any = split_dataset_by_node(rows, first, step)
        else:
            share = rows.select(range(first, len(rows), step))
        errors = sorted(gather_object([(first + step * row, text) for row, text in check_images(share, read)]))
        if not errors:
            continue
        bad[split] = [text for _, text in errors]
        if choice == "skip":
            if len(errors) == len(rows):
                raise ValueError(f"None of the {len(rows)} images of {split} can be used; the first: {bad[split][0]}")
            kept[split] = rows.select(np.setdiff1d(np.arange(len(rows)), [row for row, _ in errors]))
            logger.warning(f"Left out {len(errors)} of {len(rows)} images of {split}, such as {bad[split][0]}")
    lines = [f"{split}: {text}" for split, texts in bad.items() for text in texts]
    if folder is not None and lines and state.is_local_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / FILE_NAME) as new:
            new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    state.wait_for_everyone()
    if choice == "list" and lines:
        raise ValueError("\n".join([f"{len(lines)} images cannot be used:", *lines]))
    data.reader.left_out.update(bad)
    return replace(data, **kept)


def add_left_out_of_stream(reader: ImageReader, folder: Path) -> None:
    """Add the images of a stream that all processes left out in its first pass to the record of `reader`.

    All processes have to call this.
    """
    path = folder / FILE_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for split, _, text in (line.partition(": ") for line in sorted(set(gather_object(lines)))):
        texts = reader.left_out.setdefault(split, [])
        if text not in texts:
            texts.append(text)


def image_facts(reader: ImageReader) -> dict[str, Any]:
    """Return what the results have to say of the images: those left out, and those pipelines read as other pixels.

    All processes have to call this. `left_out_images` is a dict of splits, with `count` and `images`;
    `images_read_otherwise` is a number. What there is none of is missing.
    """
    facts: dict[str, Any] = {}
    if reader.left_out:
        facts["left_out_images"] = {
            split: {"count": len(texts), "images": texts} for split, texts in reader.left_out.items()
        }
    flags = gather_object(reader.read_otherwise.nonzero().flatten().tolist())
    if flags:
        facts["images_read_otherwise"] = len(set(flags))
    return facts


def card_notes(facts: Mapping[str, Any]) -> list[str]:
    """Return sentences for a model's card from `image_facts`, with names of files but not of their folders."""
    notes = []
    for split, left_out in facts.get("left_out_images", {}).items():
        names = [f"`{Path(text.partition(': ')[0]).name}`" for text in left_out["images"]]
        notes.append(f"Images of {split} that could not be used and were left out: {len(names):,} ({listed(names)}).")
    if count := facts.get("images_read_otherwise"):
        notes.append(
            f"Images of 16 bits or with transparency among the data: {count:,}. The model saw the upper 8 bits of the "
            "former, and the latter on white. `pipeline` and `load_image` of transformers clip 16 bits and drop "
            "transparency: give them `to_rgb(PIL.Image.open(path))`, with "
            "`from hf_internimage.models.rgb_images import to_rgb`."
        )
    return notes


__all__ = ["FILE_NAME", "add_left_out_of_stream", "card_notes", "image_facts", "without_bad_images"]
