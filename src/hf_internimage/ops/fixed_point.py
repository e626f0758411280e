# SPDX-License-Identifier: MIT
"""Sums whose bits do not depend on the order of additions: 64-bit integers in units of a power of two.

A kernel adds `round(x * scale)`, computed in float64, with integer atomics; `finish` turns the sums into numbers.
"""

import torch

_SUM_BITS = 62  # of 63: one to spare for the rounding of the summands
_MOST_EXPONENT = 1000  # of the scale, which stays a finite float64 for the smallest of bounds


def most_terms(grad_output: torch.Tensor, softmax: bool, taps: int) -> int:
    """The most weights that one element's sum may hold: Ho*Wo*P, or Ho*Wo with softmax, as weights then sum to 1."""
    return grad_output.shape[1] * grad_output.shape[2] * (1 if softmax else taps)


def scale(grad_output: torch.Tensor, mask: torch.Tensor, softmax: bool, terms: int) -> torch.Tensor:
    """The scale for the gradient of DCNv3's value: float64, no dimensions, on the device, without waiting for it.

    No sum exceeds max|grad_output| * max|mask| * terms, with `terms` of `most_terms` (with softmax doubled here, for
    the rounding of the weights).
    NaN, which `finish` hands to every element, if that bound is not finite; kernels make it so if a softmax is NaN.
    """
    tensors = (grad_output,) if softmax else (grad_output, mask)
    if not all(tensor.numel() for tensor in tensors):
        return grad_output.new_ones((), dtype=torch.float64)
    bound = torch.stack([_largest(tensor) for tensor in tensors]).prod() * float(2 * terms if softmax else terms)
    exponent = torch.frexp(bound).exponent.long()
    exponent = (_SUM_BITS - exponent).clamp(max=_MOST_EXPONENT)
    power = ((exponent + 1023) << 52).view(torch.float64)  # exact, which powers computed by the device need not be
    return torch.where(bound.isfinite(), power, torch.nan)


def finish(total: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sums (int64) in `dtype`."""
    return total.double().div_(scale).to(dtype)


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    """The largest absolute value, in float64; NaN if there is one."""
    low, high = torch.aminmax(tensor.detach())
    return torch.maximum(high.double(), -low.double())
