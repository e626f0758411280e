# SPDX-License-Identifier: MIT
"""Table of the published scores that can be measured: the data, the views and the tolerance of each."""

from dataclasses import dataclass
from difflib import get_close_matches

from ..checkpoints.classifiers import CHECKPOINTS, PublishedCheckpoint
from ..checkpoints.listing import NO_CONVERSION, NO_FILE, ListedModel, list_models
from ..checkpoints.systems import SYSTEM_CHECKPOINTS, Score, SystemCheckpoint

IMAGENET, ADE20K, CITYSCAPES, COCO = "ImageNet-1K", "ADE20K", "Cityscapes", "COCO"
SINGLE_SCALE, MULTI_SCALE = "single-scale", "multi-scale"
# Points of percent. Reported numbers are rounded, and images are decoded and resized by other libraries here.
TOLERANCES = {"top-1": 0.1, "mIoU": 0.2, "box AP": 0.2}
# Views of the authors' `segmentation/test.py --aug-test`, unless the checkpoint's configuration states others.
SCALE_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Protocol:
    """The way to measure one published score.

    Attributes:
        checkpoint: row of the table of checkpoints.
        dataset: `IMAGENET`, `ADE20K`, `CITYSCAPES` or `COCO`, whose validation images are measured.
        score: the score that the authors report, in percent.
        scale_ratios, flip: views that are averaged; one without a flip for single-scale scores.
    """

    checkpoint: PublishedCheckpoint | SystemCheckpoint
    dataset: str
    score: Score
    scale_ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def name(self) -> str:
        """Return the name of the checkpoint."""
        return self.checkpoint.name

    @property
    def tolerance(self) -> float:
        """Return the largest difference, in points of percent, that counts as the same result."""
        return TOLERANCES[self.score.metric]


def protocols() -> list[Protocol]:
    """Return the protocols of all scores that can be measured, single-scale before multi-scale."""
    result = []
    for views in (SINGLE_SCALE, MULTI_SCALE):
        for model in list_models():
            if _why_not(model, views) is None:
                result.append(_protocol(model, views))
    return result


def find_protocol(name: str, views: str = SINGLE_SCALE) -> Protocol:
    """Return the protocol of a published checkpoint's score.

    Args:
        name: of the checkpoint, as `list_models` has it.
        views: `SINGLE_SCALE` or `MULTI_SCALE`.

    Raises:
        ValueError: for another name (with similar ones), and if its score cannot be measured (with the reason).
    """
    models = {model.name: model for model in list_models()}
    if name not in models:
        similar = get_close_matches(name, models, n=3, cutoff=0)
        raise ValueError(f"{name!r} is no published checkpoint; did you mean {', '.join(similar)}?")
    reason = _why_not(models[name], views)
    if reason is not None:
        raise ValueError(f"{name} cannot be reproduced: {reason}.")
    return _protocol(models[name], views)


def _why_not(model: ListedModel, views: str) -> str | None:
    """Return why the model's score cannot be measured; None if it can."""
    dataset = model.data[-1]
    if model.note == NO_CONVERSION:
        return "this package has no model for its head"
    if model.system == "flash_classification":
        return "this command does not take FlashInternImage's files"
    if model.note == NO_FILE:
        return "the authors publish no file"
    if not model.scores:
        return "the authors report no score for it"
    if dataset not in (IMAGENET, ADE20K, CITYSCAPES, COCO):
        return f"this command has no evaluation for {dataset}"
    if _score(model, views) is None:
        return f"the authors report no {views} score for it"
    if views == MULTI_SCALE and dataset == COCO:
        return "the authors do not publish the settings of their multi-scale test"
    return None


def _score(model: ListedModel, views: str) -> Score | None:
    """Return the first score with these views, that of boxes where there is one of masks, too."""
    return next((score for score in model.scores if score.views == views), None)


def _protocol(model: ListedModel, views: str) -> Protocol:
    score, dataset = _score(model, views), model.data[-1]
    assert score is not None
    rows: tuple[PublishedCheckpoint | SystemCheckpoint, ...] = (*CHECKPOINTS, *SYSTEM_CHECKPOINTS)
    checkpoint = next(row for row in rows if row.name == model.name)
    if views == SINGLE_SCALE:
        return Protocol(checkpoint, dataset, score)
    return Protocol(checkpoint, dataset, score, getattr(checkpoint, "scale_ratios", ()) or SCALE_RATIOS, flip=True)


__all__ = ["MULTI_SCALE", "SINGLE_SCALE", "Protocol", "find_protocol", "protocols"]
