# SPDX-License-Identifier: MIT
"""The models against the original's numbers, and what transformers expects of a model."""

import math

import pytest
import torch
from support.golden_data import TINY, awaken, golden_model, model_case, model_input, tiny_config
from support.half_precision import assert_as_precise_as_its_dtype
from support.quantization import quantize_linear_layers
from support.tiny_models import OPTIONS
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_internimage import InternImageBackbone, InternImageConfig, InternImageForImageClassification, InternImageModel
from hf_internimage.models import dcnv3_reference as reference
from hf_internimage.models import layers_internimage as layers

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def images(batch=2, height=64, width=64, dtype=torch.float32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("which", ["plain", "nonsquare", "odd"])
@pytest.mark.parametrize("name", TINY)
def test_matches_the_original_in_float32(name, which):
    case, expected = model_case(name)
    if which not in case["inputs"]:
        assert case["config"]["use_clip_projector"]
        with pytest.raises(ValueError, match="multiples of 32"):
            golden_model(name)(images(1, 50, 70))
        return
    prefix = "" if which == "plain" else f"{which}/"
    model, pixel_values = golden_model(name), model_input(name, which)
    labels = torch.tensor(case["labels"]) if which == "plain" else None
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels, output_hidden_states=True)
        features = model.get_image_features(pixel_values).pooler_output
    compared = {"logits": outputs.logits, "pooler_output": features}
    compared |= {f"hidden_states_{index}": states for index, states in enumerate(outputs.hidden_states[1:])}
    for what, got in compared.items():
        atol = case["float32_noise"][prefix + what]["atol"]
        torch.testing.assert_close(got, expected[prefix + what], rtol=0, atol=atol, msg=lambda t, w=what: f"{w}: {t}")
    if which == "plain":
        assert outputs.loss.item() == pytest.approx(case["loss"], abs=case["float32_noise"]["loss"]["atol"], rel=0)


@pytest.mark.parametrize("name", TINY)
def test_matches_the_original_in_float64(name):
    """Catches what float32 noise hides, such as a LayerNorm epsilon of 1e-5 in place of 1e-6."""
    case, expected = model_case(name)
    model = golden_model(name, torch.float64)
    pixel_values = model_input(name, dtype=torch.float64)
    outputs = model(pixel_values, labels=torch.tensor(case["labels"]))
    atol = case["atol_float64"]
    torch.testing.assert_close(outputs.logits, expected["float64/logits"], rtol=0, atol=atol)
    features = model.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(features, expected["float64/pooler_output"], rtol=0, atol=atol)
    assert outputs.loss.item() == pytest.approx(case["loss_float64"], abs=atol, rel=0)
    outputs.loss.backward()
    ours = {key if key.startswith("model.") else f"model.{key}": p for key, p in model.named_parameters()}
    assert set(case["grad_norms_all"]) == set(ours)
    for key, norm in case["grad_norms_float64"].items():
        assert ours[key].grad.norm().item() == pytest.approx(norm, rel=atol), key


def sampled_positions(offset, arguments):
    """Return sampling positions in pixels of the bordered image, in float64: (N, H, W, G, P, 2)."""
    geometry = reference.DCNv3Geometry(
        arguments["groups"], (3, 3), (1, 1), (1, 1), (1, 1), arguments["offset_scale"], arguments["remove_center"]
    )
    offset = offset.detach().double().unflatten(3, (arguments["groups"], -1, 2))
    rows, columns = reference._sampling_grid(geometry, tuple(offset.shape[1:3]), torch.float64, offset.device)
    return rows + columns + offset * arguments["offset_scale"]


