# SPDX-License-Identifier: MIT
"""InternImage (CVPR 2023) for Hugging Face transformers.

Importing this package makes the Auto classes and pipelines of transformers know InternImage. It loads neither torch
nor transformers by itself: the classes below are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._registration import register_with_transformers

__version__ = "0.1.0"

_HOME = {
    "InternImageBackbone": "modeling_internimage",
    "InternImageConfig": "configuration_internimage",
    "InternImageForImageClassification": "modeling_internimage",
    "InternImageImageProcessor": "image_processing_internimage",
    "InternImageImageProcessorPil": "image_processing_pil_internimage",
    "InternImageModel": "modeling_internimage",
    "InternImagePreTrainedModel": "modeling_internimage",
    "dcnv3": "ops",
}
_MODULES = ("cards", "checkpoints", "complexity", "conversion", "hub", "ops", "training")

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from .configuration_internimage import InternImageConfig as InternImageConfig
    from .image_processing_internimage import InternImageImageProcessor as InternImageImageProcessor
    from .image_processing_pil_internimage import InternImageImageProcessorPil as InternImageImageProcessorPil
    from .modeling_internimage import InternImageBackbone as InternImageBackbone
    from .modeling_internimage import InternImageForImageClassification as InternImageForImageClassification
    from .modeling_internimage import InternImageModel as InternImageModel
    from .modeling_internimage import InternImagePreTrainedModel as InternImagePreTrainedModel
    from .ops import dcnv3 as dcnv3


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})


register_with_transformers()
