# SPDX-License-Identifier: MIT
"""Drawn layers and models: fused passes against their modules, whatever was done to these."""

import copy
import os

import torch
from support.changed_tensors import CHANGES, changed_saved_tensor
from support.fused_layers import KINDS
from support.golden_data import awaken, tiny_config
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from hf_internimage import InternImageForImageClassification
from hf_internimage.models.layers_internimage import InternImageDropPath

# Relative to the largest element: rounding of the dtype, once for each of a few operations.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def _draw_states(draw, dtype):
    states = torch.randn(draw.choice((1, 2)), draw.choice((1, 4, 9)), draw.choice((1, 5, 8)), 16).to(dtype)
    layout = draw.choice((None, None, (0, 2, 1, 3), (0, 3, 1, 2), (2, 1, 0, 3)))
    if layout is None:
        return states
    back = [layout.index(axis) for axis in range(4)]
    return states.permute(layout).contiguous().permute(back)


def _plain_attribute(owner, name, tensor):
    delattr(owner, name)
    setattr(owner, name, tensor)


def _disturb(draw, module):
    """Do something to a module that its owner may do; also what PyTorch then refuses."""
    owners = [part for part in module.modules() if part._parameters]
    owner = draw.choice(owners)
    name = draw.choice(list(owner._parameters))
    parameter = getattr(owner, name)
    tensor = parameter.detach() if parameter is not None else torch.randn(16)
    changes = (
        lambda: _plain_attribute(owner, name, tensor.double()),
        lambda: _plain_attribute(owner, name, tensor[: len(tensor) // 2].clone()),
        lambda: _plain_attribute(owner, name, torch.cat((tensor, tensor))),
        lambda: _plain_attribute(owner, name, tensor[..., :1].clone()),
        lambda: _plain_attribute(owner, name, torch.cat((tensor, tensor[..., :2]), -1)),
        lambda: _plain_attribute(owner, name, tensor.to("meta")),
        lambda: _plain_attribute(owner, name, tensor),
        lambda: _plain_attribute(owner, name, None),
        lambda: setattr(owner, name, nn.Parameter(torch.stack((tensor, tensor), -1)[..., 0])),
        lambda: setattr(owner, name, nn.Parameter(tensor, requires_grad=False)),
        lambda: owner.register_forward_hook(lambda module, inputs, output: output * 2),
        lambda: draw.choice(list(module.modules())).register_forward_hook(lambda module, inputs, output: output + 1),
        lambda: draw.choice(list(module.modules())).train(draw.random() < 0.5),
        lambda: [setattr(part, "eps", 0.3) for part in module.modules() if isinstance(part, nn.LayerNorm)],
        lambda: [setattr(part, "approximate", "tanh") for part in module.modules() if isinstance(part, nn.GELU)],
        lambda: [setattr(part, "stride", (2, 2)) for part in module.modules() if isinstance(part, nn.Conv2d)],
        lambda: [setattr(part, "padding", (0, 2)) for part in module.modules() if isinstance(part, nn.Conv2d)],
    )
    draw.choice(changes)()


def _gradients(output, leaves):
    return torch.autograd.grad(output.float().pow(2).sum(), leaves, allow_unused=True)


def fused_equals_plain(draw):
    kind = draw.choice(list(KINDS))
    make, fused, plain = KINDS[kind]
    dtype = draw.choice(list(TOLERANCE))
    module, states = make(dtype=dtype), _draw_states(draw, dtype)
    for _ in range(draw.choice((0, 1, 1, 2))):
        _disturb(draw, module)
    trained = draw.random() < 0.6
    leaves = [states.requires_grad_(trained), *(p for p in module.parameters() if trained and p.requires_grad)]
    with torch.set_grad_enabled(trained):
        found = fused(states, module)
        if found is None:
            return  # the modules run, and PyTorch judges what was done to them
        expected = plain(states, module)
    scale = TOLERANCE[dtype] * max(1.0, expected.abs().max().item() if expected.numel() else 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=scale)
    if trained:
        for got, want in zip(_gradients(found, leaves), _gradients(expected, leaves), strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                atol = 8 * TOLERANCE[dtype] * max(1.0, want.abs().max().item())
                torch.testing.assert_close(got, want, rtol=0, atol=atol)


def second_order_equals_plain(draw):
    kind = draw.choice(("dw_conv", "mlp"))
    make, fused, plain = KINDS[kind]
    module, states = make(), _draw_states(draw, torch.float32)
    way = torch.randn_like(states)

    def product(run, module, states, way):
        leaf = states.detach().requires_grad_()
        (slope,) = torch.autograd.grad(run(leaf, module).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad((slope * way).sum(), leaf)[0]

    expected = product(plain, copy.deepcopy(module).double(), states.double(), way.double())
    found = product(fused, module, states, way)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


def changed_saved_tensors_are_refused(draw):
    """A fused pass raises, unless the change changes nothing. PyTorch's own layers may read anything."""
    kind = draw.choice(("dw_conv", "mlp"))
    make, fused, plain = KINDS[kind]
    module, states = make(), torch.randn(2, 4, 5, 16, requires_grad=True)
    leaves = [states, *module.parameters()]
    # The first two tensors of an mlp are those of its first linear layer.
    position = draw.randrange(2, 5) if kind == "mlp" else draw.randrange(5)
    with changed_saved_tensor(position, draw.choice(list(CHANGES))):
        output = fused(states, module)
    try:
        found = torch.autograd.grad(output.square().sum(), leaves)
    except RuntimeError as error:
        assert "hooks for saved tensors must return" in str(error), error
        return
    expected = torch.autograd.grad(plain(states, module).square().sum(), leaves)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * max(1.0, want.abs().max().item()))


def models_equal_their_modules(draw):
    """A model with modules in training or evaluation mode at random, hooks and replaced modules."""
    samples = draw.random() < 0.3  # stochastic depth, and nothing else, in training
    config = tiny_config(
        post_norm=samples or draw.random() < 0.5,
        drop_path_rate=0.5 if samples else draw.choice((0.0, 0.5)),
        drop_path_type=draw.choice(("linear", "uniform")),
        drop_rate=draw.choice((0.0, 0.0, 0.3)),
        layer_scale=draw.choice((None, 1e-2, 1.0)),
        res_post_norm=draw.random() < 0.3,
        center_feature_scale=draw.random() < 0.3,
    )
    model = awaken(InternImageForImageClassification(config)).eval()
    model.train(not samples and draw.random() < 0.3)
    share = 1.0 if samples else draw.choice((0.0, 0.5, 1.0))
    for module in model.modules():
        if isinstance(module, (InternImageDropPath, nn.Dropout)) and draw.random() < share:
            module.training = not module.training
        if draw.random() < 0.01:
            module.register_forward_hook(lambda module, inputs, output: None)
    model.requires_grad_(not samples and draw.random() < 0.5)
    # Two images are one value a channel, of which the batch norm in training makes large gradients of nothing.
    images = torch.randn(3, 3, 64, draw.choice((64, 70)))
    seed = draw.randrange(10**6)

    def run():
        torch.manual_seed(seed)
        return copy.deepcopy(model)(images).logits

    before = os.environ.pop("HF_INTERNIMAGE_BACKEND", None)
    try:
        found = run()
        os.environ["HF_INTERNIMAGE_BACKEND"] = "torch"
        expected = run()
    finally:
        os.environ.pop("HF_INTERNIMAGE_BACKEND")
        if before is not None:
            os.environ["HF_INTERNIMAGE_BACKEND"] = before
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


def transforms_equal_loops(draw):
    """A model under `vmap`, with a gradient for each image, and in forward mode, against one image at a time."""
    fields = {"post_norm": draw.random() < 0.5, "layer_scale": draw.choice((None, 0.5))}
    model = awaken(InternImageForImageClassification(tiny_config(depths=[1, 1], groups=[1, 2], **fields))).eval()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    images, way = torch.randn(2, 2, 3, 16, draw.choice((16, 24)))

    def logits(parameters, image):
        return functional_call(model, parameters, (image[None],)).logits[0]

    def slopes(parameters, image):
        return grad(lambda tensors: logits(tensors, image).square().sum())(parameters)

    kind = draw.choice(("values", "gradients", "forward mode", "forward mode"))
    if kind == "values":
        found = {"logits": vmap(logits, (None, 0))(parameters, images)}
        expected = {"logits": torch.stack([model(image[None]).logits[0] for image in images])}
    elif kind == "gradients":
        found = vmap(slopes, (None, 0))(parameters, images)
        alone = []
        for image in images:
            loss = model(image[None]).logits.square().sum()
            alone.append(torch.autograd.grad(loss, [model.get_parameter(name) for name in parameters]))
        expected = dict(zip(parameters, map(torch.stack, zip(*alone, strict=True)), strict=True))
    else:
        if draw.random() < 0.5:
            found = {"change": jvp(lambda image: logits(parameters, image), (images[0],), (way[0],))[1]}
        else:
            with forward_ad.dual_level():
                dual = logits(parameters, forward_ad.make_dual(images[0], way[0]))
                found = {"change": forward_ad.unpack_dual(dual).tangent}
        exact, image, step = copy.deepcopy(model).double(), images[0].double(), 1e-5 * way[0].double()
        with torch.no_grad():
            ahead, behind = (exact(changed[None]).logits[0] for changed in (image + step, image - step))
        expected = {"change": ((ahead - behind) / 2e-5).float()}
    for name, tensor in expected.items():
        scale = max(1.0, tensor.abs().max().item())
        torch.testing.assert_close(
            found[name].detach(), tensor.detach(), rtol=0, atol=1e-3 * scale, msg=f"{kind} {name}"
        )


CHECKS = (
    transforms_equal_loops,
    fused_equals_plain,
    second_order_equals_plain,
    changed_saved_tensors_are_refused,
    models_equal_their_modules,
)
