# SPDX-License-Identifier: MIT
"""The built kernel against a plain loop; needs a GPU and nothing of the repository that the kernel came from.

The kernel is the package `dcnv3`, as kernel-builder's shells have it, or what `kernels` finds in the folder that
DCNV3_KERNEL names. DCNV3_DEVICE is where it runs, instead of on "cuda".
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

DEVICE = os.environ.get("DCNV3_DEVICE", "cuda")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
EXACT = (torch.float64, torch.float32)

pytestmark = [
    pytest.mark.kernels_ci,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    if folder := os.environ.get("DCNV3_KERNEL"):
        kernels = pytest.importorskip("kernels")
        module: ModuleType = kernels.get_local_kernel(Path(folder))
        return module
    return pytest.importorskip("dcnv3")


def loop(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, **geometry: Any) -> torch.Tensor:
    """Compute DCNv3 of float64 tensors tap by tap, with gradients."""
    groups, (kernel_h, kernel_w) = geometry["groups"], geometry["kernel_size"]
    (stride_h, stride_w), (padding_h, padding_w) = geometry["stride"], geometry["padding"]
    dilation_h, dilation_w = geometry["dilation"]
    centre = (kernel_w // 2, kernel_h // 2) if geometry["remove_center"] else None
    taps = [(i, j) for i in range(kernel_w) for j in range(kernel_h) if (i, j) != centre]
    images, height, width, channels = value.shape
    _, out_height, out_width, _ = offset.shape
    image = value.reshape(images, height * width, groups, channels // groups)
    offset = offset.reshape(images, out_height, out_width, groups, len(taps), 2)
    mask = mask.reshape(images, out_height, out_width, groups, len(taps))
    if geometry["softmax"]:
        mask = mask.softmax(-1)
    rows = torch.arange(out_height, dtype=torch.float64)[:, None, None]
    columns = torch.arange(out_width, dtype=torch.float64)[:, None]
    centre_x, centre_y = dilation_w * (kernel_w - 1) // 2, dilation_h * (kernel_h - 1) // 2
    total = torch.zeros(images, out_height, out_width, groups, channels // groups, dtype=torch.float64)
    batch, group = torch.arange(images)[:, None, None, None], torch.arange(groups)
    for number, (i, j) in enumerate(taps):
        scale = geometry["offset_scale"]
        x = columns * stride_w - padding_w + centre_x + (i * dilation_w - centre_x + offset[..., number, 0]) * scale
        y = rows * stride_h - padding_h + centre_y + (j * dilation_h - centre_y + offset[..., number, 1]) * scale
        # NaN and what is far away: outside
        usual = (x > -2) & (x < width + 2) & (y > -2) & (y < height + 2)
        x, y = torch.where(usual, x, -5.0), torch.where(usual, y, -5.0)
        left, upper = x.detach().floor(), y.detach().floor()
        for column, row in ((left, upper), (left + 1, upper), (left, upper + 1), (left + 1, upper + 1)):
            part = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = torch.where(inside, row * width + column, 0).long()
            corner = image[batch, place, group] if height * width else total.new_zeros(total.shape)
            total = total + corner * torch.where(inside, part * mask[..., number], 0.0)[..., None]
    return total.flatten(3)


def call(
    channels: int = 16,
    kernel_size: tuple[int, int] = (3, 3),
    remove_center: bool = False,
    softmax: bool = True,
    images: int = 2,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Return tensors (float64, on the CPU) and arguments of a call with two groups, no position near a pixel line."""
    generator = torch.Generator().manual_seed(0)
    height, width, groups, padding = 6, 7, 2, (1, 2)
    taps = kernel_size[0] * kernel_size[1] - remove_center
    out = [
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for size, pad, kernel, step, jump in zip((height, width), padding, kernel_size, dilation, stride, strict=True)
    ]
    value = torch.randn(images, height, width, groups * channels, generator=generator, dtype=torch.float64)
    whole = torch.randint(-3, 4, (images, *out, groups * taps * 2), generator=generator)
    offset = whole + torch.randint(2, 7, whole.shape, generator=generator) / 8  # exact in every dtype
    mask = torch.randn(images, *out, groups * taps, generator=generator, dtype=torch.float64)
    geometry = {
        "groups": groups,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "offset_scale": 1.0,
        "remove_center": remove_center,
        "softmax": softmax,
    }
    return [value, offset.double(), mask], geometry


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    assert (got.detach().double().cpu() - expected).abs().max().item() <= TOLERANCE[dtype] * scale


