# SPDX-License-Identifier: MIT
"""Sampling points, receptive fields and statistics against exact results, and figures that can be drawn."""

import numpy as np
import pytest
import torch
from support.golden_data import TINY, awaken, golden_model, model_input, tiny_config
from support.golden_detectors import golden_dino, golden_images
from torch import nn
from transformers import ConvNextConfig, ConvNextModel

from hf_internimage import InternImageForImageClassification, dcnv3, visualize
from hf_internimage.models.modeling_internimage_dino import InternImageDinoSampling
from hf_internimage.visualize.blocks import find_trunk, recorded_taps, run


@pytest.fixture(scope="module")
def model():
    return awaken(InternImageForImageClassification(tiny_config(depths=[1, 1, 3, 1])).eval())


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def coordinates(lines, columns, groups):
    """A feature map whose value is its own position: channels x, y in each group."""
    y, x = torch.meshgrid(torch.arange(lines).double(), torch.arange(columns).double(), indexing="ij")
    return torch.stack((x, y), -1).repeat(1, 1, groups)[None]


@pytest.mark.parametrize("name", TINY)
def test_the_operator_samples_at_these_points(name):
    """It reads each tap's position off a map of coordinates, where bilinear samples are exact."""
    model, pixels = golden_model(name), model_input(name)
    dcn = find_trunk(model).levels[1].blocks[0].dcn
    inputs = []
    handles = [layer.register_forward_hook(lambda *call: inputs.append(call[2])) for layer in (dcn.offset, dcn.mask)]
    with recorded_taps([dcn]) as taps:
        run(model, pixels[:1])
    for handle in handles:
        handle.remove()
    offset, mask = (tensor.double() for tensor in inputs)
    positions, weights = taps[0].positions, taps[0].weights
    lines, columns, groups, count = weights.shape[1:]
    arguments = {"groups": groups, "offset_scale": dcn.offset_scale, "remove_center": dcn.remove_center}
    value = coordinates(lines, columns, groups)
    x, y = positions.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x <= columns - 1) & (y <= lines - 1)
    assert inside.double().mean() > 0.3
    for tap in range(count):
        one = torch.zeros(1, lines, columns, groups, count, dtype=torch.float64)
        one[..., tap] = 1
        read = dcnv3(value, offset, one.flatten(3), **arguments).unflatten(3, (groups, 2))
        picked = inside[..., tap]
        torch.testing.assert_close(read[picked], positions[..., tap, :][picked], rtol=0, atol=1e-5)
    # the weights: the operator's own softmax of a constant map is 1 where all taps are inside
    read = dcnv3(torch.ones_like(value), offset, mask, **arguments, softmax=True).unflatten(3, (groups, 2))[..., 0]
    whole = inside.all(-1)
    torch.testing.assert_close(weights.sum(-1)[whole], read[whole])


def test_points_are_in_pixels_of_the_image(model, pixels):
    points = visualize.sampling_points(model, pixels, stage=3, block=1, at=(100, 40))
    assert points.stride == 16
    assert points.centre == (96, 48) or points.centre == (96, 32)
    assert points.positions.shape == (4, 9, 2)
    assert points.weights.shape == (4, 9)
    np.testing.assert_allclose(points.weights.sum(-1), 1)
    with recorded_taps([find_trunk(model).levels[2].blocks[1].dcn]) as taps:
        run(model, pixels)
    line, column = int(points.centre[1] / 16), int(points.centre[0] / 16)
    np.testing.assert_array_equal(points.positions, taps[0].positions[0, line, column].numpy() * 16)


