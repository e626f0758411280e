# SPDX-License-Identifier: MIT
"""Call the operator in ways that reveal wrong memory accesses, for compute-sanitizer to watch.

This module imports neither transformers nor the models.
"""

import itertools
import math
from dataclasses import dataclass

import torch

from hf_internimage.ops import dcnv3

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Largest difference of a correct kernel from float64, relative to the largest element; half types round their results.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass(frozen=True)
class HostileCall:
    """A small call of the operator."""

    dtype: torch.dtype
    depth: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    size: tuple[int, int]
    softmax: bool


def hostile_calls() -> list[HostileCall]:
    """Return calls of every dtype, with channels and pixels that do not fill a block, and with rare kernel sizes."""
    shapes = (
        (16, 4, (3, 3), (1, 1), (7, 5), True),
        (16, 4, (3, 3), (1, 1), (7, 5), False),
        (5, 2, (3, 2), (2, 1), (6, 9), False),
        (64, 1, (3, 3), (1, 1), (9, 4), True),
        (3, 3, (1, 4), (1, 1), (1, 8), False),
        (8, 1, (5, 5), (2, 2), (5, 5), True),
    )
    return [HostileCall(dtype, *shape) for dtype, shape in itertools.product(DTYPES, shapes)]


def sanitizer_target(backend: str, device: str) -> int:
    """Make the calls, forward and backward; print each wrong one and return their number."""
    wrong = 0
    calls = hostile_calls()
    for call in calls:
        if problem := wrong_result(call, backend, device):
            wrong += 1
            print(f"wrong: {call}: {problem}")
    print(f"checked {len(calls)} calls of {backend}, {wrong} wrong")
    return wrong


def wrong_result(call: HostileCall, backend: str, device: str) -> str | None:
    """Return how the output or a gradient differs from the reference in float64; None if all are right.

    Some offsets are huge, infinite or NaN.
    """
    torch.manual_seed(0)
    padding = (call.kernel_size[0] // 2, call.kernel_size[1] // 2)
    sides = zip(call.size, padding, call.kernel_size, call.stride, strict=True)
    out = [(side + 2 * pad - width) // step + 1 for side, pad, width, step in sides]
    taps = call.groups * math.prod(call.kernel_size)
    offset = torch.randn(2, *out, taps * 2).mul(2).round() + 0.25 + torch.rand(2, *out, taps * 2) / 4
    hostile = torch.tensor([math.nan, math.inf, -math.inf, 6e4, -6e4, 1e4, -1e4])
    places = torch.arange(0, offset.numel(), 11)
    offset.view(-1)[places] = hostile[torch.arange(len(places)) % len(hostile)]
    features = call.groups * call.depth
    tensors = [torch.randn(2, *call.size, features), offset, torch.randn(2, *out, taps), torch.randn(2, *out, features)]
    tensors = [tensor.to(call.dtype) for tensor in tensors]
    results = []
    for place, name, dtype in ((device, backend, call.dtype), ("cpu", "torch", torch.float64)):
        *leaves, grad_output = (tensor.to(device=place, dtype=dtype) for tensor in tensors)
        for leaf in leaves:
            leaf.requires_grad_()
        output = dcnv3(
            *leaves,
            groups=call.groups,
            kernel_size=call.kernel_size,
            stride=call.stride,
            padding=padding,
            softmax=call.softmax,
            backend=name,
        )
        gradients = torch.autograd.grad(output, leaves, grad_output)
        results.append([tensor.detach().cpu().double() for tensor in (output, *gradients)])
    for name, actual, expected in zip(("output", "grad_value", "grad_offset", "grad_mask"), *results, strict=True):
        error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
        if not error <= TOLERANCE[call.dtype] * max(1.0, largest):
            return f"{name} is off by {error:.3g} of {largest:.3g}"
    return None
