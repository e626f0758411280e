# SPDX-License-Identifier: MIT
"""The layers around DCNv3 on the CPU: each operator here does the work of several modules in one pass over memory.

Results are those of the modules up to rounding, derivatives of higher order included. A module whose parts have hooks,
adapters or another class calls its parts instead: see `can_fuse`, the one condition.
"""

import math
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.dcnv3_reference import is_recorded, recorded_gradients
from . import eager, native
from .operands import save_operands, saved_operands
from .registry import environment

_BLOCK_BYTES = 2**22  # hidden features in a block
_LEAST_PRODUCTS = 30_000_000  # multiplications from which oneDNN gains more than its call costs
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The stock implementations, to notice a replaced `forward` or `__call__`.
_CALL: Any = nn.Module.__call__
_ORIGINALS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, nn.Sequential)
}


def can_fuse(states: torch.Tensor, *modules: nn.Module) -> bool:
    """Return True for CPU tensors outside of transforms and modes, and stock modules without hooks or wrappers.

    Modules may also say by `only_permutes` that their result is a permuted view of the input, or the input. What else
    an operator reads must be compared by `_are_like`. Compiled graphs hold the operators, exported ones the parts.
    """
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
            return False
    elif (
        not eager.ordinary(states) or eager.transforms() or eager.watched() or nn.modules.module._has_any_global_hook()
    ):
        return False
    return (
        states.is_cpu
        and states.dtype in _DTYPES
        and not torch.is_autocast_enabled("cpu")
        and environment() in (None, "cpu")
        and native.is_available()
        and all(map(_is_bare, modules))
    )


