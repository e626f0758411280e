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
    "CBInternImageBackbone": "models.modeling_cb_internimage",
    "CBInternImageConfig": "models.configuration_cb_internimage",
    "InternImageBackbone": "models.modeling_internimage",
    "InternImageConfig": "models.configuration_internimage",
    "InternImageDetectionImageProcessor": "models.image_processing_internimage_detection",
    "InternImageDinoConfig": "models.configuration_internimage_dino",
    "InternImageDinoForObjectDetection": "models.modeling_internimage_dino",
    "InternImageDinoPreTrainedModel": "models.modeling_internimage_dino",
    "InternImageForImageClassification": "models.modeling_internimage",
    "InternImageImageProcessor": "models.image_processing_internimage",
    "InternImageImageProcessorPil": "models.image_processing_pil_internimage",
    "InternImageMaskRCNNConfig": "models.configuration_internimage_mask_rcnn",
    "InternImageModel": "models.modeling_internimage",
    "InternImagePreTrainedModel": "models.modeling_internimage",
    "InternImageSegmentationImageProcessor": "models.image_processing_internimage_segmentation",
    "dcnv3": "ops",
}
_MODULES = (
    "checkpoints",
    "complexity",
    "conversion",
    "heads",
    "hub",
    "models",
    "ops",
    "segmentation",
    "training",
)

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from .models.configuration_cb_internimage import CBInternImageConfig as CBInternImageConfig
    from .models.configuration_internimage import InternImageConfig as InternImageConfig
    from .models.configuration_internimage_dino import InternImageDinoConfig as InternImageDinoConfig
    from .models.configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig as InternImageMaskRCNNConfig
    from .models.image_processing_internimage import InternImageImageProcessor as InternImageImageProcessor
    from .models.image_processing_internimage_detection import (
        InternImageDetectionImageProcessor as InternImageDetectionImageProcessor,
    )
    from .models.image_processing_internimage_segmentation import (
        InternImageSegmentationImageProcessor as InternImageSegmentationImageProcessor,
    )
    from .models.image_processing_pil_internimage import InternImageImageProcessorPil as InternImageImageProcessorPil
    from .models.modeling_cb_internimage import CBInternImageBackbone as CBInternImageBackbone
    from .models.modeling_internimage import InternImageBackbone as InternImageBackbone
    from .models.modeling_internimage import InternImageForImageClassification as InternImageForImageClassification
    from .models.modeling_internimage import InternImageModel as InternImageModel
    from .models.modeling_internimage import InternImagePreTrainedModel as InternImagePreTrainedModel
    from .models.modeling_internimage_dino import InternImageDinoForObjectDetection as InternImageDinoForObjectDetection
    from .models.modeling_internimage_dino import InternImageDinoPreTrainedModel as InternImageDinoPreTrainedModel
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
