# SPDX-License-Identifier: MIT
"""The compiled CPU backend against the PyTorch backend, how calls get to a backend, and the registered operator."""

import contextlib
import functools
import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.golden_data import awaken, tiny_config
from support.native_library import operators_run
from support.operator_cases import (
    DEPTHS,
    LAYOUTS,
    LOPSIDED,
    PLAIN,
    SHAPES,
    TOLERANCE,
    Seen,
    assert_close,
    assert_same_bits,
    exactly,
    in_strided_memory,
    in_transposed_memory,
    make_inputs,
    on_cpu,
    on_torch,
    results,
)
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hf_internimage import InternImageModel
from hf_internimage.ops import dcnv3, fused_cpu, native

module = sys.modules["hf_internimage.ops.dcnv3"]
operator, backward_operator = torch.ops.hf_internimage.dcnv3, torch.ops.hf_internimage.dcnv3_backward
DEMAND = [(), ("torch",), ("cpu",)]  # the last argument of an operator that demands a backend
needs_library = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")

every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@needs_library
@every_dtype
@pytest.mark.usefixtures("nan_memory")
def test_cpu_equals_exact_arithmetic(dtype, instruction_set):
    """Every number of channels has its own mixture of whole vectors, shorter ones and single numbers."""
    seen = set()
    for (i, (depth, groups)), (j, (arguments, size)), softmax in itertools.product(
        enumerate(itertools.product(DEPTHS, (1, 3))), enumerate(SHAPES), (False, True)
    ):
        batch, wide = (i + j) % 3, dtype.itemsize == 2 and (i + j + softmax) % 2
        arguments = arguments | {"groups": groups, "softmax": softmax}
        inputs = make_inputs({k: v for k, v in arguments.items() if k != "softmax"}, batch, size, depth, dtype)
        if wide:
            inputs[1:] = [tensor.float() for tensor in inputs[1:]]
        grad_output = torch.randn(*inputs[1].shape[:3], groups * depth).to(dtype)
        found = results(on_cpu, inputs, grad_output, **arguments)
        case = f"depth {depth}, groups {groups}, batch {batch}, size {size}, {arguments}"
        assert found[0].dtype == dtype
        assert [gradient.dtype for gradient in found[1:]] == [tensor.dtype for tensor in inputs]
        assert_close(found, exactly(inputs, grad_output, **arguments), case)
        seen.add((j, batch))
    assert len(seen) == len(SHAPES) * 3


@needs_library
@every_dtype
def test_a_large_image_in_many_pieces(dtype, threads):
    threads(3)
    inputs = make_inputs(PLAIN, 1, (41, 67), 16, dtype, spread=9)
    grad_output = torch.randn(1, 41, 67, 32).to(dtype)
    found = results(on_cpu, inputs, grad_output, **PLAIN, softmax=True)
    assert_close(found, exactly(inputs, grad_output, **PLAIN, softmax=True), side=67)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("nan_memory")
def test_any_strides(dcnv3, dtype, layout):
    """Each input in turn, then all, then the gradient of the output."""
    inputs = make_inputs(LOPSIDED, depth=5, dtype=dtype)
    grad_output = torch.randn(*inputs[1].shape[:3], 10).to(dtype)
    for changed in ((0,), (1,), (2,), (0, 1, 2)):
        strided = [layout(tensor) if index in changed else tensor for index, tensor in enumerate(inputs)]
        dense = [tensor.contiguous() for tensor in strided]
        found = results(dcnv3, strided, grad_output, **LOPSIDED, softmax=True)
        assert_same_bits(found, results(dcnv3, dense, grad_output, **LOPSIDED, softmax=True))
        assert_close(found, exactly(dense, grad_output, **LOPSIDED, softmax=True), str(changed))
    strided = layout(grad_output)
    assert not strided.is_contiguous()
    found = results(dcnv3, inputs, strided, **LOPSIDED)
    assert_same_bits(found, results(dcnv3, inputs, strided.contiguous(), **LOPSIDED))


def test_offsets_and_masks_cut_from_one_tensor(dcnv3):
    """As a fused linear layer gives them."""
    value, offset, mask = make_inputs(LOPSIDED, depth=4)
    both = torch.cat((offset, mask), -1)
    found = results(dcnv3, [value, *both.split([offset.shape[3], mask.shape[3]], -1)], **LOPSIDED)
    assert_same_bits(found, results(dcnv3, [value, offset, mask], **LOPSIDED))


