# SPDX-License-Identifier: MIT
"""Deformable convolution v3 (DCNv3) in plain PyTorch: the specification of the operator, on any device.

Method: a table has one row of D values per (pixel, group). Each output pixel of a group is a weighted sum of
`4 * taps` rows, the four corners around each sampling position, with bilinear weights times the mask: this is one
`embedding_bag`. The table is the image with a border of two zero pixels. Positions are clamped to that border, so that
all positions outside the image read zeros, and no bounds are tested.

Plain eager training uses `_Sampling`, which saves only its inputs for the backward pass. On the CPU it works block by
block, so that the memory for indices and weights does not grow with the image. All else (torch.compile, torch.export,
torch.func) uses the same arithmetic in one piece with ordinary autograd.

Where derivatives of derivatives, forward mode or batches of gradients are wanted, `embedding_bag`, which has none,
gives way to a loop of `index_select`: slower, and exact to any order. See `is_transformed` and `dcnv3_gradients`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

_BORDER = 2  # zero pixels around the image; with two, both corners of a clamped position lie in the border
_BLOCK_ROWS = 65_536  # (pixel, group) rows in a block on the CPU; bounds the memory for indices and weights
_INT32_MAX = 2**31 - 1


class DCNv3Geometry(NamedTuple):
    """Arguments of a DCNv3 call except its tensors and the softmax; pairs are (height, width)."""

    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    offset_scale: float
    remove_center: bool

    # Methods rather than properties: torch.compile before PyTorch 2.10 has no properties of named tuples.

    def taps(self) -> list[tuple[int, int]]:
        """Return (column, row) of each tap, columns in the outer loop."""
        height, width = self.kernel_size
        centre = (width // 2, height // 2) if self.remove_center else None
        return [(i, j) for i in range(width) for j in range(height) if (i, j) != centre]

    def num_taps(self) -> int:
        """Return the number of taps."""
        return self.kernel_size[0] * self.kernel_size[1] - self.remove_center

    def numbers(self) -> tuple[int | float | bool, ...]:
        """Return the fields in their order, pairs as two numbers."""
        pairs = (*self.kernel_size, *self.stride, *self.padding, *self.dilation)
        return (self.groups, *pairs, self.offset_scale, self.remove_center)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H_out, W_out) for an input of (height, width)."""
        sizes = zip((height, width), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        out = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, dilation in sizes
        ]
        return out[0], out[1]


def dcnv3_reference(
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
) -> torch.Tensor:
    """Sum bilinear samples of `value` at learned positions, weighted by `mask` (DCNv3).

    Shapes: value (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask (N, Ho, Wo, G*P) -> (N, Ho, Wo, G*D),
    with P = Kh*Kw - remove_center and Ho = (H + 2*pad_h - dil_h*(Kh-1) - 1)//stride_h + 1 (int or (h, w) pair each).
    Units: tap p of output pixel (h, w) reads the input at stride*(w, h) - pad + c + (dil*(i, j) - c + offset[p])
    * offset_scale, with the kernel centre c = (dil*(K-1))//2, in pixels; pairs are (x, y), taps run x-outer.
    Reads outside the image give 0, and so do NaN or infinite positions. With `softmax=True` the mask holds logits and
    is normalised over the taps of each group.
    Result: value.dtype, summed in float32 (float64 for float64). Derivatives of any order for all three tensors.
    Raises: ValueError for shapes, dtypes, devices, layouts or arguments that disagree.
    Source: arXiv:2211.05778 eq. 2; equal to OpenGVLab/InternImage@31c962d for square padding.

    >>> value, offset, mask = torch.rand(1, 5, 7, 8), torch.zeros(1, 5, 7, 36), torch.rand(1, 5, 7, 18)
    >>> dcnv3_reference(value, offset, mask, groups=2).shape
    torch.Size([1, 5, 7, 8])
    """
    geometry = check_dcnv3(
        value,
        offset,
        mask,
        groups=groups,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_scale=offset_scale,
        remove_center=remove_center,
    )
    if _is_plain_eager(value):
        return _Sampling.apply(value, offset, mask, geometry, softmax)
    if torch.compiler.is_exporting():
        return dcnv3_by_gather(value, offset, mask, geometry, softmax)
    weighted_sum = _weighted_sum_of_any_order if is_transformed() else _weighted_sum
    return _sample(value, offset, mask, geometry, softmax, plain=False, weighted_sum=weighted_sum).to(value.dtype)


