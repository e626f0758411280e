# SPDX-License-Identifier: MIT
"""DCNv3 for every device: the public function, the operator registered with PyTorch, and the choice of the backend.

The CPU's kernel is the operator's own, registered by the compiled library (`native.py`). On other devices, plain eager
calls go straight to the backend, whose plan for a kind of call is kept from call to call; tracing and dispatch modes
(torch.compile, torch.export, fake tensors) see the operator. torch.func's transforms see PyTorch's own operators.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..models.dcnv3_reference import (
    DCNv3Geometry,
    check_dcnv3,
    dcnv3_by_embedding_bag,
    dcnv3_by_gather,
    dcnv3_gradients,
    dcnv3_reference,
    is_recorded,
)
from . import eager, native
from .operands import save_operands, saved_operands
from .registry import Backend, Call, Registry, environment

DCNV3 = Registry(
    "dcnv3",
    order=(
        Backend("hub", "hf_internimage.ops.backends.dcnv3_hub", devices=("cuda",), optional=True),
        Backend("cuda", "hf_internimage.ops.backends.dcnv3_cuda", devices=("cuda",), optional=bool(torch.version.hip)),
        Backend("triton", "hf_internimage.ops.backends.dcnv3_triton", devices=("cuda", "xpu")),
        Backend("cpu", "hf_internimage.ops.backends.dcnv3_cpu", devices=("cpu",)),
        Backend("torch", "hf_internimage.ops.backends.dcnv3_torch"),
    ),
)
_MOST_PLANS = 1024
# Computed once: torch.compile before PyTorch 2.12 cannot trace this question.
_AUTOCAST_DEVICES = [
    name for name in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(name)
]


def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Sum bilinear samples of `value` at learned positions, weighted by `mask` (deformable convolution v3).

    Shapes: value (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask (N, Ho, Wo, G*P) -> (N, Ho, Wo, G*D),
    with P = Kh*Kw - remove_center and Ho = (H + 2*pad_h - dil_h*(Kh-1) - 1)//stride_h + 1 (int or (h, w) pair each).
    Units: pixels. Offsets are pairs (x, y); taps run over kernel columns in the outer loop and rows in the inner one;
    `offset_scale` scales grid and offsets about the kernel's centre. Positions outside the image read 0, and so do
    NaN or infinite ones. With `softmax=True` the mask holds logits, normalised inside over the taps of each group.
    Result: value.dtype, summed in float32 (float64 for float64). Gradients for all three tensors; derivatives of higher
    order, forward mode and batched gradients are exact as well, computed by PyTorch's own operators, and slower.
    Autocast: `value` is cast to autocast's dtype, unless it is float64.
    `backend`: None for the best that can run the call, or a name that `explain()` lists, to demand that one, as the
    environment variable HF_INTERNIMAGE_BACKEND does ("hub": see `use_hub_kernel`). "torch" consists of PyTorch's own
    operators, also when compiled or exported; with any other backend, a compiled or exported call is the one operator
    hf_internimage::dcnv3.
    Raises: ValueError for shapes, dtypes, devices, layouts or arguments that disagree, and for an unknown backend;
    BackendError if the demanded backend cannot run this call.
    Source: arXiv:2211.05778 eq. 2; equal to OpenGVLab/InternImage@31c962d for square padding.

    >>> value, offset, mask = torch.rand(1, 5, 7, 8), torch.zeros(1, 5, 7, 36), torch.rand(1, 5, 7, 18)
    >>> dcnv3(value, offset, mask, groups=2, softmax=True).shape
    torch.Size([1, 5, 7, 8])
    """
    arguments: dict[str, Any] = {
        "groups": groups,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "offset_scale": offset_scale,
        "remove_center": remove_center,
    }
    name = DCNV3.requested(backend)
    value, offset, mask = _autocast(value, offset, mask)
    if name == "torch" or eager.transforms():
        return dcnv3_reference(value, offset, mask, **arguments, softmax=softmax)
    if torch.compiler.is_compiling() or eager.watched() or not all(map(eager.ordinary, (value, offset, mask))):
        geometry = check_dcnv3(value, offset, mask, **arguments)
        return _call(value, offset, mask, geometry, softmax, None if name == "cpu" else name)
    return _run(value, offset, mask, arguments, softmax, name)


