# SPDX-License-Identifier: MIT
"""Fused CPU kernels: the results of their modules, and only for plain calls of unhooked stock modules."""

import contextlib
import copy
import functools
import gc
import itertools
import math
import types
import weakref

import pytest
import torch
from support.changed_tensors import freed
from support.fused_layers import KINDS, dw_conv, fused_dw_conv, fused_mlp, mlp, norm, plain_dw_conv, plain_mlp
from support.golden_data import awaken, tiny_config
from support.native_library import operators_run
from support.operator_cases import Seen
from torch import nn
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from hf_internimage import InternImageForImageClassification
from hf_internimage.models.layers_internimage import InternImageDropPath
from hf_internimage.ops import fused_cpu, native

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")

# How far from float64 a result may be: by a part of itself (the rounding of its dtype), and by a part of the largest.
TOLERANCE = {torch.float32: (0, 2e-6), torch.bfloat16: (2**-8, 2e-6), torch.float16: (2**-11, 2e-6)}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


every_kind = pytest.mark.parametrize("kind", KINDS)
trained_kind = pytest.mark.parametrize("kind", ["dw_conv", "mlp"])


def random_states(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def results(run, module, states, grad_output):
    """The output and the gradients of the states and of every parameter, by name."""
    states = states.detach().requires_grad_()
    output = run(states, module)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(output, [states, *parameters.values()], grad_output)
    return {"output": output.detach(), "states": gradients[0], **dict(zip(parameters, gradients[1:], strict=True))}


def exactly(run, module, states, grad_output):
    """The same of the modules in float64."""
    return results(run, copy.deepcopy(module).double(), states.double(), grad_output.double())


def assert_close(found, exact, case):
    assert found.keys() == exact.keys()
    for name, want in exact.items():
        got = found[name]
        of_itself, of_largest = TOLERANCE[got.dtype]
        atol = of_largest * want.abs().max().item() if want.numel() else 0
        torch.testing.assert_close(
            got.double(), want, rtol=of_itself, atol=atol, msg=lambda text, n=name: f"{case} {n}: {text}"
        )


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert torch.equal(found[name], want), name


@every_dtype
@pytest.mark.usefixtures("nan_memory", "instruction_set")
def test_dw_conv_equals_its_modules_in_float64(dtype):
    """Whole vectors, rests of them, blocks of pixels and rests of those; sides smaller than the kernel."""
    for channels, kernel, width in itertools.product((3, 16, 20, 64, 112), (3, 5), (1, 4, 7, 9)):
        block = dw_conv(channels, kernel, dtype)
        states = random_states(2, 3, width, channels, dtype=dtype)
        grad_output = torch.randn(states.shape).to(dtype)
        found = results(fused_dw_conv, block, states, grad_output)
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        assert_close(
            found, exactly(plain_dw_conv, block, states, grad_output), f"{channels} channels, {kernel}, width {width}"
        )
        with torch.no_grad():
            assert torch.equal(fused_dw_conv(states, block), found["output"])


def norm_add(states, parts, scale, residual):
    """Residual + scale * LayerNorm(states), as a block computes it."""
    layer_norm = parts["norms"][1]
    return fused_cpu._normalize(
        states, layer_norm.weight, layer_norm.bias, layer_norm.eps, scale=scale, residual=residual
    )


@every_dtype
@pytest.mark.usefixtures("nan_memory", "instruction_set")
@torch.no_grad()
def test_norm_equals_its_modules_in_float64(dtype):
    """With an activation, or with what a block adds: a residual, with a scale or without."""
    for channels, shape in itertools.product((1, 3, 16, 20, 64, 112), ((2, 3, 7), (1,), (5, 0))):
        parts, states = norm(channels, dtype), random_states(*shape, channels, dtype=dtype)
        scale, residual = torch.randn(channels).to(dtype), random_states(*shape, channels, dtype=dtype).flip(0)
        normed = copy.deepcopy(parts["norms"][1]).double()(states.double())
        for found, exact in (
            (fused_cpu.norm(states, parts["norms"]), normed),
            (fused_cpu.norm(states, parts["norms"], parts["act"]), nn.functional.gelu(normed)),
            (norm_add(states, parts, None, residual), residual.double() + normed),
            (norm_add(states, parts, scale, residual), residual.double() + normed * scale.double()),
        ):
            assert found.dtype == dtype
            assert_close({"output": found}, {"output": exact}, f"{channels} channels, {shape}")


@torch.no_grad()
def test_norm_in_any_memory():
    parts, dense = norm(), random_states(2, 5, 6, 16)
    scale, residual = torch.randn(16), dense.flip(0)
    transposed = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (dense, residual)]
    expected = residual + scale * parts["norms"][1](dense)
    with_gaps = torch.stack((scale, scale * math.nan), 1)[:, 0]
    for parameter in parts.parameters():
        parameter.data = torch.stack((parameter.data, parameter.data * math.nan), 1)[:, 0]
    for states, others, factor in ((dense, residual, with_gaps), (*transposed, scale)):
        got = norm_add(states, parts, factor, others)
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    expanded = norm_add(dense[:1].expand(2, -1, -1, -1), parts, None, residual)
    torch.testing.assert_close(expanded, residual + parts["norms"][1](dense[:1]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "norms",
    [
        nn.Sequential(),
        nn.Sequential(nn.Identity()),
        nn.Sequential(nn.LayerNorm(16), nn.LayerNorm(16)),
        nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)),
        nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(16)),
        nn.Sequential(nn.LayerNorm(16, bias=False)),
        nn.Sequential(nn.LayerNorm(16, elementwise_affine=False)),
        nn.Sequential(nn.LayerNorm((6, 16))),
        nn.Sequential(nn.LayerNorm(8)),
        nn.Sequential(nn.RMSNorm(16)),
        nn.Sequential(nn.BatchNorm2d(5)),
    ],
    ids=str,
)
@torch.no_grad()
def test_other_norms_are_noticed(norms):
    states = random_states(2, 5, 6, 16)
    assert fused_cpu.norm(states, norms) is None
    assert fused_cpu.norm(states, norms, nn.GELU()) is None


