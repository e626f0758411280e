# SPDX-License-Identifier: MIT
"""Inputs of the operator, memory layouts, exact results and tolerances that its tests share."""

import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_internimage.models import dcnv3_reference
from hf_internimage.ops import dcnv3, native
from hf_internimage.ops.dcnv3 import DCNV3
from support.golden_data import operator_cases

LOPSIDED = {
    "groups": 2,
    "kernel_size": (3, 2),
    "stride": (2, 1),
    "padding": (1, 0),
    "dilation": (2, 1),
    "offset_scale": 1.5,
    "remove_center": False,
}


PAD_0_2 = {**LOPSIDED, "kernel_size": 3, "stride": 1, "padding": (0, 2), "dilation": 1, "remove_center": True}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def make_inputs(arguments, batch=2, size=(7, 6), depth=3, dtype=torch.float64, spread=1.5, seed=0):
    """Random value, offset and mask; sampling positions keep away from pixel lines, where gradients jump."""
    generator = torch.Generator().manual_seed(seed)
    taps = math.prod(pair(arguments["kernel_size"])) - arguments["remove_center"]
    out = [
        (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for side, pad, dilation, kernel, stride in zip(
            size, *(pair(arguments[name]) for name in ("padding", "dilation", "kernel_size", "stride")), strict=True
        )
    ]
    features = arguments["groups"] * taps
    value = torch.randn(batch, *size, arguments["groups"] * depth, generator=generator, dtype=torch.float64)
    mask = torch.randn(batch, *out, features, generator=generator, dtype=torch.float64)
    # offset * scale lies at 0.1..0.4 from a whole number, which the scaled grid (multiples of scale / 2) may shift:
    # the scales used here, 1 and 1.5, keep it at least 0.1 away.
    whole = torch.randn(batch, *out, features * 2, generator=generator, dtype=torch.float64).mul(spread).round()
    part = torch.rand(whole.shape, generator=generator, dtype=torch.float64) * 0.3 + 0.1
    offset = (whole + part) / arguments["offset_scale"]
    return [tensor.to(dtype) for tensor in (value, offset, mask)]


# Names of the backends that can run CPU tensors, as parameters of tests.
CPU_BACKENDS = [
    pytest.param(
        name, marks=pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")
    )
    if name == "cpu"
    else name
    for name, backend in DCNV3.backends.items()
    if backend.is_for("cpu")
]
# The backend that runs CPU tensors without the compiled library.
CPU_FALLBACK = next(name for name, backend in DCNV3.backends.items() if backend.is_for("cpu") and name != "cpu")
on_cpu, on_torch = (functools.partial(dcnv3, backend=name) for name in ("cpu", "torch"))


# How far from exact arithmetic on the same inputs a result may be: by a part of itself (the rounding of its dtype), and
# by a part of the largest element (the rounding of positions and sums).
TOLERANCE = {
    torch.float64: (0, 1e-14),
    torch.float32: (0, 5e-6),
    torch.bfloat16: (2**-8, 5e-6),
    torch.float16: (2**-11, 5e-6),
}


PLAIN = {"groups": 2, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "offset_scale": 1.0}


PLAIN["remove_center"] = False


def results(operator, inputs, grad_output=None, **arguments):
    """The output and the gradients of value, offset and mask."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = operator(*leaves, **arguments)
    return output.detach(), *torch.autograd.grad(
        output, leaves, torch.ones_like(output) if grad_output is None else grad_output
    )


def exactly(inputs, grad_output=None, **arguments):
    """The same in float64, on the PyTorch backend."""
    grad_output = None if grad_output is None else grad_output.double()
    return results(on_torch, [tensor.double() for tensor in inputs], grad_output, **arguments)


def assert_close(found, exact, case="", side=8):
    """`side` is the longest of the image: positions there are rounded accordingly."""
    for what, got, want in zip(("output", "value", "offset", "mask"), found, exact, strict=False):
        of_itself, of_largest = TOLERANCE[got.dtype]
        atol = of_largest * max(1, side / 8) * want.abs().max().item() if want.numel() else 0
        torch.testing.assert_close(
            got.double(), want, rtol=of_itself, atol=atol, msg=lambda text, w=what: f"{case} {w}: {text}"
        )


def assert_same_bits(found, expected):
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


def in_strided_memory(tensor):
    """Every other element of longer lines that lie across; NaN between them."""
    wide = torch.full((*tensor.shape[:2], tensor.shape[3], tensor.shape[2] * 2), math.nan, dtype=tensor.dtype)
    return wide.permute(0, 1, 3, 2)[:, :, ::2].copy_(tensor)


def in_a_wider_tensor(tensor):
    """Features side by side, with others before and behind them."""
    wide = torch.full((*tensor.shape[:3], tensor.shape[3] + 7), math.nan, dtype=tensor.dtype)
    return wide[..., 3:-4].copy_(tensor)


def in_transposed_memory(tensor):
    """Width outside height: dense features, other strides."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def in_channels_first_memory(tensor):
    return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def one_image_for_all(tensor):
    return tensor[:1].expand(tensor.shape)


def one_pixel_for_all(tensor):
    return tensor[:, :1, :1].expand(tensor.shape)


LAYOUTS = (
    in_strided_memory,
    in_a_wider_tensor,
    in_transposed_memory,
    in_channels_first_memory,
    one_image_for_all,
    one_pixel_for_all,
)


class Seen(TorchDispatchMode):
    """Notes the operators that go by."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


CASES, TENSORS = operator_cases()


# Largest relative error of rounding to a half dtype: all that its results may add to what float32 computes.
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


def tensors(name, *what, dtype=torch.float64):
    """Copies of a case's tensors: what a test does to them, others do not see."""
    return [TENSORS[f"{name}/{part}"].to(dtype, copy=True) for part in what]


def away_from_pixel_lines(offset, arguments):
    """Which elements of the gradient of `offset` are safe from a jump: those of samples off the pixel lines."""
    geometry = dcnv3_reference.DCNv3Geometry(**arguments)
    by_tap = offset.double().unflatten(3, (geometry.groups, geometry.num_taps(), 2))
    rows, columns = dcnv3_reference._sampling_grid(geometry, tuple(offset.shape[1:3]), torch.float64, offset.device)
    position = rows + columns + by_tap * geometry.offset_scale
    return ((position - position.round()).abs() > 1e-4).all(-1, keepdim=True).expand_as(position).flatten(3)


DEPTHS = (1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 37, 64)


SHAPES = (
    (LOPSIDED, (7, 6)),
    (LOPSIDED | {"remove_center": True}, (5, 8)),
    (PAD_0_2, (4, 3)),
    (PLAIN, (6, 5)),
    (PLAIN, (1, 1)),
    (PLAIN | {"kernel_size": (1, 4), "padding": (0, 2)}, (1, 9)),
    (PLAIN | {"kernel_size": 1, "padding": 0, "stride": (2, 3)}, (9, 7)),
)
