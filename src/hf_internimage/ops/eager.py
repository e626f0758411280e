# SPDX-License-Identifier: MIT
"""Checks for plain eager execution, in which a call may go straight to a kernel, past PyTorch's dispatcher."""

from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ..models.dcnv3_reference import is_transformed

_ORDINARY = (torch.Tensor, torch.nn.Parameter)


def transforms() -> bool:
    """Return True under a transform of torch.func, forward-mode differentiation or torch.jit.trace."""
    return is_transformed() or torch.jit.is_tracing()


def watched() -> bool:
    """Return True if a dispatch mode (fake tensors, selective checkpointing, ...) or a function mode is active.

    The function mode of `torch.set_default_device` does not count: it changes nothing but new tensors.
    """
    return torch._C._len_torch_dispatch_stack() > 0 or (
        torch._C._len_torch_function_stack() > 0
        and any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    )


def is_tracked(*tensors: torch.Tensor | None) -> bool:
    """Return True if autograd records operations on any of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def without_gradients(operator: Any, *arguments: Any) -> Any:
    """Call an operator past its autograd formula: this is in Python, and its turn takes longer than a small kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def ordinary(tensor: torch.Tensor) -> bool:
    """Return True for a plain strided tensor or parameter: no subclass, no other layout, no negated view."""
    return type(tensor) in _ORDINARY and tensor.layout is torch.strided and not tensor.is_neg()


def is_in_memory(tensor: torch.Tensor) -> bool:
    """Return True if the storage of a strided tensor holds all its elements.

    It may have been freed, as FSDP does, and PyTorch's lazy zeros have none.
    """
    if tensor._is_zerotensor():
        return False
    count = tensor.numel()
    if not count:
        return True
    if not tensor.is_contiguous():
        count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.storage_offset() + count) * tensor.element_size() <= tensor.untyped_storage().nbytes()
