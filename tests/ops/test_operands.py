# SPDX-License-Identifier: MIT
"""What reaches native code is what the call was planned for: tensors that hooks or owners have changed are refused."""

import importlib
import itertools

import pytest
import torch
from support.changed_tensors import CHANGES, changed_saved_tensor, freed
from support.fused_layers import KINDS
from support.operator_cases import PLAIN, make_inputs
from torch import nn

from hf_internimage.ops import native
from hf_internimage.ops.backends.dcnv3_call import CheckedPlan
from hf_internimage.ops.dcnv3 import DCNV3, check_dcnv3, dcnv3
from hf_internimage.ops.operands import Operand

needs_library = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")


every_change = pytest.mark.parametrize("change", CHANGES)


@needs_library
@every_change
@pytest.mark.parametrize("position", range(3), ids=["value", "offset", "mask"])
def test_the_operator_refuses_changed_saved_tensors(position, change):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(PLAIN, dtype=torch.float32)]
    with changed_saved_tensor(position, change):
        output = dcnv3(*inputs, **PLAIN, softmax=True, backend="cpu")
    with pytest.raises(RuntimeError, match="hooks for saved tensors must return what they were given"):
        output.sum().backward()


@needs_library
@every_change
@pytest.mark.parametrize(("kind", "count"), [("dw_conv", 5), ("mlp", 2)])
def test_fused_layers_refuse_changed_saved_tensors(kind, count, change):
    make, fused, _ = KINDS[kind]
    module, states = make(), torch.randn(2, 5, 6, 16, requires_grad=True)
    refused = 0
    for position in range(count + 2):  # the first linear layer of the mlp saves two tensors of its own
        with changed_saved_tensor(position, change):
            output = fused(states, module)
        try:
            output.sum().backward()
        except RuntimeError as error:
            refused += "hooks for saved tensors must return" in str(error)
        except NotImplementedError:
            pass  # PyTorch's own, from the linear layer
    # A vector's only "image" or flat form is itself or a shorter vector; flat ones of one axis are unchanged.
    unchanged = {"flat": {"dw_conv": 3}}.get(change, {}).get(kind, 0)
    assert refused == count - unchanged


class OnCPU:
    """The operator, whose kernel looks at the tensors itself, in the place of a plan."""

    def __init__(self, geometry):
        self.arguments = (*geometry.numbers(), False)

    def forward(self, value, offset, mask):
        return torch.ops.hf_internimage.dcnv3(value, offset, mask, *self.arguments)

    def backward(self, grad_output, value, offset, mask):
        return torch.ops.hf_internimage.dcnv3_backward(grad_output, value, offset, mask, *self.arguments)


@needs_library
@pytest.mark.parametrize("part", ["value", "offset", "mask"])
def test_plans_refuse_tensors_of_other_calls(part):
    """At the last moment, whoever calls."""
    inputs = dict(zip(("value", "offset", "mask"), make_inputs(PLAIN, dtype=torch.float32), strict=True))
    geometry = check_dcnv3(**inputs, **PLAIN)
    for name in ("cpu", "torch"):
        plan = OnCPU(geometry) if name == "cpu" else DCNV3.backends[name].load().Plan(geometry, False, *inputs.values())
        output = plan.forward(**inputs)
        for change in (torch.Tensor.double, lambda tensor: tensor[:, 1:], lambda tensor: tensor[..., :-1]):
            others = {**inputs, part: change(inputs[part])}
            with pytest.raises((RuntimeError, ValueError), match=r"came back as|expected"):
                plan.forward(**others)
            with pytest.raises((RuntimeError, ValueError), match=r"came back as|expected"):
                plan.backward(output, **others)
        for bad in (output.double(), output[..., 1:], output.to("meta"), freed(output)):
            with pytest.raises((RuntimeError, ValueError), match=r"came back as|grad_output"):
                plan.backward(bad, **inputs)


