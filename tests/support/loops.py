# SPDX-License-Identifier: MIT
"""The operator's definition in nested loops, independent of the package, and drawn calls to compare with it."""

import functools
import itertools
import math
import random

import torch

from support.operator_cases import make_inputs, pair

DRAWN = range(50)


def by_loops(value, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale, remove_center):
    """The definition, one scalar sample at a time, with no regard for speed; autograd differentiates it."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = map(pair, (kernel_size, stride, padding, dilation))
    batch, height, width, channels = value.shape
    _, out_height, out_width, _ = mask.shape
    taps = [(i, j) for i in range(kw) for j in range(kh) if not (remove_center and (i, j) == (kw // 2, kh // 2))]
    depth = channels // groups
    centre_x, centre_y = (dw * (kw - 1)) // 2, (dh * (kh - 1)) // 2
    zero = torch.zeros(depth, dtype=value.dtype)

    def pixel(n, y, x, g):
        return value[n, y, x, g * depth : (g + 1) * depth] if 0 <= y < height and 0 <= x < width else zero

    results = []
    for n, h, w, g in itertools.product(range(batch), range(out_height), range(out_width), range(groups)):
        total = zero
        for p, (i, j) in enumerate(taps):
            index = g * len(taps) + p
            off_x, off_y = offset[n, h, w, 2 * index], offset[n, h, w, 2 * index + 1]
            x = w * sw - pw + centre_x + (i * dw - centre_x + off_x) * offset_scale
            y = h * sh - ph + centre_y + (j * dh - centre_y + off_y) * offset_scale
            if not (-1 < x < width and -1 < y < height):
                continue  # also for NaN
            x0, y0 = math.floor(x.item()), math.floor(y.item())
            fx, fy = x - x0, y - y0
            sample = (1 - fy) * ((1 - fx) * pixel(n, y0, x0, g) + fx * pixel(n, y0, x0 + 1, g))
            sample = sample + fy * ((1 - fx) * pixel(n, y0 + 1, x0, g) + fx * pixel(n, y0 + 1, x0 + 1, g))
            total = total + mask[n, h, w, index] * sample
        results.append(total)
    nothing = value[:0].sum() + offset[:0].sum() + mask[:0].sum()  # so that gradients are zeros, not missing
    return torch.cat([zero[:0], *results]).view(batch, out_height, out_width, channels) + nothing


def by_loops_with_softmax(value, offset, mask, *, softmax, groups, **arguments):
    """The same for logits."""
    if softmax:
        mask = mask.unflatten(3, (groups, -1)).softmax(-1).flatten(3)
    return by_loops(value, offset, mask, groups=groups, **arguments)


@functools.cache
def drawn_call(seed):
    """Arguments, inputs and gradient of a drawn call, and what loops say: the output and three gradients.

    Even kernels, dilations of 2 and more, other scales than 1 and lopsided sizes come together.
    """
    draw = random.Random(seed)

    def two(*choices):
        return draw.choice(choices), draw.choice(choices)

    arguments = {
        "groups": draw.choice((1, 2, 3)),
        "kernel_size": two(1, 2, 2, 3, 4),
        "stride": two(1, 1, 2, 3),
        "padding": two(0, 1, 2, 3),
        "dilation": two(1, 2, 2, 3),
        "offset_scale": draw.choice((0.5, 1.0, 1.5, -1.25, 2.0)),
        "remove_center": draw.random() < 0.3,
    }
    if arguments["kernel_size"] == (1, 1):
        arguments["remove_center"] = False
    least = [
        max(1, dilation * (kernel - 1) + 1 - 2 * pad)
        for kernel, pad, dilation in zip(
            *(arguments[name] for name in ("kernel_size", "padding", "dilation")), strict=True
        )
    ]
    size = tuple(side + draw.randrange(4) for side in least)
    inputs = make_inputs(arguments, batch=draw.choice((1, 2)), size=size, depth=draw.choice((1, 2, 4)), seed=seed)
    arguments["softmax"] = draw.random() < 0.5
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = by_loops_with_softmax(*leaves, **arguments)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=output.dtype)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    return arguments, inputs, grad_output, (output.detach(), *gradients)
