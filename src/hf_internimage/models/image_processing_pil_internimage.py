# SPDX-License-Identifier: MIT
"""Image processor for InternImage on Pillow: the reference."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .rgb_images import RgbMixin


class InternImageImageProcessorPil(RgbMixin, PilBackend):
    """Convert images to `pixel_values` as the official preprocessor files say.

    The short side is resized to the crop size itself (bicubic, antialiased, on 8-bit pixels; there is no 256 step),
    then a centre crop, division by 255, ImageNet mean and standard deviation. Inputs and outputs are those of every
    image processor of transformers; `size` and `crop_size` set the resolution. Pillow images of any mode become RGB by
    `rgb_images.to_rgb`.

    Returns: `pixel_values` (N, 3, crop height, crop width), float32.
    Source: preprocessor_config.json of OpenGVLab's repositories; same pixels as the original's evaluation, except that
    the original starts the crop one pixel later where the margin is 3 modulo 4.
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


def image_processor_for(height: int, width: int) -> InternImageImageProcessorPil:
    """Return the preprocessing of the released classifiers for images of this size in pixels."""
    return InternImageImageProcessorPil(
        size={"shortest_edge": max(height, width)}, crop_size={"height": height, "width": width}
    )


__all__ = ["InternImageImageProcessorPil"]
