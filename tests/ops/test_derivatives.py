# SPDX-License-Identifier: MIT
"""Derivatives of derivatives, batched gradients, forward mode, torch.func: of the operator, fused layers and models."""

import functools
import importlib

import pytest
import torch
from support.fused_layers import KINDS
from support.golden_data import awaken, tiny_config
from support.operator_cases import LOPSIDED, PAD_0_2, PLAIN, make_inputs
from torch import nn
from torch.autograd.functional import hessian, hvp, jacobian
from torch.utils.checkpoint import checkpoint

from hf_internimage import InternImageForImageClassification
from hf_internimage.ops import dcnv3 as default_dcnv3
from hf_internimage.ops import native
from hf_internimage.ops.dcnv3 import check_dcnv3

needs_library = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")
# PyTorch's rules for batches fall back to a loop for some operators, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

SMALL = {"batch": 1, "size": (3, 2), "depth": 2}


def registered(*inputs, softmax=False, **arguments):
    """The operator that traced calls use."""
    geometry = check_dcnv3(*inputs, **arguments)
    return torch.ops.hf_internimage.dcnv3(*inputs, *geometry.numbers(), softmax)


@pytest.mark.parametrize("softmax", [False, True], ids=["weights", "logits"])
@pytest.mark.parametrize(
    "arguments", [PLAIN, PAD_0_2, LOPSIDED | {"dilation": 1}], ids=["plain", "pad_0_2", "lopsided"]
)
def test_derivatives_of_the_second_order_are_exact(dcnv3, arguments, softmax):
    inputs = tuple(tensor.requires_grad_() for tensor in make_inputs(arguments, **SMALL))
    call = functools.partial(dcnv3, **arguments, softmax=softmax)
    assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_the_registered_operator_has_them_too():
    inputs = tuple(tensor.requires_grad_() for tensor in make_inputs(PLAIN, **SMALL))
    assert torch.autograd.gradgradcheck(functools.partial(registered, **PLAIN, softmax=True), inputs, fast_mode=True)


def test_derivatives_of_the_third_order(dcnv3):
    value, offset, mask = make_inputs(PLAIN, **SMALL)

    def curvature(offset):
        offset = offset.requires_grad_()
        (slope,) = torch.autograd.grad(
            dcnv3(value, offset, mask, **PLAIN, softmax=True).pow(2).sum(), offset, create_graph=True
        )
        return torch.autograd.grad(slope.pow(2).sum(), offset, create_graph=True)[0].sum()

    (third,) = torch.autograd.grad(curvature(offset), offset)
    way = torch.randn_like(offset)
    ahead, behind = (curvature(offset.detach() + sign * 1e-5 * way).item() for sign in (1, -1))
    assert (third * way).sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)


