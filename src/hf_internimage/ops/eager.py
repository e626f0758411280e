# SPDX-License-Identifier: MIT
"""Checks for plain eager execution, in which a call may go straight to a kernel, past PyTorch's dispatcher."""

import torch
from torch.autograd import forward_ad

_ORDINARY = (torch.Tensor, torch.nn.Parameter)


def transforms() -> bool:
    """Return True under a transform of torch.func, forward-mode differentiation or torch.jit.trace."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or (not torch.compiler.is_compiling() and forward_ad._current_level >= 0)
    )


def watched() -> bool:
    """Return True if a dispatch mode (fake tensors, selective checkpointing, ...) is active."""
    return torch._C._len_torch_dispatch_stack() > 0


def ordinary(tensor: torch.Tensor) -> bool:
    """Return True for a plain strided tensor or parameter: no subclass, no other layout, no negated view."""
    return type(tensor) in _ORDINARY and tensor.layout is torch.strided and not tensor.is_neg()
