# SPDX-License-Identifier: MIT
"""Drawn calls of the operator: results, arguments that cannot work, derivatives, changed saved tensors."""

import contextlib
import functools
import math

import torch
from support.changed_tensors import CHANGES, changed_saved_tensor
from support.loops import by_loops_with_softmax
from support.operator_cases import (
    LAYOUTS,
    TOLERANCE,
    assert_close,
    exactly,
    in_a_wider_tensor,
    make_inputs,
    pair,
    results,
)

from hf_internimage.ops import dcnv3, native

BACKENDS = ("torch",) if native.why_not() else ("cpu", "torch")
NASTY = (
    0,
    -1,
    2**31 - 1,
    2**31,
    2**63,
    10**30,
    1.0,
    2.5,
    math.nan,
    math.inf,
    -math.inf,
    1e300,
    1e-300,
    None,
    "3",
    b"3",
)
NASTY += (True, False, (), (3,), (3, 3), [1, 2], (1, 2, 3), (3, -1), (2**31, 1), 2**30, (1, 2**31 - 1), {}, 1 + 2j)

HUGE = (2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, 10**30, 1e300, 10**400)


def draw_arguments(draw, most_kernel=4, more=(0, 1, 2, 3, 9, 17)):
    """Arguments of a call and the size of its image."""

    def two(*choices):
        return draw.choice(choices), draw.choice(choices)

    arguments = {
        "groups": draw.choice((1, 2, 3, 4)),
        "kernel_size": two(*range(1, most_kernel + 1), 3),
        "stride": two(1, 1, 2, 3),
        "padding": two(0, 1, 2, 5),
        "dilation": two(1, 1, 2, 3),
        "offset_scale": draw.choice((1.0, 1.5)),
        "remove_center": draw.random() < 0.25,
    }
    least = [
        max(1, dilation * (kernel - 1) + 1 - 2 * pad)
        for kernel, pad, dilation in zip(
            *(pair(arguments[name]) for name in ("kernel_size", "padding", "dilation")), strict=True
        )
    ]
    return arguments, tuple(side + draw.choice(more) for side in least)


def equals_exact_arithmetic(draw):
    arguments, size = draw_arguments(draw)
    dtype = draw.choice(list(TOLERANCE))
    spread = draw.choice((0.5, 1.5, 30.0))
    inputs = make_inputs(arguments, draw.choice((0, 1, 2, 3)), size, draw.choice((1, 2, 3, 8, 16, 17)), dtype, spread)
    if draw.random() < 0.5 and dtype != torch.float64:
        inputs[1], inputs[2] = (t.float() if draw.random() < 0.5 else t for t in inputs[1:])
    for _ in range(draw.choice((0, 0, 3)) if inputs[1].numel() else 0):  # positions outside
        place = tuple(draw.randrange(side) for side in inputs[1].shape)
        inputs[1][place] = draw.choice((math.nan, math.inf, -math.inf, 6e4, -6e4))
    layout = draw.choice((*LAYOUTS, None, None))
    if layout is not None and all(tensor.numel() for tensor in inputs):
        inputs = [layout(tensor) for tensor in inputs]
    softmax = draw.random() < 0.5
    expected = exactly(inputs, **arguments, softmax=softmax)
    for backend in BACKENDS:
        found = results(functools.partial(dcnv3, backend=backend), inputs, **arguments, softmax=softmax)
        assert_close(found[:3], expected[:3], f"{backend} {arguments}", side=max(size))
        if not softmax:
            assert_close(found, expected, f"{backend} {arguments}", side=max(size))


def equals_loops(draw):
    arguments, size = draw_arguments(draw, most_kernel=3, more=(0, 1, 2, 3))
    softmax = draw.random() < 0.5
    inputs = make_inputs(arguments, 1, size, 2, seed=draw.randrange(10**6))
    expected = results(by_loops_with_softmax, inputs, **arguments, softmax=softmax)
    for backend in BACKENDS:
        found = results(functools.partial(dcnv3, backend=backend), inputs, **arguments, softmax=softmax)
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def _is_plain(tensor):
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and tensor.layout is torch.strided


