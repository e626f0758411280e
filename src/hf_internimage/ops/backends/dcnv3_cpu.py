# SPDX-License-Identifier: MIT
"""DCNv3 in the compiled CPU library: forward and backward, softmax included."""

import ctypes

import torch

from ...models.dcnv3_reference import DCNv3Geometry
from .. import native
from ..registry import BackendError, Call, wrong_dtype
from .dcnv3_call import FIELDS, CheckedPlan, has_dense_features, scalar_arguments, with_dense_features

_LONGEST_SIDE = 2**30  # pixel positions are 32-bit integers


class _Call(ctypes.Structure):
    """Arguments of a kernel call: `hfi_dcnv3` of api.h."""

    _fields_ = [
        *FIELDS,
        *((name, native.TensorLayout) for name in ("value", "offset", "mask", "output")),
    ]


def why_not(call: Call) -> str | None:
    """Return None if this backend can run `call`, else the reason."""
    return wrong_dtype(call) or native.why_not()


class Plan(CheckedPlan):
    """A call prepared for the library."""

    def __init__(
        self, geometry: DCNv3Geometry, softmax: bool, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> None:
        super().__init__(geometry, softmax, value, offset, mask)
        _, height, width, _ = value.shape
        if max(height, width) >= _LONGEST_SIDE:
            raise BackendError(f"dcnv3: backend 'cpu' takes sides below {_LONGEST_SIDE}, got {height}x{width}.")
        self._dense = all(map(has_dense_features, (value, offset, mask)))
        output = value.new_empty(self._output_shape)
        self._call = _Call(
            *scalar_arguments(geometry, softmax, value, offset),
            *(native.TensorLayout.of(with_dense_features(tensor)) for tensor in (value, offset, mask, output)),
        )

    def _forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = value.new_empty(self._output_shape)
        if not self._dense:
            value, offset, mask = map(with_dense_features, (value, offset, mask))
        native.call(
            "hfi_dcnv3_forward",
            ctypes.byref(self._call),
            value.data_ptr(),
            offset.data_ptr(),
            mask.data_ptr(),
            output.data_ptr(),
        )
        return output

    def _backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradients = tuple(t.new_empty(t.shape) for t in (value, offset, mask))
        if not self._dense:
            value, offset, mask = map(with_dense_features, (value, offset, mask))
        native.call(
            "hfi_dcnv3_backward",
            ctypes.byref(self._call),
            grad_output.data_ptr(),
            value.data_ptr(),
            offset.data_ptr(),
            mask.data_ptr(),
            *(gradient.data_ptr() for gradient in gradients),
        )
        return gradients  # type: ignore[return-value]