def noise(found, exact):
    """The size of the error as a part of the size of the result, for each tensor."""
    return {name: ((found[name].double() - want).norm() / want.norm()).item() for name, want in exact.items()}


@every_dtype
@pytest.mark.usefixtures("nan_memory", "instruction_set")
@pytest.mark.parametrize("least", [1, 10**9], ids=["onednn", "own"])
def test_mlp_is_as_near_to_float64_as_its_modules(dtype, least, monkeypatch):
    """Here the modules round between the passes, too: the fused pass may add as much again, but no more."""
    monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", least)
    for channels, shape in itertools.product((3, 16, 20, 64), ((2, 3, 7), (1, 1, 1), (40,))):
        parts = mlp(channels, dtype)
        states = random_states(*shape, channels, dtype=dtype)
        grad_output = torch.randn(states.shape).to(dtype)
        exact = exactly(plain_mlp, parts, states, grad_output)
        plain = noise(results(plain_mlp, parts, states, grad_output), exact)
        found = results(fused_mlp, parts, states, grad_output)
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        rounding = torch.finfo(dtype).eps
        for name, size in noise(found, exact).items():
            assert size < 2 * plain[name] + rounding / 8, f"{channels} channels, {shape}, {name}"
        with torch.no_grad():
            inferred = {"output": fused_mlp(states, parts)}
        assert noise(inferred, {"output": exact["output"]})["output"] < 2 * plain["output"] + rounding / 8


@pytest.mark.parametrize("least", [1, 10**9], ids=["onednn", "own"])
def test_mlp_without_the_last_bias(least, monkeypatch):
    """Without gradients, with those of first order, and with those of second order."""
    monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", least)
    parts, states = mlp(), random_states(3, 5, 7, 16).requires_grad_()
    parts.second = nn.Linear(64, 16, bias=False)
    parameters = [states, *parts.parameters()]
    assert len(parameters) == 4
    with torch.no_grad():
        torch.testing.assert_close(fused_mlp(states, parts), plain_mlp(states, parts), rtol=0, atol=2e-6)
    firsts, seconds = [], []
    for compute in (fused_mlp, plain_mlp):
        loss = compute(states, parts).square().sum()
        firsts.append(torch.autograd.grad(loss, parameters, retain_graph=True))
        recorded = torch.autograd.grad(loss, parameters, create_graph=True)
        seconds.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in recorded), parameters))
    for got, expected in (*zip(*firsts, strict=True), *zip(*seconds, strict=True)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("least", [1, 10**9], ids=["onednn", "own"])
def test_mlp_in_blocks(least, monkeypatch):
    """However many rows are worked on at once, with gradients or without."""
    monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", least)
    parts, states = mlp(), random_states(3, 5, 7, 16)
    grad_output = torch.randn(states.shape)
    expected = results(plain_mlp, parts, states, grad_output)
    for size in (1, 256, 1000, 4096, 2**22):
        monkeypatch.setattr(fused_cpu, "_BLOCK_BYTES", size)
        found = results(fused_mlp, parts, states, grad_output)
        for name, want in expected.items():
            torch.testing.assert_close(found[name], want, rtol=0, atol=2e-6 * max(1, want.abs().max().item()))
        with torch.no_grad():
            torch.testing.assert_close(fused_mlp(states, parts), expected["output"], rtol=0, atol=2e-6)
            assert fused_mlp(states[:0], parts).shape == (0, 5, 7, 16)
        for name, nothing in results(fused_mlp, parts, states[:0], grad_output[:0]).items():
            assert not nothing.any(), name


@every_dtype
def test_gelu_over_the_whole_range(dtype):
    """Tails included: x^2 / 2, rounded to float32, goes into an exponential, so that errors grow like x^2."""
    numbers = torch.cat(
        [torch.linspace(-12.5, 12.5, 20001), torch.logspace(-20, 30, 2001), -torch.logspace(-20, 1, 901)]
    )
    ends = torch.tensor([0.0, -0.0, -20, -1e30, math.inf, -math.inf, math.nan])
    numbers = torch.cat([numbers, ends]).to(dtype).requires_grad_()
    one = mlp(1, dtype)  # with linear layers that change nothing
    one["first"], one["second"] = (nn.Linear(1, 1, dtype=dtype) for _ in range(2))
    for linear in (one["first"], one["second"]):
        nn.init.ones_(linear.weight)
        nn.init.zeros_(linear.bias)
    output = fused_mlp(numbers.view(-1, 1), one).view(-1)
    (slope,) = torch.autograd.grad(output.sum(), numbers)
    x = numbers.detach().double()
    below, density = torch.special.erfc(-x / math.sqrt(2)) / 2, torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    grown = 9 + x.square().clamp(max=1000)
    for got, want, size in ((output, x * below, x * below), (slope, below + x * density, below + x.abs() * density)):
        assert torch.equal(got.isnan(), want.to(dtype).isnan())
        finite = want.to(dtype).isfinite()
        error, allowed = (got.double() - want).abs(), want.abs() * TOLERANCE[dtype][0] + size.abs() * grown * 2**-24
        assert (error <= allowed + torch.finfo(dtype).smallest_normal)[finite].all()
        assert torch.equal(got[~finite & ~got.isnan()].double(), want[~finite & ~got.isnan()])


@trained_kind
@every_dtype
def test_the_number_of_threads_changes_no_bit(kind, dtype, threads):
    make, fused, _ = KINDS[kind]
    module, states = make(20, dtype=dtype), random_states(3, 11, 13, 20, dtype=dtype)
    grad_output = torch.randn(states.shape).to(dtype)
    if kind == "mlp":  # whose products are PyTorch's; there is one number in each sum here
        module = mlp(1, dtype)
        module["first"], module["second"] = (nn.Linear(1, 1, dtype=dtype) for _ in range(2))
        module["second"].requires_grad_(False)
        module["first"].requires_grad_(False)
        states, grad_output = states.view(-1, 1), grad_output.view(-1, 1)

    def run():
        leaf = states.detach().requires_grad_()
        output = fused(leaf, module)
        wanted = [leaf, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
        return output, *torch.autograd.grad(output, wanted, grad_output)

    threads(1)
    expected = run()
    for count in (2, 3, 7, 1):
        threads(count)
        assert all(map(torch.equal, run(), expected))


@trained_kind
def test_states_in_any_memory(kind):
    make, fused, plain = KINDS[kind]
    module, dense = make(), random_states(2, 5, 6, 16)
    for states in (
        dense.transpose(1, 2).contiguous().transpose(1, 2),
        dense.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.cat((dense, dense), -1)[..., 8:24],
        dense[:1].expand(dense.shape),
        dense[:, :1, :1].expand(dense.shape),
        dense[:, ::2, 1::2],
        dense[:0],
    ):
        grad_output = torch.randn(states.shape).transpose(1, 2).contiguous().transpose(1, 2)
        found = results(fused, module, states, grad_output)
        assert_same_bits(found, results(fused, module, states.contiguous(), grad_output.contiguous()))
        assert all(tensor.isfinite().all() for tensor in found.values())
        torch.testing.assert_close(found["output"], plain(states, module), rtol=0, atol=1e-5)


@trained_kind
def test_parameters_in_any_memory(kind):
    make, fused, plain = KINDS[kind]
    module, states = make(), random_states(1, 5, 6, 16)
    for parameter in module.parameters():
        wide = torch.full((*parameter.shape, 2), math.nan)
        wide[..., 0] = parameter.detach()
        parameter.data = wide[..., 0]
        assert not parameter.is_contiguous()
    grad_output = torch.randn(states.shape)
    assert_close(results(fused, module, states, grad_output), exactly(plain, module, states, grad_output), kind)
    with torch.no_grad():
        torch.testing.assert_close(fused(states, module), plain(states, module), rtol=0, atol=1e-5)


@trained_kind
def test_gradients_of_some(kind):
    """Frozen parameters and states get none, and change nothing for the others."""
    make, fused, _ = KINDS[kind]
    module, states, grad_output = make(), random_states(1, 5, 6, 16), torch.randn(1, 5, 6, 16)
    everything = results(fused, module, states, grad_output)
    for name, parameter in module.named_parameters():
        module.requires_grad_(False)
        parameter.requires_grad_()
        (gradient,) = torch.autograd.grad(fused(states, module), parameter, grad_output)
        torch.testing.assert_close(gradient, everything[name], rtol=0, atol=1e-6)
    module.requires_grad_(False)
    assert not fused(states, module).requires_grad
    leaf = states.requires_grad_()
    (gradient,) = torch.autograd.grad(fused(leaf, module), leaf, grad_output)
    torch.testing.assert_close(gradient, everything["states"], rtol=0, atol=1e-6)


@trained_kind
def test_numbers_left_in_memory_do_not_matter(kind):
    """Working memory is not cleared between calls; here it holds NaN from the call before."""
    make, fused, _ = KINDS[kind]
    module, states, grad_output = make(21), random_states(1, 4, 5, 21), torch.randn(1, 4, 5, 21)
    expected = results(fused, module, states, grad_output)
    for _ in range(5):
        assert results(fused, module, states * math.nan, grad_output * math.nan)["states"].isnan().all()
        assert_same_bits(results(fused, module, states, grad_output), expected)


@trained_kind
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_defaults_of_factories_do_not_matter(kind, default):
    make, fused, _ = KINDS[kind]
    module, states, grad_output = make(), random_states(1, 4, 5, 16), torch.randn(1, 4, 5, 16)
    expected = results(fused, module, states, grad_output)
    if default == "meta":
        torch.set_default_device(default)
    else:
        torch.set_default_dtype(default)
    try:
        found = results(fused, module, states, grad_output)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same_bits(found, expected)


@trained_kind
def test_saved_tensors_may_come_back_in_other_memory(kind):
    make, fused, _ = KINDS[kind]
    module, grad_output = make(), torch.randn(2, 5, 6, 16)
    states = random_states(2, 5, 6, 16).transpose(1, 2).contiguous().transpose(1, 2)
    expected = results(fused, module, states, grad_output)
    for unpack in (torch.Tensor.contiguous, lambda t: torch.stack((t, t), -1)[..., 0]):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), unpack):
            found = results(fused, module, states, grad_output)
        for name, want in expected.items():
            torch.testing.assert_close(found[name], want, rtol=0, atol=1e-6)