def bad_arguments_are_refused_alike(draw):
    """Each backend computes the same, or says the same in one line."""
    # Half of the outputs have one pixel, for which a stride of any length is possible.
    arguments, size = draw_arguments(draw, more=draw.choice(((0,), (0, 1, 3, 9))))
    inputs = make_inputs(arguments, 1, size, 2, draw.choice(list(TOLERANCE)))
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < 0.75:
            arguments[draw.choice(list(arguments))] = draw.choice((draw.choice(NASTY), draw.choice(HUGE)))
        else:
            index = draw.choice([index for index, tensor in enumerate(inputs) if _is_plain(tensor)])
            inputs[index] = draw.choice(
                (
                    lambda t: t[0],
                    lambda t: t[..., :0],
                    lambda t: t[:, :0],
                    lambda t: t.long(),
                    lambda t: t.to("meta"),
                    lambda t: t.half(),
                    lambda t: t.to(torch.complex64),
                    lambda t: t.to_sparse(),
                    lambda t: None,
                    lambda t: t.tolist(),
                )
            )(inputs[index])
    outcomes = []
    for backend in BACKENDS:
        try:
            outcomes.append(dcnv3(*inputs, **arguments, backend=backend))
        except ValueError as error:
            assert "\n" not in str(error), error
            outcomes.append(str(error))
    for outcome in outcomes[1:]:
        if isinstance(outcome, str) or isinstance(outcomes[0], str):
            assert outcome == outcomes[0], outcomes
        else:
            torch.testing.assert_close(outcome, outcomes[0], rtol=2e-2, atol=2e-2, equal_nan=True)


def derivatives_are_exact(draw):
    """The Hessian of a random function times a vector, along three ways; and a batch of gradients."""
    arguments, size = draw_arguments(draw, most_kernel=3, more=(0, 1, 2))
    inputs = make_inputs(arguments, 1, size, 2, seed=draw.randrange(10**6))
    way = [torch.randn_like(tensor) for tensor in inputs]
    softmax = draw.random() < 0.5
    for backend in BACKENDS:
        call = functools.partial(dcnv3, **arguments, softmax=softmax, backend=backend)

        def slopes(*tensors, call=call, **options):
            leaves = [tensor.detach().requires_grad_() for tensor in tensors] if not options else tensors
            return torch.autograd.grad(call(*leaves).pow(3).sum(), leaves, **options)

        step = 1e-6
        ahead, behind = (slopes(*(t + sign * step * w for t, w in zip(inputs, way, strict=True))) for sign in (1, -1))
        expected = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        product = sum((s * w).sum() for s, w in zip(slopes(*leaves, create_graph=True), way, strict=True))
        largest = max((e.abs().max().item() for e in expected if e.numel()), default=0.0)
        for got, want in zip(torch.autograd.grad(product, leaves), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1.0, largest))
        output = call(*leaves)
        batch = torch.randn(2, *output.shape, dtype=output.dtype)
        together = torch.autograd.grad(output, leaves, batch, is_grads_batched=True, retain_graph=True)
        for index in range(2):
            alone = torch.autograd.grad(output, leaves, batch[index], retain_graph=True)
            for got, want in zip(together, alone, strict=True):
                torch.testing.assert_close(got[index], want, rtol=0, atol=1e-10)


def changed_saved_tensors_are_refused(draw):
    arguments, size = draw_arguments(draw)
    dtype = draw.choice(list(TOLERANCE))
    inputs = [in_a_wider_tensor(t) if draw.random() < 0.3 else t for t in make_inputs(arguments, 2, size, 4, dtype)]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    change, position = draw.choice(list(CHANGES)), draw.randrange(3)
    with changed_saved_tensor(position, change):
        output = dcnv3(*leaves, **arguments, softmax=draw.random() < 0.5, backend=BACKENDS[0])
    unchanged = {"half": torch.float16, "double": torch.float64}.get(change) == dtype
    unchanged = unchanged or (change == "freed" and not inputs[position].numel())
    with contextlib.nullcontext() if unchanged or BACKENDS[0] == "torch" else raises_runtime_error():
        torch.autograd.grad(output.sum(), leaves)


@contextlib.contextmanager
def raises_runtime_error():
    try:
        yield
    except RuntimeError:
        return
    raise AssertionError("expected a RuntimeError")


CHECKS = (
    equals_exact_arithmetic,
    equals_loops,
    bad_arguments_are_refused_alike,
    derivatives_are_exact,
    changed_saved_tensors_are_refused,
)
