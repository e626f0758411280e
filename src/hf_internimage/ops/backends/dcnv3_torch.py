# SPDX-License-Identifier: MIT
"""DCNv3 in plain PyTorch: runs on every device, with every dtype."""

import torch

from ...models.dcnv3_reference import DCNv3Geometry, dcnv3_backward, dcnv3_forward
from ..registry import Call


def why_not(call: Call) -> str | None:
    """Return None: PyTorch runs every call."""
    return None


class Plan:
    """A call prepared for tensors of certain shapes, strides and dtypes."""

    def __init__(self, geometry: DCNv3Geometry, softmax: bool, *_: torch.Tensor) -> None:
        self._geometry, self._softmax = geometry, softmax

    def forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the output (N, Ho, Wo, G*D) in value's dtype."""
        return dcnv3_forward(value, offset, mask, self._geometry, self._softmax)

    def backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of value, offset and mask, contiguous, in their shapes and dtypes."""
        return dcnv3_backward(grad_output, value, offset, mask, self._geometry, self._softmax)