@needs_library
@pytest.mark.parametrize("name", ["cpu", "torch"])
@pytest.mark.parametrize(("restrided", "changed"), list(itertools.permutations(range(3), 2)))
def test_other_strides_of_one_tensor_hide_no_change_of_another(restrided, changed, name):
    inputs = make_inputs(PLAIN, dtype=torch.float32)
    geometry = check_dcnv3(*inputs, **PLAIN)
    plan = OnCPU(geometry) if name == "cpu" else DCNV3.backends[name].load().Plan(geometry, False, *inputs)
    output = plan.forward(*inputs)
    for change in (torch.Tensor.double, lambda tensor: tensor[:, 1:], lambda tensor: tensor[..., :-1]):
        others = list(inputs)
        others[restrided] = inputs[restrided].transpose(1, 2).contiguous().transpose(1, 2)
        others[changed] = change(inputs[changed])
        with pytest.raises((RuntimeError, ValueError), match=r"came back as|expected"):
            plan.forward(*others)
        with pytest.raises((RuntimeError, ValueError), match=r"came back as|expected"):
            plan.backward(output, *others)


@pytest.mark.parametrize("name", [name for name in DCNV3.backends if name != "cpu"])
def test_all_plans_have_the_check(name):
    module = importlib.import_module(DCNV3.backends[name].module)
    assert issubclass(module.Plan, CheckedPlan)
    assert not {"forward", "backward"} & set(vars(module.Plan))


def test_other_strides_are_no_other_tensor():
    tensor = torch.randn(2, 3, 4)
    operand = Operand.of(tensor)
    assert operand.check(tensor.clone())
    assert not operand.check(tensor.transpose(0, 1).contiguous().transpose(0, 1))


def test_empty_tensors_are_in_memory_wherever_they_begin():
    """Those cut from wider ones may begin behind the end of a storage without bytes."""
    tensor = torch.empty(3, 0, 4, 25)[..., 3:-4]
    assert tensor.storage_offset() == 3
    assert Operand.of(tensor).check(tensor)


def as_attribute(owner, name, tensor):
    """Put a tensor in the place of a parameter, unregistered, as pruning, weight norm and functional code do."""
    delattr(owner, name)
    setattr(owner, name, tensor)


def as_parameter(owner, name, tensor):
    setattr(owner, name, nn.Parameter(tensor))


@needs_library
@pytest.mark.parametrize("put", [as_attribute, as_parameter])
@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.double,
        torch.Tensor.half,
        lambda tensor: tensor.to("meta"),
        freed,
        lambda tensor: tensor[: len(tensor) // 2].clone(),
        lambda tensor: torch.cat((tensor, tensor)),
        lambda tensor: tensor.expand(1, *tensor.shape).clone(),
        lambda tensor: tensor[..., :1].clone() if tensor.dim() > 1 else tensor[:1].clone(),
        lambda tensor: torch.cat((tensor, tensor[..., :2]), -1),
    ],
    ids=["double", "half", "meta", "freed", "fewer", "more", "an axis more", "narrow", "not square"],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True], ids=["no_grad", "grad"])
def test_changed_parameters_end_as_their_modules_do(kind, change, put, trained):
    """The fused layers leave them to the modules: PyTorch's message, or its result."""
    make, fused, _ = KINDS[kind]
    for name, _ in make().named_parameters():
        module = make()
        owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        put(owner, leaf, change(getattr(owner, leaf).detach()))
        states = torch.randn(2, 5, 6, 16, requires_grad=trained)
        with torch.set_grad_enabled(trained):
            assert fused(states, module) is None, name


@needs_library
@pytest.mark.parametrize("kind", ["dw_conv", "mlp"])
def test_plain_tensors_as_parameters_are_fused_and_right(kind):
    make, fused, plain = KINDS[kind]
    module, states = make(), torch.randn(2, 5, 6, 16)
    for name, parameter in list(module.named_parameters()):
        owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        as_attribute(owner, leaf, parameter.detach())
    found = fused(states, module)
    assert found is not None
    torch.testing.assert_close(found, plain(states, make()), rtol=0, atol=1e-5)
