# SPDX-License-Identifier: MIT
"""The operator, on each of its backends, against nested loops, and everything around its arithmetic."""

import math

import pytest
import torch
from support.loops import DRAWN, by_loops, drawn_call
from support.operator_cases import LOPSIDED, PAD_0_2, make_inputs, results

from hf_internimage.models import dcnv3_reference as reference
from hf_internimage.models.dcnv3_reference import dcnv3_reference


@pytest.mark.parametrize("arguments", [LOPSIDED, PAD_0_2], ids=["k3x2-s2x1-p1x0-d2x1", "k3-p0x2-rc"])
def test_matches_loops_where_height_and_width_differ(dcnv3, arguments):
    inputs = make_inputs(arguments)
    torch.testing.assert_close(dcnv3(*inputs, **arguments), by_loops(*inputs, **arguments), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", DRAWN)
def test_drawn_calls_match_loops(dcnv3, seed):
    arguments, inputs, grad_output, expected = drawn_call(seed)
    for got, want in zip(results(dcnv3, inputs, grad_output, **arguments), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("arguments", [LOPSIDED, PAD_0_2], ids=["k3x2-s2x1-p1x0-d2x1", "k3-p0x2-rc"])
def test_gradcheck(dcnv3, arguments, softmax):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(arguments, batch=1, size=(5, 4), depth=2)]
    assert torch.autograd.gradcheck(lambda *t: dcnv3(*t, **arguments, softmax=softmax), inputs, atol=1e-7, eps=1e-6)


def test_softmax_normalises_the_taps_of_each_group(dcnv3):
    value, offset, logits = make_inputs(LOPSIDED)
    mask = logits.unflatten(-1, (2, 6)).softmax(-1).flatten(-2)
    got = dcnv3(value, offset, logits, **LOPSIDED, softmax=True)
    torch.testing.assert_close(got, dcnv3(value, offset, mask, **LOPSIDED), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 7, 40, 10**9])