@pytest.mark.parametrize("name", TINY)
def test_gradient_norms_of_every_parameter_in_float32(name, monkeypatch):
    """The gradient with respect to an offset jumps where a sample crosses a pixel line. float32 noise (some 1e-6
    pixels) can put a sample on the other side than the original's; such samples, at most two a model and each within
    1e-5 pixels of the line, are moved to the side on which they lie in float64, so that everything can be compared."""
    case, expected = model_case(name)
    labels = torch.tensor(case["labels"])
    exact, moved, operator = [], [], layers.dcnv3

    def record(value, offset, mask, **arguments):
        exact.append(sampled_positions(offset, arguments))
        return operator(value, offset, mask, **arguments)

    def onto_the_same_side(value, offset, mask, **arguments):
        true, here = exact.pop(0), sampled_positions(offset, arguments)
        crossed = true.floor() != here.floor()
        assert ((true - true.round()).abs()[crossed] < 1e-5).all()
        moved.append(crossed.sum().item())
        target = true.round() + torch.where(true.floor() < true.round(), -2e-5, 2e-5)
        step = torch.where(crossed, target - here, 0) / arguments["offset_scale"]
        return operator(value, offset + step.flatten(3).float(), mask, **arguments)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(layers, "dcnv3", record)
        golden_model(name, torch.float64)(model_input(name, dtype=torch.float64))
    monkeypatch.setattr(layers, "dcnv3", onto_the_same_side)
    model = golden_model(name)
    model(model_input(name), labels=labels).loss.backward()
    assert not exact
    assert sum(moved) <= 2
    # A norm that is rounding noise alone (k_bias under a softmax, a bias before a norm) has no digits to compare.
    noise = 1e-6 * max(case["grad_norms_all"].values())
    for key, parameter in model.named_parameters():
        official = key if key.startswith("model.") else f"model.{key}"
        norm = parameter.grad.norm().item()
        assert norm == pytest.approx(case["grad_norms_all"][official], rel=case["rtol_grad_norm"], abs=noise), key
    for official, norm in case["grad_norms"].items():
        key = official if official in dict(model.named_parameters()) else official.removeprefix("model.")
        gradient = model.get_parameter(key).grad
        assert gradient.norm().item() == pytest.approx(norm, rel=case["rtol_grad_norm"]), key
        assert expected[f"grad_norm/{official}"].item() == pytest.approx(norm, rel=1e-6)


def test_full_size_t_matches_the_original():
    case, expected = model_case("full_t")
    for dtype, atol, prefix in ((torch.float32, "atol_float32", ""), (torch.float64, "atol_float64", "float64/")):
        model = golden_model("full_t", dtype)
        with torch.no_grad():
            outputs = model(model_input("full_t", dtype=dtype), output_hidden_states=True)
        torch.testing.assert_close(outputs.logits, expected[f"{prefix}logits"], rtol=0, atol=case[atol])
        if dtype == torch.float32:
            assert outputs.logits[0].topk(5).indices.tolist() == case["top5"]
            for index, states in enumerate(outputs.hidden_states[1:]):
                assert list(states.shape) == case["hidden_shapes"][index]
                spread, mean = torch.std_mean(states, (2, 3), correction=0)
                torch.testing.assert_close(mean, expected[f"hidden_mean_{index}"], rtol=0, atol=case[atol])
                torch.testing.assert_close(spread, expected[f"hidden_std_{index}"], rtol=0, atol=case[atol])


def test_pooled_output_of_the_base_model_is_the_global_average():
    model = InternImageModel(tiny_config()).eval()
    outputs = model(images(height=50, width=70), output_hidden_states=True)
    assert [tuple(states.shape[1:]) for states in outputs.hidden_states] == [
        (16, 13, 18),
        (16, 13, 18),
        (32, 7, 9),
        (64, 4, 5),
        (128, 2, 3),
    ]
    assert outputs.last_hidden_state is outputs.hidden_states[-1]
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean((2, 3)))


