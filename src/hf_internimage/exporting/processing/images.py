# SPDX-License-Identifier: MIT
"""What an image processor makes of one image, as ONNX operators."""

from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto
from transformers.image_processing_backends import PilBackend

from ...models.image_processing_internimage import InternImageImageProcessor
from ...models.image_processing_internimage_detection import InternImageDetectionImageProcessor
from ...models.image_processing_internimage_segmentation import InternImageSegmentationImageProcessor
from ...models.image_processing_pil_internimage import InternImageImageProcessorPil
from ..errors import ExportError
from .nodes import Nodes
from .resizing import RESAMPLES, double, opencv_resize, pillow_resize, shape

_OPENCV = (InternImageDetectionImageProcessor, InternImageSegmentationImageProcessor)
_STEPS = ("_preprocess", "resize", "center_crop", "rescale", "normalize")


class Prepared(NamedTuple):
    """Names of tensors.

    Attributes:
        pixel_values: (1, 3, H, W) float32.
        pixel_mask: (1, H, W) int64, 1 on the image and 0 on padding; None if there is no padding.
    """

    pixel_values: str
    pixel_mask: str | None


def supported(processor: Any) -> Any:
    """Return the image processor whose arithmetic files have, that on Pillow for the released classifiers' two.

    Raises:
        ExportError: naming a step of the image processor that files cannot have.
    """
    if isinstance(processor, InternImageImageProcessor):
        processor = InternImageImageProcessorPil.from_dict(processor.to_dict())
    name = type(processor).__name__
    if isinstance(processor, _OPENCV):
        edges = dict(processor.size or {})
        if processor.do_resize and not (edges.get("shortest_edge") and edges.get("longest_edge")):
            raise ExportError(f"{name} has size {edges}, and with_processing needs shortest_edge and longest_edge.")
        pad_size: Any = getattr(processor, "pad_size", None)
        if pad_size is not None and getattr(processor, "do_pad", None):
            raise ExportError(f"{name} pads to pad_size {dict(pad_size)}, which with_processing cannot; unset it.")
        return processor
    if not isinstance(processor, PilBackend) or any(
        getattr(type(processor), step) is not getattr(PilBackend, step) for step in _STEPS
    ):
        raise ExportError(
            f"with_processing knows the image processors of this package and those of transformers on Pillow that "
            f"resize and crop, and this is a {name}; give image_processor, or leave with_processing out."
        )
    _check_steps(processor, name)
    return processor


def _check_steps(processor: Any, name: str) -> None:
    size, crop = (dict(getattr(processor, field, None) or {}) for field in ("size", "crop_size"))
    keys = {key for key, side in size.items() if side}
    if processor.do_pad:
        raise ExportError(f"{name} pads, which with_processing cannot; set do_pad to False.")
    if processor.do_resize and keys not in ({"shortest_edge"}, {"height", "width"}):
        raise ExportError(f"{name} has size {size}, and with_processing needs shortest_edge, or height and width.")
    if processor.do_resize and processor.resample not in RESAMPLES:
        raise ExportError(
            f"{name} has resample {processor.resample}, and with_processing knows 2 and 3 (bilinear, bicubic)."
        )
    if processor.do_center_crop:
        least = [size.get("shortest_edge") or size.get(side) or 0 for side in ("height", "width")]
        if not processor.do_resize or least[0] < crop["height"] or least[1] < crop["width"]:
            raise ExportError(
                f"{name} crops to {crop['height']}x{crop['width']} from size {size}, which may be smaller; "
                "with_processing needs a crop that fits."
            )


