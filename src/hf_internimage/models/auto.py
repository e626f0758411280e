# SPDX-License-Identifier: MIT
"""The table of models, and their registration with transformers' Auto classes.

The package's public names, the registrations, the `auto_map` of saved repositories and the tests of the files that
travel to the Hub are all made from `MODELS`. Classes are written "module.Class", with a module of this folder.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import AutoConfig

# From their own modules: without torchvision, transformers 5.17 has placeholders under their public names.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import is_torchvision_available

# The lists of names behind a pipeline's message "model is not supported".
_PIPELINE_NAMES: dict[str, Any] = {
    "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForObjectDetection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
}


@dataclass(frozen=True)
class ModelEntry:
    """Classes of one model type.

    Attributes:
        config: class of its configuration.
        models: name of an Auto class -> the class it loads.
        other_classes: further public classes, such as the base class.
        processors: "pil" and "torchvision" -> class of the image processor.
        saved_processor: image processor of transformers that gives the same pixels and is named in saved repositories
            instead of ours; None if there is no such one, then the source file of ours is saved.
        travels: whether the source files are saved with a model, for machines without this package.
        package: package that the models need beyond ours, if any; they are registered when they are imported.
    """

    config: str
    models: Mapping[str, str] = field(default_factory=dict)
    other_classes: tuple[str, ...] = ()
    processors: Mapping[str, str] = field(default_factory=dict)
    saved_processor: str | None = None
    travels: bool = True
    package: str | None = None

    @property
    def auto_map(self) -> dict[str, str]:
        """Return name of an Auto class -> "module.Class", as transformers finds it in a repository."""
        return dict(sorted({"AutoConfig": self.config, **self.models}.items()))

    @property
    def public_classes(self) -> dict[str, str]:
        """Return name -> "module.Class" of the classes that `hf_internimage` exports."""
        models = () if self.package else (*self.models.values(), *self.other_classes)
        return {name.rpartition(".")[2]: name for name in (self.config, *models, *self.processors.values())}


_DETECTION_PROCESSOR = "image_processing_internimage_detection.InternImageDetectionImageProcessor"
_SEGMENTATION_PROCESSOR = "image_processing_internimage_segmentation.InternImageSegmentationImageProcessor"
_CLASSIFICATION_PROCESSORS = {
    "pil": "image_processing_pil_internimage.InternImageImageProcessorPil",
    "torchvision": "image_processing_internimage.InternImageImageProcessor",
}
_MASK_RCNN = "mask_rcnn.modeling.InternImageMaskRCNNForInstanceSegmentation"

MODELS = {  # by model_type
    "internimage": ModelEntry(
        config="configuration_internimage.InternImageConfig",
        models={
            "AutoBackbone": "modeling_internimage.InternImageBackbone",
            "AutoModel": "modeling_internimage.InternImageModel",
            "AutoModelForImageClassification": "modeling_internimage.InternImageForImageClassification",
        },
        other_classes=("modeling_internimage.InternImagePreTrainedModel",),
        processors=_CLASSIFICATION_PROCESSORS,
        saved_processor="CLIPImageProcessor",
    ),
    "flash_internimage": ModelEntry(
        config="configuration_flash_internimage.FlashInternImageConfig",
        models={
            "AutoBackbone": "modeling_flash_internimage.FlashInternImageBackbone",
            "AutoModel": "modeling_flash_internimage.FlashInternImageModel",
            "AutoModelForImageClassification": ("modeling_flash_internimage.FlashInternImageForImageClassification"),
        },
        other_classes=("modeling_flash_internimage.FlashInternImagePreTrainedModel",),
        processors=_CLASSIFICATION_PROCESSORS,
        saved_processor="CLIPImageProcessor",
    ),
    "cb_internimage": ModelEntry(
        config="configuration_cb_internimage.CBInternImageConfig",
        models={"AutoBackbone": "modeling_cb_internimage.CBInternImageBackbone"},
    ),
    "internimage_dino": ModelEntry(
        config="configuration_internimage_dino.InternImageDinoConfig",
        models={"AutoModelForObjectDetection": "modeling_internimage_dino.InternImageDinoForObjectDetection"},
        other_classes=("modeling_internimage_dino.InternImageDinoPreTrainedModel",),
        processors={"pil": _DETECTION_PROCESSOR, "torchvision": _DETECTION_PROCESSOR},
    ),
    "internimage_mask_rcnn": ModelEntry(
        config="configuration_internimage_mask_rcnn.InternImageMaskRCNNConfig",
        models={"AutoModelForInstanceSegmentation": _MASK_RCNN, "AutoModelForObjectDetection": _MASK_RCNN},
        processors={"pil": _DETECTION_PROCESSOR, "torchvision": _DETECTION_PROCESSOR},
        travels=False,
        package="torchvision",
    ),
}
# Segmenters have configurations of transformers, which have image processors already. transformers finds this one by
# its name in preprocessor_config.json.
OTHER_PROCESSORS = (_SEGMENTATION_PROCESSOR,)


class NoVideoProcessor:
    """Refuse to be loaded: the video processor that pipelines look for beside the image processor.

    Without one, transformers makes up its name from the image processor's code in the repository, and asks whether to
    run that code.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError."""
        raise ValueError("InternImage has no video processor; give its image processor single frames.")


def load(name: str) -> Any:
    """Return the class that "module.Class" names."""
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def public_classes() -> dict[str, str]:
    """Return name -> "module.Class" of each class that `hf_internimage` exports."""
    names = {name.rpartition(".")[2]: name for name in OTHER_PROCESSORS}
    for entry in MODELS.values():
        names |= entry.public_classes
    return names


def optional_classes() -> dict[str, str]:
    """Return name -> "module.Class" of the model classes that need a further package, which their import names."""
    names = (name for entry in MODELS.values() if entry.package for name in entry.models.values())
    return {name.rpartition(".")[2]: name for name in names}


def model_types(auto_class: str) -> set[str]:
    """Return the model types that have a model for an Auto class, such as "AutoBackbone"."""
    return {model_type for model_type, entry in MODELS.items() if auto_class in entry.models}


def model_class(model_type: str, auto_class: str) -> Any:
    """Return the class of a model type that an Auto class loads."""
    return load(MODELS[model_type].models[auto_class])


def register() -> None:
    """Register the configurations, image processors, and the models that need no further package."""
    for model_type, entry in MODELS.items():
        config = load(entry.config)
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoVideoProcessor.register(config, NoVideoProcessor, exist_ok=True)
        if entry.travels:
            config.register_for_auto_class()
        if entry.package is None:
            register_models(model_type)
        if entry.processors:
            _register_processors(config, entry.processors)
    for name in OTHER_PROCESSORS:
        _register_processors(load(name), {"pil": name, "torchvision": name})


def register_models(model_type: str) -> None:
    """Register the model classes of an entry of the table with their Auto classes."""
    entry = MODELS[model_type]
    for auto_class, name in entry.models.items():
        model = load(name)
        if entry.travels:
            model.register_for_auto_class(auto_class)
        getattr(modeling_auto, auto_class).register(load(entry.config), model, exist_ok=True)
        if auto_class in _PIPELINE_NAMES:
            _PIPELINE_NAMES[auto_class].setdefault(model_type, model.__name__)


def _register_processors(key: type, processors: Mapping[str, str]) -> None:
    classes = {backend: load(name) for backend, name in processors.items()}
    if not is_torchvision_available() and classes["torchvision"] is not classes["pil"]:
        del classes["torchvision"]
    AutoImageProcessor.register(key, image_processor_classes=classes, exist_ok=True)


def load_config(name: Any, **where: Any) -> Any:
    """Return the configuration of a folder or repository, by `AutoConfig.from_pretrained`.

    Args:
        where: arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: also for a file that makes transformers raise other errors: whose auto_map is no mapping of names,
            or that is nested too deep.
        OSError: if there is no such folder or repository.
    """
    try:
        return AutoConfig.from_pretrained(name, **where)
    except (TypeError, RecursionError) as error:
        problem = "is nested too deep" if isinstance(error, RecursionError) else f"has an unusable entry ({error})"
        raise ValueError(f"The config.json of {name} {problem}; is it damaged?") from error


def source_files(*names: str) -> list[Path]:
    """Return the source files of these classes and of all that they import from this folder, as transformers does.

    Args:
        names: "module.Class" each.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    modules = {Path(__file__).with_name(f"{name.split('.')[0]}.py") for name in names}
    return sorted({*modules, *(Path(file) for module in modules for file in get_relative_import_files(module))})


__all__ = [
    "MODELS",
    "OTHER_PROCESSORS",
    "ModelEntry",
    "load",
    "load_config",
    "model_class",
    "model_types",
    "optional_classes",
    "public_classes",
    "register",
    "register_models",
    "source_files",
]