@pytest.mark.parametrize("build", [InternImageModel, InternImageForImageClassification, InternImageBackbone])
def test_output_forms(build):
    model = build(tiny_config()).eval()
    pixel_values = images()
    outputs = model(pixel_values)
    assert outputs.hidden_states is None
    everything = model(pixel_values, output_hidden_states=True).hidden_states
    assert len(everything) == 5
    as_tuple = model(pixel_values, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for got, want in zip(as_tuple[-1], everything, strict=True):
        assert torch.equal(got, want)
    chosen = model(pixel_values, output_hidden_states=[1, -1]).hidden_states
    assert [states is not None for states in chosen] == [False, True, False, False, True]
    assert torch.equal(chosen[-1], everything[-1])
    assert [states is not None for states in model(pixel_values, output_hidden_states=0).hidden_states] == [
        True,
        False,
        False,
        False,
        False,
    ]
    for index, kept in ((-1, [4]), (-5, [0]), (-6, []), (5, []), ([-2, 1, -2], [1, 3])):
        chosen = model(pixel_values, output_hidden_states=index).hidden_states
        assert [position for position, states in enumerate(chosen) if states is not None] == kept
        assert all(torch.equal(chosen[position], everything[position]) for position in kept)
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == 5
    model.config.return_dict = False
    assert isinstance(model(pixel_values), tuple)


@every_option
def test_image_features_follow_the_convention(options):
    """Of `get_image_features` in transformers: an output whose `pooler_output` is the features, or a tuple."""
    model = awaken(InternImageForImageClassification(tiny_config(**options))).eval()
    pixel_values = images()
    with torch.no_grad():
        outputs = model.get_image_features(pixel_values, output_hidden_states=True)
        base = model.model(pixel_values, output_hidden_states=True)
        assert torch.equal(model.head(outputs.pooler_output), model(pixel_values).logits)
        as_tuple = model.get_image_features(pixel_values, return_dict=False)
        chosen = model.get_image_features(pixel_values, output_hidden_states=-2).hidden_states
    assert isinstance(outputs, BaseModelOutputWithPooling)
    assert torch.equal(outputs.last_hidden_state, base.last_hidden_state)
    for got, want in zip(outputs.hidden_states, base.hidden_states, strict=True):
        assert torch.equal(got, want)
    assert isinstance(as_tuple, tuple)
    for got, want in zip(as_tuple, (outputs.last_hidden_state, outputs.pooler_output), strict=True):
        assert torch.equal(got, want)
    assert [states is not None for states in chosen] == [False, False, False, True, False]
    model.config.return_dict = False
    assert isinstance(model.get_image_features(pixel_values), tuple)


@every_option
def test_every_option_runs_and_every_parameter_gets_a_gradient(options):
    model = awaken(InternImageForImageClassification(tiny_config(**options))).train()
    outputs = model(images(), labels=torch.tensor([1, 4]), output_hidden_states=True)
    for states in outputs.hidden_states:
        states.retain_grad()
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    unused = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    # The original keeps these without using them, too.
    without_effect = options.get("res_post_norm", False) and "layer_scale" in options
    assert unused == {key for key in dict(model.named_parameters()) if without_effect and "res_post_norm" in key}
    for states in outputs.hidden_states:
        assert states.grad is not None
        assert states.grad.any()


def test_options_change_what_they_should():
    reference = InternImageForImageClassification(tiny_config())
    assert any(isinstance(module, nn.BatchNorm2d) for module in reference.conv_head.modules())
    batch_norm = InternImageModel(tiny_config(norm_layer="BN"))
    kinds = {name for name, module in batch_norm.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {"patch_embed.norm1.0", "patch_embed.norm2.0", "levels.0.downsample.norm.0"} <= kinds
    assert "levels.0.blocks.0.dcn.dw_conv.1.0" in kinds
    assert isinstance(batch_norm.levels[0].norm[0], nn.LayerNorm)
    silu = InternImageForImageClassification(tiny_config(act_layer="SiLU", mlp_ratio=1.5, cls_scale=2))
    assert not any(isinstance(module, nn.GELU) for module in silu.modules())
    assert silu.model.levels[1].blocks[0].mlp.fc1.out_features == 48
    assert silu.head.in_features == 256
    assert InternImageForImageClassification(tiny_config(num_labels=0)).eval()(images()).logits.shape == (2, 192)
    gray = InternImageModel(tiny_config(num_channels=1)).eval()
    assert gray(images()[:, :1]).pooler_output.shape == (2, 128)


def test_drop_path_rates_and_their_effect():
    def rates(**fields):
        model = InternImageModel(tiny_config(depths=[1, 2, 2, 1], **fields))
        blocks = [block for level in model.levels for block in level.blocks]
        return [getattr(block.drop_path, "rate", 0.0) for block in blocks]

    assert rates() == [0.0] * 6
    assert rates(drop_path_rate=0.5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates(drop_path_rate=0.5, drop_path_type="uniform") == [0.5] * 6
    drop = layers.InternImageDropPath(0.25)
    ones = torch.ones(4000, 2, 3, 1)
    out = drop.train()(ones)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out == out[:, :1, :1]).all()  # whole samples
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(ones) is ones


@every_option
def test_stochastic_depth_drops_both_branches_of_a_block(options):
    """Also where norms and factors come after the branch."""

    class Drop(nn.Module):
        def forward(self, branch):
            return torch.zeros_like(branch)

    block = awaken(InternImageModel(tiny_config(**options, drop_path_rate=0.5))).levels[1].blocks[0].train()
    states = torch.randn(2, 4, 5, 32)
    assert isinstance(block.drop_path, layers.InternImageDropPath)
    assert not torch.equal(block.eval()(states), states)
    block.drop_path = Drop()
    torch.testing.assert_close(block.train()(states), states, rtol=0, atol=0)


def test_dropout_after_the_stem_and_in_the_mlps():
    model = InternImageModel(tiny_config(drop_rate=0.25)).train()
    with torch.no_grad():
        stem, dropped = model.patch_embed(images()), model.encode(images())[0]
        kept = dropped != 0
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
        torch.testing.assert_close(dropped[kept], stem[kept] / 0.75)
        mlp, states = model.levels[0].blocks[0].mlp, torch.randn(2, 8, 8, 16)
        torch.manual_seed(1)
        got = mlp(states)
        torch.manual_seed(1)
        hidden = nn.functional.dropout(nn.functional.gelu(mlp.fc1(states)), 0.25)
        torch.testing.assert_close(got, nn.functional.dropout(mlp.fc2(hidden), 0.25))
        assert torch.equal(model.eval().encode(images())[0], stem)


def test_initialisation_is_the_originals():
    config = tiny_config(layer_scale=1e-5, center_feature_scale=True, channels=64, groups=[4, 8, 16, 32])
    model = InternImageForImageClassification(config)
    for block in (block for level in model.model.levels for block in level.blocks):
        for layer in (block.dcn.offset, block.dcn.mask):
            assert not layer.weight.any()
            assert not layer.bias.any()
        assert not block.dcn.center_feature_scale_proj_weight.any()
        assert (block.layer_scale1 == 1e-5).all()
        assert (block.layer_scale2 == 1e-5).all()
        for layer in (block.dcn.input_proj, block.dcn.output_proj):  # Xavier uniform
            bound = math.sqrt(6 / sum(layer.weight.shape))
            assert 0.97 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not block.mlp.fc1.bias.any()
    bound = 1 / math.sqrt(32 * 9)  # PyTorch's default for a 3x3 convolution of 32 channels
    assert 0.97 * bound < model.model.patch_embed.conv2.weight.abs().max() <= bound
    assert (model.conv_head[1][0].weight == 1).all()


@every_option
def test_dynamic_quantization_reaches_every_linear_layer(options):
    model = awaken(InternImageForImageClassification(tiny_config(**options))).eval()
    quantized = quantize_linear_layers(model)
    with torch.no_grad():
        logits, exact = quantized(images()).logits, model(images()).logits
    assert_close_to_quantized(logits, exact)


def test_dynamic_quantization_of_t():
    model = InternImageForImageClassification(InternImageConfig.from_size("t")).eval()
    assert sum(type(module) is nn.Linear for module in model.modules()) == 181
    quantized = quantize_linear_layers(model)
    with torch.no_grad():
        logits, exact = quantized(images(1)).logits, model(images(1)).logits
    assert_close_to_quantized(logits, exact)


def assert_close_to_quantized(logits, exact):
    """8 bits leave an error of a few per cent of the logits' spread."""
    assert logits.isfinite().all()
    error = (logits - exact).norm() / exact.norm()
    assert 0 < error < 0.1, error


@every_option
def test_same_seed_same_weights(options):
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(InternImageForImageClassification(tiny_config(**options)))
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


@every_option
def test_initialisation_sets_every_tensor_also_after_meta(options):
    plain = InternImageForImageClassification(tiny_config(**options))
    with torch.device("meta"):
        from_meta = InternImageForImageClassification(tiny_config(**options))
    from_meta.to_empty(device="cpu")
    for model in (plain, from_meta):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(7 if tensor.dtype == torch.int64 else math.nan)
        for module in model.modules():
            module._is_hf_initialized = False
        torch.manual_seed(7)
        model.init_weights()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, from_meta.state_dict()[name]), name
        assert tensor.isfinite().all()
    assert all((buffer != 7).all() for _, buffer in plain.named_buffers())


@pytest.mark.parametrize("reentrant", [False, True])
@every_option
def test_gradient_checkpointing_changes_nothing(options, reentrant):
    model = awaken(InternImageForImageClassification(tiny_config(**options)).double()).train()
    pixel_values = images(dtype=torch.float64)

    def gradients():
        model.zero_grad()
        states = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = model(pixel_values.requires_grad_(), labels=torch.tensor([1, 2])).loss
        loss.backward()
        for name, buffer in model.named_buffers():  # running statistics moved; put them back
            buffer.copy_(states[name])
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    assert all(block.gradient_checkpointing for level in model.model.levels for block in level.blocks)
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-12, atol=1e-14, msg=name)