@trained_kind
@every_dtype
def test_backward_pass_inside_autocast(kind, dtype):
    """Autocast of the backward pass alone changes dtypes of PyTorch's products; they must not reach the library."""
    make, fused, _ = KINDS[kind]
    module, states = make(dtype=dtype), random_states(2, 5, 6, 16, dtype=dtype)
    grad_output = torch.randn(states.shape).to(dtype)
    expected = results(fused, module, states, grad_output)
    leaf = states.detach().requires_grad_()
    output = fused(leaf, module)
    for other in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=other):
            found = torch.autograd.grad(output, [leaf, *module.parameters()], grad_output, retain_graph=True)
        for got, want in zip(found, [expected[name] for name in list(expected)[1:]], strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got, want, rtol=0.05, atol=0.05 * want.abs().max().item())


# Who would notice


def noticed(kind, module, states):
    """Return True if the call is not fused, and runs without an error."""
    fused = KINDS[kind][1]
    with torch.no_grad():
        without_gradients = fused(states, module) is None
    assert (fused(states, module) is None) == (without_gradients or kind == "norm")
    return without_gradients


@every_kind
def test_nobody_notices_the_plain_case(kind):
    make, *_ = KINDS[kind]
    for dtype in TOLERANCE:
        for states in (random_states(2, 4, 4, 16, dtype=dtype), nn.Parameter(random_states(2, 4, 4, 16, dtype=dtype))):
            assert not noticed(kind, make(dtype=dtype).train(), states)
            assert not noticed(kind, make(dtype=dtype).eval(), states)


def forward_hook(module):
    module.register_forward_hook(lambda *_: None)


def forward_pre_hook(module):
    module.register_forward_pre_hook(lambda *_: None)


