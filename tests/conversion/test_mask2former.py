# SPDX-License-Identifier: MIT
"""Conversion of Mask2Former files: the original's results, and the released files of every data set."""

from functools import cache

import pytest
import torch
from support.golden_heads import document, expected, pixel_values, weights
from support.golden_segmenters import STAGES, golden_segmenter, mask2former_config
from support.synthetic_checkpoints import released_shapes, state_dict
from torch.testing import assert_close

from hf_internimage import conversion
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS
from hf_internimage.conversion import mask2former
from hf_internimage.models.semantic_maps import resize_scores, semantic_scores

NAME = "mask2former_tiny"
ROWS = [row for row in SYSTEM_CHECKPOINTS if row.system == "mask2former"]


@cache
def tiny_model(dtype):
    return golden_segmenter(NAME, dtype)


@cache
def results(dtype):
    """Return the model's results for the original's images, under the names of the golden files."""
    images = pixel_values(NAME, dtype=dtype)
    with torch.no_grad():
        outputs = tiny_model(dtype)(images, output_hidden_states=True, output_auxiliary_logits=True)
    first = outputs.auxiliary_logits[0]
    scores = semantic_scores(outputs)
    return {
        **{f"feature_maps_{index}": feature for index, feature in enumerate(outputs.encoder_hidden_states)},
        **{f"pixel_decoder_level_{index}": level for index, level in enumerate(outputs.pixel_decoder_hidden_states)},
        "mask_features": outputs.pixel_decoder_last_hidden_state,
        "class_queries_logits": outputs.class_queries_logits,
        "masks_queries_logits": outputs.masks_queries_logits,
        "first_class_queries_logits": first["class_queries_logits"],
        "first_masks_queries_logits": first["masks_queries_logits"],
        "semantic_stride4": scores,
        "semantic": resize_scores(scores, images.shape[-2:]),
    }


FLOAT32 = (
    *(f"feature_maps_{index}" for index in range(4)),
    *(f"pixel_decoder_level_{index}" for index in range(3)),
    "mask_features",
    "class_queries_logits",
    "masks_queries_logits",
    "first_class_queries_logits",
    "first_masks_queries_logits",
    "semantic_stride4",
    "semantic",
)
FLOAT64 = ("class_queries_logits", "masks_queries_logits", "semantic_stride4")


@pytest.mark.parametrize(
    ("result", "dtype"),
    [*((name, torch.float32) for name in FLOAT32), *((name, torch.float64) for name in FLOAT64)],
    ids=str,
)
def test_equals_the_original(result, dtype):
    original, atol = expected(NAME, result, dtype)
    assert_close(results(dtype)[result], original, rtol=0, atol=atol)


def test_number_of_parameters_is_the_originals():
    assert tiny_model(torch.float32).num_parameters() == document(NAME)["num_parameters"]


def test_weights_of_the_classes_in_the_loss_are_the_originals():
    class_weights = document(NAME)["config"]["decode_head"]["loss_cls"]["class_weight"]
    assert_close(tiny_model(torch.float32).criterion.empty_weight, torch.tensor(class_weights))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.removeprefix("mask2former_internimage_"))
def test_released_files(row):
    shapes = released_shapes(row)
    config = mask2former.guess_config(shapes)
    with torch.device("meta"):
        model = mask2former.build_model(config)
    tensors = {f"module.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = mask2former.convert(tensors, config)
    assert converted.dropped == {}
    conversion.check_tensors(conversion.shapes_of(converted.tensors), conversion.shapes_of(model.state_dict()))
    assert model.num_parameters() == row.parameters
    large = row.dataset.startswith(("ADE20K", "COCO-Stuff"))
    assert config.feature_size == config.mask_feature_size == config.hidden_dim == (1024 if large else 256)
    assert config.num_attention_heads == (32 if large else 8)
    assert config.encoder_feedforward_dim == (4096 if large else 1024)
    assert config.dim_feedforward == (4096 if large else 2048)
    assert config.num_queries == (200 if large else 100)
    assert (config.encoder_layers, config.decoder_layers) == (6, 10)
    assert (config.dropout, config.pre_norm, config.no_object_weight) == (0, False, 0.1)
    assert config.num_labels == row.num_labels
    assert config.backbone_config.layer_scale is None
    assert config.backbone_config.out_features == STAGES


def test_parameters_of_the_paper():
    assert {round(row.parameters / 1e7) for row in ROWS} == {131, 109}


def test_classifier_of_the_base_class_is_dropped():
    left_over = {"decode_head.conv_seg.weight": torch.ones(7, 64, 1, 1), "decode_head.conv_seg.bias": torch.ones(7)}
    converted = mask2former.convert({**weights(NAME), **left_over}, mask2former_config())
    assert converted.dropped.keys() == left_over.keys()
    assert all("does not use" in reason for reason in converted.dropped.values())
    assert converted.tensors.keys() == mask2former.convert(weights(NAME), mask2former_config()).tensors.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.surprise.weight": torch.ones(3)}, r"1 tensors have names .*surprise"),
        ({"decode_head.mask_embed.1.weight": torch.ones(3)}, r"1 tensors have names .*mask_embed\.1"),
        (
            {"decode_head.transformer_decoder.layers.0.attentions.1.attn.in_proj_bias": torch.ones(64)},
            "expected rows for query, key and value",
        ),
        ({"module.decode_head.cls_embed.bias": torch.ones(8)}, "both mean"),
    ],
)
def test_every_name_is_accounted_for(change, message):
    with pytest.raises(ValueError, match=message):
        mask2former.convert({**weights(NAME), **change}, mask2former_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.cls_embed.weight": None}, r"decode_head\.cls_embed\.weight is missing"),
        ({"decode_head.query_feat.weight": (200,)}, r"query_feat\.weight has shape \(200,\), expected 2"),
        (
            {"decode_head.pixel_decoder.encoder.layers.0.attentions.0.attention_weights.weight": (385, 1024)},
            "has 385 attention weights, expected a multiple of 3 levels times 4 points",
        ),
    ],
)
def test_odd_files_have_no_configuration(change, message):
    shapes = {**released_shapes(ROWS[0]), **change}
    with pytest.raises(ValueError, match=message):
        mask2former.guess_config({name: shape for name, shape in shapes.items() if shape is not None})


def test_other_systems_are_told_apart():
    names = {row.system: released_shapes(row) for row in SYSTEM_CHECKPOINTS if row.size == "t"}
    names["mask2former"] = released_shapes(ROWS[0])
    assert {system: mask2former.matches(shapes) for system, shapes in names.items()} == {
        system: system == "mask2former" for system in names
    }


def test_a_file_of_the_tiny_system_needs_a_configuration():
    with pytest.raises(ValueError, match=r"channels=16 and depths=\[1, 1, 3, 1\] are those of no released size"):
        mask2former.guess_config(conversion.shapes_of(state_dict(document(NAME)["keys"], expanded=True)))
