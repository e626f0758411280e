# SPDX-License-Identifier: MIT
"""A whole block in one call without gradients: the results of its parts, and only while all are as they were made."""

import copy
import functools
import types

import pytest
import torch
from support.changed_tensors import freed
from support.golden_data import awaken, tiny_config
from support.native_library import operators_run
from support.operator_cases import Seen
from torch import nn
from torch.overrides import BaseTorchFunctionMode

from hf_internimage.models import layers_internimage
from hf_internimage.models.layers_internimage import (
    InternImageDeformableConvolution,
    InternImageDropPath,
    InternImageLayer,
    InternImageMLP,
)
from hf_internimage.ops import fused_cpu, native

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")

OPTIONS = {  # as the released sizes have them, and what else a configuration allows
    "t": {},
    "s to xl": {"post_norm": True, "layer_scale": 0.5},
    "h": {"dw_kernel_size": 5, "center_feature_scale": True, "res_post_norm": True},
    "g": {"dw_kernel_size": 5, "center_feature_scale": True, "post_norm": True},
    "scale": {"layer_scale": 0.5, "offset_scale": 2.0},
    "odd": {"mlp_ratio": 1.5, "remove_center": True, "drop_rate": 0.5},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_layer(options=OPTIONS["t"], dtype=torch.float32, channels=20):
    """A block with stochastic depth, in evaluation mode, whose every parameter matters."""
    torch.manual_seed(0)
    layer = awaken(InternImageLayer(tiny_config(channels=channels, **options), channels, 2, drop_path=0.5)).eval()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5) if parameter.dim() == 1 else None
    return layer.to(dtype)


def random_states(dtype=torch.float32, channels=20):
    return torch.randn((2, 5, 7, channels), generator=torch.Generator().manual_seed(5)).to(dtype)


def fused(layer, states=None):
    """What the block's own forward pass asks for first."""
    return fused_cpu.block(random_states() if states is None else states, layer, layers_internimage._BRANCHES)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@every_option
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("least", [1, 10**9], ids=["onednn", "own"])
@pytest.mark.usefixtures("nan_memory", "instruction_set")
@torch.no_grad()
def test_the_block_is_as_near_to_float64_as_its_parts(options, dtype, least, monkeypatch):
    """The parts round between their passes: the block may be as far from float64 as twice that and an eighth of ulp."""
    monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", least)
    layer, states = make_layer(options, dtype), random_states(dtype)
    exact = copy.deepcopy(layer).double()(states.double())
    with operators_run() as runs:
        found = layer(states)
    assert runs.count("depthwise_norm_gelu") == runs.count("dcnv3") == 1
    assert runs.count("norm") == (4 if options.get("res_post_norm") else 2)
    with monkeypatch.context() as patch:
        patch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
        parts = layer(states)
    assert found.dtype == dtype
    assert error(found, exact) < 2 * error(parts, exact) + torch.finfo(dtype).eps / 8
    assert error(states, exact) > 0.05  # the branches matter


@every_option
@torch.no_grad()
def test_states_in_any_memory(options):
    layer, dense = make_layer(options), random_states()
    expected = layer(dense)
    for states in (
        dense.transpose(1, 2).contiguous().transpose(1, 2),
        dense.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.cat((dense, dense), -1)[..., :20],
    ):
        kept = states.clone()
        assert torch.equal(fused(layer, states), expected)
        assert torch.equal(states, kept)
    assert fused(layer, dense[:0]).shape == (0, 5, 7, 20)


@every_option
@torch.no_grad()
def test_a_compiled_block_is_one_operator_with_the_same_bits(options):
    layer, states = make_layer(options), random_states()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(states), layer(states))
    with operators_run() as runs:
        compiled(states)
    assert runs[0] == "block"
    assert runs.count("block") == 1
    layer.mlp.act = nn.ReLU()
    assert torch.equal(compiled(states), layer(states))
    exported = torch.export.export(layer, (states,))
    assert not any("block" in str(node.target) for node in exported.graph.nodes if node.op == "call_function")


# What is done to a block, so that it calls its parts. Each entry: what it is done to, and what is done.


def another_forward(module):
    """As accelerate does."""
    module._old_forward = module.forward
    module.forward = types.MethodType(lambda self, *inputs: self._old_forward(*inputs), module)


def another_class(module):
    """As adapters do."""
    old = type(module)
    module.__class__ = type("Adapted", (old,), {"forward": lambda self, *inputs: old.forward(self, *inputs)})


def replaced(layer, name, new):
    owner, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(owner), leaf, new)


MODULE_CHANGES = {
    "forward hook": lambda layer, name: layer.get_submodule(name).register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda layer, name: layer.get_submodule(name).register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda layer, name: layer.get_submodule(name).register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda layer, name: layer.get_submodule(name).register_full_backward_pre_hook(lambda *_: None),
    "forward": lambda layer, name: another_forward(layer.get_submodule(name)),
    "class": lambda layer, name: another_class(layer.get_submodule(name)),
    "another module": lambda layer, name: replaced(layer, name, nn.Softplus()),
    "another stock module": lambda layer, name: replaced(layer, name, nn.Flatten(0)),
    "in a sequence": lambda layer, name: replaced(layer, name, nn.Sequential(layer.get_submodule(name))),
    "removed": lambda layer, name: delattr(layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]),
}


