# SPDX-License-Identifier: MIT
"""The last check of tensors before native code reads their memory: they must be what the call was planned for.

Saved tensors can come back from hooks (`torch.autograd.graph.saved_tensors_hooks`) as anything.
"""

from typing import Any, NamedTuple

import torch

from . import eager


class Operand(NamedTuple):
    """The properties of a tensor that a call is planned for."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negated: bool = False  # a view whose memory holds the other sign

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Operand":
        """Return the properties of a tensor."""
        return cls(tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_neg())

    def check(self, tensor: torch.Tensor) -> bool:
        """Return True if the tensor has the strides, too, and False if it has others.

        Raises: RuntimeError unless it is a dense tensor of this dtype, device and shape with memory of its own.
        """
        if (
            # A class with dispatch of its own may have its memory elsewhere, and 0 as its address.
            type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
            or tensor.dtype != self.dtype
            or tensor.shape != self.shape
            or tensor.device != self.device
            or tensor.layout is not torch.strided
            or tensor.is_neg() != self.negated
            or not eager.is_in_memory(tensor)
        ):
            raise RuntimeError(
                f"A tensor of {self.dtype} and shape {tuple(self.shape)} on {self.device} came back as "
                f"{type(tensor).__name__} of {tensor.dtype} and shape {tuple(tensor.shape)} on {tensor.device}, or its "
                "memory was freed: hooks for saved tensors must return what they were given."
            )
        return tensor.stride() == self.strides


def check_saved(operands: tuple[Operand, ...], tensors: tuple[torch.Tensor, ...]) -> bool:
    """Return True if saved tensors are in the memory layouts that they were saved in, and False if in others.

    Raises: RuntimeError if a dtype, device or shape has changed.
    """
    same = True
    for operand, tensor in zip(operands, tensors, strict=True):
        same = operand.check(tensor) and same
    return same


def save_operands(ctx: Any, *tensors: torch.Tensor) -> None:
    """Save tensors for the backward pass of an operator, with their properties."""
    ctx.save_for_backward(*tensors)
    ctx.operands = tuple(map(Operand.of, tensors))


def saved_operands(ctx: Any) -> tuple[torch.Tensor, ...]:
    """Return what `save_operands` saved, possibly in other strides.

    Raises: RuntimeError if a dtype, device or shape has changed.
    """
    tensors: tuple[torch.Tensor, ...] = ctx.saved_tensors  # read once: a checkpoint unpacks them once
    if not (torch.compiler.is_compiling() or eager.watched() or eager.transforms()):
        check_saved(ctx.operands, tensors)
    return tensors