def full_backward_hook(module):
    module.register_full_backward_hook(lambda *_: None)


def full_backward_pre_hook(module):
    module.register_full_backward_pre_hook(lambda *_: None)


def another_forward(module):
    """As accelerate does."""
    module._old_forward = module.forward
    module.forward = types.MethodType(lambda self, *inputs: self._old_forward(*inputs), module)


def another_class(module):
    """As adapters do."""
    old = type(module)
    module.__class__ = type("Adapted", (old,), {"forward": lambda self, *inputs: old.forward(self, *inputs)})


ATTACHMENTS = (
    forward_hook,
    forward_pre_hook,
    full_backward_hook,
    full_backward_pre_hook,
    another_forward,
    another_class,
)


@every_kind
@pytest.mark.parametrize("attach", ATTACHMENTS, ids=lambda attach: attach.__name__)
def test_what_is_attached_to_any_module_is_noticed(kind, attach):
    make, *_ = KINDS[kind]
    names = [name for name, _ in make().named_modules() if name or kind == "dw_conv"]  # the others' dictionary is ours
    for name in names:
        module = make()
        attach(module.get_submodule(name))
        assert noticed(kind, module, random_states(2, 4, 4, 16)), name


@every_kind
@pytest.mark.parametrize("of", [nn.GELU, nn.LayerNorm, nn.Linear, nn.Conv2d], ids=lambda kind: kind.__name__)
def test_a_forward_replaced_for_a_whole_class_is_noticed(kind, of, monkeypatch):
    """As some accelerators of training do, at any time."""
    module, states = KINDS[kind][0](), random_states(2, 4, 4, 16)
    assert not noticed(kind, module, states)
    old = of.forward
    monkeypatch.setattr(of, "forward", lambda self, *inputs: old(self, *inputs))
    assert noticed(kind, module, states) == any(isinstance(part, of) for part in module.modules())


@every_kind
@pytest.mark.parametrize("of", [nn.GELU, nn.LayerNorm, nn.Linear, nn.Conv2d], ids=lambda kind: kind.__name__)
def test_a_call_replaced_for_a_whole_class_is_noticed(kind, of, monkeypatch):
    module, states = KINDS[kind][0](), random_states(2, 4, 4, 16)
    monkeypatch.setattr(of, "__call__", lambda self, *inputs: nn.Module.__call__(self, *inputs))
    assert noticed(kind, module, states) == any(isinstance(part, of) for part in module.modules())


@every_kind
@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_global_hooks_are_noticed(kind, register):
    module = KINDS[kind][0]()
    handle = register(lambda *_: None)
    try:
        assert noticed(kind, module, random_states(2, 4, 4, 16))
    finally:
        handle.remove()
    assert not noticed(kind, module, random_states(2, 4, 4, 16))


@every_kind
@pytest.mark.parametrize("act", [nn.GELU("tanh"), nn.ReLU(), nn.SiLU(), nn.Identity()], ids=str)
def test_other_activations_are_noticed(kind, act):
    module = KINDS[kind][0]()
    if kind == "dw_conv":
        module[2] = act
    else:
        module["act"] = act
    assert noticed(kind, module, random_states(2, 4, 4, 16))


class Subclassed(torch.Tensor):
    """A tensor of another class."""


@every_kind
@pytest.mark.parametrize("case", ["bfloat16", "float64", "meta", "subclass", "parametrized"])
def test_other_parameters_are_noticed(kind, case):
    """Of each module in turn."""
    make, *_ = KINDS[kind]
    for name, _ in make().named_parameters():
        module = make()
        owner, _, leaf = name.rpartition(".")
        owner, old = module.get_submodule(owner), module.get_parameter(name).detach()
        if case == "parametrized":
            double = type("Double", (nn.Module,), {"forward": lambda self, tensor: tensor.double()})
            nn.utils.parametrize.register_parametrization(owner, leaf, double(), unsafe=True)
        else:
            new = old.as_subclass(Subclassed) if case == "subclass" else old.to(getattr(torch, case, case))
            delattr(owner, leaf)
            setattr(owner, leaf, nn.Parameter(new))
        assert noticed(kind, module, random_states(2, 4, 4, 16)), name


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.append(nn.Dropout()),
        lambda block: block.__delitem__(2),
        lambda block: block[1].insert(1, nn.Dropout(0.5)),
        lambda block: setattr(block[1], "1", nn.BatchNorm2d(16)),
        lambda block: setattr(block[1], "1", nn.LayerNorm(16, elementwise_affine=False)),
        lambda block: setattr(block[1], "1", nn.LayerNorm(16, bias=False)),
        lambda block: setattr(block[1], "1", nn.LayerNorm((4, 16))),
        lambda block: setattr(block[1], "1", nn.LayerNorm(4)),
        lambda block: setattr(block[1], "1", nn.RMSNorm(16)),
        *(
            lambda block, options=options: setattr(block, "0", nn.Conv2d(16, 16, **{"kernel_size": 3, **options}))
            for options in (
                {"padding": 1},
                {"padding": 1, "groups": 4},
                {"groups": 16},
                {"padding": 1, "groups": 16, "bias": False},
                {"padding": 1, "groups": 16, "stride": 2},
                {"padding": 2, "groups": 16, "dilation": 2},
                {"padding": 1, "groups": 16, "padding_mode": "reflect"},
                {"padding": "same", "groups": 16},
                {"padding": 1, "groups": 16, "kernel_size": 2},
                {"padding": (1, 2), "groups": 16, "kernel_size": (3, 5)},
            )
        ),
        lambda block: setattr(block, "0", nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    ],
)
def test_other_dw_convs_are_noticed(change):
    block = dw_conv()
    change(block)
    assert noticed("dw_conv", block, random_states(2, 4, 4, 16))


@pytest.mark.parametrize(
    "change",
    [
        {"drop": nn.Dropout(0.5)},
        {"drop": nn.Identity()},
        {"first": nn.Linear(16, 64, bias=False)},
        {"first": nn.Bilinear(16, 16, 64)},
        {"second": nn.Identity()},
    ],
    ids=str,
)
def test_other_mlps_are_noticed(change):
    parts = mlp()
    parts.update(change)
    assert noticed("mlp", parts, random_states(2, 4, 4, 16))