def test_all_ways_to_a_jacobian_and_a_hessian_agree(dcnv3):
    inputs = tuple(make_inputs(PLAIN, **SMALL))
    call = functools.partial(dcnv3, **PLAIN, softmax=True)
    expected = jacobian(call, inputs)
    for found in (
        jacobian(call, inputs, vectorize=True),
        jacobian(call, inputs, vectorize=True, strategy="forward-mode"),
        torch.func.jacrev(call, argnums=(0, 1, 2))(*inputs),
        torch.func.jacfwd(call, argnums=(0, 1, 2))(*inputs),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def square(*inputs):
        return call(*inputs).square().sum()

    expected = hessian(square, inputs)
    for found in (hessian(square, inputs, vectorize=True), torch.func.hessian(square, argnums=(0, 1, 2))(*inputs)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_no_graph_keeps_the_kernels(monkeypatch):
    """A backward pass that nobody differentiates again goes to the backend, also inside enable_grad."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(PLAIN)]
    monkeypatch.setattr(importlib.import_module("hf_internimage.ops.dcnv3"), "dcnv3_gradients", None)
    with torch.enable_grad():
        default_dcnv3(*inputs, **PLAIN).sum().backward()
    assert all(tensor.grad is not None for tensor in inputs)


@needs_library
@pytest.mark.parametrize("kind", ["dw_conv", "mlp"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_fused_layers_have_the_derivatives_of_their_modules(kind, layout):
    make, fused, plain = KINDS[kind]
    module = make()
    states = torch.randn(2, 4, 5, 16)
    if layout == "transposed":
        states = states.transpose(1, 2).contiguous().transpose(1, 2)
    way = torch.randn_like(states)
    assert fused(states.requires_grad_(), module) is not None

    def second(run, module, states, way):
        leaves = [states.detach().requires_grad_(), *module.parameters()]
        gradients = torch.autograd.grad(run(leaves[0], module).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad((gradients[0] * way).sum() + sum(g.pow(2).sum() for g in gradients[1:]), leaves)

    expected = second(plain, make().double(), states.double(), way.double())
    for found, exact in zip(second(fused, module, states, way), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5 * exact.abs().max().item())
    rows = torch.eye(6).view(6, 1, 1, 6, 1).expand(6, 2, 4, 6, 16)[:, :, :, :5]
    batched, one_by_one = (
        torch.autograd.grad(fused(states, module), [states], rows, is_grads_batched=True)[0],
        torch.stack([torch.autograd.grad(fused(states, module), [states], row)[0] for row in rows]),
    )
    torch.testing.assert_close(batched, one_by_one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["offload", "checkpoint"])
@pytest.mark.parametrize("kind", ["operator", "dw_conv", "mlp"])
def test_second_order_with_hooks_for_saved_tensors(kind, way):
    """As of checkpoints, and of tensors that wait in other memory."""
    if kind == "operator":
        value, *others = make_inputs(PLAIN, depth=8, dtype=torch.float32)
        call = functools.partial(default_dcnv3, offset=others[0], mask=others[1], **PLAIN)
    else:
        make, fused, _ = KINDS[kind]
        value, module = torch.randn(2, 6, 5, 16), make().requires_grad_(False)

        def call(states):
            return fused(states, module)

    value.requires_grad_()

    def slope(value):
        return torch.autograd.grad(call(value).pow(3).sum(), value, create_graph=True)[0].pow(2).sum()

    (expected,) = torch.autograd.grad(slope(value), value)
    if way == "offload":
        with torch.autograd.graph.save_on_cpu():
            (found,) = torch.autograd.grad(slope(value), value)
    else:
        (found,) = torch.autograd.grad(checkpoint(slope, value, use_reentrant=False), value)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return awaken(InternImageForImageClassification(tiny_config()).eval())


def test_hessian_vector_products_of_a_model(model):
    images, way = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)

    def product(model, images, way):
        return hvp(lambda images: model(images).logits.pow(2).sum(), images, way)[1]

    found = product(model, images, way)
    exact = product(model.double(), images.double(), way.double())
    model.float()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4 * exact.abs().max().item())


def test_gradients_of_each_sample_of_a_model(model):
    """As for influence functions and differential privacy."""
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 1])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, image, label):
        logits = torch.func.functional_call(model, parameters, (image[None],)).logits
        return nn.functional.cross_entropy(logits, label[None])

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        alone = torch.func.grad(loss)(parameters, image, label)
        for name, gradient in alone.items():
            torch.testing.assert_close(
                each[name][index], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item() + 1e-7
            )


def test_vmap_over_the_weights_of_an_ensemble(model):
    other = awaken(InternImageForImageClassification(tiny_config()).eval())
    parameters, buffers = torch.func.stack_module_state([model, other])
    images = torch.randn(2, 3, 32, 32)

    def one(parameters, buffers):
        return torch.func.functional_call(model, (parameters, buffers), (images,)).logits

    together = torch.vmap(one)(parameters, buffers)
    for logits, alone in zip(together, (model, other), strict=True):
        torch.testing.assert_close(logits, alone(images).logits, rtol=0, atol=1e-5)
