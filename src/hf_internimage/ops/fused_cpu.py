# SPDX-License-Identifier: MIT
"""Fused CPU kernels for the layers around DCNv3: each does several modules in one pass over memory.

Results are those of the modules up to rounding, derivatives of higher order included. Only plain eager calls are fused,
see `can_fuse`; torch.compile has fusion of its own.
"""

import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.dcnv3_reference import is_recorded, recorded_gradients
from . import eager, native
from .operands import Operand, check_saved
from .registry import environment

_INT = ctypes.c_int64
_PARTS = 32  # number of partial sums over pixels, independent of the number of threads
_BLOCK_BYTES = 2**22  # hidden features in a block
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The stock implementations, to notice a replaced `forward` or `__call__`.
_CALL: Any = nn.Module.__call__
_ORIGINALS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, nn.Sequential)
}


def can_fuse(states: torch.Tensor, *modules: nn.Module) -> bool:
    """Return True for plain eager CPU tensors and unhooked stock modules, which a fused kernel can replace.

    The call must not be traced, transformed or seen by a mode. Modules must be PyTorch's own, or say by `only_permutes`
    that their result is a permuted view of the input, or the input; without hooks or wrappers. What else a kernel reads
    must be compared by `_is_like`.
    """
    return (
        not torch.compiler.is_compiling()
        and states.device.type == "cpu"
        and states.dtype in _DTYPES
        and eager.ordinary(states)
        and not (eager.transforms() or eager.watched())
        and eager.is_in_memory(states)
        and not torch.is_autocast_enabled("cpu")
        and environment() in (None, "cpu")
        and native.why_not() is None
        and not nn.modules.module._has_any_global_hook()
        and all(map(_is_bare, modules))
    )


