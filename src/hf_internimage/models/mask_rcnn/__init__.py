# SPDX-License-Identifier: MIT
"""Mask R-CNN and Cascade Mask R-CNN on InternImage, built from torchvision's modules, which this package alone needs.

Importing it makes `AutoModelForObjectDetection` and `pipeline("object-detection")` know the model.
"""

import torch
from transformers import AutoModelForInstanceSegmentation, AutoModelForObjectDetection
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from ..configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig

try:
    import torchvision  # noqa: F401  # loads the compiled operators
except ModuleNotFoundError as error:
    if error.name != "torchvision":
        raise
    raise ModuleNotFoundError(
        "hf_internimage.models.mask_rcnn needs torchvision, which is not installed: "
        'pip install "hf-internimage[torchvision]"',
        name="torchvision",
    ) from error
except RuntimeError as error:  # how torchvision reports compiled operators that cannot be loaded
    raise ImportError(
        f"hf_internimage.models.mask_rcnn needs torchvision, whose compiled operators cannot be loaded here ({error}): "
        f"install the torchvision built for PyTorch {torch.__version__}, see https://pytorch.org/get-started/locally."
    ) from error

from .masks import post_process_instance_segmentation
from .modeling import InternImageMaskRCNNForInstanceSegmentation, InternImageMaskRCNNOutput

for auto_class in (AutoModelForObjectDetection, AutoModelForInstanceSegmentation):
    auto_class.register(InternImageMaskRCNNConfig, InternImageMaskRCNNForInstanceSegmentation, exist_ok=True)
# The list of names behind a pipeline's "model is not supported" message.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(
    InternImageMaskRCNNConfig.model_type, InternImageMaskRCNNForInstanceSegmentation.__name__
)

__all__ = [
    "InternImageMaskRCNNConfig",
    "InternImageMaskRCNNForInstanceSegmentation",
    "InternImageMaskRCNNOutput",
    "post_process_instance_segmentation",
]