def test_gradients_are_dense_also_for_expanded_gradients(dcnv3):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]
    output = dcnv3(*inputs, **LOPSIDED)
    found = torch.autograd.grad(output.sum(), inputs, retain_graph=True)  # hands down an expanded 1
    assert all(gradient.is_contiguous() for gradient in found)
    assert_same_bits(found, torch.autograd.grad(output, inputs, torch.ones_like(output)))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.usefixtures("nan_memory")
def test_images_without_pixels(dcnv3, size, threads):
    """Padding alone makes outputs; all that is read is zero."""
    threads(4)
    arguments = PLAIN | {"kernel_size": 1}
    inputs = make_inputs(arguments, 2, size)
    for inside in (inputs, [inputs[0], -inputs[1], inputs[2]]):
        for tensor in results(dcnv3, inside, **arguments, softmax=True):
            assert (tensor == 0).all()


def test_no_channels(dcnv3):
    with pytest.raises(ValueError, match="value has 0 channels"):
        dcnv3(*make_inputs(PLAIN, depth=0), **PLAIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_mask_logits_that_are_no_numbers_do_as_in_torch_softmax(dcnv3, bad, dtype):
    value, offset, logits = make_inputs(LOPSIDED, dtype=dtype)
    offset = torch.zeros_like(offset) + 0.25
    for place in (0, 5, 9):
        logits[0, 1, 2, place] = bad  # one group each of one, two and one pixels
        logits[1, 0, place % 4] = -math.inf  # nothing but -inf is NaN, too
    mask = logits.double().unflatten(-1, (2, 6)).softmax(-1).flatten(-2)
    got = dcnv3(value, offset, logits, **LOPSIDED, softmax=True)
    expected = on_torch(value.double(), offset.double(), mask, **LOPSIDED)
    assert expected.isnan().any()
    assert expected.isfinite().any()
    assert torch.equal(got.isnan(), expected.isnan())
    of_itself, of_largest = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=of_itself, atol=of_largest * 4, equal_nan=True)


def test_extreme_mask_logits(dcnv3):
    """Far apart, large and small: no overflow, and zeros where torch.softmax has them."""
    value, offset, _ = make_inputs(LOPSIDED, dtype=torch.float32)
    shape = (*offset.shape[:3], offset.shape[3] // 2)
    for low, high in ((-1e30, 1e30), (-200.0, 200.0), (1e38, 2e38), (-3e38, -2e38), (-90.0, -1.0)):
        logits = torch.rand(shape) * (high - low) + low
        found = results(dcnv3, [value, offset, logits], **LOPSIDED, softmax=True)
        assert_close(found, exactly([value, offset, logits], **LOPSIDED, softmax=True), f"{low} to {high}")


@needs_library
@every_dtype
@pytest.mark.parametrize("batch", [1, 5])
def test_the_number_of_threads_changes_no_bit(dtype, batch, threads):
    """One image of three groups has fewer parts than threads, which then share the image's lines."""
    arguments = PLAIN | {"groups": 3, "softmax": True}
    inputs = make_inputs(PLAIN | {"groups": 3}, batch, (11, 13), 7, dtype, spread=4)
    grad_output = torch.randn(batch, 11, 13, 21).to(dtype)
    threads(1)
    expected = results(on_cpu, inputs, grad_output, **arguments)
    for count in (2, 3, 7, 1):
        threads(count)
        assert_same_bits(results(on_cpu, inputs, grad_output, **arguments), expected)


@needs_library
def test_python_threads_at_once(threads):
    """One plan serves them all."""
    threads(2)
    inputs = [make_inputs(PLAIN, 2, (9, 8), 16, torch.float32, seed=seed) for seed in range(4)]
    expected = [results(on_cpu, some, **PLAIN) for some in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda some: results(on_cpu, some, **PLAIN), inputs))
            for got, want in zip(found, expected, strict=True):
                assert_same_bits(got, want)