class Subclassed(torch.Tensor):
    """A tensor of another class."""


class Double(nn.Module):
    """A parametrization."""

    def forward(self, tensor):
        return tensor * 2


def parametrized(owner, leaf):
    nn.utils.parametrize.register_parametrization(owner, leaf, Double())


def with_data(change):
    def apply(owner, leaf):
        parameter = getattr(owner, leaf)
        delattr(owner, leaf)
        setattr(owner, leaf, nn.Parameter(change(parameter.detach()), requires_grad=False))

    return apply


PARAMETER_CHANGES = {
    "float64": with_data(torch.Tensor.double),
    "bfloat16": with_data(torch.Tensor.bfloat16),
    "meta": with_data(lambda tensor: tensor.to("meta")),
    "subclass": with_data(lambda tensor: tensor.as_subclass(Subclassed)),
    "freed": with_data(freed),
    "shorter": with_data(lambda tensor: tensor[:-1].clone()),
    "one axis more": with_data(lambda tensor: tensor[None]),
    "negated": with_data(torch._neg_view),
    "lazy zeros": with_data(lambda tensor: torch._efficientzerotensor(tensor.shape)),
    "sparse": with_data(torch.Tensor.to_sparse),
    "parametrized": parametrized,
    "none": lambda owner, leaf: setattr(owner, leaf, None),
}

ALLOWED = [  # changes that the parts of a block read as the block does
    (parametrized, "layer_scale1"),
    (parametrized, "layer_scale2"),
    (PARAMETER_CHANGES["none"], "dcn.center_feature_scale_proj_weight"),
]

NAMES = {  # of all parts and all parameters, by the options of their block
    option: ([name for name, _ in layer.named_modules() if name], [name for name, _ in layer.named_parameters()])
    for option in ("t", "s to xl", "h")
    for layer in [make_layer(OPTIONS[option])]
}


def test_the_tables_name_all_parts():
    modules, parameters = NAMES["t"]
    assert {"norm1.0", "dcn", "dcn.dw_conv.1.0", "dcn.offset", "drop_path", "norm2", "mlp.act", "mlp.drop"} <= set(
        modules
    )
    assert len(modules) == 21
    assert len(parameters) == 20
    assert {"layer_scale1", "layer_scale2"} == set(NAMES["s to xl"][1]) - set(parameters)
    assert len(NAMES["h"][1]) == 26


@pytest.mark.parametrize("option", NAMES)
@pytest.mark.parametrize("change", MODULE_CHANGES.values(), ids=MODULE_CHANGES)
@torch.no_grad()
def test_a_change_of_any_module_is_noticed(option, change):
    layer = make_layer(OPTIONS[option])
    assert fused(layer) is not None
    for name in NAMES[option][0]:
        changed = copy.deepcopy(layer)
        change(changed, name)
        assert fused(changed) is None, name


@pytest.mark.parametrize("option", NAMES)
@pytest.mark.parametrize("change", PARAMETER_CHANGES.values(), ids=PARAMETER_CHANGES)
@torch.no_grad()
def test_a_change_of_any_parameter_is_noticed(option, change):
    layer = make_layer(OPTIONS[option])
    for name in NAMES[option][1]:
        if (change, name) in ALLOWED:
            continue
        changed = copy.deepcopy(layer)
        owner, _, leaf = name.rpartition(".")
        change(changed.get_submodule(owner), leaf)
        assert fused(changed) is None, name


