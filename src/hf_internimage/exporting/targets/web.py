# SPDX-License-Identifier: MIT
"""A folder for transformers.js, which runs models in browsers and in Node, with a page that classifies.

transformers.js chooses its classes by names in the two JSON files and does not know InternImage's. ConvNeXt's and ViT's
do the same: pixels in, logits out; resize, crop, rescale, normalise.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...hub.repository import default_image_processor
from .. import onnx_precision
from ..errors import ExportError
from ..options import Options
from ..system import System
from . import onnx
from .onnx import describe, load

_PAGE = Path(__file__).parents[1] / "web_page"
_MOST_BYTES = 2e9  # what a browser's WebAssembly can hold beside the activations
_FILTERS = (1, 2, 3)  # of web_page/resize.mjs: Lanczos, bilinear, bicubic
_LANCZOS = 1  # the only one that sharp, transformers.js's resizing in Node, computes with antialiasing
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_SETTINGS = ("size", "crop_size", "rescale_factor", "image_mean", "image_std", "resample")


def write(system: System, folder: Path, options: Options) -> Path:
    """Write model.onnx, the configuration, the image processor's, the page and a README.md.

    Raises:
        ExportError: for a model or image processor that transformers.js cannot run as Python does.
    """
    model = system.model
    _check(model, system)
    processor = _processor_settings(options.image_processor or default_image_processor(model.config))
    if not options.dynamic and _output_size(processor) != options.image_size:
        height, width = _output_size(processor)
        raise ExportError(f"the image processor makes images of {height}x{width}; leave out size, or static.")
    (folder / "onnx").mkdir()
    file = onnx.write(system, folder / "onnx", options)
    _write_json(folder / "config.json", _configuration(system))
    _write_json(folder / "preprocessor_config.json", processor)
    shutil.copytree(_PAGE, folder, dirs_exist_ok=True)
    return file


def to_int8(file: Path, pixels: Sequence[torch.Tensor] = ()) -> Path:
    """Write model_quantized.onnx beside the file, see `onnx_precision.to_int8`, and return it."""
    quantised = file.with_name("model_quantized.onnx")
    shutil.copyfile(file, quantised)
    return onnx_precision.to_int8(quantised, pixels)


def _check(model: PreTrainedModel, system: System) -> None:
    name = type(model).__name__
    config: Any = model.config
    if not name.endswith("ForImageClassification"):
        raise ExportError(f"target web is for classifiers, and the model is a {name}; choose another target.")
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise ExportError(
            f"transformers.js gives each class its share of 1, which is wrong for problem_type {config.problem_type!r} "
            f"with {config.num_labels} labels; choose the target onnx."
        )
    if system.num_channels != 3:
        raise ExportError(f"pages read images of 3 channels, and the model takes {system.num_channels}.")
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > _MOST_BYTES:
        raise ExportError(
            f"the model has {size / 1e9:.1f} GB of weights in float32, and a browser can load {_MOST_BYTES / 1e9:.0f} "
            "GB; export a smaller one."
        )


def _configuration(system: System) -> dict[str, Any]:
    model: Any = system.model
    labels = {str(index): label for index, label in (model.config.id2label or {}).items()}
    points = {}
    if system.sampling_points is not None:  # what the page needs to compute them
        points = {name: getattr(model.config, name) for name in ("offset_scale", "remove_center")}
    return {
        "architectures": ["ConvNextForImageClassification"],
        "model_type": "convnext",
        "num_channels": 3,
        "id2label": labels,
        "label2id": {label: int(index) for index, label in labels.items()},
        **({"sampling_points": points} if points else {}),
    }


def _processor_settings(processor: Any) -> dict[str, Any]:
    """Return the content of preprocessor_config.json.

    `resample` is for transformers.js alone; `pillow_resample` is Python's, which web_page/resize.mjs computes.
    """
    fields = json.loads(processor.to_json_string())
    settings = {name: fields[name] for name in (*_STEPS, *_SETTINGS) if fields.get(name) is not None}
    keys = set(settings.get("size", ())) if settings.get("do_resize") else {"height", "width"}
    if keys not in ({"shortest_edge"}, {"height", "width"}) or set(_output_size(settings)) == {None}:
        raise ExportError(
            f"the page resizes and crops to one size, and the image processor has size {fields.get('size')} and "
            f"crop_size {fields.get('crop_size')}; give image_processor, such as a CLIPImageProcessor."
        )
    if fields.get("do_pad") or fields.get("crop_pct"):
        raise ExportError(
            f"the page resizes and crops, and {type(processor).__name__} does more; give image_processor, such as a "
            "CLIPImageProcessor."
        )
    if settings.get("do_resize") and settings.get("resample") not in _FILTERS:
        raise ExportError(
            f"the image processor's resample is {settings.get('resample')}, and the page knows 1, 2 and 3 (Lanczos, "
            "bilinear, bicubic)."
        )
    return {
        "image_processor_type": "ViTImageProcessor",
        **settings,
        "resample": _LANCZOS,
        "pillow_resample": settings.get("resample"),
    }


def _output_size(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return (height, width) of the processed images; None twice if images of different shapes have different ones."""
    steps = [settings.get("size") if settings.get("do_resize") else None]
    steps += [settings.get("crop_size") if settings.get("do_center_crop") else None]
    size: dict[str, int] = next((step for step in reversed(steps) if step), {})
    return size.get("height"), size.get("width")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = ["describe", "load", "to_int8", "write"]
