# SPDX-License-Identifier: MIT
"""Mask R-CNN and Cascade Mask R-CNN on InternImage, built from modules of torchvision (extra `torchvision`).

Import this package to register the model with `AutoModelForObjectDetection` and `pipeline("object-detection")`.
"""

import torch

from .. import auto
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
except RuntimeError as error:  # torchvision raises it if its compiled operators cannot be loaded
    raise ImportError(
        f"hf_internimage.models.mask_rcnn needs torchvision, whose compiled operators cannot be loaded here ({error}): "
        f"install the torchvision built for PyTorch {torch.__version__}, see https://pytorch.org/get-started/locally."
    ) from error

from .masks import post_process_instance_segmentation
from .modeling import InternImageMaskRCNNForInstanceSegmentation, InternImageMaskRCNNOutput

auto.register_models(InternImageMaskRCNNConfig.model_type)

__all__ = [
    "InternImageMaskRCNNConfig",
    "InternImageMaskRCNNForInstanceSegmentation",
    "InternImageMaskRCNNOutput",
    "post_process_instance_segmentation",
]
