# SPDX-License-Identifier: MIT
"""hf_internimage.nn: layers with the authors' arguments and names."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import golden_flash
from support.golden_data import golden_model

from hf_internimage import nn
from hf_internimage.models.dcnv3_reference import dcnv3_reference


def shapes(layer):
    return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}


def randomised(layer):
    """The layer in float64, with no parameter at its initial value."""
    generator = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.1)
    return layer.double()


def test_names_and_shapes_are_the_authors():
    assert shapes(nn.DCNv3()) == {
        "dw_conv.0.weight": (64, 1, 3, 3),
        "dw_conv.0.bias": (64,),
        "dw_conv.1.1.weight": (64,),
        "dw_conv.1.1.bias": (64,),
        "offset.weight": (72, 64),
        "offset.bias": (72,),
        "mask.weight": (36, 64),
        "mask.bias": (36,),
        "input_proj.weight": (64, 64),
        "input_proj.bias": (64,),
        "output_proj.weight": (64, 64),
        "output_proj.bias": (64,),
    }
    # by position: channels, kernel, depth-wise kernel, stride, pad, dilation, group, scale, act, norm and two flags
    layer = nn.DCNv3(6, 5, 7, 1, 2, 1, 3, 0.5, "SiLU", "BN", True, True)
    assert shapes(layer) == {
        "dw_conv.0.weight": (6, 1, 7, 7),
        "dw_conv.0.bias": (6,),
        "dw_conv.1.0.weight": (6,),
        "dw_conv.1.0.bias": (6,),
        "dw_conv.1.0.running_mean": (6,),
        "dw_conv.1.0.running_var": (6,),
        "dw_conv.1.0.num_batches_tracked": (),
        "offset.weight": (3 * 24 * 2, 6),
        "offset.bias": (3 * 24 * 2,),
        "mask.weight": (3 * 24, 6),
        "mask.bias": (3 * 24,),
        "input_proj.weight": (6, 6),
        "input_proj.bias": (6,),
        "output_proj.weight": (6, 6),
        "output_proj.bias": (6,),
        "center_feature_scale_proj_weight": (3, 6),
        "center_feature_scale_proj_bias": (3,),
    }
    assert nn.DCNv3_pytorch is nn.DCNv3


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("tiny_t", {}),
        ("tiny_h", {"dw_kernel_size": 5, "center_feature_scale": True}),
        ("tiny_rc", {"remove_center": True}),
    ],
)
def test_takes_the_weights_of_a_block(model, arguments):
    """Those of the original's models, under the original's names; the result is that of the block."""
    block = golden_model(model, torch.float32).model.levels[0].blocks[0].dcn
    channels = block.input_proj.in_features
    layer = nn.DCNv3(channels, group=block.groups, offset_scale=block.offset_scale, **arguments).eval()
    layer.load_state_dict(block.state_dict(), strict=True)
    states = torch.randn(2, 5, 7, channels)
    with torch.no_grad():
        assert torch.equal(layer(states), block(states))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kernel_size": 5, "pad": 4, "dilation": 2, "offset_scale": 0.5, "act_layer": "ReLU"},
        {"norm_layer": "BN", "act_layer": "SiLU", "center_feature_scale": True, "dw_kernel_size": 5},
        {"remove_center": True, "pad": 2, "dilation": 2},
        {"kernel_size": 2, "dw_kernel_size": 3, "pad": 1, "dilation": 2},
    ],
)
def test_equals_its_formula(arguments):
    layer = randomised(nn.DCNv3(6, group=3, **arguments)).eval()
    states = torch.randn(2, 6, 7, 6, dtype=torch.float64, requires_grad=True)
    kernel, act = arguments.get("kernel_size", 3), arguments.get("act_layer", "GELU").lower()
    convolution, (norm,) = layer.dw_conv[0], [part for part in layer.dw_conv[1] if hasattr(part, "weight")]
    local = F.conv2d(states.permute(0, 3, 1, 2), convolution.weight, convolution.bias, padding="same", groups=6)
    local = local.permute(0, 2, 3, 1)
    if "norm_layer" in arguments:
        local = (local - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    else:
        local = F.layer_norm(local, (6,), norm.weight, norm.bias, 1e-6)
    local = getattr(F, act)(local)
    value = states @ layer.input_proj.weight.T + layer.input_proj.bias
    offset = local @ layer.offset.weight.T + layer.offset.bias
    mask = (local @ layer.mask.weight.T + layer.mask.bias).unflatten(-1, (3, -1)).softmax(-1).flatten(-2)
    geometry = {"groups": 3, "kernel_size": kernel, "padding": arguments.get("pad", 1)}
    geometry |= {name: arguments[name] for name in ("dilation", "offset_scale", "remove_center") if name in arguments}
    result = dcnv3_reference(value, offset, mask, **geometry)
    if "center_feature_scale" in arguments:
        weight, bias = layer.center_feature_scale_proj_weight, layer.center_feature_scale_proj_bias
        scale = (local @ weight.T + bias).sigmoid().repeat_interleave(2, -1)
        result = result * (1 - scale) + value * scale
    expected = result @ layer.output_proj.weight.T + layer.output_proj.bias
    found = layer(states)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = [states, *layer.parameters()]
    gradients = (torch.autograd.grad(output.square().sum(), parameters) for output in (found, expected))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-9)


def test_initial_values():
    layer = nn.DCNv3(64, group=4, center_feature_scale=True)
    for name, parameter in layer.named_parameters():
        if name.startswith(("offset", "mask", "center")) or name.endswith("proj.bias"):
            assert not parameter.any(), name
    bound = math.sqrt(6 / 128)  # Xavier's for 64 inputs and 64 outputs; PyTorch's own is 1/8
    for projection in (layer.input_proj, layer.output_proj):
        assert 0.95 * bound < projection.weight.abs().max() <= bound


def test_arguments_that_disagree():
    with pytest.raises(ValueError, match="channels is 64, expected a multiple of group=3"):
        nn.DCNv3(64, group=3)
    with pytest.raises(ValueError, match="kernel_size is 4, expected an odd number with remove_center"):
        nn.DCNv3(8, kernel_size=4, dw_kernel_size=3, remove_center=True)
    with pytest.raises(ValueError, match="dw_kernel_size is 4, expected"):
        nn.DCNv3(8, kernel_size=4)
    with pytest.raises(ValueError, match="norm_layer is 'GN'"):
        nn.DCNv3(8, norm_layer="GN")
    with pytest.raises(ValueError, match=r"offset has shape \(1, 6, 6, 36\), expected \(1, 3, 3, 36\)"):
        nn.DCNv3(8, stride=2, group=2)(torch.rand(1, 6, 6, 8))


@pytest.mark.parametrize("name", golden_flash.modules())
def test_dcnv4_matches_the_original(name):
    """All modules of the golden data, under the original's names; output and gradients in float64."""
    case = golden_flash.modules()[name]
    layer = nn.DCNv4(**case["arguments"])
    assert list(shapes(layer)) == list(case["keys"])
    golden_flash.check_module(name, layer, lambda states: layer(states, shape=case["size"]))