@needs_library
def test_what_autograd_keeps(nan_memory):
    """The three inputs, nothing else; what hooks give back instead (here in other memory) is read right."""
    inputs = [in_transposed_memory(tensor).requires_grad_() for tensor in make_inputs(LOPSIDED, depth=4)]
    expected = torch.autograd.grad(on_cpu(*inputs, **LOPSIDED).sum(), inputs)
    saved = []

    def dense(tensor):
        saved.append(tensor.data_ptr())
        return tensor.contiguous()

    with torch.autograd.graph.saved_tensors_hooks(dense, lambda tensor: tensor):
        output = on_cpu(*inputs, **LOPSIDED)
    assert saved == [tensor.data_ptr() for tensor in inputs]
    assert_same_bits(torch.autograd.grad(output.sum(), inputs), expected)


def test_negated_views(dcnv3):
    """The imaginary part of a conjugate is a view whose sign PyTorch keeps in mind."""
    arguments = PLAIN | {"groups": 1, "kernel_size": 1, "padding": 0}
    inputs = make_inputs(arguments, depth=1)
    grad_output = torch.randn(2, 7, 6, 1, dtype=torch.float64)
    expected = results(dcnv3, inputs, grad_output, **arguments)
    *negated, negated_grad = [torch.complex(t, -t).conj().imag for t in (*inputs, grad_output)]
    assert all(tensor.is_neg() for tensor in negated)
    assert_same_bits(results(dcnv3, negated, negated_grad, **arguments), expected)


def test_gradients_of_another_dtype_are_cast(dcnv3):
    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    grad_output = torch.randn(*inputs[1].shape[:3], 6)
    found = results(dcnv3, inputs, grad_output.double(), **LOPSIDED)
    assert_same_bits(found, results(dcnv3, inputs, grad_output, **LOPSIDED))