def dcnv3_by_gather(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: DCNv3Geometry, softmax: bool
) -> torch.Tensor:
    """Compute the operator by operators that every runtime has, such as ONNX's Gather and MatMul, for exported models.

    Arguments are not checked. The gathered rows are stored: it needs much memory.
    """
    return _sample(value, offset, mask, geometry, softmax, plain=False, weighted_sum=_gathered_sum).to(value.dtype)


def dcnv3_by_embedding_bag(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: DCNv3Geometry, softmax: bool
) -> torch.Tensor:
    """Compute the operator in one piece by operators of PyTorch, for exported models that PyTorch itself runs.

    Arguments are not checked.
    """
    return _sample(value, offset, mask, geometry, softmax, plain=False).to(value.dtype)


def check_dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> DCNv3Geometry:
    """Return the geometry of a DCNv3 call.

    Raises: ValueError with the given and the expected value if arguments are invalid or disagree.
    """
    pairs = [
        check_kernel(groups, kernel_size, remove_center),
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    ]
    for name, tensor in (("value", value), ("offset", offset), ("mask", mask)):
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor.")
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected 4 dimensions (N, height, width, features)."
            )
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} has layout {tensor.layout}, expected torch.strided; call to_dense() on it.")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}; expected one device.")
    if not value.is_floating_point():
        raise ValueError(f"value has dtype {value.dtype}, expected a floating-point dtype.")
    wide = compute_dtype(value.dtype)
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor.dtype not in (value.dtype, wide):
            allowed = " or ".join(str(dtype) for dtype in dict.fromkeys((value.dtype, wide)))
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected {allowed} for a value of {value.dtype}.")
    largest = torch.finfo(wide).max
    if not isinstance(offset_scale, Real) or not abs(offset_scale) <= largest:  # NaN compares false
        raise ValueError(
            f"offset_scale is {offset_scale!r}, expected a finite number of at most {largest:.3g}, the largest "
            f"of {wide}."
        )
    geometry = DCNv3Geometry(groups, *pairs, float(offset_scale), bool(remove_center))

    batch, height, width, channels = value.shape
    if channels < 1 or channels % geometry.groups:
        raise ValueError(f"value has {channels} channels, expected a positive multiple of groups={geometry.groups}.")
    out_height, out_width = geometry.output_size(height, width)
    if out_height < 1 or out_width < 1:
        raise ValueError(
            f"value of height {height} and width {width} leaves an output of {out_height}x{out_width} for "
            f"kernel_size={geometry.kernel_size}, stride={geometry.stride}, padding={geometry.padding}, "
            f"dilation={geometry.dilation}; expected at least 1x1."
        )
    features = geometry.groups * geometry.num_taps()
    for name, tensor, per_tap in (("offset", offset, 2), ("mask", mask, 1)):
        expected = (batch, out_height, out_width, features * per_tap)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {expected} for value {tuple(value.shape)}, "
                f"groups={geometry.groups}, kernel_size={geometry.kernel_size}, stride={geometry.stride}, "
                f"padding={geometry.padding}, dilation={geometry.dilation}, remove_center={geometry.remove_center}."
            )
    return geometry


