# SPDX-License-Identifier: MIT
"""The composite backbone: the original's numbers, and what transformers' heads and loading want of it."""

import pytest
import torch
from support.golden_data import awaken
from support.golden_detectors import STAGES, golden_composite, tiny_composite_config
from support.golden_heads import document, pixel_values, wanted
from support.half_precision import assert_as_precise_as_its_dtype
from torch.testing import assert_close
from transformers import AutoBackbone, AutoConfig

from hf_internimage import CBInternImageBackbone, CBInternImageConfig, InternImageBackbone, InternImageConfig

GOLDEN = "cb_internimage_tiny"


def tiny_composite(**fields):
    torch.manual_seed(3)
    return awaken(CBInternImageBackbone(tiny_composite_config(**fields))).eval()


def images(height=64, width=96, dtype=torch.float32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("rounded", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_features_are_the_originals(dtype, rounded):
    model = golden_composite(dtype, round_gamma=rounded)
    with torch.no_grad():
        outputs = model(pixel_values(GOLDEN, dtype=dtype), output_hidden_states=True)
    exact = "" if rounded else "gamma_not_rounded/"
    double = "float64/" if dtype == torch.float64 else ""
    atol = document(GOLDEN)["atol_float64" if double else "atol_float32"]
    for stage in (1, 2, 3):
        expected = wanted(GOLDEN)[f"{double}{exact}feature_maps_{stage}"]
        assert_close(outputs.feature_maps[stage - 1], expected, rtol=0, atol=atol)
        if not double:
            first = wanted(GOLDEN)[f"first_feature_maps_{stage}"]
            assert_close(outputs.hidden_states[1 + stage], first, rtol=0, atol=atol)


def test_rounding_changes_the_features():
    """By as much as the original's rounding does, so that the test above tells the two apart."""
    pixels = pixel_values(GOLDEN, dtype=torch.float64)
    with torch.no_grad():
        rounded, exact = (golden_composite(torch.float64, round_gamma=flag)(pixels) for flag in (True, False))
    effects = document(GOLDEN)["gamma"]["effect_max_abs"]
    for stage, (one, other) in enumerate(zip(rounded.feature_maps, exact.feature_maps, strict=True), start=1):
        assert (one - other).abs().max().item() == pytest.approx(effects[f"feature_maps_{stage}"], rel=1e-6)


def test_hidden_states_are_the_stem_the_first_and_the_second():
    model = tiny_composite()
    pixels = images()
    with torch.no_grad():
        outputs = model(pixels, output_hidden_states=True)
        first = model.cb_modules[0].encode(pixels)
    assert len(outputs.hidden_states) == 9
    for got, want in zip(outputs.hidden_states, first, strict=False):
        assert torch.equal(got, want)
    for got, want in zip(outputs.hidden_states[-3:], outputs.feature_maps, strict=True):
        assert got is want
    assert model(pixels).hidden_states is None
    assert [part is not None for part in model(pixels, output_hidden_states=[5]).hidden_states].index(True) == 5
    chosen = model(pixels, output_hidden_states=[-1, -9, 9, -10]).hidden_states
    assert [index for index, states in enumerate(chosen) if states is not None] == [0, 8]
    assert isinstance(model(pixels, return_dict=False), tuple)


def test_starts_as_a_single_backbone_on_the_first_ones_stem():
    torch.manual_seed(0)
    model = CBInternImageBackbone(tiny_composite_config()).eval()
    single = InternImageBackbone(InternImageConfig(**{**tiny_fields(), "out_features": STAGES})).eval()
    single.patch_embed.load_state_dict(model.cb_modules[0].patch_embed.state_dict())
    single.levels.load_state_dict(model.cb_modules[1].levels.state_dict())
    with torch.no_grad():
        for got, want in zip(model(images()).feature_maps, single(images()).feature_maps, strict=True):
            assert_close(got, want)


def tiny_fields():
    config = tiny_composite_config()
    return {name: getattr(config, name) for name in ("channels", "depths", "groups")}


@pytest.mark.parametrize("size", [(64, 65), (48, 64)])
def test_sizes_that_are_no_multiples_of_32_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} high and {size[1]} wide, expected multiples of 32.*pad"):
        tiny_composite()(images(*size))


def test_other_pixel_values_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 4, 64, 64\), expected \(N, 3"):
        tiny_composite()(torch.zeros(2, 4, 64, 64))


def test_what_heads_read():
    model = tiny_composite()
    assert model.channels == [32, 64, 128]
    assert model.config.hidden_sizes == [16, 32, 64, 128]
    assert model.num_features == [16, 16, 32, 64, 128]
    assert type(AutoBackbone.from_config(model.config)) is CBInternImageBackbone
    assert not any(name.startswith("cb_modules.1.patch_embed") for name in model.state_dict())


def test_saving_and_loading(tmp_path):
    model = tiny_composite(round_gamma=False, layer_scale=0.5)
    model.save_pretrained(tmp_path)
    loaded, info = CBInternImageBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.round_gamma is False
    assert loaded.config.out_features == STAGES
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert type(AutoConfig.from_pretrained(tmp_path)) is CBInternImageConfig


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none():
    model = tiny_composite(out_features=["stage1", *STAGES]).double().train()
    pixels = images(dtype=torch.float64)

    def gradients():
        model.zero_grad()
        sum(states.square().mean() for states in model(pixels).feature_maps).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert all(gradient.any() for gradient in plain.values())
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert all(
        block.gradient_checkpointing for part in model.cb_modules for stage in part.levels for block in stage.blocks
    )
    for name, gradient in gradients().items():
        assert_close(gradient, plain[name], rtol=1e-12, atol=1e-14)


def test_with_cp_switches_checkpointing_on():
    model = CBInternImageBackbone(tiny_composite_config(with_cp=True))
    assert all(
        block.gradient_checkpointing for part in model.cb_modules for stage in part.levels for block in stage.blocks
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    model = tiny_composite()
    for level in range(len(STAGES)):
        assert_as_precise_as_its_dtype(
            model, lambda each, inputs, level=level: each(images().to(dtype).to(inputs)).feature_maps[level], dtype
        )
    assert {maps.dtype for maps in model.to(dtype)(images(dtype=dtype)).feature_maps} == {dtype}


def test_initialisation_sets_every_tensor_also_after_meta():
    with torch.device("meta"):
        model = CBInternImageBackbone(tiny_composite_config())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not any(getattr(model.cb_modules[1], f"gamma{stage}").any() for stage in range(4))


def test_configuration():
    config = CBInternImageConfig.from_size("h", use_clip_projector=False, out_features=STAGES)
    assert (config.model_type, config.channels, config.round_gamma) == ("cb_internimage", 320, True)
    with pytest.raises(ValueError, match="round_gamma is 1, expected True or False"):
        CBInternImageConfig(round_gamma=1)
    with pytest.raises(ValueError, match=r"groups\[0\] is 3, which does not divide"):
        CBInternImageConfig(groups=[3, 8, 16, 32])