@every_dtype
def test_backward_pass_inside_autocast(dcnv3, dtype):
    for arguments, size in ((PLAIN, (7, 6)), (PLAIN | {"kernel_size": 5, "padding": 2}, (1, 2))):
        inputs = [tensor.requires_grad_() for tensor in make_inputs(arguments, 1, size, 3, dtype)]
        output = dcnv3(*inputs, **arguments)
        grad_output = torch.randn(output.shape).to(dtype)
        expected = torch.autograd.grad(output, inputs, grad_output, retain_graph=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same_bits(torch.autograd.grad(output, inputs, grad_output), expected)


@pytest.mark.parametrize("context", ["dtype", "device"])
def test_defaults_of_factories_do_not_matter(dcnv3, context):
    """torch.set_default_dtype and torch.device speak to those who ask for new tensors, not to the operator."""
    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    expected = results(dcnv3, inputs, torch.ones(2, 3, 5, 6), **LOPSIDED)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    if context == "dtype":
        torch.set_default_dtype(torch.bfloat16)
    else:
        torch.set_default_device("meta")
    try:
        output = dcnv3(*leaves, **LOPSIDED)
        output.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same_bits((output, *(tensor.grad for tensor in leaves)), expected)


# Arguments


@pytest.fixture
def checked(monkeypatch):
    """The arguments that were checked, none at first."""
    monkeypatch.setattr(module, "_checked_numbers", {})
    return module._checked_numbers


@needs_library
def test_calls_that_follow_each_other_are_told_apart(checked):
    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    for some, arguments, count in (
        (inputs, {}, 1),
        (inputs, {"softmax": True}, 1),
        (inputs, {"backend": "cpu"}, 1),
        ([tensor.double() for tensor in inputs], {}, 1),
        ([in_strided_memory(tensor) for tensor in inputs], {}, 1),
        ([tensor[:1] for tensor in inputs], {}, 1),
        (inputs, {"offset_scale": 1.25}, 2),
        (inputs, {"dilation": 1, "padding": 0}, 3),
    ):
        arguments = LOPSIDED | arguments
        assert module._checked_numbers is checked
        first = dcnv3(*some, **arguments)
        assert torch.equal(dcnv3(*some, **arguments), first)
        assert len(checked) == count
        assert_close([first], exactly(some, **arguments | {"backend": "torch"})[:1])


@needs_library
def test_arguments_do_not_pile_up(checked, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PLANS", 3)
    inputs = make_inputs(PLAIN)
    for scale in range(1, 10):
        dcnv3(*inputs, **PLAIN | {"offset_scale": scale})
        assert 1 <= len(checked) <= 3


@needs_library
@pytest.mark.parametrize(
    "change",
    [
        {"groups": True},
        {"groups": 1.0},
        {"stride": 1.0},
        {"stride": (1.0, 1)},
        {"stride": (True, 1)},
        {"kernel_size": (3, 3.0)},
        {"padding": [[1], 1]},
        {"dilation": {1}},
        {"offset_scale": math.nan},
    ],
    ids=str,
)
def test_a_good_call_lets_no_bad_one_pass(checked, change):
    """Arguments that only compare equal to good ones are refused after a good call, too."""
    inputs = make_inputs(PLAIN | {"groups": 1}, dtype=torch.float32)
    good = PLAIN | {"groups": 1}
    dcnv3(*inputs, **good)
    dcnv3(*inputs, **good | {"stride": (1, 1), "kernel_size": (3, 3), "padding": (1, 1)})
    with pytest.raises(ValueError, match=next(iter(change))):
        dcnv3(*inputs, **good | change)


class Wrapped(torch.Tensor):
    """A tensor of another class."""


@needs_library
def test_everybody_goes_through_the_operator():
    inputs = make_inputs(LOPSIDED)
    with operators_run() as runs:
        expected = dcnv3(*inputs, **LOPSIDED)
    assert runs == ["dcnv3"]
    assert torch.equal(dcnv3(nn.Parameter(inputs[0]), *inputs[1:], **LOPSIDED), expected)
    wrapped = dcnv3(inputs[0].as_subclass(Wrapped), *inputs[1:], **LOPSIDED)
    assert isinstance(wrapped, Wrapped)
    assert torch.equal(wrapped.as_subclass(torch.Tensor), expected)
    with Seen() as seen:
        watched = dcnv3(*inputs, **LOPSIDED)
    assert torch.equal(watched, expected)
    assert seen.names == ["hf_internimage.dcnv3.default"]
    assert torch.equal(torch.ops.hf_internimage.dcnv3(*direct(inputs, LOPSIDED)), expected)
    meta = dcnv3(*(tensor.to("meta") for tensor in inputs), **LOPSIDED)
    assert meta.is_meta
    assert meta.shape == expected.shape


# The registered operator


def ours(graph):
    """The nodes of our operators in a graph, by name."""
    return [str(node.target) for node in graph.nodes if "hf_internimage" in str(node.target)]


def form(packet, backend):
    """The form of an operator that demands a backend, or the one that does not."""
    return packet.backend if backend else packet.default


def direct(inputs, arguments, softmax=False):
    """The arguments of the registered operator."""
    geometry = module.check_dcnv3(*inputs, **arguments)
    return (*inputs, *geometry.numbers(), softmax)


@pytest.mark.parametrize("softmax", [False, True], ids=["weights", "logits"])
@pytest.mark.parametrize("backend", DEMAND, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck itself
def test_operator_keeps_pytorchs_rules(dtype, backend, softmax):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED, dtype=dtype)]
    tolerance = {"rtol": 2**-7, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.library.opcheck(form(operator, backend), (*direct(inputs, LOPSIDED, softmax), *backend), **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("backend", DEMAND, ids=str)
def test_fake_results_have_the_strides_of_real_ones(backend, layout):
    inputs = [layout(tensor) for tensor in make_inputs(LOPSIDED, depth=4)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(form(operator, backend), (*direct(inputs, LOPSIDED), *backend), test_utils=tests)
    grad_output = layout(torch.randn(2, 3, 5, 8, dtype=torch.float64))
    arguments = (grad_output, *direct(inputs, LOPSIDED), *backend)
    torch.library.opcheck(form(backward_operator, backend), arguments, test_utils=tests)


@every_dtype
def test_operator_equals_the_function(dtype):
    inputs = make_inputs(LOPSIDED, dtype=dtype)
    grad_output = torch.randn(2, 3, 5, 6).to(dtype)
    for softmax in (False, True):
        expected = results(dcnv3, inputs, grad_output, **LOPSIDED, softmax=softmax)
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = operator(*direct(leaves, LOPSIDED, softmax))
        assert_same_bits((output, *torch.autograd.grad(output, leaves, grad_output)), expected)


def test_backward_operator_refuses_gradients_of_its_own():
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]
    gradients = backward_operator(torch.randn(2, 3, 5, 6).double(), *direct(inputs, LOPSIDED))
    with pytest.raises(NotImplementedError, match="dcnv3_backward has no gradients"):
        gradients[0].sum().backward()


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, lambda value: value[0]),
        (0, lambda value: value[..., 1:]),
        (0, lambda value: value[:1]),
        (0, lambda value: value.long()),
        (0, lambda value: value[:, :0, :0]),
        (1, lambda offset: offset[..., 2:]),
        (1, lambda offset: offset[:, 1:]),
        (1, lambda offset: offset.half()),
        (2, lambda mask: mask[:, :, 1:]),
        (2, lambda mask: mask.to("meta")),
        (3, lambda groups: 0),
        (3, lambda groups: 4),
        (4, lambda kernel: 0),
        (4, lambda kernel: 2**31),
        (5, lambda kernel: 3),
        (6, lambda stride: 0),
        (7, lambda stride: 9),
        (8, lambda padding: -1),
        (11, lambda dilation: 9),
        (12, lambda scale: math.nan),
        (13, lambda remove_center: True),
    ],
)
def test_operator_called_with_what_cannot_work(index, change):
    good = direct(make_inputs(LOPSIDED), LOPSIDED)
    bad = [change(part) if place == index else part for place, part in enumerate(good)]
    with pytest.raises((ValueError, RuntimeError), match=r"expected"):
        operator(*bad)
    with pytest.raises((ValueError, RuntimeError), match=r"expected"):
        backward_operator(torch.randn(2, 3, 5, 6, dtype=torch.float64), *bad)


