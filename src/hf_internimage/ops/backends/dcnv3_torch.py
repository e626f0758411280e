# SPDX-License-Identifier: MIT
"""DCNv3 in plain PyTorch: runs on every device, with every dtype."""

import torch

from ...models.dcnv3_reference import dcnv3_backward, dcnv3_forward
from ..registry import Call
from .dcnv3_call import CheckedPlan


def why_not(call: Call) -> str | None:
    """Return None: PyTorch runs every call."""
    return None


class Plan(CheckedPlan):
    """A call by PyTorch's own operators."""

    def _forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return dcnv3_forward(value, offset, mask, self.geometry, self.softmax)

    def _backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return dcnv3_backward(grad_output, value, offset, mask, self.geometry, self.softmax)