def test_layers_compose_as_the_operators_do(model, pixels):
    """The output of two operators in a row is a sum over composed points, whatever the values are."""
    blocks = find_trunk(model).levels[2].blocks
    points = visualize.sampling_points(model, pixels, stage=3, block=1, at=(64, 48), layers=2)
    assert points.positions.ndim == 2
    with recorded_taps([blocks[1].dcn, blocks[0].dcn]) as taps:
        run(model, pixels)
    lines, columns = taps[0].positions.shape[1:3]
    line, column = int(points.centre[1] / 16), int(points.centre[0] / 16)
    value = torch.randn(lines, columns, dtype=torch.float64)

    def step(taps, value):
        """One operator on a map of one channel, the same in all groups, averaged over groups."""
        groups = taps.weights.shape[3]
        plain = torch.tensor(taps.geometry.taps()) - 1
        own = coordinates(lines, columns, 1)[..., None, None, :]
        offset = (taps.positions - own - plain).flatten(3)
        repeated = value[None, :, :, None].repeat(1, 1, 1, groups)
        return dcnv3(repeated, offset, taps.weights.flatten(3), groups=groups).mean(-1)[0]

    expected = step(taps[0], step(taps[1], value))[line, column]
    x, y = (torch.from_numpy(points.positions) / 16).unbind(-1)
    got = torch.zeros((), dtype=torch.float64)
    for dx in (0, 1):
        for dy in (0, 1):
            i, j = x.floor() + dx, y.floor() + dy
            share = (1 - (x - i).abs()) * (1 - (y - j).abs()) * torch.from_numpy(points.weights)
            inside = (i >= 0) & (j >= 0) & (i < columns) & (j < lines)
            got = got + (share[inside] * value[j[inside].long(), i[inside].long()]).sum()
    torch.testing.assert_close(got, expected)


def test_the_field_of_plain_convolutions_is_the_analytic_one():
    """Four 3x3 box filters in a row: the field is the fourfold convolution of a box with itself."""
    layers = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(4)))
    for layer in layers:
        nn.init.ones_(layer.weight)
    field = visualize.effective_receptive_field(lambda pixels: layers(pixels), torch.randn(2, 1, 33, 25))
    line = np.ones(3)
    for _ in range(3):
        line = np.convolve(line, np.ones(3))
    exact = np.zeros((33, 25))
    exact[16 - 4 : 16 + 5, 12 - 4 : 12 + 5] = np.outer(line, line)
    np.testing.assert_allclose(field.energy, exact / exact.sum(), atol=1e-6)
    assert field.centre == (12, 16)
    assert field.share_within(0) == pytest.approx(exact[16, 12] / exact.sum())
    assert field.share_within(99) == pytest.approx(1)
    assert field.radius_of(field.share_within(3) - 1e-9) == 3


@pytest.mark.parametrize("stage", [1, 3, 4])
def test_fields_of_stages_are_about_their_centre(model, stage):
    """Without offsets, the field of a random model lies around the pixel that is said to be its centre."""
    plain = InternImageForImageClassification(tiny_config()).eval()
    field = visualize.effective_receptive_field(plain, torch.randn(4, 3, 96, 128), stage=stage, batch_size=2)
    lines, columns = np.mgrid[:96, :128]
    mean = ((field.energy * columns).sum(), (field.energy * lines).sum())
    stride = 4 * 2 ** (stage - 1)
    assert field.centre == (128 // stride // 2 * stride, 96 // stride // 2 * stride)
    assert 0 < field.radius_of(0.5) < 2 * stride + 4
    np.testing.assert_allclose(mean, field.centre, atol=stride / 4)
    with pytest.raises(ValueError, match="stage is 5, expected 1 to 4"):
        visualize.effective_receptive_field(model, torch.randn(1, 3, 64, 64), stage=5)


def test_other_models_have_fields_too():
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))
    field = visualize.effective_receptive_field(model, torch.randn(1, 3, 64, 64), stage=2)
    assert field.energy.sum() == pytest.approx(1)
    assert 0 < field.radius_of(0.5) < field.radius_of(0.9) < 40
    assert field.centre == (35.5, 35.5)  # the middle of the fifth patch of 8 pixels
    assert model.training is ConvNextModel(model.config).training


