# SPDX-License-Identifier: MIT
"""How often a classifier and its file are right on labelled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..prediction.sources import is_video, list_inputs, read_sources
from .proof import Run
from .report import Accuracy


class Labelled(NamedTuple):
    """An image file and the index of its class."""

    path: str
    label: int


def list_labelled(folder: str | Path, model: PreTrainedModel, image_processor: Any) -> list[Labelled]:
    """Return the images of a folder that has a folder of images for each class, named like the class.

    Raises:
        ValueError: if the model is no classifier of one class an image, there is no image processor, no image, or a
            folder that is no class of the model.
    """
    config: Any = model.config
    if not type(model).__name__.endswith("ForImageClassification") or config.num_labels < 2:
        raise ValueError(f"evaluate is for classifiers, and the model is a {type(model).__name__}; leave it out.")
    if image_processor is None:
        raise ValueError("evaluate needs the model's image processor: give image_processor, or a folder that has one.")
    labels = {str(name): int(index) for index, name in config.id2label.items()}
    paths = [str(path) for path in list_inputs(folder) if not is_video(path)]
    names = {Path(path).parent.name for path in paths}
    if unknown := sorted(names - labels.keys()):
        known = ", ".join(list(labels)[:5])
        raise ValueError(
            f"{folder} has images in {unknown[0]!r}, which is no class of the model; give a folder with one folder for "
            f"each class, such as {known}."
        )
    return [Labelled(path, labels[Path(path).parent.name]) for path in paths]


@torch.no_grad()
def measure_accuracy(
    images: Sequence[Labelled], image_processor: Any, runs: Sequence[Run]
) -> tuple[list[Accuracy], list[str]]:
    """Return the accuracy of each run, which takes pixels (1, C, H, W), and why images are left out."""
    right, count, problems = [0] * len(runs), 0, []
    for (_, label), source in zip(images, read_sources([path for path, _ in images]), strict=True):
        if source.image is None:
            problems.append(f"left out: {source.problem}")
            continue
        pixels = image_processor(images=source.image, return_tensors="pt")["pixel_values"]
        count += 1
        for index, run in enumerate(runs):
            right[index] += int(run(pixels)[0].argmax(1)) == label
    return [Accuracy(each, count) for each in right], problems


__all__ = ["Labelled", "list_labelled", "measure_accuracy"]
