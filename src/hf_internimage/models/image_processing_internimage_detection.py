# SPDX-License-Identifier: MIT
"""Image processor for object detection with InternImage: resize, padding, boxes and results of the original."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .precision import at_least_float32
from .resizing import keep_ratio_size, multiple_size, opencv_bilinear
from .rgb_images import RgbMixin


class InternImageDetectionImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of `InternImageDetectionImageProcessor` in addition to those of every image processor.

    size_divisor: height and width of the batch are padded up to a multiple of it.
    top_k: the most detections per image (`max_per_img` in the original's configurations).
    """

    size_divisor: int
    top_k: int


class InternImageDetectionImageProcessor(RgbMixin, PilBackend):
    """Convert images and COCO annotations to inputs of DINO and the DETR family, and their outputs to detections.

    Images keep their aspect ratio: the short side becomes `size["shortest_edge"]` unless the long side would then
    exceed `size["longest_edge"]` (800 and 1333; 1000 and 2000 for InternImage-H), in OpenCV's bilinear arithmetic
    without antialiasing. They are divided by 255, normalised by ImageNet's mean and standard deviation, and then padded
    with 0 at the right and bottom, to the largest image of the batch rounded up to `size_divisor`, or to `pad_size`.
    torchvision is not needed and changes nothing. Pillow images of any mode become RGB by `rgb_images.to_rgb`.

    Unlike transformers' DETR processors, boxes are fractions of the image, not of the padded batch.
    Source: test pipelines of OpenGVLab/InternImage@31c962d, detection/configs.
    """

    valid_kwargs = InternImageDetectionImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    size_divisor = 32
    top_k = 100

    def preprocess(
        self,
        images: Any,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `pixel_values` (N, 3, H, W) float32, `pixel_mask` (N, H, W) int64, and `labels` for annotations.

        pixel_mask: 1 on the image, 0 on padding.

        annotations: one per image, as for transformers' DETR processors: `image_id` and `annotations`, a list of dicts
        with `category_id`, `bbox` (left, top, width, height in pixels of the original image), and optionally `area` and
        `iscrowd`. Crowds are left out, as in the original's DINO, and so are boxes that are empty after clipping to the
        image.

        labels: per image `boxes` (n, 4) float32, (centre x, centre y, width, height) as fractions of the unpadded
        image; `class_labels` (n,) int64; `area` (n,) float32, in pixels of the resized image; `iscrowd` (n,);
        `image_id` (1,); `orig_size` and `size`, (height, width) before and after resizing, without padding.

        Raises: ValueError for an annotation that is malformed, naming its image; for images that are not 8-bit.
        """
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess(  # type: ignore[override]  # its arguments come by name, and there are more of them
        self,
        images: list[np.ndarray],
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        *,
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        if isinstance(annotations, Mapping):
            annotations = [annotations]
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(f"There are {len(images)} images, but {len(annotations)} annotations: give one per image.")
        if do_resize and resample != PILImageResampling.BILINEAR:
            raise ValueError(f"Images are resized bilinearly only, got resample={resample}; leave it out.")
        original_sizes = [image.shape[-2:] for image in images]
        if do_resize:
            images = [self.resize(image, size) for image in images]
        sizes = [image.shape[-2:] for image in images]
        labels = None
        if annotations is not None:
            labels = [_label(*args) for args in zip(annotations, original_sizes, sizes, strict=True)]
        if do_rescale:
            images = [self.rescale(image, rescale_factor) for image in images]
        if do_normalize:
            images = [self.normalize(image, image_mean, image_std) for image in images]
        data: dict[str, Any] = {"pixel_values": images}
        if do_pad:
            if pad_size is None:
                height, width = (max(sides) for sides in zip(*sizes, strict=True))
                height, width = multiple_size(height, width, size_divisor or 1)
                pad_size = SizeDict(height=height, width=width)
            data["pixel_values"], data["pixel_mask"] = self.pad(images, pad_size, return_mask=True)
        elif return_tensors is not None and len(set(sizes)) > 1:
            raise ValueError(f"Images of the sizes {sorted(set(sizes))} make no batch without do_pad; leave it on.")
        encoded = BatchFeature(data, tensor_type=return_tensors)
        if labels is not None:
            encoded["labels"] = [BatchFeature(label, tensor_type=return_tensors) for label in labels]
        return encoded

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resize an image (C, H, W) uint8 -> (C, height, width) uint8."""
        if not (size.shortest_edge and size.longest_edge):
            raise ValueError(f"size must have the keys 'shortest_edge' and 'longest_edge', got {dict(size)}.")
        if image.dtype != np.uint8:
            raise ValueError(f"Images are resized as 8-bit pixels, got {image.dtype}; pass uint8, or do_resize=False.")
        _, height, width = image.shape
        target = keep_ratio_size(height, width, size.shortest_edge, size.longest_edge)
        return opencv_bilinear(image.transpose(1, 2, 0), target).transpose(2, 0, 1)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        top_k: int | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Return the `top_k` highest class probabilities of all queries, if above `threshold`, as detections.

        One query may give detections of several classes. COCO's average precision needs threshold=0. The default of
        `top_k` is the processor's.

        outputs: has `logits` (N, Q, C) and `pred_boxes` (N, Q, 4), (centre x, centre y, width, height) as fractions of
        the image. target_sizes: N pairs (height, width), usually of the original images.

        Returns: per image `scores` (n,), descending, `labels` (n,) and `boxes` (n, 4), (left, top, right, bottom) in
        pixels, or fractions of the image without target_sizes; clipped to the image.
        Raises: ValueError for another number of target_sizes.
        Source: DINOHead of mmdet 2.28.
        """
        logits, boxes = map(at_least_float32, (outputs.logits, outputs.pred_boxes))
        number, _, num_labels = logits.shape
        centres, sides = boxes.split(2, dim=-1)
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1).clamp(0, 1)
        if target_sizes is not None:
            if len(target_sizes) != number:
                raise ValueError(f"There are outputs of {number} images, but {len(target_sizes)} target_sizes.")
            heights, widths = torch.stack([torch.as_tensor(size) for size in target_sizes]).to(boxes).unbind(1)
            boxes = boxes * torch.stack([widths, heights, widths, heights], dim=1)[:, None]
        probabilities = logits.sigmoid().flatten(1)
        top_k = self.top_k if top_k is None else top_k
        scores, chosen = probabilities.topk(min(top_k, probabilities.shape[1]))
        results = []
        for image_scores, image_chosen, image_boxes in zip(scores, chosen, boxes, strict=True):
            kept = image_scores > threshold
            queries, classes = image_chosen[kept] // num_labels, image_chosen[kept] % num_labels
            results.append({"scores": image_scores[kept], "labels": classes, "boxes": image_boxes[queries]})
        return results


def _label(target: Mapping[str, Any], original: tuple[int, int], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Convert one image's COCO annotations to `labels`.

    `original` and `size` are (height, width) before and after resizing.
    """
    if not (isinstance(target, Mapping) and {"image_id", "annotations"} <= target.keys()):
        raise ValueError(f"An image's annotations must be a dict with 'image_id' and 'annotations', got {target!r}.")
    try:
        image_id = index(target["image_id"])
    except TypeError:
        raise ValueError(f"image_id must be an integer, got {target['image_id']!r}.") from None
    rows = [_row(entry, image_id) for entry in target["annotations"]]
    # (n, 7): left, top, width, height, class, area, crowd
    starts, sides, others = np.split(np.array(rows, dtype=np.float64).reshape(-1, 7), [2, 4], axis=1)
    classes, area, crowd = others.T
    width_height = np.array(original[::-1])
    ends = (starts + sides).clip(0, width_height)
    starts = starts.clip(0, width_height)
    kept = (ends > starts).all(axis=1) & (crowd == 0)
    boxes = np.concatenate([(starts + ends) / 2 / width_height, (ends - starts) / width_height], axis=1)
    return {
        "image_id": np.array([image_id], dtype=np.int64),
        "class_labels": classes[kept].astype(np.int64),
        "boxes": boxes[kept].astype(np.float32),
        "area": (area[kept] * (np.prod(size) / np.prod(original))).astype(np.float32),
        "iscrowd": np.zeros(kept.sum(), dtype=np.int64),
        "orig_size": np.array(original, dtype=np.int64),
        "size": np.array(size, dtype=np.int64),
    }


def _row(entry: Any, image_id: int) -> tuple[float, ...]:
    """Return left, top, width, height, class, area and the crowd flag of an annotation."""
    try:
        left, top, width, height = (float(number) for number in entry["bbox"])
        category, area, crowd = index(entry["category_id"]), entry.get("area"), entry.get("iscrowd")
        row = (left, top, width, height, category, float(width * height if area is None else area), bool(crowd))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        if np.isfinite(row).all() and min(width, height, category) >= 0:
            return row
        problem = "a number that is negative or not finite"
    raise ValueError(
        f"Image {image_id} has a malformed annotation ({problem}): an annotation needs an integer 'category_id' and a "
        f"'bbox' of (left, top, width, height), got {entry!r}."
    )