def test_dcnv4_takes_arguments_by_position():
    """channels, kernel, stride, pad, dilation, group, scale, depth-wise kernel, four flags; others have no effect."""
    layer = nn.DCNv4(12, 5, 1, 4, 2, 3, 0.5, 7, True, True, False, False, norm_layer="LN", use_dcn_v4_op=True)
    assert shapes(layer) == {
        "center_feature_scale_proj_weight": (3, 12),
        "center_feature_scale_proj_bias": (3,),
        "offset_mask_dw.weight": (12, 1, 7, 7),
        "offset_mask_dw.bias": (12,),
        "offset_mask.weight": (216, 12),
        "offset_mask.bias": (216,),
        "value_proj.weight": (12, 12),
        "value_proj.bias": (12,),
        "output_proj.weight": (12, 12),
    }
    states = torch.randn(2, 36, 12)
    assert torch.equal(randomised(layer).float()(states), layer(states, (6, 6)))  # a square needs no shape
    assert layer(states, (6, 6)).shape == states.shape
    assert (layer(states, (4, 9)) - layer(states, (9, 4))).abs().max() > 1e-3


def test_initial_values_of_dcnv4():
    layer = nn.DCNv4(64, group=4, dw_kernel_size=3, center_feature_scale=True)
    for name, parameter in layer.named_parameters():
        is_zero = name.startswith(("offset_mask.", "center")) or name.endswith("proj.bias")
        assert parameter.any() != is_zero, name
    bound = math.sqrt(6 / 128)  # Xavier's for 64 inputs and 64 outputs; PyTorch's own is 1/8
    for projection in (layer.value_proj, layer.output_proj):
        assert 0.95 * bound < projection.weight.abs().max() <= bound


def test_arguments_of_dcnv4_that_disagree():
    with pytest.raises(ValueError, match="channels is 64, expected a multiple of group=3"):
        nn.DCNv4(64, group=3)
    with pytest.raises(ValueError, match="kernel_size is 4, expected an odd number with remove_center"):
        nn.DCNv4(8, kernel_size=4, remove_center=True)
    with pytest.raises(ValueError, match="dw_kernel_size is 4, expected an odd number or None"):
        nn.DCNv4(8, dw_kernel_size=4)
    layer = nn.DCNv4(8, group=2)
    with pytest.raises(ValueError, match=r"input has shape \(1, 6, 8\), expected \(N, L, C\) with shape"):
        layer(torch.rand(1, 6, 8))
    with pytest.raises(ValueError, match=r"input has shape \(1, 2, 3, 8\)"):
        layer(torch.rand(1, 2, 3, 8), (2, 3))
    with pytest.raises(ValueError, match=r"shape is \(2, 4\), expected a height and a width that make 6 pixels"):
        layer(torch.rand(1, 6, 8), (2, 4))
    with pytest.raises(ValueError, match="offset has shape"):
        nn.DCNv4(8, stride=2, group=2)(torch.rand(1, 36, 8))