def test_dropout_that_drops_nothing_is_not_noticed():
    parts = mlp()
    parts["drop"].p = 0.5
    assert not noticed("mlp", parts.eval(), random_states(2, 4, 4, 16))


@every_kind
@pytest.mark.parametrize(
    "context",
    [
        functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        Seen,
        BaseTorchFunctionMode,
        functools.partial(torch.profiler.record_function, "nothing"),
        functools.partial(torch.device, "cpu"),
    ],
    ids=["autocast", "dispatch_mode", "function_mode", "none", "default_device"],
)
def test_contexts_are_noticed(kind, context):
    with context(), torch.no_grad():
        found = KINDS[kind][1](random_states(2, 4, 4, 16), KINDS[kind][0]())
    assert (found is None) == (not isinstance(context(), (torch.profiler.record_function, torch.device)))


class Calls(TorchFunctionMode):
    """Notes the functions that are called."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.functions.append(function)
        return function(*arguments, **(options or {}))


@torch.no_grad()
@pytest.mark.parametrize("outer", [contextlib.nullcontext, functools.partial(torch.device, "cpu")], ids=["", "device"])
@pytest.mark.parametrize("inner", [contextlib.nullcontext, functools.partial(torch.device, "cpu")], ids=["", "device"])
def test_a_function_mode_sees_every_layer_of_a_model(outer, inner):
    model = tiny_model()
    expected = model(images()).logits
    with outer(), Calls() as calls, inner():
        logits = model(images()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    blocks = sum(model.config.depths)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert calls.functions.count(nn.functional.layer_norm) == len(norms)
    assert sum(function is torch.ops.hf_internimage.dcnv3.default for function in calls.functions) == blocks


@every_kind
def test_other_states_and_demands_are_noticed(kind, monkeypatch):
    module, states = KINDS[kind][0](), random_states(2, 4, 4, 16)
    for others in (states.double(), states.bfloat16(), states.to("meta"), states.as_subclass(Subclassed)):
        assert noticed(kind, module, others)
    assert noticed(kind, KINDS[kind][0](dtype=torch.float64), states.double())
    with monkeypatch.context() as patch:
        patch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
        assert noticed(kind, module, states)
        patch.setenv("HF_INTERNIMAGE_BACKEND", "cpu")
        assert not noticed(kind, module, states)
    with monkeypatch.context() as patch:
        patch.setattr(native, "why_not", lambda: "is not there")
        assert noticed(kind, module, states)
    assert not noticed(kind, module, states)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


@every_kind
def test_transforms_are_noticed(kind):
    make, fused, plain = KINDS[kind]
    module, states = make().requires_grad_(False), random_states(2, 4, 4, 16)
    seen = []

    def run(states):
        found = fused(states, module)
        seen.append(found is None)
        return (plain(states, module) if found is None else found).sum()

    torch.func.grad(run)(states)
    torch.vmap(lambda one: run(one[None]))(states)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(states, torch.ones_like(states))
        assert torch.autograd.forward_ad.unpack_dual(run(dual)).tangent is not None
    torch.jit.trace(run, (states,), check_trace=False)
    torch.export.export(Function(run), (states,), strict=False)
    assert seen == [True] * len(seen)
    assert len(seen) >= 4


# Models

OPTIONS = {
    "t": {},
    "odd": {"channels": 20, "mlp_ratio": 1.5},
    "l": {"post_norm": True, "layer_scale": 0.5, "drop_path_rate": 0.5},
    "h": {"dw_kernel_size": 5, "center_feature_scale": True, "res_post_norm": True, "use_clip_projector": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tiny_model(**options):
    return awaken(InternImageForImageClassification(tiny_config(**options))).eval()


def images(batch=2, height=64, width=64):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def gradients(model, pixels=None):
    loss = model(images() if pixels is None else pixels, labels=torch.tensor([1, 4])).loss
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@every_option
def test_models_compute_the_same(options, monkeypatch):
    model = tiny_model(**options)
    with torch.no_grad(), operators_run() as runs:
        logits = model(images()).logits
    assert runs.count("depthwise_norm_gelu") == runs.count("dcnv3") == 5
    assert runs.count("norm") >= 5
    with operators_run() as runs:
        found = gradients(model)
    assert runs.count("depthwise_norm_gelu_backward") == runs.count("gelu_linear_backward") == 5
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    with operators_run() as runs:
        with torch.no_grad():
            expected = model(images()).logits
        wanted = gradients(model)
    assert not runs
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    noise = 1e-7 * max(gradient.abs().max() for gradient in wanted.values()).item()
    for name, gradient in wanted.items():
        atol = 2e-5 * gradient.abs().max().item() + noise
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=lambda t, n=name: f"{n}: {t}")


@every_option
def test_hooks_on_any_one_module_are_called_as_often_as_without_the_library(options, monkeypatch):
    model = tiny_model(**{**options, "depths": [2, 1], "groups": [1, 2], "use_clip_projector": False})
    pixels = images(1, 32, 32)

    def calls():
        counts = {}
        for name, module in model.named_modules():
            counts[name] = 0

            def count(*_, name=name):
                counts[name] += 1

            handle = module.register_forward_hook(count)
            with torch.no_grad():
                model(pixels)
            handle.remove()
        return counts

    with monkeypatch.context() as patch:
        patch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
        expected = calls()
    assert expected["model.levels.0.blocks.0.dcn.dw_conv.1.0"] == 1
    assert calls() == expected


class Halved(nn.Module):
    """Stands for another library's stochastic depth."""

    def forward(self, branch):
        return branch / 2


@torch.no_grad()
def test_another_stochastic_depth_is_noticed(monkeypatch):
    model = tiny_model(**OPTIONS["l"])
    before = model(images()).logits
    for level in model.model.levels:
        for block in level.blocks:
            block.drop_path = Halved()
    logits = model(images()).logits
    assert not torch.allclose(logits, before)
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    torch.testing.assert_close(logits, model(images()).logits, rtol=0, atol=1e-5 * logits.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.0, 0.999999])
def test_stochastic_depth_drops_without_gradients_too(rate):
    model = tiny_model(post_norm=True, drop_path_rate=rate, drop_path_type="uniform").train()
    block = model.model.levels[1].blocks[0]
    states = random_states(2, 4, 4, 32)
    assert torch.equal(block(states), states) == (rate > 0)