@pytest.mark.usefixtures("nan_memory")
def test_blocks_do_not_matter(rows, monkeypatch):
    """However the work is cut (one line at a time, a few, images together), results and gradients are the same."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(PAD_0_2, batch=5)]
    whole = reference._sample(*inputs, reference.check_dcnv3(*inputs, **PAD_0_2), True, plain=False)
    grad = torch.randn_like(whole)
    expected = (whole, *torch.autograd.grad(whole, inputs, grad))
    monkeypatch.setattr(reference, "_BLOCK_ROWS", rows)
    output = dcnv3_reference(*inputs, **PAD_0_2, softmax=True)
    for got, want in zip((output, *torch.autograd.grad(output, inputs, grad)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_gradients_of_some_inputs(dcnv3, wanted):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]
    everything = torch.autograd.grad(dcnv3(*inputs, **LOPSIDED).square().sum(), inputs)
    some = [tensor.detach().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
    got = torch.autograd.grad(dcnv3(*some, **LOPSIDED).square().sum(), [some[index] for index in wanted])
    for index, gradient in zip(wanted, got, strict=True):
        torch.testing.assert_close(gradient, everything[index], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bad_offsets_count_as_outside(dcnv3, bad, dtype):
    value, offset, mask = make_inputs(LOPSIDED, dtype=dtype)
    clean = offset.clone()
    offset[0, 1, 2, 5] = offset[1, 0, 0, 0] = offset[1, 2, 3, 22] = bad
    clean[0, 1, 2, 5] = clean[1, 0, 0, 0] = clean[1, 2, 3, 22] = 1000.0  # outside, and finite
    results = []
    for candidate in (offset, clean):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, candidate, mask)]
        output = dcnv3(*leaves, **LOPSIDED)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), leaves)))
    for got, want in zip(*results, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    for place in ((0, 1, 2, 5), (1, 0, 0, 0), (1, 2, 3, 22)):
        assert results[0][2][place] == 0


def test_outside_samples_do_not_read_the_image(dcnv3):
    """An infinite pixel at the border must not turn the zeros outside into NaN."""
    value, offset, mask = make_inputs(LOPSIDED)
    value[:, 0] = value[:, :, 0] = value[:, -1] = value[:, :, -1] = math.inf
    assert (dcnv3(value, offset + 1000, mask, **LOPSIDED) == 0).all()
    assert (dcnv3(value, offset - 1000, mask, **LOPSIDED) == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["same_dtype", "float32_offsets"])
def test_half_types_sum_in_float32(dcnv3, dtype, tolerance, wide):
    value, offset, mask = (tensor.to(dtype) for tensor in make_inputs(LOPSIDED))
    expected = dcnv3(value.double(), offset.double(), mask.double(), **LOPSIDED)
    if wide:
        offset, mask = offset.float(), mask.float()
    leaves = [tensor.requires_grad_() for tensor in (value, offset, mask)]
    output = dcnv3(*leaves, **LOPSIDED)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [leaf.dtype for leaf in leaves]


def test_does_not_accumulate_in_half_precision(dcnv3):
    """1000 gradients of 1 onto one pixel make 1000; in bfloat16 they would stop at 256."""
    value = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    arguments = {"groups": 1, "kernel_size": (1, 1000), "padding": (0, 500), "dilation": 1, "stride": 1}
    positions = torch.zeros(1, 1, 2, 1000, 2, dtype=torch.float32)
    columns = torch.arange(1000.0)
    for output in range(2):
        positions[0, 0, output, :, 0] = -(output - 500 + columns)  # every tap reads the only pixel
    mask = torch.ones(1, 1, 2, 1000, dtype=torch.float32)
    output = dcnv3(value, positions.flatten(3), mask, **arguments)
    assert output.tolist() == [[[[1000.0], [1000.0]]]]
    (gradient,) = torch.autograd.grad(output.sum(), value)
    assert gradient.item() == 2000


@pytest.mark.parametrize("shape", [(0, 5, 4), (1, 1, 1), (3, 1, 9)], ids=str)
@pytest.mark.usefixtures("nan_memory")
def test_batch_zero_and_single_pixels(dcnv3, shape):
    arguments = {"groups": 2, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "offset_scale": 1.0}
    arguments["remove_center"] = False
    inputs = [t.requires_grad_() for t in make_inputs(arguments, batch=shape[0], size=shape[1:])]
    output = dcnv3(*inputs, **arguments)
    torch.testing.assert_close(output, by_loops(*inputs, **arguments), rtol=0, atol=1e-12)
    for gradient, tensor in zip(torch.autograd.grad(output.sum(), inputs), inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.isfinite().all()


@pytest.mark.usefixtures("nan_memory")
def test_no_taps_left_gives_zeros(dcnv3):
    value = torch.randn(2, 3, 4, 6, requires_grad=True)
    offset, mask = torch.empty(2, 3, 4, 0, requires_grad=True), torch.empty(2, 3, 4, 0, requires_grad=True)
    arguments = {"groups": 2, "kernel_size": 1, "padding": 0, "remove_center": True}
    for output in (
        dcnv3(value, offset, mask, **arguments),
        reference._sample(
            value,
            offset,
            mask,
            reference.check_dcnv3(value, offset, mask, stride=1, dilation=1, offset_scale=1.0, **arguments),
            False,
            plain=False,
        ),
    ):
        assert output.shape == value.shape
        assert (output == 0).all()
        gradients = torch.autograd.grad(output.sum(), (value, offset, mask))
        assert (gradients[0] == 0).all()


def test_strided_inputs(dcnv3):
    inputs = make_inputs(LOPSIDED)
    strided = []
    for tensor in inputs:
        wide = torch.full((*tensor.shape[:2], tensor.shape[3], tensor.shape[2] * 2), math.nan, dtype=tensor.dtype)
        view = wide.permute(0, 1, 3, 2)[:, :, ::2]
        view.copy_(tensor)
        assert not view.is_contiguous()
        strided.append(view.detach().requires_grad_())
    leaves = [tensor.requires_grad_() for tensor in inputs]
    expected, got = dcnv3(*leaves, **LOPSIDED), dcnv3(*strided, **LOPSIDED)
    grad = torch.randn_like(expected).transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for a, b in zip(torch.autograd.grad(got, strided, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0), (1, 2, 3, 0)], ids=str)
def test_any_order_of_strides(dcnv3, order):
    """Padding and the like keep the order of a tensor's strides; the operator must not depend on it."""
    inputs = make_inputs(LOPSIDED, depth=4)
    permuted = [t.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist()) for t in inputs]
    assert not permuted[0].is_contiguous()
    expected = dcnv3(*inputs, **LOPSIDED)
    leaves = [tensor.detach().requires_grad_() for tensor in permuted]
    geometry = reference.check_dcnv3(*leaves, **LOPSIDED)
    for got in (dcnv3(*leaves, **LOPSIDED), reference._sample(*leaves, geometry, False, plain=False)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        for gradient, tensor in zip(torch.autograd.grad(got.sum(), leaves), leaves, strict=True):
            assert gradient.shape == tensor.shape


def test_an_int_is_a_pair(dcnv3):
    inputs = make_inputs(PAD_0_2 | {"padding": 1})
    both = PAD_0_2 | {"kernel_size": (3, 3), "stride": [1, 1], "padding": (1, 1), "dilation": [1, 1]}
    assert torch.equal(dcnv3(*inputs, **(PAD_0_2 | {"padding": 1})), dcnv3(*inputs, **both))


def test_training_after_inference_mode():
    """Test that a training step can use what inference mode has cached (the sampling grid)."""
    arguments = LOPSIDED | {"offset_scale": 1.25}
    inputs = make_inputs(arguments, size=(9, 11))
    with torch.inference_mode():
        first = dcnv3_reference(*inputs, **arguments)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    output = dcnv3_reference(*leaves, **arguments)
    torch.autograd.grad(output.sum(), leaves)
    composite = reference._sample(*leaves, reference.check_dcnv3(*leaves, **arguments), False, plain=True)
    torch.autograd.grad(composite.sum(), leaves)
    assert torch.equal(first, output)


def test_the_sampling_grid_is_kept_and_the_image_not_copied_for_each_tap():
    inputs = make_inputs(LOPSIDED, size=(13, 17))
    dcnv3_reference(*inputs, **LOPSIDED)
    before = reference._kept_sampling_grid.cache_info()
    dcnv3_reference(*inputs, **LOPSIDED)
    after = reference._kept_sampling_grid.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    # What is kept for the backward pass is the three inputs, nothing derived from them.
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        dcnv3_reference(*(tensor.requires_grad_() for tensor in inputs), **LOPSIDED)
    assert sum(tensor.numel() for tensor in saved) == sum(tensor.numel() for tensor in inputs)


def test_loop_for_devices_without_embedding_bag(monkeypatch):
    inputs = make_inputs(LOPSIDED)
    expected = dcnv3_reference(*inputs, **LOPSIDED)
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", None)

    class Elsewhere:
        """A table that says it is on a device whose embedding_bag may be missing."""

        device = torch.device("mps")

        def __init__(self, table):
            self.new_zeros, self.index_select, self.shape = table.new_zeros, table.index_select, table.shape

    def weighted_sum(table, *others):
        return reference._weighted_sum(Elsewhere(table), *others)

    geometry = reference.check_dcnv3(*inputs, **LOPSIDED)
    got = reference._sample(*inputs, geometry, False, plain=False, weighted_sum=weighted_sum)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_compiles_without_a_break_and_differentiates(dcnv3):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(LOPSIDED)]
    compiled = torch.compile(dcnv3, fullgraph=True, backend="aot_eager")
    expected, got = dcnv3(*inputs, **LOPSIDED), compiled(*inputs, **LOPSIDED)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    grads = (torch.autograd.grad(output.square().sum(), inputs) for output in (got, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_functional_transforms(dcnv3):
    inputs = make_inputs(LOPSIDED)
    output, pull = torch.func.vjp(lambda *t: dcnv3(*t, **LOPSIDED), *inputs)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    expected = dcnv3(*leaves, **LOPSIDED)
    for a, b in zip(pull(torch.ones_like(output)), torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 4}, "value has 6 channels, expected a positive multiple of groups=4"),
        ({"groups": 0}, "groups is 0, expected an integer of at least 1"),
        ({"groups": True}, "groups is True"),
        ({"kernel_size": 0}, "kernel_size is 0, expected an integer from 1 to 2147483647 or a"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size is \(3, 3, 3\)"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"padding": -1}, "padding is -1, expected an integer from 0 to 2147483647"),
        ({"padding": 2**31}, "padding is 2147483648, expected an integer from 0 to 2147483647"),
        ({"stride": 2**31}, "stride is 2147483648, expected an integer from 1"),
        ({"dilation": (1, 10**30)}, r"dilation is \(1, 1000000000000000000000000000000\), expected"),
        ({"kernel_size": 2**63}, "kernel_size is 9223372036854775808, expected"),
        ({"dilation": (1, 0)}, r"dilation is \(1, 0\)"),
        ({"offset_scale": math.nan}, "offset_scale is nan, expected a finite number"),
        ({"offset_scale": "2"}, "offset_scale is '2'"),
        (
            {"offset_scale": 10**309},
            r"offset_scale is 10+, expected .* at most 1.8e\+308, the largest of torch.float64",
        ),
        ({"kernel_size": (9, 9), "padding": 0}, "leaves an output of -"),
        ({"padding": 2}, r"offset has shape \(2, 3, 5, 24\), expected \(2, 4, 9, 24\)"),
        ({"remove_center": {}}, "remove_center is {}, expected True or False"),
        ({"remove_center": True}, r"offset has shape \(2, 3, 5, 24\), expected \(2, 3, 5, 20\)"),
        ({"backend": "tpu"}, "backend is 'tpu', expected one of hub, cuda, triton, .*, or none"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_that_cannot_work(dcnv3, change, message):
    with pytest.raises(ValueError, match=message):
        dcnv3(*make_inputs(LOPSIDED), **{**LOPSIDED, **change})


@pytest.mark.parametrize("scale", [3.5e38, -1e300, 10**40])
def test_offset_scales_beyond_the_dtype_of_positions(dcnv3, scale):
    inputs = make_inputs(LOPSIDED, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"expected a finite number of at most 3.4e\+38, the largest of torch.float32"):
        dcnv3(*inputs, **{**LOPSIDED, "offset_scale": scale})


@pytest.mark.parametrize("scale", [1.0, 0.01, -2.5])
@pytest.mark.parametrize(("padding", "stride"), [(2**31 - 1, 2**30 + 1), (2**30, 2**29 + 1), (2**29 + 2, 2**29 + 5)])
def test_sizes_near_the_largest_integer(dcnv3, padding, stride, scale):
    """Positions are exact where the image is, although float32 has too few digits for a stride times an index."""
    arguments = {"groups": 2, "kernel_size": (2, 3), "stride": stride, "padding": padding, "dilation": 1}
    arguments |= {"offset_scale": scale, "remove_center": False}
    inputs = make_inputs(arguments, size=(6, 5), dtype=torch.float32)
    found = results(dcnv3, inputs, **arguments)
    expected = results(by_loops, [tensor.double() for tensor in inputs], **arguments)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"value has shape \(7, 6, 6\), expected 4 dimensions"),
        (0, lambda t: t.long(), "value has dtype torch.int64, expected a floating-point dtype"),
        (0, lambda t: t.numpy(), "value is a ndarray, expected a torch.Tensor"),
        (1, lambda t: t.half(), "offset has dtype torch.float16, expected torch.float64 for"),
        (2, lambda t: t.to("meta"), "mask is on meta, value on cpu; expected one device"),
        (2, lambda t: t[..., 1:], r"mask has shape \(2, 3, 5, 11\), expected \(2, 3, 5, 12\)"),
        (2, lambda t: t.to_sparse(), "mask has layout torch.sparse_coo, expected torch.strided"),
    ],
    ids=["value-3d", "value-int", "value-numpy", "offset-half", "mask-meta", "mask-short", "mask-sparse"],
)
def test_tensors_that_cannot_work(dcnv3, index, change, message):
    inputs = make_inputs(LOPSIDED)
    inputs[index] = change(inputs[index])
    with pytest.raises(ValueError, match=message):
        dcnv3(*inputs, **LOPSIDED)
