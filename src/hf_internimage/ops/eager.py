# SPDX-License-Identifier: MIT
"""Whether a call is ordinary eager execution, so that going straight to a kernel changes nothing but the time."""

import torch
from torch.autograd import forward_ad

_ORDINARY = (torch.Tensor, torch.nn.Parameter)


def transforms() -> bool:
    """Whether torch.func, forward-mode differentiation or torch.jit.trace is at work on this call."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or (not torch.compiler.is_compiling() and forward_ad._current_level >= 0)
    )


def watched() -> bool:
    """Whether a dispatch mode (fake tensors, selective checkpointing, ...) wants to see PyTorch's operators."""
    return torch._C._len_torch_dispatch_stack() > 0


def ordinary(tensor: torch.Tensor) -> bool:
    """Whether this is a plain tensor with strides, not one of another class or layout, or a negated view."""
    return type(tensor) in _ORDINARY and tensor.layout is torch.strided and not tensor.is_neg()
