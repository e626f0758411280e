# SPDX-License-Identifier: MIT
"""Make transformers' Auto classes know InternImage, without importing anything early.

transformers has no plugin mechanism: somebody has to call `AutoConfig.register` and its siblings. Those live in
modules that load torch, which `import hf_internimage` must not do. So the calls are made when transformers itself
loads the module in question, at once if it already has.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config(auto: ModuleType) -> None:
    from .models.configuration_cb_internimage import CBInternImageConfig
    from .models.configuration_internimage import InternImageConfig
    from .models.configuration_internimage_dino import InternImageDinoConfig
    from .models.configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig

    for config in (InternImageConfig, CBInternImageConfig, InternImageDinoConfig):
        config.register_for_auto_class()
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    # No remote code: its model needs torchvision and the folder `rcnn`, which registers it when imported.
    auto.AutoConfig.register(InternImageMaskRCNNConfig.model_type, InternImageMaskRCNNConfig, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from .models.modeling_cb_internimage import CBInternImageBackbone
    from .models.modeling_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel
    from .models.modeling_internimage_dino import InternImageDinoForObjectDetection

    classes = (
        ("AutoModel", InternImageModel),
        ("AutoModelForImageClassification", InternImageForImageClassification),
        ("AutoBackbone", InternImageBackbone),
        ("AutoBackbone", CBInternImageBackbone),
        ("AutoModelForObjectDetection", InternImageDinoForObjectDetection),
    )
    for auto_name, model in classes:
        model.register_for_auto_class(auto_name)
        getattr(auto, auto_name).register(model.config_class, model, exist_ok=True)
    # The lists of names behind a pipeline's "model is not supported" message.
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.setdefault("internimage", "InternImageForImageClassification")
    auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault("internimage_dino", "InternImageDinoForObjectDetection")


def _register_image_processors(auto: ModuleType) -> None:
    from transformers.utils import is_torchvision_available

    from .models.configuration_internimage import InternImageConfig
    from .models.configuration_internimage_dino import InternImageDinoConfig
    from .models.configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig
    from .models.image_processing_internimage_detection import InternImageDetectionImageProcessor
    from .models.image_processing_internimage_segmentation import InternImageSegmentationImageProcessor
    from .models.image_processing_pil_internimage import InternImageImageProcessorPil

    processors: dict[str, type] = {"pil": InternImageImageProcessorPil}
    if is_torchvision_available():
        from .models.image_processing_internimage import InternImageImageProcessor

        processors["torchvision"] = InternImageImageProcessor
    auto.AutoImageProcessor.register(InternImageConfig, image_processor_classes=processors, exist_ok=True)
    # Models with this one have transformers' own configurations, whose processors stay theirs. It is found by the name
    # in preprocessor_config.json, for which any key will do; both backends are the one class.
    segmentation = InternImageSegmentationImageProcessor
    both: dict[str, type] = {"pil": segmentation, "torchvision": segmentation}
    auto.AutoImageProcessor.register(segmentation, image_processor_classes=both, exist_ok=True)
    detection = InternImageDetectionImageProcessor
    both = {"pil": detection, "torchvision": detection}
    for config in (InternImageDinoConfig, InternImageMaskRCNNConfig):
        auto.AutoImageProcessor.register(config, image_processor_classes=both, exist_ok=True)


_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
}
# Ours import those of transformers, and those import modeling_auto: while one of them is half executed, registering
# would import from a half-executed module. It happens as soon as they are done.
_BLOCKERS = frozenset(
    {
        "transformers.modeling_layers",
        "transformers.loss.loss_deformable_detr",
        "transformers.models.deformable_detr.configuration_deformable_detr",
        "transformers.models.deformable_detr.modeling_deformable_detr",
        f"{__package__}.models.layers_internimage",
        f"{__package__}.models.loss_internimage_dino",
        f"{__package__}.models.modeling_cb_internimage",
        f"{__package__}.models.modeling_internimage",
        f"{__package__}.models.modeling_internimage_dino",
    }
)


class _Registrar(MetaPathFinder):
    """Finds the watched modules as the other finders would, and registers when they have been executed."""

    def __init__(self) -> None:
        self.pending = dict(_ACTIONS)
        self.watched = {*_ACTIONS, *_BLOCKERS}
        self.executing: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.watched:
            return None
        self.watched.remove(fullname)  # importlib asks this finder again below
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.watched.add(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ReportingLoader(spec.loader, self)
        return spec

    def register_what_is_ready(self) -> None:
        for name in _ACTIONS:
            # One action may import a module whose own action then runs in between, so each is looked up afresh.
            if name in self.pending and name in sys.modules and not self.executing & {name, *_BLOCKERS}:
                self.pending.pop(name)(sys.modules[name])


class _ReportingLoader(Loader):
    """Another loader, which tells the registrar when it has executed its module."""

    def __init__(self, loader: Loader, registrar: _Registrar) -> None:
        self.loader, self.registrar = loader, registrar

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader  # the module is its own loader's again, for inspect and pkgutil
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.registrar.executing.add(module.__name__)
        try:
            self.loader.exec_module(module)
        finally:
            self.registrar.executing.remove(module.__name__)
        self.registrar.register_what_is_ready()


def register_with_transformers() -> None:
    """Register with every Auto module that is loaded, and with the others when they are."""
    if any(isinstance(finder, _Registrar) for finder in sys.meta_path):
        return
    registrar = _Registrar()
    sys.meta_path.insert(0, registrar)
    registrar.register_what_is_ready()