@torch.no_grad()
@pytest.mark.parametrize("sampled", [False, True], ids=["all in eval", "only the stochastic depth in training"])
def test_stochastic_depth_decides_for_itself(sampled):
    """Its module is asked, not the block: sampling puts only these modules into training mode."""
    model = tiny_model(post_norm=True, drop_path_rate=0.5, drop_path_type="uniform").eval()
    if sampled:
        for module in model.modules():
            if isinstance(module, InternImageDropPath):
                module.train()
    else:
        model.train()
        for module in model.modules():
            if isinstance(module, (InternImageDropPath, nn.BatchNorm2d)):
                module.eval()
    torch.manual_seed(0)
    first, second = model(images()).logits, model(images()).logits
    assert torch.equal(first, second) == (not sampled)


def test_hooks_on_all_modules_are_called():
    model = tiny_model()
    before, called = model(images()).logits, set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        if ".dcn." in name or ".mlp" in name:
            module.register_full_backward_hook(lambda *_, name=name: called.add(f"{name} backward"))
    logits = model(images()).logits
    torch.testing.assert_close(logits, before, rtol=0, atol=1e-5 * before.abs().max().item())
    logits.sum().backward()
    for name in ("fc1", "act", "fc2"):
        assert {f"model.levels.2.blocks.1.mlp.{name}", f"model.levels.2.blocks.1.mlp.{name} backward"} <= called
    for name in ("", ".0", ".1", ".1.0", ".1.1", ".2"):
        assert f"model.levels.3.blocks.0.dcn.dw_conv{name}" in called


def test_functional_call_uses_the_parameters_given():
    model = tiny_model()
    others = {name: parameter.detach() * 1.5 for name, parameter in model.named_parameters()}
    with torch.no_grad():
        with operators_run() as runs:
            got = torch.func.functional_call(model, others, (images(),)).logits
        assert "depthwise_norm_gelu" in runs
        twin = tiny_model()
        twin.load_state_dict({**twin.state_dict(), **others})
        assert torch.equal(got, twin(images()).logits)
        assert not torch.equal(got, model(images()).logits)
    leaves = {name: parameter.requires_grad_() for name, parameter in others.items()}
    loss = torch.func.functional_call(model, leaves, (images(),), {"labels": torch.tensor([1, 4])}).loss
    wanted = gradients(twin)
    for (name, _), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert torch.equal(gradient, wanted[name]), name


def test_torch_func_grad_of_a_model():
    model = tiny_model(depths=[1, 1], groups=[1, 2])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (images(),), {"labels": torch.tensor([1, 4])}).loss

    found, wanted = torch.func.grad(loss)(parameters), gradients(model)
    largest = max(gradient.abs().max() for gradient in wanted.values()).item()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_next_to_nothing(reentrant):
    """The reentrant kind computes the forward pass without gradients, where more is fused."""
    model = tiny_model().train()
    wanted = gradients(model)
    pixels = images().requires_grad_()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    model(pixels, labels=torch.tensor([1, 4])).loss.backward()
    noise = 1e-7 * max(gradient.abs().max() for gradient in wanted.values()).item()
    for name, parameter in model.named_parameters():
        atol = 2e-5 * wanted[name].abs().max().item() + noise if reentrant else 0
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=atol, msg=lambda t, n=name: f"{n}: {t}")


@trained_kind
def test_checkpoint_of_one_pass(kind):
    make, fused, _ = KINDS[kind]
    module, states = make(), random_states(1, 4, 5, 16).requires_grad_()
    wanted = torch.autograd.grad(fused(states, module).square().sum(), [states, *module.parameters()])
    found = checkpoint(fused, states, module, use_reentrant=False).square().sum()
    assert all(map(torch.equal, torch.autograd.grad(found, [states, *module.parameters()]), wanted))


def test_memory_formats_of_images():
    model = tiny_model()
    pixels = images(2, 50, 70)
    with torch.no_grad():
        expected = model(pixels).logits
        for other in (
            pixels.contiguous(memory_format=torch.channels_last),
            pixels.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat((pixels, pixels), 1)[:, :3],
        ):
            torch.testing.assert_close(model(other).logits, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(pixels).logits, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_the_profiler_sees_the_passes():
    model = tiny_model(depths=[1], groups=[1])
    with operators_run() as runs:
        with torch.no_grad():
            model(images())
        gradients(model)
    forward = {"norm", "gelu", "gelu_linear", "depthwise_norm_gelu", "dcnv3"}
    backward = {"gelu_backward", "gelu_linear_backward", "depthwise_norm_gelu_backward", "dcnv3_backward"}
    assert forward | backward <= set(runs)


# The operators themselves

RULES = {  # of each operator: its arguments, from states, weights of the parts in `dtype`
    "depthwise_norm_gelu": lambda t: (t(2, 5, 6, 16), t(16, 1, 3, 3), t(16), t(16), t(16), 1e-6),
    "depthwise_norm_gelu_backward": lambda t: (
        *(t(2, 5, 6, 16), t(2, 5, 6, 16), t(16, 1, 3, 3), t(16), t(16), t(16)),
        1e-6,
    ),
    "gelu_linear": lambda t: (t(2, 5, 6, 16), t(8, 16), t(8)),
    "gelu_linear_backward": lambda t: (t(2, 5, 6, 8), t(2, 5, 6, 16), t(8, 16)),
    "norm": lambda t: (t(2, 5, 6, 16), t(16), t(16), t(16), t(2, 5, 6, 16), 1e-6, True, True, True),
    "gelu": lambda t: (t(7, 3),),
    "gelu_backward": lambda t: (t(7, 3), t(7, 3), t(7, 3), t(7, 3)),
    "block": lambda t: (
        t(2, 5, 6, 16),
        [t(16, 1, 3, 3), t(16), t(16), t(16)]  # depth-wise convolution with its norm, linear layers, norms
        + [part for rows in (16, 36, 18, 16, 24) for part in (t(rows, 16), t(rows))]
        + [t(16, 24), *(t(16) for _ in range(9))],
        [t(16), t(16)],
        [t(2, 16), t(2)],
        [1e-6] * 5,
        *(2, 3, 1.0, False, False),
    ),
    "linear": lambda t: (t(2, 5, 6, 16), t(8, 16), t(8)),
}
TRACKED = ("depthwise_norm_gelu", "gelu_linear", "linear")


@every_dtype
@pytest.mark.parametrize("name", RULES)
def test_operators_keep_pytorchs_rules(name, dtype):
    if name == "linear" and (dtype != torch.float32 or fused_cpu._LINEAR is None):
        pytest.skip("for float32 where there is oneDNN")
    torch.manual_seed(0)
    arguments = RULES[name](lambda *shape: torch.randn(shape).to(dtype).requires_grad_(name in TRACKED))
    tolerance = {} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2e-2}
    torch.library.opcheck(getattr(torch.ops.hf_internimage, name).default, arguments, **tolerance)


