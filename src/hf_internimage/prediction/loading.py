# SPDX-License-Identifier: MIT
"""Load a model of any task with its image processor."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
)
from transformers.utils import logging

from ..hub.loading import check_folder, loading
from ..hub.repository import default_image_processor
from ..models import auto
from ..models.loading_report import mismatched_modules
from ..plain_text import listed

logger = logging.get_logger(__name__)

CLASSIFICATION, SEGMENTATION, DETECTION = "image-classification", "image-segmentation", "object-detection"
# End of the name of a model class -> its task, and the Auto class that loads it.
_CLASSES: dict[str, tuple[str, Any]] = {
    "ForImageClassification": (CLASSIFICATION, AutoModelForImageClassification),
    "ForSemanticSegmentation": (SEGMENTATION, AutoModelForSemanticSegmentation),
    "ForUniversalSegmentation": (SEGMENTATION, AutoModelForUniversalSegmentation),
    "ForInstanceSegmentation": (SEGMENTATION, AutoModelForInstanceSegmentation),
    "ForObjectDetection": (DETECTION, AutoModelForObjectDetection),
}
_FEATURES = ("AutoBackbone", "AutoModel")  # the released classifiers name the class of AutoModel
_NEED_TEXT = ("grounding-dino", "mm-grounding-dino", "omdet-turbo", "oneformer")
_MASK_RCNN = "internimage_mask_rcnn"


def load(
    name: str, *, dtype: torch.dtype = torch.float32, revision: str | None = None, feature_models: bool = False
) -> PreTrainedModel:
    """Load the model of a folder or repository, with the class for its task, in evaluation mode on the CPU.

    Args:
        name: a folder, or a repository on the Hub.
        dtype: of the weights.
        revision: branch, tag or commit of a repository.
        feature_models: also take backbones and base models of this package, which are for no task.

    Raises:
        ValueError: naming the model, if it cannot be loaded, or has no head of such a task.
        ImportError: if the model needs a package that is not installed.
    """
    check_folder(name)
    where = {} if revision is None else {"revision": revision}
    with _readable(name):
        config = auto.load_config(name, **where)
        backbone, base = (_class_of(config, auto_class) if feature_models else None for auto_class in _FEATURES)
        is_backbone = backbone is not None and config.architectures == [backbone.__name__]
        model_class = backbone if is_backbone else _auto_class(name, config)
    model, missing = _load(name, model_class, dtype, where)
    if missing and base is not None and config.architectures == [base.__name__]:
        model, missing = _load(name, base, dtype, where)
    if missing:
        raise ValueError(
            f"{name}: lacks weights of {type(model).__name__} ({listed(missing, 3)}); train it for a task, or name the "
            "folder of a trained model."
        )
    return model.eval()


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise what is wrong with a folder or repository as ValueError or ImportError."""
    try:
        with loading(name):
            yield
    except (OSError, SafetensorError) as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(name) else f"{name}: cannot be loaded: {reason}") from error
    except ModuleNotFoundError as error:
        raise ImportError(str(error)) from error  # its message says what to install


def _load(
    name: str, model_class: Any, dtype: torch.dtype, where: Mapping[str, str]
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model and the names of weights that the files lack; check the others."""
    with _readable(name):
        model, info = model_class.from_pretrained(
            name, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **where
        )
    if unexpected := sorted(info["unexpected_keys"]):
        logger.warning(f"{name}: has weights that {type(model).__name__} has no use for: {listed(unexpected, 3)}.")
    if modules := mismatched_modules(info):
        raise ValueError(
            f"{name}: has weights of other shapes than its configuration describes ({listed(modules, 3)}); is one of "
            "the two files of another model?"
        )
    return model, sorted(info["missing_keys"])


def load_processor(model: PreTrainedModel, name: str | None, *, revision: str | None = None) -> Any:
    """Load the image processor that is saved with a model; else that of the released classifiers, if it is one.

    Args:
        name: folder or repository of the model; None if it is not known.

    Raises:
        ValueError: if there is none.
    """
    where = {} if revision is None else {"revision": revision}
    reason = "the model was not loaded from a folder or repository"
    if name:
        try:
            with loading(name):
                return AutoImageProcessor.from_pretrained(name, **where)
        except (OSError, ValueError) as error:
            reason = f"{name} has none that can be loaded ({error})"
    if model.config.model_type not in auto.model_types("AutoModelForImageClassification"):
        raise ValueError(f"{type(model).__name__} needs an image processor, and {reason}; give image_processor.")
    logger.warning(f"{reason}: images are prepared as for the released classifiers, at the size in the configuration.")
    return default_image_processor(model.config)


def task_of(model: PreTrainedModel) -> str:
    """Return the task of a model: "image-classification", "image-segmentation" or "object-detection".

    Raises:
        ValueError: for a model of another task.
    """
    if is_mask_rcnn(model):
        return DETECTION
    name = type(model).__name__
    _refuse_text(name, model.config)
    entry = _entry([name])
    if entry is None:
        raise ValueError(f"model is a {name}, expected one whose class ends in {', '.join(_CLASSES)}.")
    return entry[0]


def is_mask_rcnn(model: PreTrainedModel) -> bool:
    """Return True for Mask R-CNN and Cascade Mask R-CNN on InternImage."""
    return model.config.model_type == _MASK_RCNN


def is_feature_model(model: PreTrainedModel) -> bool:
    """Return True for a backbone or base model of this package."""
    return type(model) in [_class_of(model.config, auto_class) for auto_class in _FEATURES]


def _class_of(config: Any, auto_class: str) -> Any:
    """Return this package's class for a model type and an Auto class; None if there is none."""
    has_one = config.model_type in auto.model_types(auto_class)
    return auto.model_class(config.model_type, auto_class) if has_one else None


def _auto_class(name: str, config: Any) -> Any:
    if config.model_type == _MASK_RCNN:
        auto.load(auto.MODELS[_MASK_RCNN].models["AutoModelForObjectDetection"])  # registers the model
        return AutoModelForObjectDetection
    _refuse_text(name, config)
    classes = config.architectures or []
    if entry := _entry(classes):
        return entry[1]
    if config.model_type in auto.model_types("AutoModelForImageClassification"):
        return AutoModelForImageClassification  # the released repositories name another class
    raise ValueError(
        f"{name}: holds {listed(classes, 3) or f'a {config.model_type!r}'}, which neither classifies nor segments nor "
        "detects; train it for one of these tasks."
    )


def _entry(classes: Sequence[str]) -> tuple[str, Any] | None:
    return next((entry for end, entry in _CLASSES.items() for name in classes if name.endswith(end)), None)


def _refuse_text(name: str, config: Any) -> None:
    if config.model_type in _NEED_TEXT:
        raise ValueError(
            f"{name}: a {config.model_type} needs a text beside each image, which predict does not take; call the "
            "model itself."
        )


__all__ = [
    "CLASSIFICATION",
    "DETECTION",
    "SEGMENTATION",
    "is_feature_model",
    "is_mask_rcnn",
    "load",
    "load_processor",
    "task_of",
]
