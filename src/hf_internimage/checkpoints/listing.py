# SPDX-License-Identifier: MIT
"""List the published models of all tasks in one form. This file imports the standard library alone."""

from dataclasses import dataclass

from .classifiers import CHECKPOINTS, FLASH_CHECKPOINTS, PublishedCheckpoint
from .systems import (
    INSTANCE_SEGMENTATION,
    OBJECT_DETECTION,
    SEMANTIC_SEGMENTATION,
    SYSTEM_CHECKPOINTS,
    Score,
    SystemCheckpoint,
)

IMAGE_CLASSIFICATION = "image-classification"
# Words for `list_models(task=...)` beside the names of the tasks.
TASK_WORDS = {
    "classification": (IMAGE_CLASSIFICATION,),
    "segmentation": (SEMANTIC_SEGMENTATION, INSTANCE_SEGMENTATION),
    "detection": (OBJECT_DETECTION, INSTANCE_SEGMENTATION),
}
_TASKS = (IMAGE_CLASSIFICATION, SEMANTIC_SEGMENTATION, INSTANCE_SEGMENTATION, OBJECT_DETECTION)
SIZE_NAMES = ("t", "s", "b", "l", "xl", "h", "g")
NO_FILE = "no published file"
NO_CONVERSION = "not supported by this package"


@dataclass(frozen=True)
class ListedModel:
    """One published model.

    Attributes:
        name: stem of the published file; of an InternImage classifier also the name of its repository.
        source: repository that `from_pretrained` loads, or the address of the file that `hf-internimage convert` takes;
            without a published file (see `note`) that of its configuration.
        task: "image-classification", "semantic-segmentation", "instance-segmentation" or "object-detection".
        system: "classification", "flash_classification" (FlashInternImage), or name of the system, such as "upernet".
        size: architecture of the backbone: "t", "s", "b", "l", "xl", "h" or "g".
        data: data sets of the training in order; of segmenters and detectors the last one.
        image_size: of classifiers height and width in pixels; of others shortest and longest edge of the resized image.
        parameters: number of parameters, including those used in training only.
        scores: the authors' results in percent; empty if they report none.
        licence: SPDX identifier in lower case, as the Hub writes it.
        note: `NO_FILE`, `NO_CONVERSION` or "".
    """

    name: str
    source: str
    task: str
    system: str
    size: str
    data: tuple[str, ...]
    image_size: tuple[int, int]
    parameters: int
    scores: tuple[Score, ...]
    licence: str
    note: str = ""


def list_models(task: str | None = None, size: str | None = None) -> list[ListedModel]:
    """Return the models that the authors of InternImage publish, in the order of the tasks, families and sizes.

    The scores are the authors'; they were not measured with this package.

    Args:
        task: only models of this task: "classification", "segmentation" or "detection" (models with boxes and masks
            are in both), or the full name as in `ListedModel.task`.
        size: only models with a backbone of this size: "t", "s", "b", "l", "xl", "h" or "g".

    Raises:
        ValueError: for another task or size.
    """
    if task is not None and task not in (*TASK_WORDS, *_TASKS):
        raise ValueError(f"task is {task!r}, expected one of {', '.join([*TASK_WORDS, *_TASKS])}.")
    if size is not None and size.lower() not in SIZE_NAMES:
        raise ValueError(f"size is {size!r}, expected one of {', '.join(SIZE_NAMES)}.")
    tasks = _TASKS if task is None else TASK_WORDS.get(task, (task,))
    rows = [*map(_classifier, (*CHECKPOINTS, *FLASH_CHECKPOINTS)), *map(_system, SYSTEM_CHECKPOINTS)]
    return [row for row in rows if row.task in tasks and (size is None or row.size == size.lower())]


def _classifier(checkpoint: PublishedCheckpoint) -> ListedModel:
    return ListedModel(
        name=checkpoint.name,
        source=checkpoint.source,
        task=IMAGE_CLASSIFICATION,
        system="flash_classification" if checkpoint.model_type == "flash_internimage" else "classification",
        size=checkpoint.size,
        data=checkpoint.data,
        image_size=(checkpoint.image_size, checkpoint.image_size),
        parameters=checkpoint.parameters,
        scores=() if checkpoint.top1 is None else (Score("top-1", checkpoint.top1),),
        licence=checkpoint.licence,
    )


def _system(checkpoint: SystemCheckpoint) -> ListedModel:
    return ListedModel(
        name=checkpoint.name,
        source=checkpoint.url,
        task=checkpoint.task,
        system=checkpoint.system,
        size=checkpoint.size,
        data=(checkpoint.dataset,),
        image_size=(checkpoint.shortest_edge, checkpoint.longest_edge),
        parameters=checkpoint.parameters,
        scores=checkpoint.scores,
        licence=checkpoint.licence,
        note=NO_CONVERSION if checkpoint.system == "segformer" else "" if checkpoint.released else NO_FILE,
    )


__all__ = ["NO_CONVERSION", "NO_FILE", "SIZE_NAMES", "TASK_WORDS", "ListedModel", "list_models"]
