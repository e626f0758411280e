# SPDX-License-Identifier: MIT
"""Functions of PyTorch that exporters give the sizes of their example, in terms of others that keep them free."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SymbolicSizes(TorchFunctionMode):
    """Replace such functions within this context while `torch.export` or `torch.jit.trace` runs it.

    Models of transformers call `torch.linspace` for reference points (the encoders of Deformable DETR and Mask2Former)
    and adaptive pooling for pyramids (UperNet). `linspace` takes no symbol for its number of steps, and the
    decomposition of adaptive pooling reads rows and columns that it computes from the size. In a trace, where sizes are
    tensors, lists of them become constants.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacements = _EXPORTED if torch.compiler.is_exporting() else _TRACED if torch.jit.is_tracing() else {}
        if func in replacements:
            return replacements[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linspace(start: Any, end: Any, steps: Any, **options: Any) -> torch.Tensor:
    options = {"dtype": torch.get_default_dtype(), **options}
    if options["dtype"] is None:
        options["dtype"] = torch.get_default_dtype()
    intervals = (steps - 1).clamp(min=1) if isinstance(steps, torch.Tensor) else torch.sym_max(steps - 1, 1)
    return start + torch.arange(steps, **options) * ((end - start) / intervals)


def _adaptive_avg_pool2d(input: torch.Tensor, output_size: Any) -> torch.Tensor:
    """Average the same rows and columns as PyTorch, by one matrix product for each axis."""
    sides = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    rows, columns = (_averages(size, side, input) for size, side in zip(input.shape[-2:], sides, strict=True))
    return rows @ input @ columns.T


def _averages(size: Any, side: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix (side, size) that averages `size` values to `side`, which overlap unless it divides `size`."""
    count = size if side is None else side
    bins, positions = (torch.arange(number, device=like.device) for number in (count, size))
    starts = (bins * size // count)[:, None]
    ends = (((bins + 1) * size + count - 1) // count)[:, None]
    inside = (positions >= starts) & (positions < ends)
    return inside.to(like.dtype) / (ends - starts).to(like.dtype)


def _tensor(data: Any, **options: Any) -> torch.Tensor:
    """Return what `torch.tensor` does, as a stack if `data` is a nested list with a size that is a tensor."""
    if isinstance(data, torch.Tensor):
        return data.to(**options)
    if isinstance(data, Sequence) and any(isinstance(size, torch.Tensor) for size in _leaves(data)):
        return torch.stack([_tensor(part, **options) for part in data])
    return torch.tensor(data, **options)


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, Sequence):
        for part in data:
            yield from _leaves(part)
    else:
        yield data


_EXPORTED: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    torch.linspace: _linspace,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}
_TRACED: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    torch.linspace: _linspace,
    torch.tensor: _tensor,
    torch.as_tensor: _tensor,
}

__all__ = ["SymbolicSizes"]
