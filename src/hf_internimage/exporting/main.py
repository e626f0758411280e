# SPDX-License-Identifier: MIT
"""Export a model to a folder for another runtime; the folder appears only if the file computes what the model does."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..atomic_write import atomic_write, is_free
from ..models.resizing import multiple_size
from ..prediction.loading import is_feature_model, is_mask_rcnn, load, load_processor
from .calibration import read_calibration
from .errors import STATIC_ADVICE, ExportError
from .evaluation import list_labelled, measure_accuracy
from .options import Options
from .proof import LEAST_COSINE, compare, measure
from .report import Accuracy, Comparison, ExportReport
from .sampling_points import SamplingPoints
from .system import System, random_pixels

_DEFAULT_SIDE = 512  # pixels, of models whose image processor names no size
_LEAST_SIDE = 32
_HALF_TOLERANCE = 1e-2  # greatest relative error


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        module: of the package `targets`.
        tolerance: greatest relative error in float32.
        precisions: that it can have besides float32.
        int8_beside: whether it has a second file, in 8 bits.
        processing: whether its files can have pre- and post-processing.
    """

    module: str
    tolerance: float = 1e-4
    precisions: tuple[str, ...] = ()
    int8_beside: bool = False
    processing: bool = False


TARGETS: Mapping[str, Target] = {
    "onnx": Target("onnx", precisions=("half", "int8"), processing=True),
    "onnxruntime": Target("onnxruntime", processing=True),
    "web": Target("web", int8_beside=True),
    "openvino": Target("openvino", precisions=("half", "int8")),
    "torchscript": Target("torchscript"),
    "aoti": Target("aoti"),
    "tensorrt": Target("tensorrt"),
}