def explain() -> str:
    """Return a text with the backend of each device and dtype on this machine, and the reasons against the others."""
    devices = ["cpu", *(name for name in ("cuda", "xpu", "mps") if getattr(torch, name).is_available())]
    lines = []
    for device in devices:
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            reasons = DCNV3.explain(Call(device, dtype))
            runs = next(name for name, reason in reasons.items() if reason is None)
            lines += [f"dcnv3 on {device}, {dtype}: {runs}", *_refusals(device, reasons)]
    if "cuda" not in devices:
        lines += ["dcnv3 on cuda: PyTorch finds no such device here"]
        lines += _refusals("cuda", DCNV3.explain(Call("cuda", "float32")))
    return "\n".join(lines)


def backend_for(device: str, dtype: str) -> str:
    """Return the name of the backend that runs calls on a type of device in a dtype, such as "cpu" and "float32".

    That is the one that HF_INTERNIMAGE_BACKEND demands, else the first that can.
    """
    reasons = DCNV3.explain(Call(device, dtype))
    return environment() or next(name for name, reason in reasons.items() if reason is None)


def _refusals(device: str, reasons: dict[str, str | None]) -> list[str]:
    """Return a line for each backend that is made for a device but cannot run there, with the reason."""
    return [
        f"    not {name}: {reason}"
        for name, reason in reasons.items()
        if reason and DCNV3.backends[name].is_for(device)
    ]


def use_hub_kernel(name: str | None) -> None:
    """Use a kernel from the Hub, "owner/repository@version", or from a local folder, for CUDA tensors; None ends this.

    The environment variable HF_INTERNIMAGE_USE_HUB_KERNEL does the same; it is read at the first call. Without either,
    nothing is fetched from the Hub. Needs the package `kernels`.
    Raises: BackendError at the next call on CUDA tensors if the kernel cannot be loaded; there is no fallback.
    """
    importlib.import_module("hf_internimage.ops.backends.dcnv3_hub").use(name)
    DCNV3.forget()
    _plans.clear()