def check_kernel(groups: int, kernel_size: int | Sequence[int], remove_center: bool) -> tuple[int, int]:
    """Return (height, width) of the kernel.

    Raises: ValueError with the given value if one of the arguments is invalid.
    """
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"groups is {groups!r}, expected an integer of at least 1.")
    if not isinstance(remove_center, int):  # True and False are integers
        raise ValueError(f"remove_center is {remove_center!r}, expected True or False.")
    return _pair("kernel_size", kernel_size, 1)


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """Return (height, width) from an integer or such a pair, each from `least` to the largest 32-bit integer."""
    sides: Sequence[Any] = value if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2 or not all(
        isinstance(s, int) and not isinstance(s, bool) and least <= s <= _INT32_MAX for s in sides
    ):
        raise ValueError(
            f"{name} is {value!r}, expected an integer from {least} to {_INT32_MAX} or a (height, width) pair of them."
        )
    return int(sides[0]), int(sides[1])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of positions and sums for values of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_transformed() -> bool:
    """Return True under a transform of torch.func, a batched backward pass or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or (
        not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    )


def is_recorded(grad_output: torch.Tensor) -> bool:
    """Return True in a backward pass that is itself differentiated (`create_graph=True`), transformed or batched."""
    return torch.is_grad_enabled() or is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad_output)


def _is_plain_eager(tensor: torch.Tensor) -> bool:
    """Return True in plain eager execution: no tracing, fake tensors, transforms or graph capture."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or is_transformed()
        or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _sampling_grid(
    geometry: DCNv3Geometry, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sampling positions for zero offsets, in pixels of the bordered image, as two summands.

    Rows (Ho, 1, 1, 1, 2) and columns with taps (Wo, 1, P, 2); pairs are (x, y).
    """
    # Integers until the end: float32 has too few digits for a large stride times an index.
    kernel_height, kernel_width = geometry.kernel_size
    taps = torch.arange(geometry.num_taps(), device=device)  # no `torch.tensor`, which torch.export cannot decompose
    if geometry.remove_center:
        taps = taps + (taps >= kernel_width // 2 * kernel_height + kernel_height // 2)
    taps = torch.stack((taps.div(kernel_height, rounding_mode="floor"), taps.remainder(kernel_height)), -1)  # (P, 2)
    zero = torch.zeros((), dtype=dtype, device=device)
    axes = []
    for axis, length in ((1, size[1]), (0, size[0])):  # x, then y
        centre = (geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)) // 2
        start = centre - geometry.padding[axis] + _BORDER
        steps = torch.arange(length, device=device) * geometry.stride[axis] + start
        from_centre = taps[:, 1 - axis] * geometry.dilation[axis] - centre
        axes.append((steps.to(dtype), from_centre.to(dtype) * geometry.offset_scale))
    (steps_x, taps_x), (steps_y, taps_y) = axes
    rows = torch.stack(torch.broadcast_tensors(zero, steps_y), -1).view(-1, 1, 1, 1, 2)
    columns = torch.stack(torch.broadcast_tensors(steps_x[:, None] + taps_x, taps_y), -1).unsqueeze(1)
    return rows, columns


def sampling_positions(offset: torch.Tensor, geometry: DCNv3Geometry) -> torch.Tensor:
    """Return where each tap samples, (N, Ho, Wo, G, P, 2), as pairs (x, y) in pixels of `value`; the first one is 0.

    Computed in float64; `offset` (N, Ho, Wo, G*P*2) is not checked.
    """
    rows, columns = _sampling_grid(geometry, (offset.shape[1], offset.shape[2]), torch.float64, offset.device)
    offsets = offset.to(torch.float64).unflatten(3, (geometry.groups, geometry.num_taps(), 2))
    return rows + columns - _BORDER + offsets * geometry.offset_scale


# For plain eager calls only: tensors made under a tracer or a transform must not be kept after it.
_kept_sampling_grid = lru_cache(maxsize=64)(_sampling_grid)


def _table(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add the border of zeros and convert to `dtype`: (N, H, W, C) -> (N, H + 4, W + 4, C), contiguous."""
    # F.pad keeps an unusual order of strides, but the rows of the table must be contiguous.
    return F.pad(value.to(dtype), (0, 0, _BORDER, _BORDER, _BORDER, _BORDER)).contiguous()


class _Taps(NamedTuple):
    """Sampling positions and masks of taps; all (N, h, w, G, P)."""

    column: torch.Tensor  # of the upper left corner, in pixels of the bordered image
    line: torch.Tensor
    right: torch.Tensor  # distance of the sample from that corner, 0 to 1
    below: torch.Tensor
    mask: torch.Tensor  # after the softmax, if there is one


def _taps(
    offset: torch.Tensor,
    mask: torch.Tensor,
    grid: tuple[torch.Tensor, torch.Tensor],
    geometry: DCNv3Geometry,
    table_size: tuple[int, int],
    softmax: bool,
    index_dtype: torch.dtype,
) -> _Taps:
    """Return the taps for `offset` (N, h, w, G, P, 2), `mask` (N, h, w, G, P) and the `grid` of zero offsets.

    Tensors are of the dtype to compute in, indices of `index_dtype`.
    """
    height, width = table_size
    position = torch.add(grid[0] + grid[1], offset, alpha=geometry.offset_scale)
    # NaN, negative and too large positions become positions whose four corners lie in the border of zeros.
    position = position.nan_to_num(nan=0.0)
    x, y = position[..., 0].clamp(0, width - 2), position[..., 1].clamp(0, height - 2)
    column, line = x.detach().to(index_dtype), y.detach().to(index_dtype)  # positions are >= 0: this rounds down
    return _Taps(column, line, x - column, y - line, mask.softmax(-1) if softmax else mask)


def _rows_and_weights(taps: _Taps, table_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the table's rows that each output sums, and their weights; both (N*h*w*G, 4*P)."""
    lower = taps.below * taps.mask
    upper = taps.mask - lower
    lower_right, upper_right = lower * taps.right, upper * taps.right
    weights = torch.cat((upper - upper_right, upper_right, lower - lower_right, lower_right), -1)

    height, width = table_size
    batch, groups = taps.column.shape[0], taps.column.shape[3]
    dtype, device = taps.column.dtype, taps.column.device
    image = torch.arange(batch, dtype=dtype, device=device).view(-1, 1, 1, 1, 1) * (height * width * groups)
    group = torch.arange(groups, dtype=dtype, device=device).view(-1, 1)
    corner = torch.add(taps.line * (width * groups) + (image + group), taps.column, alpha=groups)
    rows = torch.cat((corner, corner + groups, corner + width * groups, corner + (width + 1) * groups), -1)
    return rows.flatten(0, 3), weights.flatten(0, 3)


def _tap_gradients(
    taps: _Taps, corners: torch.Tensor, offset_scale: float, softmax: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of offset (N, h, w, G, P, 2) and mask (N, h, w, G, P).

    `corners` (N, h, w, G, 4, P) are the gradients of the weights: upper left, upper right, lower left, lower right.
    """
    upper_left, upper_right, lower_left, lower_right = corners.unbind(-2)
    upper = torch.lerp(upper_left, upper_right, taps.right)
    lower = torch.lerp(lower_left, lower_right, taps.right)
    grad_mask = torch.lerp(upper, lower, taps.below)
    along_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, taps.below)
    # One factor after the other: the product of mask and scale may be infinite where the slopes are 0.
    grad_offset = torch.stack((along_x, lower - upper), -1) * taps.mask.unsqueeze(-1) * offset_scale
    if softmax:
        grad_mask = taps.mask * (grad_mask - (taps.mask * grad_mask).sum(-1, keepdim=True))
    return grad_offset, grad_mask


def _weighted_sum(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return sum_k weights[r, k] * table[rows[r, k]]; (M, D), (R, K), (R, K) -> (R, D)."""
    if table.device.type == "mps":  # it has no embedding_bag in some supported releases
        return _weighted_sum_of_any_order(table, rows, weights)
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def _gathered_sum(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the same as `_weighted_sum`, by a gather and a product of matrices."""
    return (weights.unsqueeze(1) @ F.embedding(rows, table)).squeeze(1)


def _weighted_sum_of_any_order(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the same as `_weighted_sum`, by operators with derivatives of any order, forward mode, batching rules."""
    result = table.new_zeros(rows.shape[0], table.shape[1])
    for row, weight in zip(rows.unbind(1), weights.unbind(1), strict=True):
        result = torch.addcmul(result, table.index_select(0, row), weight.unsqueeze(1))
    return result


def _sample(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    geometry: DCNv3Geometry,
    softmax: bool,
    *,
    plain: bool,
    weighted_sum: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = _weighted_sum,
) -> torch.Tensor:
    """Compute the operator in one piece; the result is in the dtype of the computation."""
    dtype, taps = compute_dtype(value.dtype), geometry.num_taps()
    batch, height, width, _ = offset.shape
    if taps == 0:
        # Nothing is sampled. The result is zero, connected to the inputs by sums of empty tensors.
        zeros = value.new_zeros((batch, height, width, value.shape[3]), dtype=dtype)
        return zeros + value[:0].sum() + offset.sum() + mask.sum()
    grid_of = _kept_sampling_grid if plain else _sampling_grid
    grid = grid_of(geometry, (height, width), dtype, offset.device)
    table = _table(value, dtype)
    table_size = (table.shape[1], table.shape[2])
    rows, weights = _rows_and_weights(
        _taps(
            offset.to(dtype).unflatten(3, (geometry.groups, taps, 2)),
            mask.to(dtype).unflatten(3, (geometry.groups, taps)),
            grid,
            geometry,
            table_size,
            softmax,
            torch.int64,
        ),
        table_size,
    )
    summed = weighted_sum(table.view(-1, value.shape[3] // geometry.groups), rows, weights)
    return summed.view(batch, height, width, value.shape[3])


def dcnv3_forward(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: DCNv3Geometry, softmax: bool
) -> torch.Tensor:
    """Compute the operator without autograd, block by block on the CPU; arguments are not checked."""
    if value.device.type != "cpu":
        return _sample(value, offset, mask, geometry, softmax, plain=_is_plain_eager(value)).to(value.dtype)
    result = torch.empty(*offset.shape[:3], value.shape[3], dtype=value.dtype, device=value.device)
    if not geometry.num_taps():
        return result.zero_()
    for block in _blocks(value, offset, mask, geometry):
        rows, weights = _rows_and_weights(block.taps(softmax), block.table_size)
        summed = _weighted_sum(block.table, rows, weights)
        result[block.images, block.lines] = summed.view(*block.offset.shape[:3], -1)
    return result


def dcnv3_backward(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    geometry: DCNv3Geometry,
    softmax: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of value, offset and mask, contiguous; everything is computed again from the inputs."""
    if value.device.type != "cpu":

        def forward(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return _sample(value, offset, mask, geometry, softmax, plain=False).to(value.dtype)

        pull_back = torch.func.vjp(forward, value, offset, mask)[1]
        grad_value, grad_offset, grad_mask = (gradient.contiguous() for gradient in pull_back(grad_output))
        return grad_value, grad_offset, grad_mask
    dtype = compute_dtype(value.dtype)
    batch, height, width, channels = value.shape
    grad_table = value.new_zeros((batch, height + 2 * _BORDER, width + 2 * _BORDER, channels), dtype=dtype)
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    for block in _blocks(value, offset, mask, geometry) if geometry.num_taps() else ():
        block_grad = grad_output[block.images, block.lines].to(dtype).reshape(-1, channels // geometry.groups)
        taps = block.taps(softmax)
        rows, weights = _rows_and_weights(taps, block.table_size)
        corners = _row_products(block_grad, block.table, rows).view(*taps.mask.shape[:4], 4, -1)
        block_grad_offset, block_grad_mask = _tap_gradients(taps, corners, geometry.offset_scale, softmax)
        grad_offset[block.images, block.lines] = block_grad_offset.flatten(3).to(offset.dtype)
        grad_mask[block.images, block.lines] = block_grad_mask.flatten(3).to(mask.dtype)
        images = grad_table[block.images]
        images += _weighted_scatter(block_grad, rows, weights, block.table.shape[0]).view(images.shape)
    inner = grad_table[:, _BORDER : height + _BORDER, _BORDER : width + _BORDER]
    return inner.to(value.dtype).contiguous(), grad_offset, grad_mask


def dcnv3_gradients(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    geometry: DCNv3Geometry,
    softmax: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of value, offset and mask in one piece; see `recorded_gradients`."""

    def forward(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sample = _sample(value, offset, mask, geometry, softmax, plain=False, weighted_sum=_weighted_sum_of_any_order)
        return sample.to(value.dtype)

    grad_value, grad_offset, grad_mask = recorded_gradients(forward, (value, offset, mask), grad_output)
    return grad_value, grad_offset, grad_mask


def recorded_gradients(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad_output: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of a function's inputs, contiguous, by autograd: they can be differentiated and batched.

    For a backward pass in which `is_recorded` is true. (torch.func.vjp does not work with hooks for saved tensors.)
    """
    with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
        # Other names of the inputs, so that the derivatives end here, and those of higher order go on.
        aliases = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        output = function(*aliases)
    gradients = torch.autograd.grad(output, aliases, grad_output, create_graph=torch.is_grad_enabled())
    return tuple(gradient.contiguous() for gradient in gradients)


class _Sampling(torch.autograd.Function):
    """The operator in plain eager execution; it saves only its inputs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        offset: torch.Tensor,
        mask: torch.Tensor,
        geometry: DCNv3Geometry,
        softmax: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(value, offset, mask)
        ctx.geometry, ctx.softmax = geometry, softmax
        return dcnv3_forward(value, offset, mask, geometry, softmax)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, offset, mask = ctx.saved_tensors
        if is_recorded(grad_output):
            return *dcnv3_gradients(grad_output, value, offset, mask, ctx.geometry, ctx.softmax), None, None
        with torch.autocast(value.device.type, enabled=False):
            return *dcnv3_backward(grad_output, value, offset, mask, ctx.geometry, ctx.softmax), None, None


class _Block(NamedTuple):
    """Some lines of some images, with the table and grid to sample them."""

    images: slice
    lines: slice
    offset: torch.Tensor  # (n, h, w, G, P, 2)
    mask: torch.Tensor  # (n, h, w, G, P)
    table: torch.Tensor  # (n*(H+4)*(W+4)*G, D)
    table_size: tuple[int, int]
    grid: tuple[torch.Tensor, torch.Tensor]
    geometry: DCNv3Geometry

    def taps(self, softmax: bool) -> _Taps:
        """Return the taps of this block."""
        index_dtype = torch.int32 if self.table.shape[0] <= _INT32_MAX else torch.int64
        return _taps(self.offset, self.mask, self.grid, self.geometry, self.table_size, softmax, index_dtype)


def _blocks(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: DCNv3Geometry) -> Iterator[_Block]:
    """Cut a call into blocks of about `_BLOCK_ROWS` rows: several small images, or some lines of a large one."""
    dtype, groups, taps = compute_dtype(value.dtype), geometry.groups, geometry.num_taps()
    batch, height, width, _ = offset.shape
    rows, columns = _kept_sampling_grid(geometry, (height, width), dtype, value.device)
    line_rows = width * groups
    lines = max(1, min(height, _BLOCK_ROWS // line_rows))
    images = max(1, _BLOCK_ROWS // (height * line_rows))
    for first in range(0, batch, images):
        picked = slice(first, min(first + images, batch))
        table = _table(value[picked], dtype)
        for top in range(0, height, lines):
            part = slice(top, min(top + lines, height))
            yield _Block(
                picked,
                part,
                offset[picked, part].to(dtype).unflatten(3, (groups, taps, 2)),
                mask[picked, part].to(dtype).unflatten(3, (groups, taps)),
                table.view(-1, value.shape[3] // groups),
                (table.shape[1], table.shape[2]),
                (rows[part], columns),
                geometry,
            )


@lru_cache(maxsize=1)
def _suppress_sparse_warning() -> None:
    """Suppress PyTorch's warning, once per process, that CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


def _row_products(left: torch.Tensor, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return <left[r], table[rows[r, k]]>; (R, D), (M, D), (R, K) -> (R, K). The gathered rows are not stored."""
    if rows.shape[1] >= table.shape[0]:  # the sparse pattern of so small a table would be full: PyTorch raises
        return (left @ table.t()).gather(1, rows.long())
    _suppress_sparse_warning()
    ends = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=rows.dtype)
    pattern = torch.sparse_csr_tensor(
        ends, rows.flatten(), left.new_zeros(rows.numel()), (rows.shape[0], table.shape[0]), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, left, table.t(), beta=0.0).values().view(rows.shape)


def _weighted_scatter(left: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """Return the transpose of `_weighted_sum`: row m is the sum of weights[r, k] * left[r] over all rows[r, k] == m.

    Shapes: (R, D), (R, K), (R, K) -> (count, D). Sorting by target makes it an `embedding_bag` in a fixed order.
    """
    targets, order = rows.flatten().sort(stable=True)
    starts = torch.searchsorted(targets, torch.arange(count, dtype=targets.dtype))
    picked = order.div(rows.shape[1], rounding_mode="floor")
    return F.embedding_bag(picked, left, starts, per_sample_weights=weights.flatten()[order], mode="sum")