def export(
    model: PreTrainedModel | str,
    output: str | Path,
    *,
    target: str = "onnx",
    image_processor: Any = None,
    size: int | tuple[int, int] | None = None,
    static: bool = False,
    with_processing: bool = False,
    with_sampling_points: bool = False,
    half: bool = False,
    int8: bool = False,
    calibration: str | Path | None = None,
    evaluate: str | Path | None = None,
) -> ExportReport:
    """Write a model as a file of another runtime, and compare the file with the model.

    The comparison runs random pixels, of two other sizes and batches if the file takes any. All images of a batch have
    the size of the batch: files have no `pixel_mask`. The folder gets the file, config.json, preprocessor_config.json
    and export.json, the report.

    Args:
        model: a model on the CPU in float32, or the name of a folder or repository.
        output: folder to make; it must not exist, or be empty.
        target: a name in `TARGETS`.
        image_processor: saved beside the file; None for that of the folder or repository.
        size: side, or (height, width), in pixels; None for that of the image processor.
        static: write a file for one image of this size, in place of one for any size and batch.
        with_processing: let the file take `image` (H, W, 3), 8-bit RGB of any size, and return what `predict` does:
            `scores` (classes,) of a classifier; `label_map` (H, W) of a segmenter; `scores`, `labels` and `boxes` of a
            detector, the best ones first, boxes (left, top, right, bottom) in pixels.
        with_sampling_points: let the file return also where the last block of each stage samples: `stage1_offset`
            (N, H, W, G, P, 2) and `stage1_mask` (N, H, W, G, P), and so on; see `sampling_points.SamplingPoints`.
        half: write weights in float16.
        int8: write weights and products of linear layers in 8 bits.
        calibration: folder of images that tell the ranges of 8-bit numbers before the file runs; without, ONNX files
            compute them when they run, and OpenVINO's files have only weights in 8 bits.
        evaluate: folder of images that has a folder for each class of a classifier, to report the accuracy of the file
            and of the model.

    Raises:
        ExportError: if the model cannot be exported so, or the file's results differ from the model's.
        ValueError: for an unknown target, size or model, a precision that the target does not have, or if the folder
            has files.
        ImportError: if the target needs a package that is not installed.

    >>> hf_internimage.export(model, "exported", target="onnx")  # doctest: +SKIP
    """
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, expected one of {', '.join(TARGETS)}.")
    precision = _precision(target, half=half, int8=int8, calibration=calibration)
    if with_processing:
        _check_processing(
            target, static=static, int8=int8, evaluate=evaluate is not None, with_sampling_points=with_sampling_points
        )
    folder = Path(output)
    if not is_free(folder):
        raise ValueError(f"{folder} exists and is no empty folder; name a new one, or remove it first.")
    if isinstance(model, str):
        name, model = model, load(model, feature_models=True)
        image_processor = image_processor or _load_processor(model, name)
    if is_mask_rcnn(model):
        raise ExportError(
            f"{type(model).__name__} cannot be exported: how many boxes it keeps depends on the image; DINO has a "
            "fixed number of queries."
        )
    writer: ModuleType = import_module(f".targets.{TARGETS[target].module}", __package__)
    images = () if calibration is None else read_calibration(calibration, image_processor)
    labelled = [] if evaluate is None else list_labelled(evaluate, model, image_processor)
    image_size = _image_size(size, model, image_processor)
    system = System(model, SamplingPoints(model) if with_sampling_points else None)
    system.name_outputs(random_pixels((1, system.num_channels, *image_size)))
    processing = _processing(system, image_processor) if with_processing else None
    masked = processing is not None and processing.masked
    options = Options(image_size, not static, image_processor, masked, precision)

    with atomic_write(folder) as path:
        path.mkdir()
        file = writer.write(system, path, options)
        float_megabytes = None
        if precision == "int8":
            float_megabytes = _megabytes(path)
            file = writer.to_int8(file, images)
        if processing is not None:
            processing.add(file)
        details = writer.describe(file)
        run = writer.load(file)
        float_tolerance = TARGETS[target].tolerance
        tolerance = {"half": _HALF_TOLERANCE, "int8": LEAST_COSINE}.get(precision, float_tolerance)
        notes = _notes(model)
        if processing is not None:
            comparisons = processing.compare(run, image_size, tolerance)
            times = measure(processing.eager, run, processing.example(image_size))
            notes += processing.notes
        else:
            batches = _batches(system, options, images)
            try:
                comparisons = compare(system, run, batches, tolerance, by_cosine=precision == "int8")
                if TARGETS[target].int8_beside:
                    int8_file = writer.to_int8(file)
                    int8_run = writer.load(int8_file)
                    details |= _int8_details(
                        int8_file, file, compare(system, int8_run, batches, LEAST_COSINE, by_cosine=True)
                    )
            except ExportError as error:
                raise ExportError(f"{error}{STATIC_ADVICE if options.dynamic else ''}") from error
            times = measure(system, run, random_pixels((1, system.num_channels, *image_size)))
        accuracies: list[Accuracy | None] = [None, None]
        if labelled:
            runs = [run, system, *([int8_run] if TARGETS[target].int8_beside else [])]
            measured, problems = measure_accuracy(labelled, image_processor, runs)
            accuracies, notes = [*measured[:2]], [*notes, *problems]
            if len(measured) > 2:
                details["int8: right class"] = str(measured[2])
        if not (path / "config.json").exists():  # else the target has written its own
            model.config.to_json_file(path / "config.json")
            if image_processor is not None:
                image_processor.save_pretrained(path)
        report = ExportReport(
            model=type(model).__name__,
            target=target,
            precision=precision,
            file=folder / file.relative_to(path),
            megabytes=_megabytes(path),
            float_megabytes=float_megabytes,
            dynamic=options.dynamic,
            size_divisor=system.size_divisor,
            image_size=options.image_size,
            with_processing=with_processing,
            tolerance=tolerance,
            comparisons=comparisons,
            accuracy=accuracies[0],
            eager_accuracy=accuracies[1],
            milliseconds=times[0],
            eager_milliseconds=times[1],
            threads=torch.get_num_threads(),
            details=details,
            notes=tuple(notes),
        )
        report.write_json(path / "export.json")
    return report