def check(kernel: ModuleType, tensors: list[torch.Tensor], geometry: dict[str, Any], dtypes: list[torch.dtype]) -> None:
    """Compare output and gradients with the loop on the same rounded numbers."""
    rounded = [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    exact = [tensor.double().requires_grad_() for tensor in rounded]
    inputs = [tensor.to(DEVICE).requires_grad_() for tensor in rounded]
    expected, output = loop(*exact, **geometry), kernel.dcnv3(*inputs, **geometry)
    assert output.dtype == dtypes[0]
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtypes[0])
    expected.backward(grad_output.double())
    output.backward(grad_output.to(DEVICE))
    worst = max(dtypes, key=TOLERANCE.__getitem__)
    close(output, expected.detach(), worst)
    for tensor, reference in zip(inputs, exact, strict=True):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        close(tensor.grad, reference.grad, worst)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [1, 4, 8, 16, 20, 32, 64])
@pytest.mark.parametrize("softmax", [False, True])
def test_channels(kernel: ModuleType, dtype: torch.dtype, channels: int, softmax: bool) -> None:
    check(kernel, *call(channels, softmax=softmax), [dtype] * 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": (1, 1)},
        {"kernel_size": (5, 3), "softmax": False},
        {"kernel_size": (4, 2), "remove_center": True},
        {"remove_center": True},
        {"stride": (2, 3), "dilation": (2, 1)},
        {"images": 5},
    ],
    ids=str,
)
def test_geometry(kernel: ModuleType, dtype: torch.dtype, arguments: dict[str, Any]) -> None:
    check(kernel, *call(**arguments), [dtype] * 3)