def narrow(tensor):
    return tensor[..., :-1].clone()


@pytest.mark.parametrize(
    "change",
    [narrow, torch.Tensor.double, freed, lambda tensor: tensor[None]],
    ids=["narrow", "double", "freed", "axis"],
)
@pytest.mark.parametrize("name", [name for name in RULES if name != "linear"])
def test_operators_refuse_what_disagrees(name, change):
    """Whatever calls them; PyTorch's own message from the products, else the library's."""
    torch.manual_seed(0)
    good = RULES[name](lambda *shape: torch.randn(shape))
    operator = getattr(torch.ops.hf_internimage, name).default
    tensors = [place for place, part in enumerate(good) if isinstance(part, torch.Tensor)]
    # Nothing to disagree with, or rows in another shape.
    alone = {"gelu": {0}, "gelu_linear": {0, 2}, "gelu_linear_backward": {0, 1}}.get(name, set())
    for place in tensors:
        if place in alone and (name == "gelu" or change not in (narrow, torch.Tensor.double)) and change is not freed:
            continue
        if change is freed and name in ("gelu_linear", "gelu_linear_backward"):
            continue  # PyTorch's products read freed memory; `_are_like` and `saved_operands` stand before them
        bad = [change(part) if at == place else part for at, part in enumerate(good)]
        with pytest.raises((RuntimeError, ValueError)):
            operator(*bad)


@pytest.fixture
def any_size(monkeypatch):
    """Small linear layers, too, run in oneDNN."""
    monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", 1)


@torch.no_grad()
def test_small_linear_layers_are_left_to_pytorch():
    layer = nn.Linear(1024, 1024)
    small, large = torch.randn(28, 1024), torch.randn(29, 1024)
    assert fused_cpu.linear(small, layer) is None
    if fused_cpu._LINEAR is not None:
        torch.testing.assert_close(fused_cpu.linear(large, layer), layer(large), rtol=0, atol=1e-5)


@pytest.mark.skipif(fused_cpu._LINEAR is None, reason="for x86 with oneDNN")
@pytest.mark.usefixtures("any_size")
@torch.no_grad()
def test_linear_layers_equal_their_modules():
    for shape, out in itertools.product(((2, 5, 6, 16), (7, 16), (16,), (1, 1, 1, 16)), (1, 24)):
        layer, states = nn.Linear(16, out), torch.randn(shape)
        found = fused_cpu.linear(states, layer)
        assert found.shape == (*shape[:-1], out)
        torch.testing.assert_close(found, layer(states), rtol=0, atol=2e-6)
    strided = torch.randn(2, 6, 5, 16).transpose(1, 2)
    layer = nn.Linear(16, 24)
    torch.testing.assert_close(fused_cpu.linear(strided, layer), layer(strided), rtol=0, atol=2e-6)