def test_statistics_of_untrained_offsets_are_those_of_the_grid():
    blocks = visualize.offset_statistics(
        InternImageForImageClassification(tiny_config()).eval(), torch.randn(2, 3, 64, 96)
    )
    assert [(block.stage, block.block) for block in blocks] == [(1, 0), (2, 0), (3, 0), (3, 1), (4, 0)]
    for block in blocks:
        assert block.spread == pytest.approx((4 + 4 * 2**0.5) / 9)
        assert block.movement == 0
        assert block.dead_taps == 0
        height, width = (side // (4 * 2 ** (block.stage - 1)) for side in (64, 96))
        # of the taps in the outer ring, one row or column of three lies outside
        taps = height * width * 9
        assert block.outside == pytest.approx((3 * 2 * (height + width) - 4) / taps)


def test_statistics_see_movement_and_dead_taps(pixels):
    model = InternImageForImageClassification(tiny_config()).eval()
    dcn = find_trunk(model).levels[0].blocks[0].dcn
    with torch.no_grad():
        dcn.offset.bias.view(-1, 2)[:] = torch.tensor([3.0, 4.0])
        dcn.mask.bias.view(1, 9)[:, 2] = -20
    first = visualize.offset_statistics(model, pixels)[0]
    assert first.movement == pytest.approx(5)
    assert first.dead_taps == pytest.approx(1 / 9)
    assert first.outside > 0.2


@pytest.mark.parametrize("stage", [2, 4])
def test_activation_maps_are_features_times_their_mean_gradient(model, stage):
    pixels = torch.randn(2, 3, 64, 96)
    outputs = model(pixels, output_hidden_states=True)
    features = outputs.hidden_states[stage]
    (gradient,) = torch.autograd.grad(outputs.logits[:, 3].sum(), features)
    expected = torch.einsum("nchw,nc->nhw", features, gradient.mean((2, 3))).clamp(min=0)
    got = visualize.class_activation_map(model, pixels, label=3, stage=stage)
    torch.testing.assert_close(
        torch.from_numpy(got),
        torch.nn.functional.interpolate(expected[:, None], (64, 96), mode="bilinear")[:, 0].detach(),
    )
    assert got.max() > 0


def test_activation_maps_are_of_the_predicted_class(model):
    pixels = torch.randn(2, 3, 64, 96)
    predicted = model(pixels).logits.argmax(-1)
    for index in range(2):
        one = visualize.class_activation_map(model, pixels[index : index + 1], label=int(predicted[index]))
        np.testing.assert_allclose(visualize.class_activation_map(model, pixels)[index], one[0], atol=1e-6)
    with pytest.raises(ValueError, match="label is 5, expected 0 to 4"):
        visualize.class_activation_map(model, pixels, label=5)


def test_attributions_sum_to_the_difference_of_scores():
    model = awaken(InternImageForImageClassification(tiny_config()).eval())
    pixels = torch.randn(2, 3, 64, 64)
    values = visualize.attribution(model, pixels, label=2, steps=64)
    with torch.no_grad():
        expected = (model(pixels).logits - model(torch.zeros_like(pixels)).logits)[:, 2]
    np.testing.assert_allclose(values.sum((1, 2)), expected.numpy(), rtol=0.05, atol=1e-3)


def test_equal_features_have_equal_colours():
    features = torch.randn(2, 8, 5, 7)
    features[1] = features[0]
    colours = visualize.feature_colours(features)
    assert colours.shape == (2, 5, 7, 3)
    np.testing.assert_array_equal(colours[0], colours[1])
    assert colours.min() == 0
    assert colours.max() == 1
    with pytest.raises(ValueError, match="at least 3 channels"):
        visualize.feature_colours(features[:, :2])


def test_figures_can_be_drawn(model, pixels, tmp_path):
    image = visualize.to_images(pixels)[0]
    one = visualize.sampling_points(model, pixels, stage=3, at=(5, 5))
    several = visualize.sampling_points(model, pixels, stage=3, at=(5, 5), layers=2)
    field = visualize.effective_receptive_field(model, pixels, stage=2)
    figures = [
        visualize.draw_sampling_points(image, one),
        visualize.draw_sampling_points(image, one, group=1),
        visualize.draw_sampling_points(image, several),
        visualize.draw_receptive_fields({"InternImage": field, "again": field}),
        visualize.draw_map(image, visualize.class_activation_map(model, pixels)[0], "class 1"),
        visualize.draw_offset_statistics(visualize.offset_statistics(model, pixels)),
    ]
    for index, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{index}.png")
        assert (tmp_path / f"{index}.png").stat().st_size > 2000
    with pytest.raises(ValueError, match="group is 4, expected 0 to 3"):
        visualize.draw_sampling_points(image, one, group=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 0, "at": (1, 1)}, "stage is 0, expected 1 to 4"),
        ({"stage": 3, "block": 3, "at": (1, 1)}, "block is 3, expected 0 to 2 in stage 3"),
        ({"stage": 3, "at": (128, 1)}, r"at is \(128, 1\), expected a point"),
        ({"stage": 3, "block": 1, "layers": 3, "at": (1, 1)}, "layers is 3, expected 1 to 2"),
    ],
)
def test_mistakes_are_named(model, pixels, arguments, message):
    with pytest.raises(ValueError, match=message):
        visualize.sampling_points(model, pixels, **arguments)