def _int8_details(int8_file: Path, file: Path, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return what the report says about a classifier's file in 8 bits beside its file in float32."""
    images = sum(each.shape[0] for each in comparisons)
    same = sum(each.shape[0] * (each.same_class or 0) for each in comparisons)
    size = int8_file.stat().st_size
    return {
        "int8: megabytes": round(size / 1e6, 1),
        "int8: of float32": round(size / file.stat().st_size, 2),
        "int8: least cosine of logits": round(min(each.cosine["logits"] for each in comparisons), 6),
        "int8: same class": f"{same:.0f} of {images}",
    }


def _megabytes(folder: Path) -> float:
    return sum(part.stat().st_size for part in folder.rglob("*") if part.is_file()) / 1e6


def _check_processing(target: str, **others: bool) -> None:
    """Raise ValueError for what has no processing."""
    if not TARGETS[target].processing:
        able = [name for name, entry in TARGETS.items() if entry.processing]
        raise ValueError(f"target {target} has no with_processing; {' and '.join(able)} can.")
    if asked := [name for name, value in others.items() if value]:
        raise ValueError(f"with_processing has no {asked[0]}; leave one of the two out.")


def _processing(system: System, image_processor: Any) -> Any:
    """Return the `processing.main.Processing` of an export."""
    from .processing.main import Processing  # needs the package onnx

    return Processing(system, image_processor)


def _load_processor(model: PreTrainedModel, name: str) -> Any:
    """Return the image processor of a folder or repository; None if a backbone has none, which no pipeline needs."""
    try:
        return load_processor(model, name)
    except ValueError:
        if is_feature_model(model):
            return None
        raise


def _image_size(size: int | tuple[int, int] | None, model: PreTrainedModel, processor: Any) -> tuple[int, int]:
    """Return (height, width): the given one, else what the image processor resizes to, or crops."""
    if size is None:
        sizes = [getattr(processor, name, None) for name in ("crop_size", "size")]
        known = next((s for s in sizes if s and {"height", "width"} <= set(s)), None)
        shortest = next((s["shortest_edge"] for s in sizes if s and s.get("shortest_edge")), None)
        if known is not None:
            return int(known["height"]), int(known["width"])
        return (int(shortest or getattr(model.config, "image_size", None) or _DEFAULT_SIDE),) * 2
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < _LEAST_SIDE:
        raise ValueError(f"size is {height}x{width}, expected at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels.")
    return height, width


def _shapes(system: System, options: Options) -> list[tuple[int, int, int, int]]:
    """Return the shapes of the comparison: two that the exporter has not seen, or the only one."""
    height, width = options.image_size
    if not options.dynamic:
        return [(1, system.num_channels, height, width)]
    sizes = [(height + height // 4 + 3, width - width // 8), (height - height // 8, width + width // 4 + 1)]
    first, second = (multiple_size(*size, system.size_divisor) for size in sizes)
    return [(1, system.num_channels, *first), (3, system.num_channels, *second)]


def _batches(system: System, options: Options, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what the model and the file are compared on: random pixels, or the images of the calibration.

    Of the latter come all as they are, and the first ones in the other sizes that a dynamic file takes.
    """
    shapes = _shapes(system, options)
    if not images:
        return [random_pixels(shape) for shape in shapes]
    first = [images[i % len(images)] for i in range(3)]
    others = [
        torch.cat([functional.interpolate(pixels, shape[2:], mode="bilinear") for pixels in first[: shape[0]]])
        for shape in shapes
        if options.dynamic
    ]
    return [*images, *others]


def _precision(target: str, *, half: bool, int8: bool, calibration: str | Path | None) -> str:
    """Return the name of the precision; raise ValueError for one that the target does not have."""
    if half and int8:
        raise ValueError("half and int8 are two precisions; choose one.")
    if calibration is not None and not int8:
        raise ValueError("calibration is for int8; add int8, or leave it out.")
    precision = "half" if half else "int8" if int8 else "float32"
    if precision not in ("float32", *TARGETS[target].precisions):
        able = [name for name, entry in TARGETS.items() if precision in entry.precisions]
        raise ValueError(f"target {target} has no {precision}; {' and '.join(able)} can.")
    return precision


def _notes(model: nn.Module) -> list[str]:
    offsets = [part for name, part in model.named_modules() if name.endswith(("dcn.offset", "dcn.offset_mask"))]
    if offsets and not any(parameter.any() for part in offsets for parameter in part.parameters()):
        return ["all offsets are zero, as in a model without training: the comparison says little about sampling"]
    return []


__all__ = ["TARGETS", "ExportError", "export"]
