# SPDX-License-Identifier: MIT
"""Semantic segmentation of whole images as in the original's evaluation: sliding windows, scales, mirror images."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import get_image_size, is_pil_image

from .models.semantic_maps import add_probabilities, label_map, resize_scores, semantic_scores


class SemanticSegmenter:
    """Segment one image of any size at a time: `SemanticSegmenter(model, image_processor)(image)`.

    Args:
        model: any transformers model whose output has `logits` (UperNet) or classes and masks of queries
            (Mask2Former), in evaluation mode. Its device and dtype are kept; scores are summed in float32 or better.
        image_processor: converts one image to `pixel_values`.
        crop_size, stride: (height, width), or one number for both, in pixels of the network's input. With them the
            network runs on windows of `crop_size` every `stride` pixels; the last window of a row or column is moved
            back to the border, and scores are averaged where windows overlap. Cityscapes with Mask2Former: 1024, 512.
        window_batch_size: number of windows in one batch.
        scale_ratios: scales of the image, as multiples of the image processor's two edges (truncated to whole pixels).
        flip: each scale is also evaluated mirrored left to right.
        maps_device: device for the sums of full-size score maps (classes x height x width x 4 bytes), which may not fit
            on the model's device. The model's device if None.

    Several views are averaged as probabilities at the image's own size: softmax over classes of the scores after both
    resizes. (The scores of Mask2Former are sums of probabilities already; the original averages their softmax, too.)

    Raises: ValueError for an invalid crop or stride, for gaps between windows, for no scale, and for a scale that the
    image processor does not support.
    Source: `slide_inference`, `whole_inference` and `aug_test` of mmseg 0.30 and of OpenGVLab/InternImage@31c962d,
    segmentation/mmseg_custom/models/segmentors/encoder_decoder_mask2former.py.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        *,
        crop_size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] | None = None,
        window_batch_size: int = 1,
        scale_ratios: Sequence[float] = (1.0,),
        flip: bool = False,
        maps_device: str | torch.device | None = None,
    ) -> None:
        if (crop_size is None) != (stride is None):
            raise ValueError(f"Sliding windows need crop_size and stride, got {crop_size} and {stride}; pass both.")
        self.crop_size = None if crop_size is None else _pair("crop_size", crop_size)
        self.stride = None if stride is None else _pair("stride", stride)
        if self.crop_size and self.stride and any(map(int.__gt__, self.stride, self.crop_size)):
            raise ValueError(
                f"A stride of {self.stride} leaves gaps between windows of {self.crop_size}; make it at most as large."
            )
        if window_batch_size < 1:
            raise ValueError(f"window_batch_size must be at least 1, got {window_batch_size}.")
        if not scale_ratios or min(scale_ratios) <= 0:
            raise ValueError(f"scale_ratios must be one or more positive numbers, got {list(scale_ratios)}.")
        self.model = model
        self.image_processor = image_processor
        self.window_batch_size = window_batch_size
        self.flip = flip
        self.maps_device = torch.device(maps_device) if maps_device is not None else None
        self._processor_options = [self._at_scale(ratio) for ratio in scale_ratios]

    def __call__(self, image: Any) -> Tensor:
        """Return the class of every pixel of `image`: (height, width) int64, on the device of the maps.

        `image` is one PIL image, or one uint8 array or tensor in a format of the image processor.

        Raises: ValueError if the model is in training mode, and for images that the image processor refuses.
        """
        if self._views() > 1:
            return self.probabilities(image).argmax(dim=0)
        pixel_values = self._pixel_values(image, self._processor_options[0])
        sizes = [pixel_values.shape[-2:], _image_size(image)]
        return label_map(self._scores(pixel_values), sizes).to(self._device())

    def probabilities(self, image: Any) -> Tensor:
        """Return the class probabilities of each pixel, averaged over the views: (classes, height, width).

        They are float32, or float64 for a float64 model, on the device of the maps. See `__call__` for `image` and
        errors.
        """
        size = _image_size(image)
        total = self._zeros(size)
        for options in self._processor_options:
            pixel_values = self._pixel_values(image, options)
            for flipped in (False, True) if self.flip else (False,):
                scores = self._scores(pixel_values.flip(-1) if flipped else pixel_values)
                add_probabilities(total, scores, [pixel_values.shape[-2:], size], flipped)
        return total.div_(self._views())

    def _device(self) -> torch.device:
        return self.maps_device or self.model.device

    def _zeros(self, size: Sequence[int]) -> Tensor:
        """Return a map of zeros (classes, height, width) to sum scores in."""
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        return torch.zeros((self.model.config.num_labels or 0, *size), dtype=dtype, device=self._device())

    def _views(self) -> int:
        return len(self._processor_options) * (2 if self.flip else 1)

    def _at_scale(self, ratio: float) -> dict[str, Any]:
        """Return the arguments that set the image processor to its own size times `ratio`."""
        if ratio == 1:
            return {}
        size = dict(getattr(self.image_processor, "size", None) or {})
        edges = ("shortest_edge", "longest_edge")
        if not all(size.get(edge) for edge in edges):
            raise ValueError(f"Scales need an image processor with {' and '.join(edges)} in its size, got {size}.")
        scaled = {edge: int(size[edge] * ratio) for edge in edges}
        if min(scaled.values()) < 1:
            raise ValueError(f"A scale ratio of {ratio} leaves nothing of the size {size}.")
        return {"size": scaled}

    def _pixel_values(self, image: Any, options: dict[str, Any]) -> Tensor:
        """Return the network's input for one image: (1, 3, H, W)."""
        if self.model.training:
            raise ValueError("The model is in training mode; call its eval() first.")
        batch: BatchFeature = self.image_processor(image, return_tensors="pt", **options)
        if len(batch.pixel_values) != 1:
            raise ValueError(f"One image is segmented at a time, got {len(batch.pixel_values)}.")
        return batch.pixel_values.to(self.model.device, self.model.dtype)

    def _scores(self, pixel_values: Tensor) -> Tensor:
        """Return the scores (classes, h, w) of one image (1, 3, H, W).

        With windows they have the input's size, else the size of the model's outputs.
        """
        if self.crop_size is None or self.stride is None:
            return self._run(pixel_values)[0]
        size = pixel_values.shape[-2:]
        height, width = map(min, self.crop_size, size)
        windows = list(product(*map(window_starts, size, self.crop_size, self.stride)))
        total = self._zeros(size)
        count = torch.zeros(size, device=total.device)
        for start in range(0, len(windows), self.window_batch_size):
            batch = windows[start : start + self.window_batch_size]
            crops = torch.cat([pixel_values[..., y : y + height, x : x + width] for y, x in batch])
            for (y, x), scores in zip(batch, resize_scores(self._run(crops), (height, width)), strict=True):
                total[:, y : y + height, x : x + width] += scores.to(total.device)
                count[y : y + height, x : x + width] += 1
        return total.div_(count)

    @torch.no_grad()
    def _run(self, pixel_values: Tensor) -> Tensor:
        return semantic_scores(self.model(pixel_values=pixel_values))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return the starts of windows of `crop` pixels along a side of `length` pixels.

    There is one every `stride` pixels; the last one is moved back to end at the border. If the side is not longer than
    the crop, there is one window, as long as the side.
    """
    last = max(length - crop, 0)
    return [min(index * stride, last) for index in range(math.ceil(last / stride) + 1)]


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) from one number or such a pair; raise ValueError unless they are positive."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"{name} must be one positive whole number or (height, width), got {value}.")
    return pair


def _image_size(image: Any) -> tuple[int, int]:
    """Return (height, width) of a PIL image, or of an array or tensor with channels first, last or none."""
    if is_pil_image(image):
        return image.height, image.width
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(f"An image to segment must be a PIL image, array or tensor, got {type(image).__name__}.")
    height, width = image.shape if image.ndim == 2 else get_image_size(np.asarray(image))
    return int(height), int(width)


__all__ = ["SemanticSegmenter", "window_starts"]