def test_models_without_an_internimage_are_refused():
    with pytest.raises(ValueError, match="Linear holds no InternImage"):
        visualize.offset_statistics(nn.Linear(1, 1), torch.randn(1, 3, 64, 64))


def test_queries_sample_where_the_decoder_does():
    """DINO's own sampling reads the mean of a query's points off maps of coordinates, where samples are exact."""
    detector, pixels = golden_dino(), golden_images()[0][:1]
    sampling = next(part for part in detector.decoder.layers[1].modules() if isinstance(part, InternImageDinoSampling))
    kept = []
    handle = sampling.register_forward_pre_hook(lambda module, inputs: kept.append(inputs))
    detected = detector(pixels)
    handle.remove()
    value, shapes, shapes_list, starts, locations, weights, step = kept[0]
    maps = []
    for height, width in shapes_list:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        maps.append(torch.stack((x, y), -1).view(-1, 2))
    coordinates = torch.cat(maps)[None, :, None].repeat(1, 1, value.shape[2], 1)
    with torch.no_grad():
        read = sampling(coordinates, shapes, shapes_list, starts, locations, weights, step)[0]
    edge = 0.5 / shapes[:, [1, 0]].view(1, 1, -1, 1, 2)  # (x, y) of the outer pixels' centres
    inside = ((locations[0] >= edge) & (locations[0] <= 1 - edge)).flatten(1).all(1)
    assert inside.any()
    height, width = pixels.shape[2:]
    for query in inside.nonzero().flatten().tolist():
        points = visualize.query_points(detector, pixels, query=query, layer=1)
        np.testing.assert_allclose(points.weights.sum(-1), 1, atol=1e-6)
        mean = (points.positions * points.weights[..., None]).sum(1)
        expected = read[query].view(-1, 2).numpy() * [width, height] - 0.5
        np.testing.assert_allclose(mean, expected, atol=1e-3)
        box = detected.pred_boxes[0, query].detach().numpy()
        np.testing.assert_allclose(points.centre, box[:2] * [width, height] - 0.5, rtol=1e-5)
    best = detected.logits[0].amax(-1).argmax()
    named = visualize.query_points(detector, pixels, query=int(best))
    np.testing.assert_array_equal(visualize.query_points(detector, pixels).positions, named.positions)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"query": 20}, "query is 20, expected 0 to 19"), ({"layer": 9}, "layer is 9, expected")]
)
def test_queries_that_are_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        visualize.query_points(golden_dino(), golden_images()[0][:1], **arguments)
