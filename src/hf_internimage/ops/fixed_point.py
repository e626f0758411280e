# SPDX-License-Identifier: MIT
"""Sums that are equal bit for bit in any order of additions: 64-bit integers in units of a power of two.

A kernel adds `round(x * scale)`, computed in float64, with integer atomics; `finish` turns the sums into numbers.
"""

import torch

_SUM_BITS = 62  # of 63; one is spare, for the rounding of the summands
_MOST_EXPONENT = 1000  # of the scale, so that it is a finite float64 for any bound


def most_terms(grad_output: torch.Tensor, softmax: bool, taps: int) -> int:
    """Return the largest number of weights in the sum of one element: Ho*Wo*P, or Ho*Wo with softmax.

    With softmax the weights of a pixel sum to 1.
    """
    return grad_output.shape[1] * grad_output.shape[2] * (1 if softmax else taps)


def scale(grad_output: torch.Tensor, mask: torch.Tensor, softmax: bool, terms: int) -> torch.Tensor:
    """Return the scale for the gradient of DCNv3's value: float64, no dimensions, on the device, without a wait for it.

    No sum exceeds the bound max|grad_output| * max|mask| * terms, with `terms` of `most_terms` (doubled here with
    softmax, for the rounding of the weights). The scale is NaN if the bound is not finite; kernels set it to NaN if a
    softmax is NaN. `finish` then makes every element NaN.
    """
    tensors = (grad_output,) if softmax else (grad_output, mask)
    if not all(tensor.numel() for tensor in tensors):
        return grad_output.new_ones((), dtype=torch.float64)
    bound = torch.stack([_largest(tensor) for tensor in tensors]).prod() * float(2 * terms if softmax else terms)
    exponent = torch.frexp(bound).exponent.long()
    exponent = (_SUM_BITS - exponent).clamp(max=_MOST_EXPONENT)
    power = ((exponent + 1023) << 52).view(torch.float64)  # exact, unlike powers computed by the device
    return torch.where(bound.isfinite(), power, torch.nan)


def finish(total: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert the sums (int64) to numbers of `dtype`."""
    return total.double().div_(scale).to(dtype)


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    """Return the largest absolute value in float64; NaN if there is a NaN."""
    low, high = torch.aminmax(tensor.detach())
    return torch.maximum(high.double(), -low.double())
