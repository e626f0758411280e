# SPDX-License-Identifier: MIT
"""Fused CPU kernels for the layers around DCNv3: each does several modules in one pass over memory.

Results are those of the modules up to rounding. Only plain eager calls are fused, see `can_fuse`; torch.compile has
fusion of its own.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from . import eager, native
from .registry import environment

_INT = ctypes.c_int64
_PARTS = 32  # number of partial sums over pixels, independent of the number of threads
_BLOCK_BYTES = 2**22  # hidden features in a block
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The stock implementations, to notice a replaced `forward`.
_ORIGINALS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, nn.Sequential)
}


def can_fuse(states: torch.Tensor, *modules: nn.Module) -> bool:
    """Return True for plain eager CPU tensors and unhooked stock modules, which a fused kernel can replace.

    The call must not be traced, transformed or seen by a dispatch mode. Modules must be PyTorch's own or have the class
    attribute `only_permutes` (their result is a permuted view of the input, or the input), without hooks or wrappers.
    Parameters must be plain tensors of the dtype of `states`.
    """
    return (
        not torch.compiler.is_compiling()
        and states.device.type == "cpu"
        and states.dtype in _DTYPES
        and eager.ordinary(states)
        and not (eager.transforms() or eager.watched())
        and not torch.is_autocast_enabled("cpu")
        and environment() in (None, "cpu")
        and native.why_not() is None
        and not nn.modules.module._has_any_global_hook()
        and all(_is_bare(module, states.dtype) for module in modules)
    )


def _is_bare(module: nn.Module, dtype: torch.dtype) -> bool:
    """Return True if `module` is a stock module without hooks, with plain parameters of `dtype` on the CPU."""
    own, kind = module.__dict__, type(module)
    if (
        not ("only_permutes" in kind.__dict__ or kind.forward is _ORIGINALS.get(kind))
        or "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    ):
        return False
    for parameter in own["_parameters"].values():
        if parameter is not None and not (parameter.dtype == dtype and parameter.is_cpu and eager.ordinary(parameter)):
            return False
    return True


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

    `drop` is the stochastic depth after the norm; the caller guarantees that it is inactive. Return None if the modules
    cannot be fused, or if gradients are needed.
    """
    return _norm(states, norms, drop, scale, residual)


def _norm(
    states: torch.Tensor,
    norms: nn.Sequential,
    after: nn.Module | None,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor | None:
    computing = [module for module in norms if "only_permutes" not in type(module).__dict__]
    layer_norm = computing[0] if len(computing) == 1 else None
    if (
        not isinstance(layer_norm, nn.LayerNorm)
        or layer_norm.weight is None
        or layer_norm.bias is None
        or layer_norm.normalized_shape != states.shape[-1:]
        or not can_fuse(states, norms, *norms, *([] if after is None else [after]))
        or not (scale is None or _is_like(scale, states, states.shape[-1:]))
        or not (residual is None or _is_like(residual, states, states.shape))
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


def _is_like(tensor: torch.Tensor, states: torch.Tensor, shape: torch.Size) -> bool:
    """Return True if `tensor` is a plain tensor of this shape, with the dtype and device of `states`."""
    return (
        eager.ordinary(tensor)
        and tensor.dtype == states.dtype
        and tensor.device == states.device
        and tensor.shape == shape
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
        and first.bias is not None
        and second.bias is not None
        and act.approximate == "none"
        and not (drop.training and drop.p)
    ):
        return None
    if _tracked(states, first.weight, first.bias, second.weight, second.bias):
        return _GeluLinear.apply(first(states), second.weight, second.bias)
    if states.numel() // first.in_features * first.out_features * states.element_size() <= _BLOCK_BYTES:
        hidden = nn.functional.linear(states, first.weight, first.bias)
        return nn.functional.linear(_gelu(hidden, hidden), second.weight, second.bias)
    output = states.new_empty((*states.shape[:-1], second.out_features))
    for part, result in _blocks(first.out_features, states.contiguous(), output):
        hidden = nn.functional.linear(part, first.weight, first.bias)
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


class _GeluLinear(torch.autograd.Function):
    """Linear layer of GELU(states). It saves only its inputs and computes the GELU again in the backward pass.

    Rows are processed in blocks, as in `mlp`.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        states = states.contiguous()
        ctx.save_for_backward(states, weight)
        output = states.new_empty((*states.shape[:-1], weight.shape[0]))
        for before, result in _blocks(states.shape[-1], states, output):
            torch.addmm(bias, _gelu(before, torch.empty_like(before)), weight.t(), out=result)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
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
    if not (
        isinstance(conv, nn.Conv2d)
        and isinstance(norms, nn.Sequential)
        and isinstance(norm, nn.LayerNorm)
        and isinstance(act, nn.GELU)
        and can_fuse(states, block, conv, norms, *norms, act)
        and conv.bias is not None
        and "only_permutes" in type(norms[0]).__dict__
        and norm.weight is not None
        and norm.bias is not None
        and norm.normalized_shape == states.shape[-1:]
        and act.approximate == "none"
        and conv.padding_mode == "zeros"
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == conv.in_channels == conv.out_channels == states.shape[-1]
        and conv.padding == (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.kernel_size[0] % 2 == 1
    ):
        return None
    tensors = (states, conv.weight, conv.bias, norm.weight, norm.bias)
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


class _DepthwiseNormGelu(torch.autograd.Function):
    """Depth-wise convolution, norm and GELU. It saves only its inputs; the backward pass computes the rest again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        *arguments, ctx.epsilon = inputs
        tensors = _contiguous_inputs(*arguments)
        ctx.save_for_backward(*tensors)
        return _depthwise_forward(*tensors, ctx.epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, *parameters = _contiguous_inputs(*ctx.saved_tensors)  # saved-tensor hooks may change strides
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
