# SPDX-License-Identifier: MIT
"""The layers around DCNv3 on the CPU: each operator here does the work of several modules in one pass over memory.

Results are those of the modules up to rounding, derivatives of higher order included. A module whose parts have hooks,
adapters or another class calls its parts instead: see `can_fuse`, the one condition.
"""

import math
import platform
from collections.abc import Callable
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
    an operator reads must be compared by `_is_like`. Compiled graphs hold the operators, exported ones the parts.
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


def _is_bare(module: nn.Module) -> bool:
    """Return True if `module` is a stock module, or one that only permutes now, without hooks."""
    kind = type(module)
    return (_only_permutes(module) or kind.forward is _ORIGINALS.get(kind)) and not (
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


def _weights(module: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return weight and bias of a stock module. Reading them as its attributes takes ten times as long."""
    parameters = module._parameters
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]
    return module.weight, module.bias  # plain tensors in place of parameters


def _is_like(tensor: torch.Tensor | None, states: torch.Tensor, *shape: int) -> bool:
    """Return True if `tensor` is a plain tensor of this shape, with the dtype and device of `states`."""
    return (
        tensor is not None
        and (torch.compiler.is_compiling() or (eager.ordinary(tensor) and eager.is_in_memory(tensor)))
        and tensor.dtype == states.dtype
        and tensor.device == states.device
        and tensor.shape == shape
    )


def _call(tracked: bool, name: str, *arguments: Any) -> torch.Tensor:
    """Call an operator; past its autograd formula if no gradients are needed."""
    operator = getattr(torch.ops.hf_internimage, name).default
    if tracked or torch.compiler.is_compiling():
        return operator(*arguments)
    return eager.without_gradients(operator, *arguments)


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
    if not (
        _is_like(weight, states, layer.out_features, states.shape[-1]) and _is_like(bias, states, layer.out_features)
    ):
        return None
    if torch.compiler.is_compiling() or eager.is_tracked(states, weight, bias):
        return torch.ops.hf_internimage.linear.default(states, weight, bias)
    return _product(states, weight, bias)  # type: ignore[arg-type]  # `_is_like` has looked


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


def norm(states: torch.Tensor, norms: nn.Sequential) -> torch.Tensor | None:
    """Compute LayerNorm(states), (..., C) -> (..., C); `norms` holds the LayerNorm and possibly permutations.

    Return None if the modules cannot be fused, or if gradients are needed.
    """
    return _norm(states, norms, None, None, None)


def norm_act(states: torch.Tensor, norms: nn.Sequential, act: nn.Module) -> torch.Tensor | None:
    """Compute GELU(LayerNorm(states)), (..., C) -> (..., C); `norms` holds the LayerNorm and possibly permutations.

    Return None if the modules cannot be fused, or if gradients are needed.
    """
    if not (isinstance(act, nn.GELU) and act.approximate == "none"):
        return None
    return _norm(states, norms, act, None, None)


def norm_add(
    states: torch.Tensor,
    norms: nn.Sequential,
    scale: torch.Tensor | None,
    residual: torch.Tensor,
    drop: nn.Module | None = None,
) -> torch.Tensor | None:
    """Compute residual + scale * LayerNorm(states), (..., C) -> (..., C); `norms` holds the LayerNorm.

    `drop` is the stochastic depth after the norm. Return None if the modules cannot be fused, an active `drop` among
    them, or if gradients are needed.
    """
    return _norm(states, norms, drop, scale, residual)


def _norm(
    states: torch.Tensor,
    norms: nn.Sequential,
    after: nn.Module | None,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor | None:
    if not isinstance(norms, nn.Sequential) or not can_fuse(states, norms, *norms, *([] if after is None else [after])):
        return None
    computing = [module for module in norms if not _only_permutes(module)]
    layer_norm = computing[0] if len(computing) == 1 else None
    channels = states.shape[-1]
    if not isinstance(layer_norm, nn.LayerNorm) or layer_norm.normalized_shape != (channels,):
        return None
    weight, bias = _weights(layer_norm)
    if (
        not _is_like(weight, states, channels)
        or not _is_like(bias, states, channels)
        or not (scale is None or _is_like(scale, states, channels))
        or not (residual is None or _is_like(residual, states, *states.shape))
        or eager.is_tracked(states, weight, bias, scale, residual)
    ):
        return None
    return torch.ops.hf_internimage.norm.default(
        states,
        weight,
        bias,
        states if scale is None else scale,
        states if residual is None else residual,
        layer_norm.eps,
        isinstance(after, nn.GELU),
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
        and isinstance(act, nn.GELU)
        and isinstance(drop, nn.Dropout)
        and can_fuse(states, first, act, second, drop)
        and act.approximate == "none"
        and not (drop.training and drop.p)
    ):
        return None
    parameters = weight1, bias1, weight2, bias2 = *_weights(first), *_weights(second)
    if not (
        _is_like(weight1, states, first.out_features, states.shape[-1])
        and _is_like(bias1, states, first.out_features)
        and _is_like(weight2, states, second.out_features, first.out_features)
        and _is_like(bias2, states, second.out_features)
    ):
        return None
    if eager.is_tracked(states, *parameters):
        hidden = linear(states, first)
        hidden = first(states) if hidden is None else hidden
        return torch.ops.hf_internimage.gelu_linear.default(hidden, weight2, bias2)
    return _call(False, "mlp", states, *parameters)


def depthwise_norm_gelu(states: torch.Tensor, block: nn.Sequential) -> torch.Tensor | None:
    """Compute GELU(LayerNorm(conv(states))), (N, H, W, C) -> (N, H, W, C).

    `block` holds the depth-wise convolution, a permutation with the LayerNorm, and the GELU. Return None if the modules
    cannot be fused.
    """
    if len(block) != 3:
        return None
    conv, norms, act = block
    norm = norms[-1] if isinstance(norms, nn.Sequential) and len(norms) == 2 else None
    channels, kernel = states.shape[-1], conv.kernel_size[0] if isinstance(conv, nn.Conv2d) else 0
    if not (
        isinstance(conv, nn.Conv2d)
        and isinstance(norms, nn.Sequential)
        and isinstance(norm, nn.LayerNorm)
        and isinstance(act, nn.GELU)
        and can_fuse(states, block, conv, norms, *norms, act)
        and _only_permutes(norms[0])
        and norm.normalized_shape == (channels,)
        and act.approximate == "none"
        and conv.padding_mode == "zeros"
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == channels
        and conv.padding == (kernel // 2, kernel // 2)
        and kernel % 2 == 1
    ):
        return None
    parameters = weight, *vectors = *_weights(conv), *_weights(norm)
    if not _is_like(weight, states, channels, 1, kernel, kernel) or not all(
        _is_like(vector, states, channels) for vector in vectors
    ):
        return None
    return _call(eager.is_tracked(states, *parameters), "depthwise_norm_gelu", states, *parameters, norm.eps)


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
    states: torch.Tensor, weight1: torch.Tensor, bias1: torch.Tensor, weight2: torch.Tensor, bias2: torch.Tensor
) -> torch.Tensor:
    """Compute linear(GELU(linear(states)))."""
    hidden = weight1.shape[0]
    in_one_block = states.numel() // max(states.shape[-1], 1) * hidden * states.element_size() <= _BLOCK_BYTES
    if not _is_fast(states, hidden):
        active = F.linear(states, weight1, bias1)
        if not in_one_block:
            return _gelu_linear(active, weight2, bias2)
        return _linear(torch.ops.hf_internimage.gelu.default(active), weight2, bias2)
    if in_one_block:
        return _product(_product(states, weight1, bias1, "gelu"), weight2, bias2)
    output = states.new_empty((*states.shape[:-1], weight2.shape[0]))
    for part, result in _blocks(hidden, states.contiguous(), output):
        result.copy_(_product(_product(part, weight1, bias1, "gelu"), weight2, bias2))
    return output


def _gelu_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute linear(GELU(states)). Rows are processed in blocks."""
    states = states.contiguous()
    output = states.new_empty((*states.shape[:-1], weight.shape[0]))
    for before, result in _blocks(states.shape[-1], states, output):
        active = torch.ops.hf_internimage.gelu.default(before)
        if _is_fast(active, weight.shape[0]):
            result.copy_(_product(active, weight, bias))
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


def _fake_mlp(states: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    return states.new_empty((*states.shape[:-1], parameters[2].shape[0]))


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


def _gelu_linear_gradient(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    states, weight = saved_operands(ctx)
    if is_recorded(grad_output):
        gradients = recorded_gradients(lambda s, w: F.linear(F.gelu(s), w), (states, weight), grad_output)
        return *gradients, grad_output.reshape(-1, grad_output.shape[-1]).sum(0)
    return torch.ops.hf_internimage.gelu_linear_backward.default(grad_output, states, weight)


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
_register("mlp(Tensor states, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2) -> Tensor", _fake_mlp, _mlp)
_register("gelu_linear(Tensor states, Tensor weight, Tensor bias) -> Tensor", _fake_linear, _gelu_linear)
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