@pytest.mark.parametrize(
    "bad",
    [torch.randn(1), torch.randn(2, 3, 5, 5).double(), torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6).to("meta")],
    ids=["short", "narrow", "float32", "meta"],
)
def test_backward_operator_called_with_a_gradient_that_cannot_be(bad):
    with pytest.raises((ValueError, RuntimeError), match="grad_output"):
        backward_operator(bad, *direct(make_inputs(LOPSIDED), LOPSIDED))


def test_operator_called_with_an_unknown_backend():
    with pytest.raises(ValueError, match="backend is 'tpu'"):
        operator(*direct(make_inputs(LOPSIDED), LOPSIDED), "tpu")


class Layer(nn.Module):
    """An operator with its linear layers."""

    def __init__(self, backend=None):
        super().__init__()
        torch.manual_seed(0)
        self.offset, self.mask = nn.Linear(8, 36), nn.Linear(8, 18)
        self.backend = backend

    def forward(self, states):
        offset, mask = self.offset(states), self.mask(states)
        return dcnv3(states, offset, mask, groups=2, softmax=True, backend=self.backend)


def graph_keeper():
    """A compiler for torch.compile that runs what it gets as it is, and the list of the graphs that it got."""
    graphs = []

    def keep(graph_module, _):
        graphs.append(graph_module.graph)
        return make_boxed_func(graph_module.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep), graphs


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@every_dtype
def test_compiled_graphs_hold_one_node_each_way(dtype, dynamic):
    layer = Layer().to(dtype)
    compiler, graphs = graph_keeper()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler, dynamic=dynamic)
    for shape in ((2, 6, 5, 8), (3, 4, 7, 8)):
        states = torch.randn(shape).to(dtype).requires_grad_()
        expected, got = layer(states), compiled(states)
        assert_same_bits([got], [expected])
        wanted = torch.autograd.grad(expected.sum(), [states, *layer.parameters()])
        assert_same_bits(torch.autograd.grad(got.sum(), [states, *layer.parameters()]), wanted)
    assert len(graphs) == (2 if dynamic else 4)
    for forward, backward in zip(graphs[::2], graphs[1::2], strict=True):
        assert ours(forward) == ["hf_internimage.dcnv3.default"]
        assert ours(backward) == ["hf_internimage.dcnv3_backward.default"]


