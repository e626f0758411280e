# SPDX-License-Identifier: MIT
"""InternImage (CVPR 2023) for Hugging Face transformers.

Importing this package registers its models with the Auto classes and pipelines of transformers, and does nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .checkpoints import list_models
from .models import auto
from .ops import dcnv3

__version__ = "0.1.0"

_CLASSES = auto.public_classes()
_OPTIONAL_CLASSES = auto.optional_classes()
_MODULES = (
    "checkpoints",
    "complexity",
    "conversion",
    "exporting",
    "heads",
    "hub",
    "image_files",
    "models",
    "nn",
    "ops",
    "prediction",
    "segmentation",
    "speed",
)
_OPTIONAL_MODULES = ("app", "reproduction", "training", "visualize")  # each needs an extra, so `dir` does not list them

_FUNCTIONS = {"export": "exporting", "predict": "prediction"}  # name -> its module, which is imported when it is needed

__all__ = [*_CLASSES, *_FUNCTIONS, "__version__", "dcnv3", "list_models"]

if TYPE_CHECKING:  # the classes that `__getattr__` takes from the table of models, for editors and type checkers
    from .exporting import export as export
    from .models.configuration_cb_internimage import *
    from .models.configuration_flash_internimage import *
    from .models.configuration_internimage import *
    from .models.configuration_internimage_dino import *
    from .models.configuration_internimage_mask_rcnn import *
    from .models.image_processing_internimage import *
    from .models.image_processing_internimage_detection import *
    from .models.image_processing_internimage_segmentation import *
    from .models.image_processing_pil_internimage import *
    from .models.modeling_cb_internimage import *
    from .models.modeling_flash_internimage import *
    from .models.modeling_internimage import *
    from .models.modeling_internimage_dino import *
    from .prediction import predict as predict


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return auto.load(_CLASSES[name])
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f".{_FUNCTIONS[name]}", __name__), name)
    if name in _OPTIONAL_CLASSES:  # not in `__all__`: without their package, this raises an error that names it
        return auto.load(_OPTIONAL_CLASSES[name])
    if name in _MODULES or name in _OPTIONAL_MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLASSES, *_FUNCTIONS, *_MODULES})


auto.register()
