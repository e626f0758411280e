# SPDX-License-Identifier: MIT
# mypy: ignore-errors
# ruff: noqa: N803, N806  # constants are in capitals, as in Triton's own kernels
"""Triton kernels of DCNv3, forward and backward, softmax included.

A program computes BLOCK (pixel, group) pairs of one image; a lane holds a few neighbouring channels of one pair. Values
per pair (positions, weights) are [BLOCK] tensors, which every lane of the pair computes for itself: with BLOCK below
the number of threads these tensors stay in the lanes' order, and nothing passes through shared memory.

Positions are those of the image with a border of two pixels, as in dcnv3_reference.py: clamped to that border they are
never negative, every conversion to an integer is defined, and NaN or huge positions fall outside the image.
"""

import triton
import triton.language as tl

_BORDER = tl.constexpr(2)
# Arguments without specialisation on their values: one kernel serves images of every size.
_SIZES = [
    *("pairs", "blocks", "groups", "height", "width", "out_width"),
    *(f"{name}_{axis}" for name in ("value", "offset", "mask") for axis in "nhw"),
]


@triton.jit
def _pairs(pairs, blocks, groups, out_width, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """Return the image of this program, and for each of its pairs: index, existence, group, line and column.

    Pairs beyond the last one are replaced by the last one, so that all may be read.
    """
    program = tl.program_id(0)
    image = program // blocks
    pair = (program - image * blocks).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = pair < pairs
    pair = tl.minimum(pair, pairs - 1)
    pixel = pair // groups
    line = pixel // out_width
    return image.to(tl.int64), pair, exists, pair - pixel * groups, line, pixel - line * out_width


@triton.jit
def _weights(mask, TAPS: tl.constexpr, ACC: tl.constexpr):
    """Return exp(logit - largest logit) of each tap, and their sum."""
    logits = (tl.load(mask).to(ACC),)
    top = logits[0]
    for p in tl.static_range(1, TAPS):
        logits += (tl.load(mask + p).to(ACC),)
        top = tl.maximum(top, logits[p])
    weights = (tl.exp(logits[0] - top),)
    total = weights[0]
    for p in tl.static_range(1, TAPS):
        weights += (tl.exp(logits[p] - top),)
        total += weights[p]
    return weights, total


@triton.jit
def _centre(index, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr):
    """Return the position of the kernel's centre along one axis, in the bordered image."""
    return (index * STRIDE + (DILATION * (K - 1) // 2 - PAD + _BORDER)).to(ACC)


@triton.jit
def _is_below(index, size):
    """Return True where index is in 0..size-1, by one unsigned comparison."""
    return index.to(tl.uint32, bitcast=True) < size.to(tl.uint32)


@triton.jit
def _cell(centre, tap, offset, size, DILATION: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr):
    """Return, along one axis, the first pixel of the sample's cell, which of its two pixels lie in the image, and the
    sample's position in the cell, 0 to 1."""
    step = (tap * DILATION - DILATION * (K - 1) // 2).to(centre.dtype)
    at = centre + step * SCALE + offset.to(centre.dtype) * SCALE
    at = tl.minimum(tl.maximum(at, 0.0), (size + _BORDER).to(centre.dtype))  # NaN becomes 0
    cell = at.to(tl.int32)
    first = cell - _BORDER
    return first, _is_below(first, size), _is_below(first + 1, size), at - cell


@triton.jit
def _rows(at, inside, channel, D: tl.constexpr):
    """Return [BLOCK, channels]: the addresses of channels, and which exist."""
    there = inside[:, None]
    if channel.shape[0] > D:
        there = there & (channel < D)[None, :]
    return at[:, None] + channel[None, :], there


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    value, offset, mask, output,
    pairs, blocks, groups, height, width, out_width,
    value_n, value_h, value_w, offset_n, offset_h, offset_w, mask_n, mask_h, mask_w,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, SCALE: tl.constexpr, SKIP: tl.constexpr, TAPS: tl.constexpr,
    CHUNK: tl.constexpr, SOFTMAX: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Compute the output, for `pairs` (pixel, group) pairs per image, in `blocks` programs.

    SKIP is the index of the tap left out, if any. CHUNK divides TAPS, and is TAPS with softmax. CHANNELS is D, the
    channels of a group, rounded up to a power of two. The strides of value are in units of VECTOR, which divides D.
    INDEX is an integer type for any index in an image. WORDS: value is bfloat16, read in pairs; a shift or a mask
    converts each to float32.
    """
    n, pair, exists, group, h, w = _pairs(pairs, blocks, groups, out_width, INDEX, BLOCK)
    SIZE: tl.constexpr = 2 if WORDS else 1
    channel = tl.arange(0, CHANNELS // SIZE)
    image = value + n * value_n * VECTOR
    output += n * pairs * D
    if WORDS:
        image = image.to(tl.pointer_type(tl.int32), bitcast=True)
        odd = tl.zeros((BLOCK, CHANNELS // 2), ACC)
    offset += n * offset_n
    offset += h * offset_h + w * offset_w + group * (2 * TAPS)
    mask += n * mask_n
    mask += h * mask_h + w * mask_w + group * TAPS
    centre_x, centre_y = _centre(w, SW, PW, DW, KW, ACC), _centre(h, SH, PH, DH, KH, ACC)
    sum = tl.zeros((BLOCK, CHANNELS // SIZE), ACC)
    if SOFTMAX:
        weights, total = _weights(mask, TAPS, ACC)
    for start in range(0, TAPS, CHUNK):
        for k in tl.static_range(CHUNK):
            p = start + k
            q = tl.where(p >= SKIP, p + 1, p)
            x, left_in, right_in, right = _cell(centre_x, q // KH, tl.load(offset + 2 * p), width, DW, KW, SCALE)
            y, upper_in, lower_in, below = _cell(centre_y, q % KH, tl.load(offset + 2 * p + 1), height, DH, KH, SCALE)
            weight = weights[k] if SOFTMAX else tl.load(mask + p).to(ACC)
            lower = below * weight
            upper = weight - lower
            at = group * (D // VECTOR) + y.to(INDEX) * value_h + x.to(INDEX) * value_w
            for corner in tl.static_range(4):
                part = lower if corner // 2 else upper
                part = part * right if corner % 2 else part - part * right
                inside = (lower_in if corner // 2 else upper_in) & (right_in if corner % 2 else left_in)
                corner_at = (at + (corner // 2) * value_h + (corner % 2) * value_w) * (VECTOR // SIZE)
                place, there = _rows(corner_at, inside, channel, D // SIZE)
                pixel = tl.load(image + place, mask=there, other=0)
                if WORDS:
                    odd += (pixel & -65536).to(tl.float32, bitcast=True) * part[:, None]
                    pixel = (pixel << 16).to(tl.float32, bitcast=True)
                sum += pixel.to(ACC) * part[:, None]
    if WORDS:
        sum = tl.join(sum, odd).reshape(BLOCK, CHANNELS)
    if SOFTMAX:
        sum = sum / total[:, None]
    place, there = _rows(pair * D, exists, tl.arange(0, CHANNELS), D)
    tl.store(output + place, sum, mask=there)


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    grad_output, value, offset, mask, grad_value, grad_offset, grad_mask, fixed_scale,
    pairs, blocks, groups, height, width, out_width,
    value_n, value_h, value_w, offset_n, offset_h, offset_w, mask_n, mask_h, mask_w,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, SCALE: tl.constexpr, SKIP: tl.constexpr, TAPS: tl.constexpr,
    CHUNK: tl.constexpr, SOFTMAX: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of offset and mask; add that of value to `grad_value` (N, H, W, C).

    `grad_value` is of type ACC or, with `fixed_scale`, int64 in fixed point. The rest is as in the forward kernel.
    Integers cannot be NaN: if a softmax is NaN, `fixed_scale` becomes NaN, and with it all results of that scale.
    """
    n, pair, exists, group, h, w = _pairs(pairs, blocks, groups, out_width, INDEX, BLOCK)
    channel = tl.arange(0, CHANNELS)
    image = value + n * value_n * VECTOR
    grad_image = grad_value + n * height * width * groups * D
    offset += n * offset_n
    offset += h * offset_h + w * offset_w + group * (2 * TAPS)
    mask += n * mask_n
    mask += h * mask_h + w * mask_w + group * TAPS
    grad_offset += n * pairs * (2 * TAPS)
    grad_offset += pair * (2 * TAPS)
    grad_mask += n * pairs * TAPS
    grad_mask += pair * TAPS
    centre_x, centre_y = _centre(w, SW, PW, DW, KW, ACC), _centre(h, SH, PH, DH, KH, ACC)
    grad_output += n * pairs * D
    place, there = _rows(pair * D, exists, channel, D)
    gradient = tl.load(grad_output + place, mask=there, other=0.0).to(ACC)
    if fixed_scale is not None:
        scale = tl.load(fixed_scale)
    if SOFTMAX:
        weights, total = _weights(mask, TAPS, ACC)
        norm = 1 / total
        if fixed_scale is not None:
            tl.store(fixed_scale + pair * 0, float("nan"), mask=total != total)
    for start in range(0, TAPS, CHUNK):
        slopes = ()
        mean = tl.zeros((BLOCK,), ACC)
        for k in tl.static_range(CHUNK):
            p = start + k
            q = tl.where(p >= SKIP, p + 1, p)
            x, left_in, right_in, right = _cell(centre_x, q // KH, tl.load(offset + 2 * p), width, DW, KW, SCALE)
            y, upper_in, lower_in, below = _cell(centre_y, q % KH, tl.load(offset + 2 * p + 1), height, DH, KH, SCALE)
            weight = weights[k] * norm if SOFTMAX else tl.load(mask + p).to(ACC)
            lower = below * weight
            upper = weight - lower
            at = group * (D // VECTOR) + y.to(INDEX) * value_h + x.to(INDEX) * value_w
            grad_at = (y.to(INDEX) * width + x) * groups + group
            dots = ()  # <gradient, corner>
            for corner in tl.static_range(4):
                part = lower if corner // 2 else upper
                part = part * right if corner % 2 else part - part * right
                inside = (lower_in if corner // 2 else upper_in) & (right_in if corner % 2 else left_in) & exists
                corner_at = (at + (corner // 2) * value_h + (corner % 2) * value_w) * VECTOR
                place, there = _rows(corner_at, inside, channel, D)
                dots += (tl.sum(gradient * tl.load(image + place, mask=there, other=0.0).to(ACC), 1),)
                corner_at = (grad_at + ((corner // 2) * width + corner % 2) * groups) * D
                place, there = _rows(corner_at, inside, channel, D)
                summand = gradient * part[:, None]
                if fixed_scale is not None:
                    summand = tl.floor(summand.to(tl.float64) * scale + 0.5).to(tl.int64)
                tl.atomic_add(grad_image + place, summand, mask=there, sem="relaxed")
            along_upper, along_lower = dots[1] - dots[0], dots[3] - dots[2]
            on_upper, on_lower = dots[0] + right * along_upper, dots[2] + right * along_lower
            grad_x = (along_upper + below * (along_lower - along_upper)) * (weight * SCALE)
            grad_y = (on_lower - on_upper) * (weight * SCALE)
            tl.store(grad_offset + 2 * p, grad_x, mask=exists)
            tl.store(grad_offset + 2 * p + 1, grad_y, mask=exists)
            slope = on_upper + below * (on_lower - on_upper)
            if SOFTMAX:
                slopes += (slope,)
                mean += weight * slope
            else:
                tl.store(grad_mask + p, slope, mask=exists)
        if SOFTMAX:
            for k in tl.static_range(CHUNK):
                tl.store(grad_mask + k, weights[k] * norm * (slopes[k] - mean), mask=exists)


INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)  # on the CPU, with TRITON_INTERPRET


def why_not() -> str | None:
    """Return None if the current device can run kernels, else the reason; without a driver, Triton raises an error."""
    target = triton.runtime.driver.active.get_current_target()
    if target.backend == "cuda" and target.arch < 80:
        return f"needs a GPU of compute capability 8.0 or higher, got {target.arch // 10}.{target.arch % 10}"
    return None
