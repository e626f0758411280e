# SPDX-License-Identifier: MIT
"""How far half precision may be from float64: about as far as a float64 model whose layers round what they compute."""

import copy

import torch
from torch import nn

_CASTED = (nn.Linear, nn.Conv2d)  # what autocast runs in half precision
# Errors of two roundings of the same computation differ by chance; measured: up to 2.4 times.
_FACTOR = 4


def assert_as_precise_as_its_dtype(model, run, dtype, autocast=False):
    """Check a model in half precision, by its weights or by autocast, against the same weights in float64.

    Args:
        run: (model, dtype of the inputs) -> the output to compare.
    """
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=autocast):
        got = run(model, torch.float32) if autocast else run(copy.deepcopy(model).to(dtype), dtype)
    exact = copy.deepcopy(model).to(torch.float32 if autocast else dtype).double()
    rounding = _with_rounding_layers(copy.deepcopy(exact), dtype, autocast)
    with torch.no_grad():
        expected = run(exact, torch.float64)
        error, usual = (
            ((other.double() - expected).norm() / expected.norm()) for other in (got, run(rounding, torch.float64))
        )
    assert 0 < usual < 0.05
    assert 0 < error <= _FACTOR * usual, f"relative error {error:.1e}, expected about {usual:.1e}"


def _with_rounding_layers(model, dtype, autocast):
    """Make the results of all layers multiples of `dtype`; with `autocast`, of those it casts, and their inputs."""

    def rounded(tensor):
        return tensor.to(dtype).double()

    for module in model.modules():
        if autocast and isinstance(module, _CASTED):
            module.to(dtype).double()
            module.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs)))
        if isinstance(module, _CASTED) or not autocast:
            module.register_forward_hook(lambda _, inputs, output: rounded(output) if torch.is_tensor(output) else None)
    return model