@pytest.mark.skipif(fused_cpu._LINEAR is None, reason="for x86 with oneDNN")
@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias"), ("states", "bias")], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("any_size")
def test_gradients_of_linear_layers_equal_their_modules(bias, frozen):
    """Of first and second order; none is made that nobody needs."""
    torch.manual_seed(0)
    layer, states = nn.Linear(16, 24, bias=bias), torch.randn(2, 5, 6, 16)
    leaves = {"states": states, **dict(layer.named_parameters())}
    wanted = [leaf.requires_grad_(name not in frozen) for name, leaf in leaves.items() if name not in frozen]
    found, expected = fused_cpu.linear(states, layer), layer(states)
    assert found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    gradient = torch.randn_like(found).transpose(1, 2).contiguous().transpose(1, 2)
    for got, right in zip(*(torch.autograd.grad(y, wanted, gradient) for y in (found, expected)), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    if frozen:
        return
    seconds = []
    for compute in (functools.partial(fused_cpu.linear, layer=layer), layer):
        firsts = torch.autograd.grad(compute(states).square().sum(), wanted, create_graph=True)
        seconds.append(torch.autograd.grad(sum(first.square().sum() for first in firsts), wanted))
    for got, right in zip(*seconds, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-2)


@pytest.mark.skipif(fused_cpu._LINEAR is None, reason="for x86 with oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("any_size")
def test_gradients_of_the_linear_operator_in_backward_passes_of_all_kinds(bias):
    """Its own formula, the recorded one and the batched one."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 5, 16), (24, 16), (24,))[: 2 + bias]]
    output = torch.ops.hf_internimage.linear.default(*inputs, *([] if bias else [None]))
    expected = torch.nn.functional.linear(*inputs)
    gradients = torch.randn(3, *output.shape)
    for options, gradient in (
        ({}, gradients[0]),
        ({"create_graph": True}, gradients[0]),
        ({"is_grads_batched": True}, gradients),
    ):
        for got, right in zip(
            *(torch.autograd.grad(y, inputs, gradient, retain_graph=True, **options) for y in (output, expected)),
            strict=True,
        ):
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(fused_cpu._LINEAR is None, reason="for x86 with oneDNN")
@pytest.mark.usefixtures("any_size")
def test_results_of_linear_layers_may_be_changed_in_place():
    """And biases between forward and backward pass, which does not read them, as those of nn.Linear."""
    layer, states = nn.Linear(16, 24), torch.randn(2, 5, 6, 16)
    gradients = []
    for compute in (functools.partial(fused_cpu.linear, layer=layer), layer):
        result = compute(states)
        result *= 2
        with torch.no_grad():
            layer.bias += 1
        gradients.append(torch.autograd.grad(result.sum(), layer.parameters()))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        unrecorded = fused_cpu.linear(states, layer)
    unrecorded += layer.bias
    assert unrecorded.requires_grad


@pytest.mark.parametrize("size", ["small", "large"])
def test_biases_of_an_mlp_may_change_before_its_backward_pass(size, monkeypatch):
    if size == "large":
        monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", 1)
    states, gradients = torch.randn(2, 4, 4, 16), []
    for compute in (fused_mlp, plain_mlp):
        parts = mlp()
        result = compute(states, parts)
        with torch.no_grad():
            parts["first"].bias += 1
            parts["second"].bias += 1
        gradients.append(torch.autograd.grad(result.square().sum(), parts.parameters()))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_backward_of_gelu_writes_only_into_contiguous_memory():
    states = torch.randn(6, 8)
    made, active = torch.full((2, 6, 8), 7.0), torch.full((2, 6, 8), 7.0)
    operator = torch.ops.hf_internimage.gelu_backward.default
    operator(torch.ones(6, 8), states, made[0], active[0])
    torch.testing.assert_close(active[0], torch.nn.functional.gelu(states), rtol=1e-5, atol=1e-6)
    assert (made[1] == 7).all()
    assert (active[1] == 7).all()
    for place in (2, 3):
        arguments = [torch.ones(6, 8), states, torch.empty(6, 8), torch.empty(6, 8)]
        arguments[place] = torch.empty(8, 6).t()
        with pytest.raises(RuntimeError, match="expected it contiguous"):
            operator(*arguments)


@pytest.mark.parametrize("kind", ["linear", "first", "second"])
@pytest.mark.usefixtures("any_size")
@torch.no_grad()
def test_biases_in_any_memory(kind):
    """oneDNN reads a bias as if it had no gaps."""
    states, parts = torch.randn(2, 4, 4, 16), mlp()
    layer = nn.Linear(16, 16) if kind == "linear" else parts[kind]
    for bias in (torch.randn(layer.out_features, 3)[:, 0], torch.randn(1).expand(layer.out_features)):
        layer.bias.data = bias
        if kind == "linear":
            got, expected = fused_cpu.linear(states, layer), layer(states)
        else:
            got, expected = fused_mlp(states, parts), plain_mlp(states, parts)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in RULES if name != "linear"])
def test_refused_calls_keep_no_tensor(name):
    arguments = list(RULES[name](lambda *shape: torch.randn(shape)))
    arguments[0] = arguments[0].long()
    kept = [weakref.ref(part) for part in arguments if isinstance(part, torch.Tensor)]
    with pytest.raises(RuntimeError):
        getattr(torch.ops.hf_internimage, name).default(*arguments)
    del arguments
    gc.collect()
    assert not any(reference() is not None for reference in kept)


@pytest.mark.parametrize("replaced", [nn.Identity(), nn.LayerNorm(16), nn.Dropout(0.5).eval()], ids=str)
@torch.no_grad()
def test_norms_of_another_kind_are_called(replaced, monkeypatch):
    model = tiny_model()
    for block in model.model.levels[0].blocks:
        block.norm1 = replaced
    logits = model(images()).logits
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    torch.testing.assert_close(logits, model(images()).logits, rtol=0, atol=1e-5)


def test_symbolic_traces_hold_the_parts():
    block = tiny_model().model.levels[0].blocks[0]

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return True

    names = [node.name for node in Tracer().trace(block).nodes]
    assert {"norm1", "dcn", "norm2", "mlp"} <= {name.split("_")[0] for name in names} | set(names)


@pytest.mark.usefixtures("any_size")
def test_other_linear_layers_are_noticed():
    layer, states = nn.Linear(16, 24).requires_grad_(False), torch.randn(2, 16)
    assert fused_cpu._LINEAR is None or fused_cpu.linear(states, layer) is not None
    for other, given in (
        (nn.Conv2d(16, 24, 1).requires_grad_(False), states),
        (copy.deepcopy(layer).bfloat16(), states.bfloat16()),
        (copy.deepcopy(layer).double(), states.double()),
        (nn.Linear(8, 24).requires_grad_(False), states),
        (layer, states[:0]),
    ):
        assert fused_cpu.linear(given, other) is None, (other, given.shape)
    with torch.autocast("cpu"):
        assert fused_cpu.linear(states, layer) is None
    layer.register_forward_hook(lambda *_: None)
    assert fused_cpu.linear(states, layer) is None


@pytest.mark.parametrize("options", [{}, OPTIONS["l"]], ids=["t", "l"])
def test_a_compiled_model_holds_the_operators(options):
    """In one graph, and its gradients are those of the eager model."""
    model = tiny_model(**options, depths=[1], groups=[1])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(images()).logits
        torch.testing.assert_close(compiled(images()).logits, expected, rtol=0, atol=1e-5)
        with operators_run() as runs:
            compiled(images())
    assert [runs.count(name) for name in ("block", "depthwise_norm_gelu", "dcnv3")] == [1, 1, 1]
    wanted, found = gradients(model), gradients(compiled)
    largest = max(gradient.abs().max() for gradient in wanted.values()).item()
    for name, gradient in wanted.items():
        got = found[f"_orig_mod.{name}"]
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-6 * largest, msg=lambda t, n=name: f"{n}: {t}")


def test_hooks_are_called_in_compiled_models():
    model = tiny_model()
    seen = []
    model.model.levels[0].blocks[0].mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(images()).logits
        seen.clear()
        got = torch.compile(model, backend="eager")(images()).logits
    assert seen
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