def _is_bare(module: nn.Module) -> bool:
    """Return True if `module` is a stock module, or one that only permutes now, without hooks."""
    own, kind = module.__dict__, type(module)
    return (_only_permutes(module) or kind.forward is _ORIGINALS.get(kind)) and not (
        kind.__call__ is not _CALL
        or "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def _only_permutes(module: nn.Module) -> bool:
    """Return True if the module's own class says that its result is now a permuted view of the input, or the input."""
    return "only_permutes" in type(module).__dict__ and bool(module.only_permutes)


def _is_like(tensor: torch.Tensor | None, states: torch.Tensor, *shape: int) -> bool:
    """Return True if `tensor` is a plain tensor of this shape, with the dtype and device of `states`."""
    return (
        tensor is not None
        and eager.ordinary(tensor)
        and tensor.dtype == states.dtype
        and tensor.device == states.device
        and tensor.shape == shape
        and eager.is_in_memory(tensor)
    )


def _tracked(*tensors: torch.Tensor | None) -> bool:
    """Return True if autograd records operations on any of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


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
    computing = [module for module in norms if not _only_permutes(module)]
    layer_norm = computing[0] if len(computing) == 1 else None
    channels = states.shape[-1]
    if (
        not isinstance(layer_norm, nn.LayerNorm)
        or layer_norm.normalized_shape != (channels,)
        or not can_fuse(states, norms, *norms, *([] if after is None else [after]))
        or not _is_like(layer_norm.weight, states, channels)
        or not _is_like(layer_norm.bias, states, channels)
        or not (scale is None or _is_like(scale, states, channels))
        or not (residual is None or _is_like(residual, states, *states.shape))
        or _tracked(states, layer_norm.weight, layer_norm.bias, scale, residual)
    ):
        return None
    gamma, beta = layer_norm.weight.contiguous(), layer_norm.bias.contiguous()
    states, output = states.contiguous(), states.new_empty(states.shape)
    scale, residual = (None if tensor is None else tensor.contiguous() for tensor in (scale, residual))
    native.call(
        "hfi_norm",
        native.DTYPES[states.dtype],
        states.numel() // max(states.shape[-1], 1),
        states.shape[-1],
        isinstance(after, nn.GELU),
        layer_norm.eps,
        states.data_ptr(),
        gamma.data_ptr(),
        beta.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if residual is None else residual.data_ptr(),
        output.data_ptr(),
    )
    return output


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
        and _is_like(first.weight, states, first.out_features, states.shape[-1])
        and _is_like(first.bias, states, first.out_features)
        and _is_like(second.weight, states, second.out_features, first.out_features)
        and _is_like(second.bias, states, second.out_features)
        and act.approximate == "none"
        and not (drop.training and drop.p)
    ):
        return None
    if _tracked(states, first.weight, first.bias, second.weight, second.bias):
        return _GeluLinear.apply(first(states), second.weight, second.bias)
    if states.numel() // first.in_features * first.out_features * states.element_size() <= _BLOCK_BYTES:
        hidden = F.linear(states, first.weight, first.bias)
        return F.linear(_gelu(hidden, hidden), second.weight, second.bias)
    output = states.new_empty((*states.shape[:-1], second.out_features))
    for part, result in _blocks(first.out_features, states.contiguous(), output):
        hidden = F.linear(part, first.weight, first.bias)
        torch.addmm(second.bias, _gelu(hidden, hidden), second.weight.t(), out=result)
    return output


def _blocks(hidden_features: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return blocks of rows of the tensors, small enough for their hidden features to stay in cache."""
    rows = max(1, _BLOCK_BYTES // (hidden_features * tensors[0].element_size()))
    return zip(*(tensor.view(-1, tensor.shape[-1]).split(rows) for tensor in tensors), strict=True)


def _gelu(states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Write GELU(states) to `output` and return it; both are contiguous, and may be the same tensor."""
    native.call("hfi_gelu", native.DTYPES[states.dtype], states.numel(), states.data_ptr(), output.data_ptr())
    return output


class _FusedFunction(torch.autograd.Function):
    """A fused kernel with its backward pass. It saves only its inputs; the backward pass computes the rest again."""

    @staticmethod
    def save(ctx: Any, *inputs: torch.Tensor) -> None:
        """Save the inputs for the backward pass."""
        ctx.save_for_backward(*inputs)
        ctx.operands = tuple(map(Operand.of, inputs))

    @staticmethod
    def saved(ctx: Any) -> tuple[torch.Tensor, ...]:
        """Return the saved inputs, possibly in other strides.

        Raises: RuntimeError if they are not what was saved.
        """
        tensors: tuple[torch.Tensor, ...] = ctx.saved_tensors  # read once: a checkpoint unpacks them once
        check_saved(ctx.operands, tensors)
        return tensors


class _GeluLinear(_FusedFunction):
    """Linear layer of GELU(states). Rows are processed in blocks, as in `mlp`."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        _FusedFunction.save(ctx, states, weight, bias)
        states = states.contiguous()
        output = states.new_empty((*states.shape[:-1], weight.shape[0]))
        for before, result in _blocks(states.shape[-1], states, output):
            torch.addmm(bias, _gelu(before, torch.empty_like(before)), weight.t(), out=result)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias = _FusedFunction.saved(ctx)
        if is_recorded(grad_output):
            return recorded_gradients(lambda s, w, b: F.linear(F.gelu(s), w, b), (states, weight, bias), grad_output)
        states, grad_output = states.contiguous(), grad_output.resolve_neg().contiguous()
        with torch.autocast("cpu", enabled=False):
            grad_bias = grad_output.view(-1, grad_output.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
            # float32 for half types as well, like the sums within a block
            grad_weight = weight.new_zeros(weight.shape, dtype=torch.float32)
            grad_states = torch.empty_like(states)
            for before, gradient, result in _blocks(states.shape[-1], states, grad_output, grad_states):
                grad_weight += gradient.t() @ _gelu(before, result)
                torch.mm(gradient, weight, out=result)
                native.call(
                    "hfi_gelu_backward",
                    native.DTYPES[states.dtype],
                    result.numel(),
                    result.data_ptr(),
                    before.data_ptr(),
                    result.data_ptr(),
                )
        return grad_states, grad_weight.to(weight.dtype), grad_bias


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
        and _is_like(conv.weight, states, channels, 1, kernel, kernel)
        and _is_like(conv.bias, states, channels)
        and _is_like(norm.weight, states, channels)
        and _is_like(norm.bias, states, channels)
    ):
        return None
    tensors: tuple[Any, ...] = (states, conv.weight, conv.bias, norm.weight, norm.bias)
    if _tracked(*tensors):
        return _DepthwiseNormGelu.apply(*tensors, norm.eps)
    return _depthwise_forward(*_contiguous_inputs(*tensors), norm.eps)


class _Depthwise(ctypes.Structure):
    """Scalar arguments of a depth-wise kernel call: `hfi_depthwise` of api.h."""

    _fields_ = [
        *((name, _INT) for name in ("dtype", "batch", "height", "width", "channels", "kernel")),
        *((name, _INT) for name in ("stride_n", "stride_h", "stride_w")),
        ("epsilon", ctypes.c_double),
    ]

    @classmethod
    def of(cls, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> "_Depthwise":
        return cls(native.DTYPES[states.dtype], *states.shape, weight.shape[-1], *states.stride()[:3], epsilon)


def _contiguous_inputs(states: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return states with unit stride over channels, and contiguous parameters."""
    return states if states.stride(3) == 1 else states.contiguous(), *(p.contiguous() for p in parameters)


def _depthwise_forward(states: torch.Tensor, *rest: Any) -> torch.Tensor:
    *parameters, epsilon = rest
    output = states.new_empty(states.shape)
    native.call(
        "hfi_depthwise_norm_gelu",
        ctypes.byref(_Depthwise.of(states, parameters[0], epsilon)),
        states.data_ptr(),
        *(parameter.data_ptr() for parameter in parameters),
        output.data_ptr(),
    )
    return output


def _depthwise_plain(
    epsilon: float,
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
) -> torch.Tensor:
    """Compute the same by PyTorch's own operators."""
    channels, padding = weight.shape[0], weight.shape[-1] // 2
    local = F.conv2d(states.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=channels).permute(0, 2, 3, 1)
    return F.gelu(F.layer_norm(local, (channels,), gamma, beta, epsilon))


class _DepthwiseNormGelu(_FusedFunction):
    """Depth-wise convolution, norm and GELU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        *tensors, ctx.epsilon = inputs
        _FusedFunction.save(ctx, *tensors)
        return _depthwise_forward(*_contiguous_inputs(*tensors), ctx.epsilon)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = _FusedFunction.saved(ctx)
        if is_recorded(grad_output):
            return *recorded_gradients(functools.partial(_depthwise_plain, ctx.epsilon), saved, grad_output), None
        states, *parameters = _contiguous_inputs(*saved)
        weight = parameters[0]
        channels, taps = weight.shape[0], weight.shape[-1] ** 2
        grad_output = grad_output.resolve_neg().contiguous()
        grad_states = states.new_empty(states.shape)
        slope = torch.empty(states.shape, dtype=torch.float32, device="cpu")
        sums = torch.empty((_PARTS, taps + 3, native.library().hfi_row(channels)), dtype=torch.float32, device="cpu")
        native.call(
            "hfi_depthwise_norm_gelu_backward",
            ctypes.byref(_Depthwise.of(states, weight, ctx.epsilon)),
            grad_output.data_ptr(),
            states.data_ptr(),
            *(parameter.data_ptr() for parameter in parameters),
            grad_states.data_ptr(),
            slope.data_ptr(),
            sums.data_ptr(),
            _PARTS,
        )
        rows = sums.sum(0)[:, :channels].to(weight.dtype)
        grad_weight = rows[:taps].t().contiguous().view(weight.shape)
        return grad_states, grad_weight, *rows[taps:].unbind(0), None