def _autocast(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cast the tensors as autocast demands: value to its dtype, offset and mask to that or to float32."""
    if not all(isinstance(tensor, torch.Tensor) for tensor in (value, offset, mask)):
        return value, offset, mask  # check_dcnv3 refuses them
    device = value.device.type
    if device not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return value, offset, mask
    dtype = torch.get_autocast_dtype(device)
    if value.dtype in (torch.float32, torch.float16, torch.bfloat16):
        value = value.to(dtype)
        offset, mask = (
            t.float() if t.dtype in (torch.float16, torch.bfloat16) and t.dtype != dtype else t for t in (offset, mask)
        )
    return value, offset, mask


def _run(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    arguments: dict[str, Any],
    softmax: bool,
    name: str | None,
) -> torch.Tensor:
    """Run a plain eager call."""
    if _is_for_cpu(value) and DCNV3.choose(_kind(value), name).name == "cpu":
        return _run_on_cpu(value, offset, mask, arguments, softmax)
    plan = _plan(value, offset, mask, arguments, softmax, name)
    if plan is None:
        return dcnv3_reference(value, offset, mask, **arguments, softmax=softmax)
    if eager.is_tracked(value, offset, mask):
        return _Planned.apply(value, offset, mask, plan)
    return plan.forward(value, offset, mask)


_checked_numbers: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # the operator's arguments, by those of `dcnv3`


def _run_on_cpu(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    arguments: dict[str, Any],
    softmax: bool,
) -> torch.Tensor:
    """Run a plain eager call of the CPU's kernel. The kernel compares the tensors with the arguments."""
    key = _hashable(arguments)
    try:
        numbers = _checked_numbers.get(key)
    except TypeError:  # an argument cannot be hashed: check_dcnv3 raises the error for it
        numbers = None
    if numbers is None:
        numbers = check_dcnv3(value, offset, mask, **arguments).numbers()
        if len(_checked_numbers) >= _MOST_PLANS:
            _checked_numbers.clear()
        _checked_numbers[key] = numbers
    operator = torch.ops.hf_internimage.dcnv3.default
    try:
        if eager.is_tracked(value, offset, mask):
            return operator(value, offset, mask, *numbers, bool(softmax))
        return eager.without_gradients(operator, value, offset, mask, *numbers, bool(softmax))
    except RuntimeError:
        check_dcnv3(value, offset, mask, **arguments)  # says more of what disagrees
        raise


def _is_for_cpu(value: Any) -> bool:
    """Return True for tensors that the CPU's kernel may run."""
    return isinstance(value, torch.Tensor) and value.is_cpu and value.dtype in native.DTYPES


def _kind(value: torch.Tensor) -> Call:
    """Return what backends are chosen by."""
    return Call(value.device.type, str(value.dtype).removeprefix("torch."))


def _hashable(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Return a key for the arguments of `dcnv3`, with their types: 1, 1.0 and True are equal, but not all are valid."""
    return tuple((type(part), repr(part) if isinstance(part, (tuple, list)) else part) for part in arguments.values())


def _call(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    geometry: DCNv3Geometry,
    softmax: bool,
    name: str | None,
) -> torch.Tensor:
    """Call the registered operator, on the backend `name` if that is not None."""
    operator = torch.ops.hf_internimage.dcnv3
    if name is None:
        return operator.default(value, offset, mask, *geometry.numbers(), softmax)
    return operator.backend(value, offset, mask, *geometry.numbers(), softmax, name)


_plans: dict[tuple[Any, ...], Any] = {}


def _plan(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    arguments: dict[str, Any],
    softmax: bool,
    name: str | None,
) -> Any:
    """Return the plan of the chosen backend for such a call, which is not "cpu"; None for "torch"."""
    key = (
        *(part for t in (value, offset, mask) for part in (t.shape, t.stride(), t.dtype, t.device)),
        *_hashable(arguments),
        bool(softmax),
        name,
    )
    try:
        return _plans[key]
    except KeyError:
        geometry = check_dcnv3(value, offset, mask, **arguments)
    except TypeError:  # an argument cannot be hashed: check_dcnv3 raises the error for it
        check_dcnv3(value, offset, mask, **arguments)
        raise
    backend = DCNV3.choose(_kind(value), name)
    plan = None if backend.name == "torch" else backend.load().Plan(geometry, bool(softmax), value, offset, mask)
    if len(_plans) >= _MOST_PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


class _Planned(torch.autograd.Function):
    """A plan with its backward pass; it saves only the inputs."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, plan: Any) -> torch.Tensor:
        ctx.save_for_backward(value, offset, mask)
        ctx.plan = plan
        return plan.forward(value, offset, mask)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan = ctx.plan
        value, offset, mask = ctx.saved_tensors
        if is_recorded(grad_output):
            return *dcnv3_gradients(grad_output, value, offset, mask, plan.geometry, plan.softmax), None
        return *plan.backward(grad_output, value, offset, mask), None


_PAIRS = [f"int {name}_{axis}" for name in ("kernel", "stride", "padding", "dilation") for axis in ("h", "w")]
_ARGUMENTS = f"int groups, {', '.join(_PAIRS)}, float offset_scale, bool remove_center, bool softmax"
_LIBRARY = torch.library.Library("hf_internimage", "FRAGMENT")
_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _geometry(arguments: Sequence[Any]) -> tuple[DCNv3Geometry, bool, str | None]:
    """Return the geometry, softmax and backend from the operator's arguments after its tensors."""
    groups, *pairs = arguments[:9]
    offset_scale, remove_center, softmax, backend = (*arguments[9:], None)[:4]
    kernel_size, stride, padding, dilation = ((pairs[i], pairs[i + 1]) for i in range(0, 8, 2))
    return DCNv3Geometry(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center), softmax, backend


def _checked(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, arguments: Sequence[Any]) -> DCNv3Geometry:
    """Return the geometry of a call of the operator; raise ValueError if its arguments disagree."""
    return check_dcnv3(value, offset, mask, **_geometry(arguments)[0]._asdict())


def _registered_plan(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, arguments: Sequence[Any]) -> Any:
    """Return the plan for a call of the operator, for "torch" as well; None if the CPU's kernel runs it from now on."""
    geometry, softmax, backend = _geometry(arguments)
    check_dcnv3(value, offset, mask, **geometry._asdict())
    name = DCNV3.requested(backend)
    if value.is_cpu and DCNV3.choose(_kind(value), name).name == "cpu":
        native.library()  # registers its operators
        return None
    plan = _plan(value, offset, mask, geometry._asdict(), softmax, name)
    return plan or DCNV3.backends["torch"].load().Plan(geometry, softmax, value, offset, mask)


def _forward(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *arguments: Any) -> torch.Tensor:
    plan = _registered_plan(value, offset, mask, arguments)
    if plan is None:  # this call has loaded the library, or demanded the CPU's kernel by name
        return torch.ops.hf_internimage.dcnv3.default(value, offset, mask, *arguments[:12])
    return plan.forward(value, offset, mask)


def _backward(
    grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *arguments: Any
) -> _Gradients:
    plan = _registered_plan(value, offset, mask, arguments)
    _check_gradient(grad_output, value, offset)
    if plan is None:
        return torch.ops.hf_internimage.dcnv3_backward.default(grad_output, value, offset, mask, *arguments[:12])
    return plan.backward(grad_output, value, offset, mask)


def _fake_forward(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *arguments: Any) -> torch.Tensor:
    _checked(value, offset, mask, arguments)
    return value.new_empty((*offset.shape[:3], value.shape[3]))


def _fake_backward(
    grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *arguments: Any
) -> _Gradients:
    _checked(value, offset, mask, arguments)
    _check_gradient(grad_output, value, offset)
    return value.new_empty(value.shape), offset.new_empty(offset.shape), mask.new_empty(mask.shape)


def _check_gradient(grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor) -> None:
    """Raise ValueError unless the gradient has the shape, dtype and device of the output."""
    expected = (*offset.shape[:3], value.shape[3])
    if grad_output.shape != expected or grad_output.dtype != value.dtype or grad_output.device != value.device:
        raise ValueError(
            f"grad_output has shape {tuple(grad_output.shape)}, {grad_output.dtype} and is on {grad_output.device}; "
            f"expected {tuple(expected)}, {value.dtype} on {value.device}."
        )


def _no_second_order(ctx: Any, *_: torch.Tensor) -> None:
    raise NotImplementedError("The operator dcnv3_backward has no gradients; those of dcnv3 can be differentiated.")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    save_operands(ctx, *inputs[:3])
    ctx.arguments = inputs[3:]


def _gradient(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    value, offset, mask = saved_operands(ctx)
    if is_recorded(grad_output):
        geometry, softmax, _ = _geometry(ctx.arguments)
        gradients = dcnv3_gradients(grad_output, value, offset, mask, geometry, softmax)
    else:
        operator = torch.ops.hf_internimage.dcnv3_backward
        gradients = operator(grad_output, value, offset, mask, *ctx.arguments)
    return *gradients, *(None for _ in ctx.arguments)


def _register(name: str, tensors: str, results: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator, and a form of it that demands a backend; the library adds the first one's CPU kernel."""
    for overload, demand in (("", ""), (".backend", ", str backend")):
        _LIBRARY.define(f"{name}{overload}({tensors}, {_ARGUMENTS}{demand}) -> {results}")
        _LIBRARY.impl(name + overload, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"hf_internimage::{name}{overload}", fake, lib=_LIBRARY)


_INPUTS = "Tensor value, Tensor offset, Tensor mask"
_register("dcnv3", _INPUTS, "Tensor", _forward, _fake_forward)
_register("dcnv3_backward", f"Tensor grad_output, {_INPUTS}", "(Tensor, Tensor, Tensor)", _backward, _fake_backward)
for _overload in ("", ".backend"):
    torch.library.register_autograd(
        f"hf_internimage::dcnv3{_overload}", _gradient, setup_context=_setup_context, lib=_LIBRARY
    )
    torch.library.register_autograd(f"hf_internimage::dcnv3_backward{_overload}", _no_second_order, lib=_LIBRARY)


def _by_gather(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Compute a call of the operator by PyTorch's own operators."""
    geometry, softmax, _ = _geometry(arguments)
    return dcnv3_by_gather(value, offset, mask, geometry, softmax)


def by_embedding_bag(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Compute a call of the operator by PyTorch's own operators, fast where PyTorch runs them."""
    geometry, softmax, _ = _geometry(arguments)
    return dcnv3_by_embedding_bag(value, offset, mask, geometry, softmax)


# torch.onnx.export knows no operator of ours, and looks here for others that do the same. (torch.compile does not.)
# Fake tensors of free sizes would run these, too, in place of the operator's own rule, but for the second table.
for _operator in (torch.ops.hf_internimage.dcnv3.default, torch.ops.hf_internimage.dcnv3.backend):
    torch._decomp.register_decomposition(_operator)(_by_gather)
    torch._decomp.register_decomposition(_operator, type="meta")(_fake_forward)
