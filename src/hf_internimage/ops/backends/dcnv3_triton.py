# SPDX-License-Identifier: MIT
"""DCNv3 in Triton: forward and backward, softmax included, on GPUs. Kernels are compiled at their first call."""

import math
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch

from ...models.dcnv3_reference import DCNv3Geometry, compute_dtype
from .. import fixed_point
from ..registry import BackendError, Call, wrong_dtype
from .dcnv3_call import CheckedPlan, with_dense_features

FORWARD_WARPS, BACKWARD_WARPS = 4, 1  # with one warp, gradients are stored without shared memory and barriers
_LONGEST_SIDE = 2**30  # pixel positions are 32-bit integers
_INT32_PLACES = 2**31 - 2**20  # with a margin for indices of pairs behind the last one
_MOST_UNROLLED = 9  # taps; 25 take a minute to compile
_PAIRS_INTERPRETED = 4096  # Triton's interpreter takes about as long for a few as for many


def why_not(call: Call) -> str | None:
    """Return None if this backend can run `call`, else the reason."""
    return wrong_dtype(call) or _why_not_on(call.device)


@cache
def _why_not_on(device: str) -> str | None:
    """Return None if Triton works on this device type, else the reason."""
    try:
        kernels = _kernels()
    except ImportError as error:
        return f"finds no working Triton: {error}"
    if kernels.INTERPRETED:
        return None
    if device == "cpu":
        return "needs tensors on a GPU, got cpu"
    try:
        reason: str | None = kernels.why_not()
    except Exception as error:  # a missing driver, C compiler or Python header raises various errors
        return f"has a Triton that cannot compile here: {type(error).__name__}: {error}".rstrip(".")
    return reason


@cache
def _kernels() -> ModuleType:
    from . import dcnv3_triton_kernels

    return dcnv3_triton_kernels