def test_checkpointing_saves_memory_and_with_cp_switches_it_on():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.train()(images())
        return sum(sizes)

    config = tiny_config(depths=[2, 2, 2, 2])
    assert kept(InternImageModel(tiny_config(depths=[2, 2, 2, 2], with_cp=True))) < kept(InternImageModel(config)) / 3
    blocks = InternImageForImageClassification(tiny_config(with_cp=True)).model.levels[0].blocks
    assert blocks[0].gradient_checkpointing


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "expected"),
    [
        (None, 5, torch.tensor([1, 4]), nn.functional.cross_entropy),
        (None, 1, torch.tensor([0.5, -1.0]), lambda x, y: nn.functional.mse_loss(x.squeeze(), y)),
        (None, 5, torch.rand(2, 5).round(), nn.functional.binary_cross_entropy_with_logits),
        ("multi_label_classification", 5, torch.rand(2, 5), nn.functional.binary_cross_entropy_with_logits),
    ],
    ids=["classes", "regression", "multi_label_found", "multi_label_named"],
)
def test_losses(problem, num_labels, labels, expected):
    model = InternImageForImageClassification(tiny_config(num_labels=num_labels, problem_type=problem)).eval()
    outputs = model(images(), labels=labels)
    torch.testing.assert_close(outputs.loss, expected(outputs.logits, labels))


