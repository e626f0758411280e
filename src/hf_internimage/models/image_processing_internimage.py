# SPDX-License-Identifier: MIT
"""Image processor for InternImage on torchvision: fast, on any device."""

from typing import Any

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.utils import requires_backends

from .rgb_images import RgbMixin


class InternImageImageProcessor(RgbMixin, TorchvisionBackend):
    """Convert images to `pixel_values` as the official preprocessor files say. Needs torchvision.

    The short side is resized to the crop size itself (bicubic, antialiased; there is no 256 step), then a centre crop,
    division by 255, ImageNet mean and standard deviation. torchvision's resize differs from Pillow's by one, rarely
    two, grey levels in under 1 % of the values; `InternImageImageProcessorPil` is exact. Pillow images of any mode
    become RGB by `rgb_images.to_rgb`.

    Returns: `pixel_values` (N, 3, crop height, crop width), float32.
    Raises: ImportError without torchvision.
    Source: preprocessor_config.json of OpenGVLab's repositories.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs: Any) -> None:
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)


__all__ = ["InternImageImageProcessor"]
