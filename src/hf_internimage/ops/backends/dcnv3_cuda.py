# SPDX-License-Identifier: MIT
"""DCNv3 in CUDA C++, forward and backward, softmax included; compiled for the current GPU at the first call.

The sources are part of the package (in a checkout: kernels/dcnv3/dcnv3_cuda). A kernel is compiled for each `Kind` of
call: dtypes, channels per group, kernel size and direction.
"""

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from ...models.dcnv3_reference import DCNv3Geometry, compute_dtype
from .. import cuda_driver, fixed_point, nvrtc
from ..registry import BackendError, Call, wrong_dtype
from . import dcnv3_call

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "hfi::bfloat_t",
    torch.float16: "hfi::half_t",
    torch.int32: "int",
    torch.int64: "hfi::i64",
}
_THREADS = 128
_MOST_IMAGES = 65535  # limit of a grid's second dimension; a kernel loops over further images
_MOST_TAPS = 9  # for unrolled loops
_MOST_VECTORS = 4  # per lane
_LARGEST = 2**30


class _View(ctypes.Structure):
    """`View` of dcnv3.cuh."""

    _fields_ = [("data", ctypes.c_void_p), *((f"stride_{axis}", ctypes.c_int64) for axis in "nhw")]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "_View":
        return cls(None, *tensor.stride()[:3])


class _Call(ctypes.Structure):
    """`Call` of dcnv3.cuh."""

    _fields_ = [
        *dcnv3_call.FIELDS,
        *((name, _View) for name in ("value", "offset", "mask", "output")),
        *((name, ctypes.c_void_p) for name in ("grad_value", "grad_offset", "grad_mask", "fixed_point")),
    ]


# Byte positions of the tensors' addresses in a call; writing there is faster than through ctypes' attributes.
_ADDRESSES = [getattr(_Call, field[0]).offset for field in _Call._fields_ if field[1] in (_View, ctypes.c_void_p)]
_put_address = struct.Struct("P").pack_into


def why_not(call: Call) -> str | None:
    """Return None if this backend can run `call`, else the reason."""
    return wrong_dtype(call) or _why_not()


@cache
def _why_not() -> str | None:
    """Return None if this machine can compile and load kernels, else the reason."""
    if torch.version.hip:
        return "is for NVIDIA's GPUs, and this PyTorch is built for ROCm"
    if torch.version.cuda is None:
        return "needs a PyTorch built with CUDA"
    if not torch.cuda.is_available():
        return "needs a GPU, and PyTorch finds none"
    if reason := nvrtc.why_not():
        return reason
    try:
        _function('extern "C" __global__ void probe() {}', "probe", (), torch.cuda.current_device())
    except (BackendError, nvrtc.CompileError, cuda_driver.DriverError) as error:
        return f"cannot compile or load a kernel: {error}"
    return None


def sources() -> dict[str, str]:
    """Return the CUDA sources by file name.

    Raises: BackendError if the installation lacks them.
    """
    here = Path(__file__).parent.parent / "dcnv3_cuda"
    checkout = Path(__file__).parents[4] / "kernels" / "dcnv3" / "dcnv3_cuda"
    folder = here if here.exists() else checkout
    try:
        return {name: (folder / name).read_text(encoding="utf-8") for name in ("nvrtc.cu", "dcnv3.cuh", "types.cuh")}
    except OSError as error:
        raise BackendError(f"The cuda backend's sources are missing, install hf-internimage again: {error}.") from error