def _is_bare(module: Any, originals: dict[type[nn.Module], Any] = _ORIGINALS) -> bool:
    """Return True if `module` is a stock module, or one that only permutes now, without hooks."""
    kind = type(module)
    return (_only_permutes(module) or (kind in originals and kind.forward is originals[kind])) and not (
        kind.__call__ is not _CALL
        or "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _only_permutes(module: nn.Module) -> bool:
    """Return True if the module's own class says that its result is now a permuted view of the input, or the input."""
    return "only_permutes" in type(module).__dict__ and bool(module.only_permutes)


def _weights(module: Any) -> tuple[Any, Any]:
    """Return weight and bias of a stock module."""
    return _tensor(module, "weight"), _tensor(module, "bias")


def _tensor(module: nn.Module, name: str) -> Any:
    """Return a parameter, or the tensor in its place. Reading it as an attribute takes ten times as long."""
    return module._parameters[name] if name in module._parameters else getattr(module, name)


def _are_like(states: torch.Tensor, tensors: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Return True if these are plain tensors of these shapes, with the dtype and device of `states`."""
    compiling, dtype, device = torch.compiler.is_compiling(), states.dtype, states.device
    for tensor, shape in zip(tensors, shapes, strict=True):
        if tensor is None or tensor.dtype != dtype or tensor.device != device or tensor.shape != shape:
            return False
        if not (compiling or (eager.ordinary(tensor) and eager.is_in_memory(tensor))):
            return False
    return True


def _is_gelu(act: Any) -> bool:
    return isinstance(act, nn.GELU) and act.approximate == "none"


def _is_layer_norm(norm: Any, channels: int) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (channels,)


# Linear layers. PyTorch's own take longer on x86 where oneDNN could run them: they copy the bias to the result first,
# and then add to it.
_LINEAR: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    else None
)


def linear(states: torch.Tensor, layer: nn.Module) -> torch.Tensor | None:
    """Compute layer(states), (..., C_in) -> (..., C_out).

    Return None for another layer, and for what PyTorch's own does as fast.
    """
    if not (isinstance(layer, nn.Linear) and _is_fast(states, layer.out_features) and can_fuse(states, layer)):
        return None
    weight, bias = _weights(layer)
    given = (weight,) if bias is None else (weight, bias)
    if not _are_like(states, given, ((layer.out_features, states.shape[-1]), (layer.out_features,))[: len(given)]):
        return None
    if torch.compiler.is_compiling() or eager.is_tracked(states, weight, bias):
        return torch.ops.hf_internimage.linear.default(states, weight, bias)
    return _product(states, weight, bias)


def _is_fast(states: torch.Tensor, out_features: int) -> bool:
    """Return True if oneDNN computes a linear layer faster than PyTorch's own way: from a number of products on.

    Under torch.compile always: the operator in the graph asks again, with the sizes of the call.
    """
    return (
        _LINEAR is not None
        and states.dtype == torch.float32
        and (torch.compiler.is_compiling() or states.numel() * out_features >= _LEAST_PRODUCTS)
    )


def _product(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """Compute a linear layer by oneDNN, and GELU of it if `activation` is "gelu"."""
    bias = None if bias is None else bias.contiguous()  # oneDNN takes it for contiguous
    algorithm = "none" if activation == "gelu" else ""
    return _with_rows(states, lambda rows: _LINEAR.default(rows, weight, bias, activation, [], algorithm))


def _with_rows(states: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Compute (rows, C_in) -> (rows, C_out) on (..., C_in)."""
    result = compute(states.reshape(math.prod(states.shape[:-1]), states.shape[-1]))
    # Not a view: autograd forbids to change views that an operator returns in place.
    return torch.ops.aten._unsafe_view.default(result, (*states.shape[:-1], result.shape[-1]))


def norm(states: torch.Tensor, norms: nn.Sequential, act: nn.Module | None = None) -> torch.Tensor | None:
    """Compute LayerNorm(states), or GELU of it with `act`, (..., C) -> (..., C); `norms` may also hold permutations.

    Return None if the modules cannot be fused, or if gradients are needed.
    """
    acts = () if act is None else (act,)
    if not (isinstance(norms, nn.Sequential) and all(map(_is_gelu, acts)) and can_fuse(states, norms, *norms, *acts)):
        return None
    computing: list[Any] = [module for module in norms if not _only_permutes(module)]
    channels = states.shape[-1]
    if len(computing) != 1 or not _is_layer_norm(computing[0], channels):
        return None
    weight, bias = _weights(computing[0])
    if not _are_like(states, (weight, bias), ((channels,),) * 2) or eager.is_tracked(states, weight, bias):
        return None
    return _normalize(states, weight, bias, computing[0].eps, activate=bool(acts))


def _normalize(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    activate: bool = False,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute residual + scale * LayerNorm(states), or GELU(LayerNorm(states))."""
    return torch.ops.hf_internimage.norm.default(
        states,
        weight,
        bias,
        states if scale is None else scale,
        states if residual is None else residual,
        epsilon,
        activate,
        scale is not None,
        residual is not None,
    )


def mlp(
    states: torch.Tensor, first: nn.Module, act: nn.Module, second: nn.Module, drop: nn.Module
) -> torch.Tensor | None:
    """Compute second(GELU(first(states))), (..., C) -> (..., C); return None if the modules cannot be fused.

    Without gradients, rows are processed in blocks whose hidden features stay in the processor's cache.
    """
    if not (
        isinstance(first, nn.Linear)
        and isinstance(second, nn.Linear)
        and _is_gelu(act)
        and isinstance(drop, nn.Dropout)
        and can_fuse(states, first, act, second, drop)
        and not (drop.training and drop.p)
    ):
        return None
    parameters = *_weights(first), *_weights(second)
    given = parameters[:3] if parameters[3] is None else parameters
    features, out = first.out_features, second.out_features
    shapes = ((features, states.shape[-1]), (features,), (out, features), (out,))
    if not _are_like(states, given, shapes[: len(given)]):
        return None
    if not torch.compiler.is_compiling() and not eager.is_tracked(states, *parameters):
        return _mlp(states, *parameters)
    hidden = linear(states, first)
    return torch.ops.hf_internimage.gelu_linear.default(first(states) if hidden is None else hidden, *parameters[2:])


def depthwise_norm_gelu(states: torch.Tensor, block: nn.Sequential) -> torch.Tensor | None:
    """Compute GELU(LayerNorm(conv(states))), (N, H, W, C) -> (N, H, W, C).

    `block` holds the depth-wise convolution, a permutation with the LayerNorm, and the GELU. Return None if the modules
    cannot be fused.
    """
    channels = states.shape[-1]
    parts = _depthwise_parts(block, channels) if can_fuse(states, block) else ()
    if not parts or not all(map(_is_bare, parts)):
        return None
    conv, _, _, norm, _ = parts
    parameters = *_weights(conv), *_weights(norm)
    if not _are_like(states, parameters, ((channels, 1, *conv.kernel_size), *[(channels,)] * 3)):
        return None
    operator = torch.ops.hf_internimage.depthwise_norm_gelu.default
    if torch.compiler.is_compiling() or eager.is_tracked(states, *parameters):
        return operator(states, *parameters, norm.eps)
    return eager.without_gradients(operator, states, *parameters, norm.eps)


def _depthwise_parts(block: Any, channels: int) -> tuple[Any, ...]:
    """Return convolution, norms, permutation, LayerNorm and GELU, or nothing if one of them is another kind."""
    if not isinstance(block, nn.Sequential) or len(block) != 3:
        return ()
    conv, norms, act = block._modules.values()
    if not isinstance(norms, nn.Sequential) or len(norms) != 2:
        return ()
    permutation, norm = norms._modules.values()
    kernel = conv.kernel_size[0] if isinstance(conv, nn.Conv2d) else 0
    fits = (
        isinstance(conv, nn.Conv2d)
        and conv.padding_mode == "zeros"
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == channels
        and conv.kernel_size == (kernel, kernel)
        and conv.padding == (kernel // 2, kernel // 2)
        and kernel % 2 == 1
        and _only_permutes(permutation)
        and _is_layer_norm(norm, channels)
        and _is_gelu(act)
    )
    return (conv, norms, permutation, norm, act) if fits else ()


def block(states: torch.Tensor, layer: Any, branches: dict[type[nn.Module], Any]) -> torch.Tensor | None:
    """Compute a whole InternImageLayer, (N, H, W, C) -> (N, H, W, C), without calling its parts.

    `branches` holds the classes of its DCNv3 and MLP with their `forward`. Return None if gradients are needed, and if
    any part cannot be fused or drops something now.
    """
    children, channels = layer._modules, states.shape[-1]
    dcn, mlp, drop_path = children.get("dcn"), children.get("mlp"), children.get("drop_path")
    if not (can_fuse(states) and _is_bare(dcn, branches) and _is_bare(mlp, branches)):
        return None
    dw_conv, act, drop = dcn._modules.get("dw_conv"), mlp._modules.get("act"), mlp._modules.get("drop")
    linears = [*map(dcn._modules.get, ("input_proj", "offset", "mask", "output_proj"))]
    linears += map(mlp._modules.get, ("fc1", "fc2"))
    norms = [children.get("norm1"), children.get("norm2")]
    if layer.uses_res_post_norm:
        norms += children.get("res_post_norm1"), children.get("res_post_norm2")
    if not all(type(norm) is nn.Sequential and len(norm) == 1 for norm in norms):
        return None
    layer_norms = [norm._modules.get("0") for norm in norms]
    depthwise = _depthwise_parts(dw_conv, channels)
    if not (
        depthwise
        and all(_is_layer_norm(norm, channels) for norm in layer_norms)
        and all(type(linear) is nn.Linear for linear in linears)
        and _is_gelu(act)
        and type(drop) is nn.Dropout
        and not (drop.training and drop.p)
        and (type(drop_path) is nn.Identity or _only_permutes(drop_path))
        and all(map(_is_bare, (*norms, *layer_norms, dw_conv, *depthwise, *linears, act, drop, drop_path)))
    ):
        return None
    conv, _, _, dw_norm, _ = depthwise
    kernel, taps = conv.kernel_size[0], dcn.groups * (dcn.kernel_size**2 - dcn.remove_center)
    hidden, vector = linears[4].out_features, (channels,)
    parameters = [tensor for part in (conv, dw_norm, *linears, *layer_norms) for tensor in _weights(part)]
    shapes = [(channels, 1, kernel, kernel), vector, vector, vector]
    for rows in (channels, 2 * taps, taps, channels, hidden):
        shapes += (rows, channels), (rows,)
    shapes += (channels, hidden), *[vector] * (1 + 2 * len(norms))
    scales = [_tensor(layer, "layer_scale1"), _tensor(layer, "layer_scale2")]
    scales = [] if scales[0] is scales[1] is None else scales
    centre = [_tensor(dcn, f"center_feature_scale_proj_{name}") for name in ("weight", "bias")]
    centre = [] if centre[0] is None else centre
    tensors = (*parameters, *scales, *centre)
    if eager.is_tracked(states, *tensors) or not _are_like(
        states, tensors, (*shapes, *[vector] * len(scales), *[(dcn.groups, channels), (dcn.groups,)][: len(centre)])
    ):
        return None
    arguments = (
        *(states, parameters, scales, centre, [norm.eps for norm in (dw_norm, *layer_norms)]),
        *(dcn.groups, dcn.kernel_size, dcn.offset_scale, dcn.remove_center, layer.post_norm),
    )
    if torch.compiler.is_compiling():
        return torch.ops.hf_internimage.block.default(*arguments)
    return _block(*arguments)


# The operators. The library has the CPU kernels of those without a Python function here.

_LIBRARY = torch.library.Library("hf_internimage", "FRAGMENT")
_DEPTHWISE = "Tensor states, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, float epsilon"


def _register(schema: str, fake: Callable[..., Any], kernel: Callable[..., Any] | None = None) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    torch.library.register_fake(f"hf_internimage::{name}", fake, lib=_LIBRARY)
    if kernel is not None:
        _LIBRARY.impl(name, kernel, "CPU")


def _fake_like(states: torch.Tensor, *_: Any) -> torch.Tensor:
    return states.new_empty(states.shape)


def _blocks(hidden_features: int, *tensors: torch.Tensor) -> Any:
    """Return blocks of rows of the tensors, small enough for their hidden features to stay in cache."""
    rows = max(1, _BLOCK_BYTES // (hidden_features * tensors[0].element_size()))
    return zip(*(tensor.view(-1, tensor.shape[-1]).split(rows) for tensor in tensors), strict=True)


def _linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if _is_fast(states, weight.shape[0]):
        return _product(states, weight, bias)
    return _with_rows(states, lambda rows: F.linear(rows, weight, bias))


def _mlp(
    states: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor, bias2: torch.Tensor | None
) -> torch.Tensor:
    """Compute linear(GELU(linear(states)))."""
    hidden = weight1.shape[0]
    in_one_block = states.numel() // max(states.shape[-1], 1) * hidden * states.element_size() <= _BLOCK_BYTES
    if not _is_fast(states, hidden):
        active = F.linear(states, weight1, bias1)
        if not in_one_block:
            return _gelu_linear(active, weight2, bias2)
        return _eager_linear(torch.ops.hf_internimage.gelu.default(active), weight2, bias2)
    if in_one_block:
        return _product(_product(states, weight1, bias1, "gelu"), weight2, bias2)
    output = states.new_empty((*states.shape[:-1], weight2.shape[0]))
    for part, result in _blocks(hidden, states.contiguous(), output):
        result.copy_(_product(_product(part, weight1, bias1, "gelu"), weight2, bias2))
    return output


def _block(
    states: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    centre: Sequence[torch.Tensor],
    epsilons: Sequence[float],
    groups: int,
    kernel: int,
    offset_scale: float,
    remove_center: bool,
    post_norm: bool,
) -> torch.Tensor:
    """Compute a block: a DCNv3 and an MLP branch with residual connections."""
    dw_conv, value_layer, offset_layer, mask_layer = parameters[:4], parameters[4:6], parameters[6:8], parameters[8:10]
    output_layer, mlp, norms = parameters[10:12], parameters[12:16], parameters[16:]

    def dcn(states: torch.Tensor) -> torch.Tensor:
        value = _eager_linear(states, *value_layer)
        local = torch.ops.hf_internimage.depthwise_norm_gelu.default(states, *dw_conv, epsilons[0])
        offset, mask = _eager_linear(local, *offset_layer), _eager_linear(local, *mask_layer)
        geometry = (groups, kernel, kernel, 1, 1, kernel // 2, kernel // 2, 1, 1, offset_scale, remove_center)
        sampled = torch.ops.hf_internimage.dcnv3.default(value, offset, mask, *geometry, True)
        if centre:
            scale, by_group = F.linear(local, *centre).sigmoid(), (groups, -1)
            blend = torch.lerp(sampled.unflatten(-1, by_group), value.unflatten(-1, by_group), scale.unsqueeze(-1))
            sampled = blend.flatten(-2)
        return _eager_linear(sampled, *output_layer)

    def normed(number: int, branch: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        return _normalize(branch, norms[2 * number], norms[2 * number + 1], epsilons[1 + number], False, *others)

    states = states.contiguous()  # sums keep the memory layout of their operands
    with torch._C._AutoDispatchBelowAutograd():
        for number in (0, 1):
            scale = scales[number] if scales else None
            inputs = states if post_norm else normed(number, states)
            branch = _mlp(inputs, *mlp) if number else dcn(inputs)
            if post_norm:
                states = normed(number, branch, scale, states)
            elif len(norms) > 4:  # norms after the branches, too
                states = normed(2 + number, branch, scale, states)
            else:
                states = branch.add_(states) if scale is None else torch.addcmul(states, branch, scale)
    return states


def _eager_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return _product(states, weight, bias) if _is_fast(states, weight.shape[0]) else F.linear(states, weight, bias)


def _gelu_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute linear(GELU(states)). Rows are processed in blocks."""
    states = states.contiguous()
    output = states.new_empty((*states.shape[:-1], weight.shape[0]))
    for before, result in _blocks(states.shape[-1], states, output):
        active = torch.ops.hf_internimage.gelu.default(before)
        if _is_fast(active, weight.shape[0]):
            result.copy_(_product(active, weight, bias))
        elif bias is None:
            torch.mm(active, weight.t(), out=result)
        else:
            torch.addmm(bias, active, weight.t(), out=result)
    return output


def _gelu_linear_backward(
    grad_output: torch.Tensor, states: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of states, weight and bias; GELU(states) is computed again."""
    states, grad_output = states.contiguous(), grad_output.contiguous()
    with torch.autocast("cpu", enabled=False):
        grad_bias = grad_output.view(-1, grad_output.shape[-1]).sum(0)
        # float32 for half types as well, like the sums within a block
        grad_weight = weight.new_zeros(weight.shape, dtype=torch.float32)
        grad_states = torch.empty_like(states)
        for before, gradient, result in _blocks(states.shape[-1], states, grad_output, grad_states):
            active = torch.empty_like(before)
            torch.ops.hf_internimage.gelu_backward.default(_linear(gradient, weight.t(), None), before, result, active)
            grad_weight += gradient.t() @ active
    return grad_states, grad_weight.to(weight.dtype), grad_bias


def _fake_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return states.new_empty((*states.shape[:-1], weight.shape[0]))


def _fake_gelu_linear_backward(
    grad_output: torch.Tensor, states: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return states.new_empty(states.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _fake_depthwise_backward(
    grad_output: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = states.new_empty((weight.shape[2] * weight.shape[3] + 3, weight.shape[0]), dtype=torch.float32)
    return states.new_empty(states.shape), rows


def _depthwise_plain(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Compute `depthwise_norm_gelu` by PyTorch's own operators."""
    channels, padding = weight.shape[0], weight.shape[-1] // 2
    local = F.conv2d(states.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=channels).permute(0, 2, 3, 1)
    return F.gelu(F.layer_norm(local, (channels,), gamma, beta, epsilon))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Save the tensors among the inputs, and nothing else: the backward passes compute the rest again."""
    save_operands(ctx, *(part for part in inputs if isinstance(part, torch.Tensor)))
    ctx.numbers = tuple(part for part in inputs if not isinstance(part, torch.Tensor))


def _save_states_and_weight(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Save states and weight of a linear layer: the backward pass needs no bias, which may change before it."""
    save_operands(ctx, *inputs[:2])


def _linear_gradient(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    states, weight = saved_operands(ctx)
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
    if is_recorded(grad_output):
        return *recorded_gradients(F.linear, (states, weight), grad_output), grad_bias
    with torch.autocast("cpu", enabled=False):
        return (
            torch.ops.hf_internimage.linear.default(grad_output, weight.t(), None) if ctx.needs_input_grad[0] else None,
            rows.t() @ states.reshape(-1, states.shape[-1]) if ctx.needs_input_grad[1] else None,
            grad_bias,
        )


def _gelu_linear_gradient(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    states, weight = saved_operands(ctx)
    if is_recorded(grad_output):
        gradients = recorded_gradients(lambda s, w: F.linear(F.gelu(s), w), (states, weight), grad_output)
        grad_bias = grad_output.reshape(-1, grad_output.shape[-1]).sum(0)
    else:
        operator = torch.ops.hf_internimage.gelu_linear_backward.default
        *gradients, grad_bias = operator(grad_output, states, weight)
    return *gradients, grad_bias if ctx.needs_input_grad[2] else None


def _depthwise_gradient(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved = saved_operands(ctx)
    if is_recorded(grad_output):
        return *recorded_gradients(lambda *t: _depthwise_plain(*t, *ctx.numbers), saved, grad_output), None
    weight = saved[1]
    operator = torch.ops.hf_internimage.depthwise_norm_gelu_backward.default
    grad_states, rows = operator(grad_output, *saved, *ctx.numbers)
    rows = rows.to(weight.dtype)
    taps = weight.shape[2] * weight.shape[3]
    return grad_states, rows[:taps].t().contiguous().view(weight.shape), *rows[taps:].unbind(0), None


def _no_second_order(ctx: Any, *_: torch.Tensor) -> None:
    raise NotImplementedError("This backward operator has no gradients; those of its operator can be differentiated.")


_register(f"depthwise_norm_gelu({_DEPTHWISE}) -> Tensor", _fake_like)
_register(
    f"depthwise_norm_gelu_backward(Tensor grad_output, {_DEPTHWISE}) -> (Tensor, Tensor)", _fake_depthwise_backward
)
_register(
    "norm(Tensor states, Tensor gamma, Tensor beta, Tensor scale, Tensor residual, float epsilon, bool activate, "
    "bool has_scale, bool has_residual) -> Tensor",
    _fake_like,
)
_register("linear(Tensor states, Tensor weight, Tensor? bias) -> Tensor", _fake_linear, _linear)
_register("gelu(Tensor states) -> Tensor", _fake_like)
_register(
    "gelu_backward(Tensor grad_output, Tensor states, Tensor(a!) grad_states, Tensor(b!) activated) -> ()",
    lambda *_: None,
)
_register(
    "block(Tensor states, Tensor[] parameters, Tensor[] scales, Tensor[] centre, float[] epsilons, int groups, "
    "int kernel, float offset_scale, bool remove_center, bool post_norm) -> Tensor",
    _fake_like,
    _block,
)
_register("gelu_linear(Tensor states, Tensor weight, Tensor? bias) -> Tensor", _fake_linear, _gelu_linear)
_register(
    "gelu_linear_backward(Tensor grad_output, Tensor states, Tensor weight) -> (Tensor, Tensor, Tensor)",
    _fake_gelu_linear_backward,
    _gelu_linear_backward,
)
for _name, _gradient, _save in (
    ("depthwise_norm_gelu", _depthwise_gradient, _save_inputs),
    ("gelu_linear", _gelu_linear_gradient, _save_states_and_weight),
    ("linear", _linear_gradient, _save_states_and_weight),
):
    torch.library.register_autograd(f"hf_internimage::{_name}", _gradient, setup_context=_save, lib=_LIBRARY)
for _name in ("depthwise_norm_gelu_backward", "gelu_linear_backward"):
    torch.library.register_autograd(f"hf_internimage::{_name}", _no_second_order, lib=_LIBRARY)
