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
    from .configuration_internimage import InternImageConfig

    InternImageConfig.register_for_auto_class()
    auto.AutoConfig.register("internimage", InternImageConfig, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from .configuration_internimage import InternImageConfig
    from .modeling_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel

    classes = {
        "AutoModel": InternImageModel,
        "AutoModelForImageClassification": InternImageForImageClassification,
        "AutoBackbone": InternImageBackbone,
    }
    for auto_name, model in classes.items():
        model.register_for_auto_class(auto_name)
        getattr(auto, auto_name).register(InternImageConfig, model, exist_ok=True)
    # The list of names behind a pipeline's "model is not supported" message.
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.setdefault("internimage", "InternImageForImageClassification")


def _register_image_processors(auto: ModuleType) -> None:
    from transformers.utils import is_torchvision_available

    from .configuration_internimage import InternImageConfig
    from .image_processing_pil_internimage import InternImageImageProcessorPil

    processors: dict[str, type] = {"pil": InternImageImageProcessorPil}
    if is_torchvision_available():
        from .image_processing_internimage import InternImageImageProcessor

        processors["torchvision"] = InternImageImageProcessor
    auto.AutoImageProcessor.register(InternImageConfig, image_processor_classes=processors, exist_ok=True)


_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
}


class _ActingLoader(Loader):
    """Another loader, followed by an action on the module it has executed."""

    def __init__(self, loader: Loader, action: Callable[[ModuleType], None]) -> None:
        self.loader, self.action = loader, action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader  # the module is the loader's own again, for inspect and pkgutil
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.action(module)


class _ActingFinder(MetaPathFinder):
    """Finds the modules of `_ACTIONS` as the other finders would, once each, and adds the action."""

    def __init__(self) -> None:
        self.waiting = dict(_ACTIONS)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self.waiting.get(fullname)
        if action is None:
            return None
        del self.waiting[fullname]  # importlib asks this finder again below
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.waiting[fullname] = action
        if spec is not None and spec.loader is not None:
            spec.loader = _ActingLoader(spec.loader, action)
        return spec


def register_with_transformers() -> None:
    """Register with every Auto module that is loaded, and with the others when they are."""
    if any(isinstance(finder, _ActingFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _ActingFinder())
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
