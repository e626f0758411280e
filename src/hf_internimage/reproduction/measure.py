# SPDX-License-Identifier: MIT
"""Convert a published checkpoint, evaluate it by the code of the tasks, and compare with the reported score."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checkpoints.systems import SystemCheckpoint
from ..conversion.convert import convert
from ..conversion.inputs import Options
from ..training.classification.data import ClassificationDataArguments
from ..training.classification.evaluate_checkpoint import EvaluationArguments, evaluate_model
from ..training.detection import main as detection
from ..training.images import ImageReader
from ..training.run import Task, run_training
from ..training.segmentation import main as segmentation
from ..training.segmentation.data import SegmentationData, pair_files
from ..training.sources import choose_samples
from .data import ValidationData, find_data
from .files import CheckpointFile, fetch_file, read_file
from .protocols import ADE20K, CITYSCAPES, COCO, IMAGENET, Protocol

_MEASURES = {"top-1": "top1", "mIoU": "mean_iou", "box AP": "map"}  # in the results of the evaluations
_RCNN = ("mask_rcnn", "cascade_rcnn")


@dataclass(frozen=True)
class Settings:
    """How to run an evaluation. None of this changes its result, except `limit`.

    Attributes:
        batch_size: images at a time; segmentation always has one.
        workers: processes that read images.
        cpu: do not use a GPU.
        limit: evaluate this many images only, chosen at random; the result is then no reproduction.
    """

    batch_size: int = 1
    workers: int = 0
    cpu: bool = False
    limit: int | None = None


def reproduce(
    protocol: Protocol,
    data: Path,
    source: Path | None = None,
    *,
    sha256: str | None = None,
    settings: Settings | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a published checkpoint's score.

    Args:
        protocol: what to measure, see `find_protocol`.
        data: folder with the validation data, see `find_data`.
        source: the authors' file, or a folder that it was converted into; None to fetch the file.
        sha256: hash that the file must have, in place of the one that the Hub states.
        settings: of the run.
        report: is called with each line of what happens.

    Returns:
        the evaluation as `hf-internimage evaluate` writes it, with the entry `reproduction`: file, hash and score, the
        reported and the measured one in percent, and whether they agree (None with a limit).

    Raises:
        ValueError: in one sentence, for files and data that cannot be used.
        ImportError: naming a package that the model or the evaluation needs.
    """
    settings = settings or Settings()
    found = find_data(protocol.dataset, data)  # before anything is fetched
    with TemporaryDirectory() as scratch:
        if source is not None and source.is_dir():
            folder, file = source, None
            report(f"model: {folder}, converted before")
        else:
            file = fetch_file(protocol.name, sha256) if source is None else read_file(source, sha256)
            report(f"file: {file.describe()}")
            folder = Path(scratch, "model")
            _convert(protocol, file.path, folder, report)
        report(f"data: {found.images}")
        evaluation = _EVALUATIONS[protocol.dataset](protocol, folder, found, settings, Path(scratch, "evaluation"))
    return {**evaluation, "model": protocol.name, "reproduction": _comparison(protocol, evaluation, file, settings)}


def _comparison(
    protocol: Protocol, evaluation: dict[str, Any], file: CheckpointFile | None, settings: Settings
) -> dict[str, Any]:
    """Return the entry `reproduction` of a result."""
    measured = 100 * evaluation["metrics"][_MEASURES[protocol.score.metric]]
    return {
        "file": None if file is None else {**asdict(file), "path": file.path.name},
        "metric": protocol.score.metric,
        "views": protocol.score.views,
        "scale_ratios": list(protocol.scale_ratios),
        "flip": protocol.flip,
        "reported": protocol.score.value,
        "measured": round(measured, 3),
        "tolerance": protocol.tolerance,
        "agrees": None if settings.limit else abs(measured - protocol.score.value) <= protocol.tolerance,
    }


def _convert(protocol: Protocol, file: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Convert the authors' file into a folder that from_pretrained loads, with the authors' test settings."""
    row = protocol.checkpoint
    if isinstance(row, SystemCheckpoint):
        options = Options(file, checkpoint=row.name, num_labels=row.real_labels)
    else:
        options = Options(file, size=row.size, image_size=row.image_size)
    for line in convert(options, folder):
        report(f"model: {line}")


def _classification(
    protocol: Protocol, folder: Path, data: ValidationData, settings: Settings, output: Path
) -> dict[str, Any]:
    options = EvaluationArguments(
        model=str(folder),
        match_labels="index",  # folders named by synset are in the order of the outputs
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        device="cpu" if settings.cpu else None,
    )
    images = ClassificationDataArguments(validation_dir=str(data.images), max_eval_samples=settings.limit)
    return evaluate_model(options, images)


def _segmentation(
    protocol: Protocol, folder: Path, data: ValidationData, settings: Settings, output: Path
) -> dict[str, Any]:
    row: Any = protocol.checkpoint
    options = {
        "reduce_labels": row.reduce_labels,
        "tta_ratios": protocol.scale_ratios,
        "tta_flip": protocol.flip,
    }
    if row.crop_size is not None:
        options |= {"inference": row.mode, "inference_crop": row.crop_size, "inference_stride": row.stride}
    arguments = segmentation.read_arguments(_arguments(folder, data, {**_options_of(settings), **options}, output))

    def load_data(arguments: Any, seed: int, splits: Any, label_names: Any) -> SegmentationData:
        assert data.annotations is not None
        rows = pair_files(data.images, data.annotations, data.image_suffix, data.mask_suffix)
        return SegmentationData(
            train=None,
            validation=choose_samples({"validation": rows}, arguments, seed)["validation"],
            label_names=list(label_names),
            reduce_labels=row.reduce_labels,
            reader=ImageReader(arguments.max_image_pixels),
        )

    return _run(arguments, replace(segmentation.TASK, load_data=load_data), output)


def _detection(
    protocol: Protocol, folder: Path, data: ValidationData, settings: Settings, output: Path
) -> dict[str, Any]:
    if getattr(protocol.checkpoint, "system", None) in _RCNN:
        import hf_internimage.models.mask_rcnn  # noqa: F401  # registers the model; says what to install
    options = {
        **_options_of(settings),
        "validation_annotations": data.annotations,
        "per_device_eval_batch_size": settings.batch_size,
    }
    return _run(detection.read_arguments(_arguments(folder, data, options, output)), detection.TASK, output)


def _options_of(settings: Settings) -> dict[str, Any]:
    """Return the options of the training commands that have the settings."""
    options: dict[str, Any] = {"dataloader_num_workers": settings.workers, "use_cpu": settings.cpu}
    return options if settings.limit is None else {**options, "max_eval_samples": settings.limit}


def _arguments(folder: Path, data: ValidationData, options: dict[str, Any], output: Path) -> list[str]:
    """Return the arguments of a training command that only evaluates; other options keep their defaults."""
    options = {
        "do_eval": True,
        "model_name_or_path": folder,
        "validation_dir": data.images,
        "output_dir": output,
        "overlays": 0,
        "report_to": "none",
        **options,
    }
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments


def _run(arguments: Any, task: Task, output: Path) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()):  # the metrics, which the result has
        run_training(arguments, task)
    return json.loads((output / "eval_evaluation.json").read_text(encoding="utf-8"))


_EVALUATIONS = {IMAGENET: _classification, ADE20K: _segmentation, CITYSCAPES: _segmentation, COCO: _detection}

__all__ = ["Settings", "reproduce"]