@pytest.mark.parametrize("value", TOLERANCE, ids=str)
@pytest.mark.parametrize("offset", TOLERANCE, ids=str)
@pytest.mark.parametrize("mask", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_that_differ(kernel: ModuleType, value: torch.dtype, offset: torch.dtype, mask: torch.dtype) -> None:
    check(kernel, *call(), [value, offset, mask])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_views(kernel: ModuleType, dtype: torch.dtype) -> None:
    """Test slices of wider tensors, transposed and expanded ones, and unaligned memory."""
    tensors, geometry = call()
    value, offset, mask = (tensor.to(DEVICE, dtype) for tensor in tensors)
    expected = kernel.forward(value, offset, mask, **geometry)
    fused = torch.cat([offset, mask], -1)
    parts = fused[..., : offset.shape[3]], fused[..., offset.shape[3] :]
    assert torch.equal(kernel.forward(value, *parts, **geometry), expected)
    for shift in (1, 3, 8):
        shifted = torch.cat([value.new_zeros(shift), value.flatten()])[shift:].view(value.shape)
        assert torch.equal(kernel.forward(shifted, offset, mask, **geometry), expected)
        wide = torch.nn.functional.pad(value, (shift, shift))[..., shift:-shift]
        assert torch.equal(kernel.forward(wide, offset, mask, **geometry), expected)
    first = value.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(kernel.forward(first, offset, mask, **geometry), expected)
    one = [tensor[:1].expand(3, -1, -1, -1) for tensor in (value, offset, mask)]
    assert torch.equal(kernel.forward(*one, **geometry), expected[:1].expand(3, -1, -1, -1))
    grad_output = torch.randn_like(expected)
    gradients = kernel.backward(grad_output, value, offset, mask, **geometry)
    changed = grad_output.transpose(1, 2).contiguous().transpose(1, 2)
    for got, reference in zip(kernel.backward(changed, first, *parts, **geometry), gradients, strict=True):
        assert got.is_contiguous()
        close(got, reference.double().cpu(), dtype)


@pytest.mark.parametrize("channels", [16, 5])
def test_positions_far_outside(kernel: ModuleType, channels: int) -> None:
    tensors, geometry = call(channels)
    offset = tensors[1].flatten()
    odd = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**31, 2.5e9, -7.4]
    offset[: 8 * (len(offset) // 16) : 1] = torch.tensor(odd, dtype=torch.float64).repeat(len(offset) // 16)
    check(kernel, tensors, geometry, [torch.float32] * 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("softmax", [False, True])
def test_deterministic(kernel: ModuleType, dtype: torch.dtype, softmax: bool) -> None:
    tensors, geometry = call(softmax=softmax)
    value, offset, mask = (tensor.to(DEVICE, dtype) for tensor in tensors)
    grad_output = torch.randn_like(kernel.forward(value, offset, mask, **geometry))
    usual = kernel.backward(grad_output, value, offset, mask, **geometry)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [kernel.backward(grad_output, value, offset, mask, **geometry) for _ in range(3)]
        broken = kernel.backward(grad_output * float("nan"), value, offset, mask, **geometry)
    finally:
        torch.use_deterministic_algorithms(before)
    for run in runs:
        for got, same, reference in zip(run, runs[0], usual, strict=True):
            assert torch.equal(got, same)
            close(got, reference.double().cpu(), dtype)
    assert broken[0].isnan().all()


def test_empty(kernel: ModuleType) -> None:
    tensors, geometry = call()
    value, offset, mask = (tensor.float().to(DEVICE) for tensor in tensors)
    output = kernel.forward(value[:0], offset[:0], mask[:0], **geometry)
    assert output.shape == (0, *offset.shape[1:3], value.shape[3])
    gradients = kernel.backward(output, value[:0], offset[:0], mask[:0], **geometry)
    assert [gradient.shape[0] for gradient in gradients] == [0, 0, 0]
    narrow = value[..., :0]
    assert kernel.forward(narrow, offset, mask, **geometry).shape == (*offset.shape[:3], 0)
    _, grad_offset, grad_mask = kernel.backward(value.new_empty(*offset.shape[:3], 0), narrow, offset, mask, **geometry)
    assert not grad_offset.any()
    assert not grad_mask.any()


def test_what_does_not_fit_together(kernel: ModuleType) -> None:
    tensors, geometry = call()
    value, offset, mask = (tensor.float().to(DEVICE) for tensor in tensors)
    for broken, changed, text in (
        ((value[0], offset, mask), {}, "value has shape .*, expected 4 dimensions"),
        ((value, offset[..., 2:], mask), {}, "offset has shape .*, expected"),
        ((value, offset, mask[:, 1:]), {}, "mask has shape .*, expected"),
        ((value, offset[:1], mask[:1]), {}, "offset has shape .*, expected"),
        ((value.int(), offset, mask), {}, "value has type Int, expected Float"),
        ((value, offset, mask.bool()), {}, "mask has type Bool, expected Float"),
        ((value, offset, mask), {"groups": 5}, "32 channels and groups is 5"),
        ((value, offset, mask), {"groups": 0}, "groups is 0"),
        ((value, offset, mask), {"stride": 0}, "at least 1"),
        ((value, offset, mask), {"padding": -1}, "at least 0"),
        ((value, offset, mask), {"dilation": 2**30}, "takes up to"),
    ):
        with pytest.raises(RuntimeError, match=text):
            kernel.forward(*broken, **{**geometry, **changed})
    output = kernel.forward(value, offset, mask, **geometry)
    for grad_output in (output[:1], output.double()):
        with pytest.raises(RuntimeError, match="grad_output"):
            kernel.backward(grad_output, value, offset, mask, **geometry)


def test_compiles_in_one_piece(kernel: ModuleType) -> None:
    tensors, geometry = call()
    inputs = [tensor.float().to(DEVICE).requires_grad_() for tensor in tensors]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = kernel.dcnv3(*tensors, **geometry) * 2
        return output

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    for mine, reference in zip(got, torch.autograd.grad(function(*inputs).sum(), inputs), strict=True):
        close(mine, reference.double().cpu(), torch.float32)


def test_no_second_order(kernel: ModuleType) -> None:
    tensors, geometry = call()
    inputs = [tensor.float().to(DEVICE).requires_grad_() for tensor in tensors]
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        torch.autograd.grad(kernel.dcnv3(*inputs, **geometry).square().sum(), inputs, create_graph=True)


@pytest.mark.skipif(DEVICE != "cuda", reason="streams are CUDA's")
def test_streams_and_graphs(kernel: ModuleType) -> None:
    tensors, geometry = call()
    value, offset, mask = (tensor.float().to(DEVICE) for tensor in tensors)
    expected = kernel.forward(value, offset, mask, **geometry)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        output = kernel.forward(value, offset, mask, **geometry)
    stream.synchronize()
    assert torch.equal(output, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernel.forward(value, offset, mask, **geometry)
    value.mul_(2)
    graph.replay()
    torch.testing.assert_close(output, expected * 2)
