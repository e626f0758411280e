# SPDX-License-Identifier: MIT
"""Conversion of DINO files: released systems by name and shape, and files that are refused."""

import pytest
import torch
from support.golden_detectors import STAGES, golden_dino_config, golden_images
from support.golden_heads import document, expected, weights
from support.synthetic_checkpoints import cb_dino, released_shapes
from support.synthetic_checkpoints import dino as dino_shapes
from torch.testing import assert_close

from hf_internimage import CBInternImageConfig, InternImageConfig
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS
from hf_internimage.conversion import check_tensors, dino, shapes_of
from hf_internimage.conversion.systems import find_system

DETECTORS = [row for row in SYSTEM_CHECKPOINTS if row.system in ("dino", "cb_dino")]


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def build(config):
    with torch.device("meta"):
        return dino.build_model(config)


@pytest.mark.parametrize("row", DETECTORS, ids=lambda row: row.name)
def test_released_detectors_convert_by_name_and_shape(row):
    shapes = released_shapes(row)
    assert find_system(shapes).name == row.system
    config = dino.guess_config(shapes)
    model = build(config)
    converted = dino.convert(on_meta(shapes), config)
    assert not converted.dropped
    check_tensors(shapes_of(converted.tensors), shapes_of(model.state_dict()))
    assert sum(parameter.numel() for parameter in model.parameters()) == row.parameters
    assert config.num_labels == row.num_labels
    assert (config.num_queries, config.d_model, config.encoder_attention_heads) == (900, 256, 8)
    assert config.num_denoising == (1000 if row.size in ("h", "g") else 100)
    backbone = config.backbone_config
    assert type(backbone) is (CBInternImageConfig if row.system == "cb_dino" else InternImageConfig)
    assert backbone.out_features == STAGES
    assert backbone.layer_scale == (None if row.size in ("h", "g") else 1.0)
    assert backbone.center_feature_scale == (row.size in ("h", "g"))


def test_the_papers_largest_detector_has_its_parameters():
    largest = next(row for row in DETECTORS if row.system == "cb_dino" and row.dataset == "COCO")
    assert round(largest.parameters / 1e9, 2) == 2.18


def test_values_of_the_original_give_its_detections():
    config = golden_dino_config()
    tensors = {f"module.{name}": tensor for name, tensor in weights("dino_tiny").items()}
    converted = dino.convert({**tensors, "ema_backbone_patch_embed": torch.zeros(1)}, config)
    assert list(converted.dropped) == ["ema_backbone_patch_embed"]
    model = dino.build_model(config)
    model.load_state_dict(converted.tensors, strict=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == document("dino_tiny")["num_parameters"]
    with torch.no_grad():
        outputs = model.eval()(*golden_images())
    expected_logits, atol = expected("dino_tiny", "logits")
    assert_close(outputs.logits, expected_logits, rtol=0, atol=atol)


def released(num_labels=80, size="t", **head):
    return dino_shapes(InternImageConfig.from_size(size, layer_scale=1.0), num_labels, **head)


def test_everything_in_the_head_is_read():
    config = dino.guess_config(released(7, width=128, heads=4, hidden=96, queries=30, layers=2))
    assert (config.num_labels, config.d_model, config.num_queries) == (7, 128, 30)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (4, 4)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (96, 96)
    assert (config.encoder_layers, config.decoder_layers) == (2, 2)


def test_a_t_without_layer_scale_stays_without():
    shapes = {name: shape for name, shape in released().items() if ".gamma" not in name}
    assert dino.guess_config(shapes).backbone_config.layer_scale is None


def without(*names):
    return {name: shape for name, shape in released().items() if name not in names}


def changed(name, shape):
    return {**released(), name: shape}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (without("bbox_head.transformer.level_embeds"), "level_embeds is missing"),
        (without("bbox_head.cls_branches.0.weight"), "cls_branches.0.weight is missing"),
        (without("backbone.patch_embed.conv2.weight"), "have no InternImage"),
        (
            changed("bbox_head.transformer.encoder.layers.0.attentions.0.sampling_offsets.weight", (250, 256)),
            "has 250 rows, expected a multiple of 32: 4 levels, 4 points",
        ),
        (changed("neck.convs.1.conv.weight", (256, 99, 1, 1)), r"feature maps of \[99, 128, 512\] channels"),
    ],
)
def test_configurations_that_cannot_be_read(shapes, message):
    with pytest.raises(ValueError, match=message):
        dino.guess_config(shapes)


def test_other_names_are_refused():
    shapes = {**released(), "bbox_head.transformer.encoder.layers.0.ffns.0.fc1_0.weight": (512, 256)}
    with pytest.raises(ValueError, match=r"1 tensors have names .*ffns.0.fc1_0.weight"):
        dino.convert(on_meta(shapes), dino.guess_config(shapes))


def test_missing_tensors_and_other_sizes_are_found():
    config = dino.guess_config(released())
    expected_shapes = shapes_of(build(config).state_dict())
    incomplete = without("bbox_head.reg_branches.6.4.bias", "neck.extra_convs.0.gn.bias")
    with pytest.raises(ValueError, match=r"2 missing .*(input_proj.3.1.bias|box_heads.6.layers.2.bias)"):
        check_tensors(shapes_of(dino.convert(on_meta(incomplete), config).tensors), expected_shapes)
    larger = released(size="l")
    with pytest.raises(ValueError, match=r"missing|of another shape"):
        check_tensors(shapes_of(dino.convert(on_meta(larger), config).tensors), expected_shapes)


def test_stage_weights_of_the_composite_backbone_are_no_layer_scale():
    shapes = cb_dino(InternImageConfig.from_size("t", layer_scale=1.0), 80)
    config = dino.guess_config(shapes)
    tensors = dino.convert(on_meta(shapes), config).tensors
    assert config.backbone_config.layer_scale == 1.0
    assert tuple(tensors["backbone.cb_modules.1.gamma1"].shape) == (128,)
    assert tuple(tensors["backbone.cb_modules.1.levels.1.blocks.0.layer_scale1"].shape) == (128,)
    check_tensors(shapes_of(tensors), shapes_of(build(config).state_dict()))
