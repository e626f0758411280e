# SPDX-License-Identifier: MIT
"""The backbone: features as detection and segmentation heads need them."""

import pytest
import torch
from support.golden_data import TINY, golden_model, model_case, model_input, tiny_config, write_official_folder
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

from hf_internimage import InternImageBackbone

STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize("name", TINY)
def test_features_are_the_originals(name, tmp_path):
    """Stage output after the stage's norm, before downsampling, loaded from a classifier's checkpoint."""
    case, expected = model_case(name)
    backbone = InternImageBackbone.from_pretrained(write_official_folder(name, tmp_path), out_features=STAGES).eval()
    with torch.no_grad():
        outputs = backbone(model_input(name), output_hidden_states=True)
    assert backbone.channels == [case["config"]["channels"] * 2**index for index in range(4)]
    assert len(outputs.feature_maps) == 4
    for index, features in enumerate(outputs.feature_maps):
        assert features is outputs.hidden_states[index + 1]
        atol = case["float32_noise"][f"hidden_states_{index}"]["atol"]
        torch.testing.assert_close(features, expected[f"hidden_states_{index}"], rtol=0, atol=atol)


def test_what_heads_read():
    backbone = InternImageBackbone(tiny_config(out_features=["stem", "stage2", "stage4"])).eval()
    assert backbone.num_features == [16, 16, 32, 64, 128]
    assert backbone.channels == [16, 32, 128]
    assert backbone.stage_names == ["stem", *STAGES]
    assert backbone.has_attentions is False
    outputs = backbone(torch.randn(1, 3, 50, 70))
    assert isinstance(outputs.feature_maps, tuple)
    assert outputs.hidden_states is None
    assert [tuple(features.shape) for features in outputs.feature_maps] == [
        (1, 16, 13, 18),
        (1, 32, 7, 9),
        (1, 128, 2, 3),
    ]
    filtered = backbone.forward_with_filtered_kwargs(torch.randn(1, 3, 64, 64), output_attentions=True)
    assert len(filtered.feature_maps) == 3


def test_has_no_unused_parameters_and_no_further_norms():
    backbone = InternImageBackbone(tiny_config(out_features=STAGES)).train()
    sum(features.mean() for features in backbone(torch.randn(1, 3, 64, 64)).feature_maps).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert {name.split(".")[0] for name, _ in backbone.named_parameters()} == {"patch_embed", "levels"}


def test_auto_backbone_from_config():
    backbone = AutoBackbone.from_config(tiny_config(out_indices=[1, 3]))
    assert type(backbone) is InternImageBackbone
    assert backbone.channels == [16, 64]


def test_inside_a_head_through_save_and_load(tmp_path):
    config = UperNetConfig(
        backbone_config=tiny_config(out_features=STAGES),
        hidden_size=16,
        auxiliary_in_channels=64,
        auxiliary_channels=8,
        num_labels=3,
    )
    model = UperNetForSemanticSegmentation(config).eval()
    model.backbone = golden_backbone = InternImageBackbone(config.backbone_config).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(pixel_values).logits
    model.save_pretrained(tmp_path)
    loaded, info = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded.backbone) is type(golden_backbone)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixel_values).logits, expected)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_a_classifier_takes_a_backbones_weights(tmp_path):
    model = golden_model("tiny_b")
    backbone = InternImageBackbone(tiny_config(**model.config.to_diff_dict() | {"num_labels": 10})).eval()
    backbone.load_state_dict(model.model.state_dict(), strict=True)
    with torch.no_grad():
        features = backbone(model_input("tiny_b")).feature_maps[-1]
        torch.testing.assert_close(features, model.model(model_input("tiny_b")).last_hidden_state, rtol=0, atol=0)