@pytest.mark.parametrize(("change", "name"), ALLOWED, ids=lambda part: part if isinstance(part, str) else "")
@torch.no_grad()
def test_other_changes_have_the_effect_that_they_have_on_the_parts(change, name, monkeypatch):
    layer = make_layer(OPTIONS["s to xl" if "layer_scale" in name else "h"])
    before = layer(random_states())
    owner, _, leaf = name.rpartition(".")
    change(layer.get_submodule(owner), leaf)
    found = fused(layer)
    assert not torch.allclose(found, before, atol=1e-3)
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    torch.testing.assert_close(found, layer(random_states()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", NAMES)
def test_gradients_for_anything_are_noticed(option):
    layer = make_layer(OPTIONS[option]).requires_grad_(False)
    assert fused(layer) is not None
    assert fused(layer, random_states().requires_grad_()) is None
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_()
        assert fused(layer) is None, name
        (gradient,) = torch.autograd.grad(layer(random_states()).sum(), parameter)
        assert gradient.any(), name
        parameter.requires_grad_(False)


@pytest.mark.parametrize("what", ["forward", "__call__"])
@pytest.mark.parametrize(
    "kind",
    [
        *(nn.GELU, nn.LayerNorm, nn.Linear, nn.Conv2d, nn.Dropout, nn.Sequential),
        *(InternImageDeformableConvolution, InternImageMLP),
    ],
    ids=lambda kind: kind.__name__,
)
@torch.no_grad()
def test_a_change_of_any_class_is_noticed(kind, what, monkeypatch):
    old = getattr(kind, what)
    monkeypatch.setattr(kind, what, lambda self, *inputs: old(self, *inputs))
    assert fused(make_layer()) is None


SETTINGS = {
    "tanh in the convolution": lambda layer: setattr(layer.dcn.dw_conv[2], "approximate", "tanh"),
    "tanh in the MLP": lambda layer: setattr(layer.mlp.act, "approximate", "tanh"),
    "stride": lambda layer: setattr(layer.dcn.dw_conv[0], "stride", (2, 2)),
    "padding": lambda layer: setattr(layer.dcn.dw_conv[0], "padding", (0, 2)),
    "padding mode": lambda layer: setattr(layer.dcn.dw_conv[0], "padding_mode", "reflect"),
    "groups of the convolution": lambda layer: setattr(layer.dcn.dw_conv[0], "groups", 1),
    "groups": lambda layer: setattr(layer.dcn, "groups", 4),
    "kernel": lambda layer: setattr(layer.dcn, "kernel_size", 5),
    "centre": lambda layer: setattr(layer.dcn, "remove_center", True),
    "another norm": lambda layer: setattr(layer, "norm1", nn.Sequential(nn.LayerNorm((7, 20)))),
    "two norms": lambda layer: layer.norm2.append(nn.LayerNorm(20)),
    "two norms and none": lambda layer: (layer.norm2.append(layer.norm1[0]), layer.norm1.pop(0)),
    "active stochastic depth": lambda layer: layer.drop_path.train(),
    "another stochastic depth": lambda layer: setattr(layer, "drop_path", nn.Dropout(0.5)),
    "active dropout": lambda layer: setattr(layer.mlp, "drop", nn.Dropout(0.5).train()),
    "one scale": lambda layer: layer.register_parameter("layer_scale2", nn.Parameter(torch.ones(20))),
    "a scale for all channels": lambda layer: (
        layer.register_parameter("layer_scale1", nn.Parameter(torch.ones(1))),
        layer.register_parameter("layer_scale2", nn.Parameter(torch.ones(1))),
    ),
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
@torch.no_grad()
def test_a_change_of_settings_is_noticed(change):
    layer = make_layer()
    change(layer)
    assert fused(layer) is None


@torch.no_grad()
def test_what_drops_nothing_is_not_noticed():
    layer, states = make_layer(), random_states()
    expected = fused(layer, states)
    layer.train()
    layer.mlp.drop = nn.Dropout(0.0)
    for layer.drop_path in (InternImageDropPath(0.0), nn.Identity()):
        assert torch.equal(fused(layer, states), expected)


@torch.no_grad()
def test_a_default_device_is_not_noticed():
    layer, states = make_layer(), random_states()
    expected = fused(layer, states)
    with torch.device("meta"):
        assert torch.equal(fused(layer, states), expected)


@pytest.mark.parametrize(
    "context",
    [functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16), Seen, BaseTorchFunctionMode],
    ids=["autocast", "dispatch mode", "function mode"],
)
@torch.no_grad()
def test_contexts_are_noticed(context):
    layer, states = make_layer(), random_states()
    with context():
        assert fused(layer, states) is None


@torch.no_grad()
def test_other_states_and_demands_are_noticed(monkeypatch):
    layer, states = make_layer(), random_states()
    for others in (
        states.double(),
        states.bfloat16(),
        states.to("meta"),
        states.as_subclass(Subclassed),
        states[..., :8],
    ):
        assert fused(layer, others) is None
    assert fused(make_layer(dtype=torch.float64), states.double()) is None
    with monkeypatch.context() as patch:
        patch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
        assert fused(layer) is None
    with monkeypatch.context() as patch:
        patch.setattr(native, "why_not", lambda: "is not there")
        assert fused(layer) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert fused(layer) is None
    finally:
        handle.remove()
    assert fused(layer) is not None


def test_transforms_are_noticed():
    layer, states, seen = make_layer().requires_grad_(False), random_states(), []

    def run(states):
        seen.append(fused(layer, states))
        return layer(states).sum()

    torch.func.grad(run)(states)
    torch.vmap(lambda one: run(one[None]))(states)
    with torch.autograd.forward_ad.dual_level():
        run(torch.autograd.forward_ad.make_dual(states, torch.ones_like(states)))
    torch.jit.trace(run, (states,), check_trace=False)
    assert len(seen) >= 4
    assert seen == [None] * len(seen)


@torch.no_grad()
def test_tensors_in_place_of_parameters_are_used():
    layer, states = make_layer(OPTIONS["s to xl"]), random_states()
    others = {name: parameter * 1.5 for name, parameter in layer.named_parameters()}
    with operators_run() as runs:
        got = torch.func.functional_call(layer, others, (states,))
    assert "norm" in runs
    assert not torch.equal(got, layer(states))
    for name, tensor in others.items():
        owner, _, leaf = name.rpartition(".")
        owner = layer.get_submodule(owner)
        delattr(owner, leaf)
        setattr(owner, leaf, tensor)
    assert torch.equal(fused(layer, states), got)