def tile(depth: int, itemsize: int, warps: int) -> dict[str, int]:
    """Return the size of a program for groups of `depth` channels; a lane reads or adds 16 bytes at once.

    With one vector per lane, and at least two lanes per pair, tensors stay in the lanes that compute them.
    """
    channels = max(2, 1 << (depth - 1).bit_length())
    per_lane = min(16 // itemsize, channels // 2)
    return {"BLOCK": max(1, 32 * warps * per_lane // channels), "CHANNELS": channels, "num_warps": warps}


class Plan(CheckedPlan):
    """A call prepared for the kernels."""

    def __init__(
        self, geometry: DCNv3Geometry, softmax: bool, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> None:
        super().__init__(geometry, softmax, value, offset, mask)
        _, height, width, channels = value.shape
        _, out_height, out_width, _ = offset.shape
        if max(height, width) >= _LONGEST_SIDE:
            raise BackendError(f"dcnv3: backend 'triton' takes sides below {_LONGEST_SIDE}, got {height}x{width}.")
        self._reads = min(value.numel(), offset.numel()) > 0
        self._normalise_first = softmax and geometry.num_taps() > _MOST_UNROLLED
        self._sum_dtype = compute_dtype(value.dtype)
        self._pairs = out_height * out_width * geometry.groups
        value, offset, mask = map(with_dense_features, (value, offset, mask))
        depth, taps = channels // geometry.groups, geometry.num_taps()
        vector = math.gcd(16 // value.itemsize, depth, *_strides(value))
        strides = (*(stride // vector for stride in _strides(value)), *_strides(offset), *_strides(mask))
        self._sizes = (geometry.groups, height, width, out_width, *strides)
        places = [_places_per_image(tensor) for tensor in (value, offset, mask)]
        places += [height * width * channels, self._pairs * max(depth, 2 * taps)]
        language = _kernels().tl
        centre = geometry.kernel_size[1] // 2 * geometry.kernel_size[0] + geometry.kernel_size[0] // 2
        pairs = zip("KSPD", (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation), strict=True)
        self._constants = {
            **{f"{name}{axis}": size for name, pair in pairs for axis, size in zip("HW", pair, strict=True)},
            "SCALE": geometry.offset_scale,
            "SKIP": centre if geometry.remove_center else taps,
            "TAPS": taps,
            "CHUNK": next((count for count in range(min(taps, _MOST_UNROLLED), 0, -1) if taps % count == 0), 1),
            "SOFTMAX": softmax,
            "D": depth,
            "VECTOR": vector,
            "INDEX": language.int64 if max(places) >= _INT32_PLACES else language.int32,
            "ACC": language.float64 if self._sum_dtype == torch.float64 else language.float32,
        }

    def _forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not self._reads:
            return value.new_zeros(self._output_shape)
        if self._normalise_first:
            mask = self._normalised(mask)
            return Plan(self.geometry, False, value, offset, mask).forward(value, offset, mask)
        output = value.new_empty(self._output_shape)
        value, offset, mask = map(with_dense_features, (value, offset, mask))
        words = value.dtype == torch.bfloat16 and self._constants["VECTOR"] % 2 == value.data_ptr() % 4 == 0
        tensors = (value, offset, mask, output)
        self._launch(_kernels().forward_kernel, value.itemsize, FORWARD_WARPS, *tensors, WORDS=words)
        return output

    def _backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not self._reads:
            return value.new_zeros(value.shape), offset.new_zeros(offset.shape), mask.new_zeros(mask.shape)
        if self._normalise_first:
            return self._backward_normalised_first(grad_output, value, offset, mask)
        scale, sum_dtype = None, self._sum_dtype
        if torch.are_deterministic_algorithms_enabled():
            terms = fixed_point.most_terms(grad_output, self.softmax, self.geometry.num_taps())
            scale, sum_dtype = fixed_point.scale(grad_output, mask, self.softmax, terms), torch.int64
        grad_value = value.new_zeros(value.shape, dtype=sum_dtype)
        grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
        value, offset, mask = map(with_dense_features, (value, offset, mask))
        tensors = (grad_output, value, offset, mask, grad_value, grad_offset, grad_mask, scale)
        self._launch(_kernels().backward_kernel, sum_dtype.itemsize, BACKWARD_WARPS, *tensors)
        if scale is not None:
            grad_value = fixed_point.finish(grad_value, scale, value.dtype)
        return grad_value.to(value.dtype), grad_offset, grad_mask

    def _launch(
        self, kernel: Any, itemsize: int, warps: int, *tensors: torch.Tensor | None, **more_constants: bool
    ) -> None:
        """Launch a kernel that reads or adds numbers of `itemsize` bytes."""
        size = tile(self._constants["D"], itemsize, warps)
        if _kernels().INTERPRETED:
            size["BLOCK"] = min(_PAIRS_INTERPRETED, 1 << (self._pairs - 1).bit_length())
        blocks = -(-self._pairs // size["BLOCK"])
        device = tensors[0].device  # type: ignore[union-attr]
        on_device = nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
        with on_device:
            kernel[(self._output_shape[0] * blocks,)](
                *tensors,
                self._pairs,
                blocks,
                *self._sizes,
                **self._constants,
                **more_constants,
                **size,
                enable_fp_fusion=True,
            )

    def _normalised(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the softmax of mask logits over the taps of each group."""
        by_tap = mask.unflatten(3, (self.geometry.groups, self.geometry.num_taps()))
        return by_tap.softmax(-1, dtype=self._sum_dtype).flatten(3)

    def _backward_normalised_first(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the gradients with the softmax outside the kernel, for kernels with many taps."""
        weights = self._normalised(mask)
        plan = Plan(self.geometry, False, value, offset, weights)
        grad_value, grad_offset, slopes = plan.backward(grad_output, value, offset, weights)
        sizes = (self.geometry.groups, self.geometry.num_taps())
        mean = (weights * slopes).unflatten(3, sizes).sum(-1, keepdim=True)
        grad_mask = weights * (slopes.unflatten(3, sizes) - mean).flatten(3)
        return grad_value, grad_offset, grad_mask.to(mask.dtype)


def _strides(tensor: torch.Tensor) -> list[int]:
    """Return the strides of images, lines and pixels; 0 for an axis of length 1."""
    return [stride if size > 1 else 0 for size, stride in zip(tensor.shape[:3], tensor.stride(), strict=False)]


def _places_per_image(tensor: torch.Tensor) -> int:
    """Return the number of memory positions that an image spans."""
    return (
        sum((size - 1) * stride for size, stride in zip(tensor.shape[1:3], _strides(tensor)[1:], strict=True))
        + (tensor.shape[3])
    )
