# SPDX-License-Identifier: MIT
"""Image processor for semantic segmentation with InternImage: exactly the pixels of the original's test pipeline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs

from .resizing import keep_ratio_size, multiple_size, opencv_bilinear, opencv_nearest
from .rgb_images import RgbMixin
from .semantic_maps import has_queries, label_map, resized_blocks, semantic_scores

IGNORED_LABEL = 255


class InternImageSegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments in addition to those of every image processor.

    size_divisor: both sides are resized to a multiple of it; 1 or None leaves them unchanged.
    do_reduce_labels: see `InternImageSegmentationImageProcessor`.
    """

    size_divisor: int | None
    do_reduce_labels: bool


class InternImageSegmentationImageProcessor(RgbMixin, PilBackend):
    """Convert images to `pixel_values`, segmentation maps to `labels`, and a model's outputs to label maps.

    An image is resized to the largest size with its aspect ratio that fits `size` = {"shortest_edge", "longest_edge"},
    then resized again, not padded, up to a multiple of `size_divisor` (32; 1 leaves the size unchanged), divided by 255
    and normalised. Both resizes are OpenCV's bilinear on 8-bit pixels, so arrays must be 8-bit; Pillow images of any
    mode become RGB by `rgb_images.to_rgb`. Neither OpenCV nor torchvision is needed, and pixels do not depend on them.

    Segmentation maps go through the same two sizes with OpenCV's nearest-neighbour rule: `labels` are for training,
    at the size of `pixel_values`. (Metrics are computed at the image's own size, against the original map.) With
    `do_reduce_labels`, label 0 becomes 255 ("ignored") and the others are reduced by one, as for ADE20K, Pascal and
    NYU.

    Images of one call must have one size after resizing: the original never pads them, and padding would change the
    results of heads that pool over the whole image.

    Returns: `pixel_values` (N, 3, H, W) float32 and, with maps, `labels` (N, H, W) int64; lists of such arrays per
    image without `return_tensors`.
    Raises: ValueError for images that are not 8-bit or not of one size, for maps that do not fit their images, and
    for a `size` without the two edges.
    Source: test pipelines of OpenGVLab/InternImage@31c962d, segmentation/configs; `Resize` and `ResizeToMultiple` of
    mmseg 0.30. Sizes there: 512 and 2048 (ADE20K with T, S, B), 640 and 2560 (L, XL), 896 and 3584 (H, G);
    Cityscapes 1024 and 2048, with UperNet not brought to a multiple.
    """

    valid_kwargs = InternImageSegmentationImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 512, "longest_edge": 2048}
    default_to_square = False
    size_divisor = 32
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_reduce_labels = False

    def __init__(self, **kwargs: Any) -> None:
        # The base class takes None for "not given", here and when it reads a saved file.
        if "size_divisor" in kwargs and kwargs["size_divisor"] is None:
            kwargs["size_divisor"] = 1
        super().__init__(**kwargs)

    def preprocess(
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Convert images and segmentation maps, in any form that transformers accepts; see the class."""
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(self, images: ImageInput, *args: Any, **kwargs: Any) -> BatchFeature:
        (segmentation_maps,) = args
        return_tensors = kwargs.pop("return_tensors")
        reading = {name: kwargs.pop(name) for name in ("do_convert_rgb", "input_data_format")}
        prepared = self._prepare_image_like_inputs(images, **reading)
        data = {"pixel_values": [self._pixel_values(image, **kwargs) for image in prepared]}
        if segmentation_maps is not None:
            maps = self._prepare_image_like_inputs(segmentation_maps, expected_ndims=2, do_convert_rgb=False)
            if [image.shape[1:] for image in maps] != [image.shape[1:] for image in prepared]:
                raise ValueError(
                    f"Every image needs a segmentation map of its height and width; the images have "
                    f"{[image.shape[1:] for image in prepared]}, the maps {[image.shape[1:] for image in maps]}."
                )
            data["labels"] = [self._labels(image, **kwargs) for image in maps]
        sizes = sorted({values.shape[1:] for values in data["pixel_values"]})
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"The images of one call must come out of one size, got (height, width) {sizes}; "
                "pass them one at a time, or crop them to one size first."
            )
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _pixel_values(
        self,
        image: np.ndarray,
        do_resize: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size: SizeDict,
        size_divisor: int | None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Convert an image (C, H, W) to pixel values (C, height, width), with as many channels as `image_mean`."""
        channels = len(image_mean) if isinstance(image_mean, Sequence) else 3
        if len(image) == 1:  # gray arrays stay gray in transformers 5.17
            image = image.repeat(channels, axis=0)
        if len(image) != channels:
            raise ValueError(f"An image must have one or {channels} channels, got {len(image)}; convert it to RGB.")
        if do_resize:
            if image.dtype != np.uint8:
                raise ValueError(
                    f"Images are resized as 8-bit pixels, got {image.dtype}; pass uint8, or do_resize=False."
                )
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            for new_size in self._sizes(image.shape[1:], size, size_divisor):
                pixels = opencv_bilinear(pixels, new_size)
            image = pixels.transpose(2, 0, 1)
        if do_rescale:
            image = self.rescale(image, rescale_factor)
        if do_normalize:
            image = self.normalize(image, image_mean, image_std)
        return np.ascontiguousarray(image)

    def _labels(
        self,
        labels: np.ndarray,
        do_resize: bool,
        do_reduce_labels: bool,
        size: SizeDict,
        size_divisor: int | None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Convert a segmentation map (1, H, W) to labels (height, width) int64."""
        if len(labels) != 1:
            raise ValueError(f"A segmentation map must have one channel, got {len(labels)}; pass class indices.")
        labels = labels[0]
        if do_resize:
            for new_size in self._sizes(labels.shape, size, size_divisor):
                labels = opencv_nearest(labels, new_size)
        labels = labels.astype(np.int64)
        if do_reduce_labels:
            labels = np.where((labels == 0) | (labels == IGNORED_LABEL), IGNORED_LABEL, labels - 1)
        return labels

    def _sizes(self, old: Sequence[int], size: SizeDict, size_divisor: int | None) -> list[tuple[int, int]]:
        """Return the two sizes (height, width) that an image of size `old` is resized to in turn."""
        if not size.shortest_edge or not size.longest_edge:
            raise ValueError(f"`size` must have 'shortest_edge' and 'longest_edge', got {dict(size)}.")
        kept = keep_ratio_size(old[0], old[1], size.shortest_edge, size.longest_edge)
        return [kept, multiple_size(*kept, size_divisor or 1)]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[BatchFeature]:
        """Return label maps (height, width) int64, one per image, for outputs of UperNet or Mask2Former.

        Scores are resized twice, bilinearly: to the network's input, then to `target_sizes` = (height, width) of each
        image, where the best class is taken; without `target_sizes`, at the size of the network's input. Mask2Former's
        scores have the resolution of its masks, a quarter of the input (exactly, for sides that are multiples of 4);
        UperNet's logits have the size of the input. No full-size map of all classes is kept, unless
        `return_segmentation_scores` asks for it: then the result has `segmentation`, the label map, and
        `segmentation_scores` (classes, height, width) for each image, as transformers' own processors.

        Raises: ValueError if `target_sizes` are not one per image; for outputs of another kind.
        """
        scores = semantic_scores(outputs)
        height, width = scores.shape[-2:]
        network_input = (4 * height, 4 * width) if has_queries(outputs) else (height, width)
        if target_sizes is None:
            target_sizes = [network_input] * len(scores)
        if len(target_sizes) != len(scores):
            raise ValueError(f"Got {len(target_sizes)} target sizes for {len(scores)} images; pass one for each.")
        sizes = [(int(height), int(width)) for height, width in target_sizes]
        pairs = [(one, [network_input, size]) for one, size in zip(scores, sizes, strict=True)]
        maps = [label_map(one, steps) for one, steps in pairs]
        if not return_segmentation_scores:
            return maps
        full = [torch.cat([block for _, block in resized_blocks(one, steps)]) for one, steps in pairs]
        return [
            BatchFeature({"segmentation": labels, "segmentation_scores": resized})
            for labels, resized in zip(maps, full, strict=True)
        ]


__all__ = ["InternImageSegmentationImageProcessor"]