def prepare(op: Nodes, image: str, processor: Any) -> Prepared:
    """Write the steps of a `supported` image processor for an image (H, W, 3) uint8."""
    if isinstance(processor, _OPENCV):
        pixels = op.Cast(image, to=TensorProto.INT32)
        if processor.do_resize:
            pixels = _keep_ratio(op, pixels, processor)
        pixels = op.Transpose(pixels, perm=[2, 0, 1])
    else:
        pixels = op.Transpose(op.Cast(image, to=TensorProto.DOUBLE), perm=[2, 0, 1])
        if processor.do_resize:
            pixels = pillow_resize(op, pixels, _new_size(op, pixels, processor), processor.resample)
        if processor.do_center_crop:
            pixels = _centre(op, pixels, dict(processor.crop_size))
    if processor.do_rescale:
        pixels = op.Mul(double(op, pixels), np.float64(processor.rescale_factor))
    pixels = op.Cast(pixels, to=TensorProto.FLOAT)
    if processor.do_normalize:
        mean, std = (np.float32(value).reshape(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
        pixels = op.Div(op.Sub(pixels, mean), std)
    batch = np.array([0])
    if not getattr(processor, "do_pad", None):
        return Prepared(op.Unsqueeze(pixels, batch), None)
    sides = shape(op, pixels, 1)
    ends = [op.Sub(_multiple(op, side, processor.size_divisor), side) for side in sides]
    pads = op.Concat(np.array([0, 0, 0, 0]), *(op.Unsqueeze(end, batch) for end in ends), axis=0)
    ones = op.ConstantOfShape(op.Concat(*(op.Unsqueeze(side, batch) for side in sides), axis=0), value=_ONE)
    mask = op.Pad(op.Unsqueeze(ones, batch), pads)
    return Prepared(op.Unsqueeze(op.Pad(pixels, pads), batch), mask)


def _keep_ratio(op: Nodes, pixels: str, processor: Any) -> str:
    """Resize as `models.resizing.keep_ratio_size` says; a segmenter's image again to multiples of `size_divisor`."""
    sides, edges = shape(op, pixels, 0), dict(processor.size)
    short, long = (double(op, bound(*sides)) for bound in (op.Min, op.Max))
    factor = op.Min(op.Div(np.float64(edges["longest_edge"]), long), op.Div(np.float64(edges["shortest_edge"]), short))
    new = [op.Max(_whole(op, op.Add(op.Mul(double(op, side), factor), np.float64(0.5))), np.int64(1)) for side in sides]
    pixels = opencv_resize(op, pixels, (new[0], new[1]))
    if isinstance(processor, InternImageSegmentationImageProcessor) and (processor.size_divisor or 1) > 1:
        height, width = (_multiple(op, side, processor.size_divisor) for side in new)
        pixels = opencv_resize(op, pixels, (height, width))
    return pixels


def _new_size(op: Nodes, pixels: str, processor: Any) -> tuple[str, str]:
    """Return (height, width) of the resized image: `size`, or its shortest edge with the image's aspect ratio."""
    size = dict(processor.size)
    if not size.get("shortest_edge"):
        return op.Identity(np.int64(size["height"])), op.Identity(np.int64(size["width"]))
    sides, edge = shape(op, pixels, 1), np.int64(size["shortest_edge"])
    short = double(op, op.Min(*sides))
    height, width = (_whole(op, op.Div(double(op, op.Mul(side, edge)), short)) for side in sides)
    return height, width


def _centre(op: Nodes, pixels: str, crop: Any) -> str:
    sides = [crop["height"], crop["width"]]
    starts = [
        op.Div(op.Sub(old, np.int64(new)), np.int64(2)) for old, new in zip(shape(op, pixels, 1), sides, strict=True)
    ]
    first = op.Concat(*(op.Unsqueeze(start, np.array([0])) for start in starts), axis=0)
    return op.Slice(pixels, first, op.Add(first, np.array(sides)), np.array([1, 2]))


def _whole(op: Nodes, number: str) -> str:
    return op.Cast(op.Floor(number), to=TensorProto.INT64)


def _multiple(op: Nodes, side: str, divisor: int | None) -> str:
    number = np.int64(divisor or 1)
    return op.Mul(op.Div(op.Add(side, number - 1), number), number)


_ONE = TensorProto(data_type=TensorProto.INT64, dims=[1], int64_data=[1])

__all__ = ["Prepared", "prepare", "supported"]