@pytest.mark.slow
def test_compiled_by_inductor():
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True)
    states = torch.randn(2, 6, 5, 8, requires_grad=True)
    expected, got = layer(states), compiled(states)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    wanted = torch.autograd.grad(expected.sum(), [states, *layer.parameters()])
    for a, b in zip(torch.autograd.grad(got.sum(), [states, *layer.parameters()]), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("demand", ["argument", "environment"])
def test_compiled_with_the_torch_backend_there_is_no_node_of_ours(demand, monkeypatch):
    if demand == "environment":
        monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    layer = Layer("torch" if demand == "argument" else None)
    compiler, graphs = graph_keeper()
    states = torch.randn(2, 6, 5, 8, requires_grad=True)
    got = torch.compile(layer, fullgraph=True, backend=compiler)(states)
    got.sum().backward()
    assert len(graphs) == 2
    assert not any(map(ours, graphs))
    torch.testing.assert_close(got, layer(states), rtol=0, atol=1e-6)


def exported(model, states):
    side = torch.export.Dim.DYNAMIC
    return torch.export.export(model, (states,), dynamic_shapes=({0: side, 1: side, 2: side},))


def test_export_sees_one_node_with_dynamic_sizes(tmp_path):
    layer = Layer()
    program = exported(layer, torch.randn(2, 6, 5, 8))
    assert ours(program.graph) == ["hf_internimage.dcnv3.default"]
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for shape in ((2, 6, 5, 8), (3, 9, 11, 8), (1, 2, 3, 8)):
        states = torch.randn(shape)
        assert torch.equal(loaded(states), layer(states))
    trained = torch.randn(3, 4, 5, 8, requires_grad=True)
    got = torch.autograd.grad(loaded(trained).sum(), trained)
    assert_same_bits(got, torch.autograd.grad(layer(trained).sum(), trained))


@pytest.mark.parametrize("demand", ["argument", "environment"])
def test_exported_with_the_torch_backend_there_is_no_node_of_ours(demand, monkeypatch):
    layer = Layer("torch" if demand == "argument" else None)
    with monkeypatch.context() as patch:
        if demand == "environment":
            patch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
        program = exported(layer, torch.randn(2, 6, 5, 8))
    assert not ours(program.graph)
    states = torch.randn(3, 9, 11, 8)
    torch.testing.assert_close(program.module()(states), layer(states), rtol=0, atol=1e-6)


def test_a_model_is_exported_and_compiled_with_one_node_for_each_block():
    model = awaken(InternImageModel(tiny_config(depths=[1, 2], groups=[1, 2]))).eval()
    pixels = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (pixels,))
    assert ours(program.graph) == ["hf_internimage.dcnv3.default"] * 3
    compiler, graphs = graph_keeper()
    torch.compile(model, fullgraph=True, backend=compiler)(pixels).pooler_output.sum().backward()
    layers = ["depthwise_norm_gelu", "dcnv3", "gelu_linear"] if native.why_not() is None else ["dcnv3"]
    forward, backward = ([name.split(".")[1] for name in ours(graph)] for graph in graphs)
    linear = 5 * 3 if "gelu_linear" in layers and fused_cpu._LINEAR is not None else 0  # beside the MLP's second one
    assert forward.count("linear") == backward.count("linear") == linear
    forward, backward = ([name for name in names if name != "linear"] for names in (forward, backward))
    assert forward == layers * 3
    assert backward == [f"{name}_backward" for name in reversed(layers)] * 3


# Autocast


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_the_value_and_leaves_float32_offsets(dcnv3, dtype, compiled):
    call = functools.partial(dcnv3, **LOPSIDED)
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    value, offset, mask = make_inputs(LOPSIDED, dtype=torch.float32)
    expected = results(dcnv3, [value.to(dtype), offset, mask], **LOPSIDED)
    leaves = [tensor.requires_grad_() for tensor in (value, offset, mask)]
    with torch.autocast("cpu", dtype=dtype):
        output = call(*leaves)
    assert output.dtype == dtype
    assert torch.equal(output, expected[0])
    assert not torch.equal(output, dcnv3(*(tensor.to(dtype) for tensor in leaves), **LOPSIDED))
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    torch.testing.assert_close(gradients, tuple(tensor.float() for tensor in expected[1:]), rtol=1e-6, atol=1e-6)