class Kind(NamedTuple):
    """Properties that a kernel is compiled for."""

    direction: str  # "forward" or "backward"
    value: torch.dtype
    offset: torch.dtype
    total: torch.dtype  # dtype of the sums of grad_value
    channels: int  # per group; 0: any
    kernel_size: tuple[int, int]  # (0, 0): any
    remove_center: bool
    places: torch.dtype  # dtype of indices within an image

    @classmethod
    def of(
        cls,
        direction: str,
        value: torch.dtype,
        offset: torch.dtype,
        total: torch.dtype,
        channels: int,
        geometry: DCNv3Geometry,
        places: torch.dtype = torch.int32,
    ) -> "Kind":
        """Return the kind of a call. Sizes too large for registers and unrolled loops become 0 (any)."""
        kind = cls(direction, value, offset, total, channels, geometry.kernel_size, geometry.remove_center, places)
        if channels // kind.vector() // kind.lanes() > _MOST_VECTORS:
            kind = kind._replace(channels=0)
        kernel_h, kernel_w = geometry.kernel_size
        if kernel_h * kernel_w > _MOST_TAPS or not geometry.num_taps():
            kind = kind._replace(kernel_size=(0, 0), remove_center=False)
        return kind

    def vector(self) -> int:
        """Return the channels per vector of a lane (`V` of dcnv3.cuh): 16 bytes of values or, backward, of sums."""
        size = self.value.itemsize if self.direction == "forward" else max(self.value.itemsize, 4)
        return _power_of_two(self.channels, 16 // size) if self.channels else 1

    def lanes(self) -> int:
        """Return the number of threads that share a pixel and group (`LANES` of dcnv3.cuh)."""
        vectors = self.channels // self.vector()
        return _power_of_two(vectors, min(vectors // 2, 32) if vectors > 8 else 4) if vectors else 8

    def options(self) -> tuple[str, ...]:
        """Return the options for NVRTC."""
        macros: dict[str, object] = {
            self.direction.upper(): 1,
            "VALUE": _TYPES[self.value],
            "OFFSET": _TYPES[self.offset],
            "SUM": _TYPES[self.total],
            "D": self.channels,
            "KH": self.kernel_size[0],
            "KW": self.kernel_size[1],
            "REMOVE": int(self.remove_center),
            "INDEX": _TYPES[self.places],
            "THREADS": _THREADS,
        }
        return "--std=c++17", *(f"-DHFI_{name}={text}" for name, text in macros.items())


def _power_of_two(number: int, most: int) -> int:
    """Return the largest power of two that divides `number` and is at most `most`."""
    power = 1
    while 2 * power <= most and number % (2 * power) == 0:
        power *= 2
    return power


@cache
def _kernel(kind: Kind, index: int) -> ctypes.c_void_p:
    return _function(sources()["nvrtc.cu"], f"dcnv3_{kind.direction}", kind.options(), index)


def _function(source: str, name: str, options: tuple[str, ...], index: int) -> ctypes.c_void_p:
    headers = {file: text for file, text in sources().items() if file.endswith(".cuh")}
    image = nvrtc.build(source, headers, options, torch.cuda.get_device_capability(index))
    return cuda_driver.load(image, name, index)


class Plan(dcnv3_call.CheckedPlan):
    """A call prepared for kernels of its kind.

    Under `torch.use_deterministic_algorithms`, grad_value is summed in fixed point (`ops/fixed_point.py`).
    """

    def __init__(
        self, geometry: DCNv3Geometry, softmax: bool, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> None:
        super().__init__(geometry, softmax, value, offset, mask)
        _, height, width, channels = value.shape
        _, out_height, out_width, _ = offset.shape
        self._index = torch.cuda.current_device() if value.device.index is None else value.device.index
        self._pairs = out_height * out_width * geometry.groups
        self._wide = compute_dtype(value.dtype)
        # The kernels take offsets and masks of one dtype.
        self._dtype = offset.dtype if offset.dtype == mask.dtype else self._wide
        group = channels // geometry.groups
        # Indices may lie two pixels outside the image before they are checked.
        farthest = (height + 4) * max(value.stride(1), width * channels) + (width + 4) * max(value.stride(2), channels)
        places = torch.int32 if farthest + channels < 2**31 else torch.int64
        self._kinds = {
            (direction, total): Kind.of(direction, value.dtype, self._dtype, total, group, geometry, places)
            for direction, total in (("forward", self._wide), ("backward", self._wide), ("backward", torch.int64))
        }
        vector = self._kinds["forward", self._wide].vector()
        self._copied = [
            not _is_vectorised(value, vector),
            offset.dtype != self._dtype or not _is_vectorised(offset, 2),
            mask.dtype != self._dtype or not _is_vectorised(mask, 1),
        ]
        self._copies = any(self._copied)
        self._alignments = [vector * value.itemsize, 2 * self._dtype.itemsize]
        tensors = self._prepared(value, offset, mask)
        _check_counts(geometry, self._output_shape, tensors)
        self._call = _Call(
            *dcnv3_call.scalar_arguments(geometry, softmax, value, offset),
            *(_View.of(tensor) for tensor in (*tensors, torch.empty(self._output_shape, device="meta"))),
        )

    def _forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = value.new_empty(self._output_shape)
        self._run(self._kinds["forward", self._wide], (value, offset, mask), output)
        return output

    def _backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if grad_output.data_ptr() % 16:
            grad_output = grad_output.clone()
        fixed = torch.are_deterministic_algorithms_enabled()
        total = torch.int64 if fixed else self._wide
        grad_value = torch.zeros(value.shape, dtype=total, device=value.device)
        grad_offset, grad_mask = (torch.empty(t.shape, dtype=self._dtype, device=t.device) for t in (offset, mask))
        scale = None
        if fixed:
            terms = fixed_point.most_terms(grad_output, self.softmax, self.geometry.num_taps())
            scale = fixed_point.scale(grad_output, mask, self.softmax, terms)
        gradients = (grad_value, grad_offset, grad_mask)
        self._run(self._kinds["backward", total], (value, offset, mask), grad_output, gradients, scale)
        if scale is not None:
            grad_value = fixed_point.finish(grad_value, scale, value.dtype)
        return grad_value.to(value.dtype), grad_offset.to(offset.dtype), grad_mask.to(mask.dtype)

    def _run(
        self,
        kind: Kind,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
        gradients: Sequence[torch.Tensor] = (),
        scale: torch.Tensor | None = None,
    ) -> None:
        if not self._pairs or not self._output_shape[0]:
            return  # nothing to sum
        if self._copies:
            inputs = self._prepared(*inputs)
        tensors = (*inputs, output, *gradients) if scale is None else (*inputs, output, *gradients, scale)
        addresses = [tensor.data_ptr() for tensor in tensors]
        if any(address % bytes_ for address, bytes_ in zip(addresses, self._alignments)):  # noqa: B905  # inputs first
            copies = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)
            Plan(self.geometry, self.softmax, *copies)._run(kind, copies, output, gradients, scale)
            return
        call = _Call.from_buffer_copy(self._call)
        for place, address in zip(_ADDRESSES, addresses):  # noqa: B905  # forward has fewer
            _put_address(call, place, address)
        blocks = -(-self._pairs * kind.lanes() // _THREADS)
        grid = (blocks, min(self._output_shape[0], _MOST_IMAGES))
        cuda_driver.launch(_kernel(kind, self._index), self._index, grid, _THREADS, call)

    def _prepared(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return value, offset and mask in dtypes and strides that the kernels support."""
        dtypes = (inputs[0].dtype, self._dtype, self._dtype)
        return tuple(
            tensor.to(dtype).contiguous() if copied else tensor
            for tensor, dtype, copied in zip(inputs, dtypes, self._copied, strict=True)
        )


def _is_vectorised(tensor: torch.Tensor, vector: int) -> bool:
    """Return True if the features of a pixel lie side by side, and pixels a multiple of `vector` features apart."""
    return dcnv3_call.has_dense_features(tensor) and all(stride % vector == 0 for stride in tensor.stride()[:3])


def _check_counts(geometry: DCNv3Geometry, output_shape: tuple[int, ...], tensors: tuple[torch.Tensor, ...]) -> None:
    """Raise BackendError if counts exceed the kernels' 32 bits: pixels and groups of an image, lines, positions."""
    _, out_height, out_width, channels = output_shape
    _, height, width, _ = tensors[0].shape
    reach = [out_height * out_width * geometry.groups, height, width * channels]
    reach += [stride for tensor in tensors for stride in tensor.stride()[1:3]]
    for axis, length in enumerate((out_height, out_width)):
        taps = geometry.kernel_size[axis] * geometry.dilation[axis]
        reach.append(length * geometry.stride[axis] + geometry.padding[axis] + taps)
    if max(reach) >= _LARGEST:
        raise BackendError(
            f"dcnv3: backend 'cuda' takes up to {_LARGEST - 1} pixels and groups in an image, features in a line and "
            f"so on, but value has shape {tuple(tensors[0].shape)} and the output {output_shape}, with {geometry}; "
            "use backend='torch' or smaller images."
        )