@pytest.mark.parametrize("build", [InternImageModel, InternImageForImageClassification, InternImageBackbone])
def test_pixel_values_that_cannot_work(build):
    model = build(tiny_config())
    with pytest.raises(ValueError, match=r"pixel_values has shape \(2, 1, 64, 64\), expected \(N, 3, height, width\)"):
        model(images()[:, :1])
    with pytest.raises(ValueError, match=r"pixel_values has shape \(3, 64, 64\)"):
        model(images()[0])
    with pytest.raises(ValueError, match="pixel_values is None"):
        model(None)


def test_sizes_the_clip_projector_cannot_take():
    options = OPTIONS["h"]
    model = awaken(InternImageForImageClassification(tiny_config(**options))).eval()
    assert model(images(1, 96, 64)).logits.shape == (1, 5)
    with pytest.raises(ValueError, match=r"third stage has size \(5, 4\).* multiples of 32"):
        model(images(1, 80, 64))
    assert InternImageBackbone(tiny_config(**options))(images(1, 80, 61)).feature_maps[0].shape == (1, 128, 3, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_option
def test_half_precision_weights_train(options, dtype):
    model = awaken(InternImageForImageClassification(tiny_config(**options))).eval()
    assert_as_precise_as_its_dtype(model, lambda each, inputs: each(images().to(dtype).to(inputs)).logits, dtype)
    model = model.to(dtype)
    outputs = model(images(dtype=dtype), labels=torch.tensor([1, 2]))
    assert outputs.logits.dtype == dtype
    outputs.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_option
def test_autocast(options, dtype):
    model = awaken(InternImageForImageClassification(tiny_config(**options))).eval()
    assert_as_precise_as_its_dtype(model, lambda each, inputs: each(images().to(inputs)).logits, dtype, autocast=True)
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images(), labels=torch.tensor([1, 2]))
    outputs.loss.backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )


@every_option
def test_memory_format_and_batch_do_not_matter(options):
    model = awaken(InternImageForImageClassification(tiny_config(**options)).double()).eval()
    pixel_values = images(3, 64, 96, dtype=torch.float64)
    expected = model(pixel_values).logits
    got = model(pixel_values.contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(model(pixel_values[1:2]).logits, expected[1:2], rtol=0, atol=1e-11)
    assert model(pixel_values[:0]).logits.shape == (0, 5)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (33, 7), (225, 223)], ids=str)
def test_images_of_any_size(size):
    model = awaken(InternImageForImageClassification(tiny_config())).eval()
    outputs = model(images(2, *size), output_hidden_states=True)
    assert outputs.logits.isfinite().all()
    sides = [tuple(-(-side // stride) for side in size) for stride in (4, 4, 8, 16, 32)]
    assert [tuple(states.shape[2:]) for states in outputs.hidden_states] == sides


def test_inside_a_stage_memory_stays_channels_last():
    model = InternImageModel(tiny_config()).eval()
    for states in model(images(2, 64, 96), output_hidden_states=True).hidden_states:
        assert states.is_contiguous(memory_format=torch.channels_last)


def few_stages(**options):
    """Two stages, or the three that norms in the third need, for tests that compile; every option still counts."""
    if options.get("level2_post_norm"):
        options = {"depths": [1, 1, 1], "groups": [1, 2, 4], **options, "level2_post_norm_block_ids": [0]}
    return tiny_config(**{"depths": [1, 1], "groups": [1, 2], **options})


@every_option
@pytest.mark.slow
def test_compiles_in_one_graph(options):
    model = awaken(InternImageForImageClassification(few_stages(**options)).double()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    pixel_values, labels = images(dtype=torch.float64), torch.tensor([1, 2])
    expected, got = model(pixel_values, labels=labels), compiled(pixel_values, labels=labels)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-11)
    torch.testing.assert_close(got.loss, expected.loss, rtol=0, atol=1e-11)
    wanted = torch.autograd.grad(expected.loss, model.model.patch_embed.conv1.weight)
    torch.testing.assert_close(torch.autograd.grad(got.loss, model.model.patch_embed.conv1.weight), wanted)


@pytest.mark.slow
def test_inductor_with_a_second_size():
    """The second size makes batch, height and width dynamic, which needs care in how the convolutions are fed."""
    model = awaken(InternImageModel(tiny_config(depths=[1], groups=[1]))).eval()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for shape in ((2, 64, 96), (1, 50, 70), (3, 128, 64)):
            pixel_values = images(*shape)
            torch.testing.assert_close(
                compiled(pixel_values).pooler_output, model(pixel_values).pooler_output, rtol=1e-4, atol=1e-5
            )


EXPORTS = [(name, False) for name in OPTIONS] + [(name, True) for name in ("t", "b", "h", "g")]


@pytest.mark.parametrize(("name", "strict"), EXPORTS, ids=[f"{n}-{'strict' if s else 'nonstrict'}" for n, s in EXPORTS])
@pytest.mark.slow
def test_exports_with_dynamic_sizes(name, strict, tmp_path):
    options = OPTIONS[name]
    model = awaken(InternImageForImageClassification(few_stages(**options)).double()).eval()
    side = torch.export.Dim.DYNAMIC
    shapes = {0: side, 2: side, 3: side}
    if options.get("use_clip_projector"):  # which needs multiples of 32
        shapes = {0: side, 2: 32 * torch.export.Dim("h", min=2, max=64), 3: 32 * torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(
        model, (images(2, 64, 96, torch.float64),), dynamic_shapes={"pixel_values": shapes}, strict=strict
    )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    sizes = ((1, 128, 64), (3, 96, 160)) if options.get("use_clip_projector") else ((1, 50, 70), (3, 128, 65))
    for size in sizes:
        pixel_values = images(*size, dtype=torch.float64)
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-11)


def test_config_is_not_shared_between_sizes():
    small, large = InternImageConfig.from_size("t"), InternImageConfig.from_size("t")
    small.groups[0] = 1
    assert large.groups[0] == 4