def test_autocast_takes_offsets_of_any_dtype(dcnv3):
    value, offset, mask = make_inputs(LOPSIDED, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dcnv3(value, offset, mask.bfloat16(), **LOPSIDED)
    assert torch.equal(output, dcnv3(value.bfloat16(), offset.float(), mask.bfloat16(), **LOPSIDED))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_leaves_float64(dcnv3, compiled):
    inputs = make_inputs(LOPSIDED)
    call = functools.partial(dcnv3, **LOPSIDED)
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = call(*inputs)
    assert torch.equal(output, dcnv3(*inputs, **LOPSIDED))


def test_wrong_tensors_under_autocast(dcnv3):
    value, offset, mask = make_inputs(LOPSIDED, dtype=torch.float32)
    with torch.autocast("cpu"):
        for bad in ((value.numpy(), offset, mask), (value, offset.numpy(), mask), (value, offset, mask.long())):
            with pytest.raises(ValueError, match="expected"):
                dcnv3(*bad, **LOPSIDED)


# Transforms, modes, checkpoints


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_and_grad(dcnv3):
    inputs = make_inputs(LOPSIDED, batch=3)
    call = functools.partial(dcnv3, **LOPSIDED)
    expected = call(*inputs)
    mapped = torch.vmap(lambda *some: call(*(tensor[None] for tensor in some))[0])(*inputs)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-13)
    gradients = torch.func.grad(lambda *some: call(*some).square().sum(), argnums=(0, 1, 2))(*inputs)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    wanted = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    torch.testing.assert_close(gradients, wanted, rtol=0, atol=1e-12)
    per_sample = torch.vmap(torch.func.grad(lambda *some: call(*(t[None] for t in some)).square().sum()))(*inputs)
    torch.testing.assert_close(per_sample, wanted[0], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_compiled_transforms(dcnv3, transform):
    inputs = make_inputs(LOPSIDED, batch=3)
    call = functools.partial(dcnv3, **LOPSIDED)
    if transform == "grad":
        changed = torch.func.grad(lambda *some: call(*some).square().sum())
    else:
        changed = torch.vmap(lambda *some: call(*(tensor[None] for tensor in some))[0])
    compiled = torch.compile(changed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), changed(*inputs), rtol=0, atol=1e-12)


def test_jit_trace(dcnv3):
    inputs = make_inputs(LOPSIDED)
    traced = torch.jit.trace(lambda *some: dcnv3(*some, **LOPSIDED), inputs)
    others = make_inputs(LOPSIDED, seed=1)
    torch.testing.assert_close(traced(*others), dcnv3(*others, **LOPSIDED), rtol=0, atol=1e-12)


def test_modes_see_both_ways():
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]
    with Seen() as seen:
        dcnv3(*inputs, **LOPSIDED).sum().backward()
    assert [name for name in seen.names if "hf_internimage" in name] == [
        "hf_internimage.dcnv3.default",
        "hf_internimage.dcnv3_backward.default",
    ]
    assert not any("embedding_bag" in name for name in seen.names)


@needs_library
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE], ids=str)
def test_selective_checkpoints(policy):
    """A policy can name the operator; its result is then kept and not computed again."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]

    def block(*some):
        return dcnv3(*some, **LOPSIDED).square().sum()

    wanted = torch.autograd.grad(block(*inputs), inputs)
    asked = []

    def decide(context, function, *args, **kwargs):
        asked.append(str(function))
        return policy if function is operator.default else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, decide)
    with operators_run() as runs:
        found = torch.autograd.grad(checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts), inputs)
    assert_same_bits(found, wanted)
    assert "hf_internimage.dcnv3.default" in asked
    # Each call is seen twice, above and below the policy; a result that was kept is not computed again.
    calls = 3 if policy == CheckpointPolicy.MUST_SAVE else 4
    assert [runs.count(name) for name in ("dcnv3", "dcnv3_backward")] == [calls, 1]


@needs_library
@pytest.mark.parametrize("way", ["eager", "operator"])
def test_the_profiler_sees_the_kernels(way):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]
    context = Seen() if way == "operator" else contextlib.nullcontext()
    with operators_run() as runs, context:
        dcnv3(*inputs, **LOPSIDED).sum().backward()
    assert {"dcnv3", "dcnv3_backward"} <= set(runs)
