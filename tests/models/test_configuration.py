# SPDX-License-Identifier: MIT
"""The configuration: official files, names users expect, and values that cannot work."""

import doctest
import inspect
import json
import re
import time
from pathlib import Path

import pytest
import torch
from support.golden_data import MANIFESTS, manifest, tiny_config
from support.published_heads import CASCADE, DINO, MASK_RCNN
from support.tiny_models import OPTIONS
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig

import hf_internimage
from hf_internimage import (
    CBInternImageConfig,
    InternImageBackbone,
    InternImageConfig,
    InternImageDinoConfig,
    InternImageForImageClassification,
    InternImageMaskRCNNConfig,
    InternImageModel,
)
from hf_internimage.models.checked_configuration import CheckedConfig
from hf_internimage.models.configuration_internimage import SIZES

ARCHITECTURE = """
    core_op depths groups channels dw_kernel_size layer_scale offset_scale mlp_ratio post_norm res_post_norm
    level2_post_norm level2_post_norm_block_ids center_feature_scale use_clip_projector remove_center drop_rate
    drop_path_rate drop_path_type act_layer norm_layer cls_scale with_cp num_classes
""".split()
PARAMETERS = {"t": 29.9, "s": 50.1, "b": 97.5, "l": 223.3, "xl": 334.8, "h": 1089.6, "g": 3076.4}  # millions


def test_there_are_11_manifests():
    assert len(MANIFESTS) == 11


@pytest.mark.parametrize("name", MANIFESTS)
def test_official_config_loads_unchanged(name, tmp_path):
    official = manifest(name)["config"]
    config = InternImageConfig(**official)
    for field in ARCHITECTURE:
        assert getattr(config, field) == official[field], field
    assert config.num_labels == official["num_classes"] == len(config.id2label) == len(config.label2id)
    assert not hasattr(config, "auto_map")  # it names OpenGVLab's classes, which ours replace
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is InternImageConfig
    assert again.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("name", MANIFESTS)
def test_from_size_is_the_released_architecture(name):
    official = manifest(name)["config"]
    size = name.split("_")[1]
    config = InternImageConfig.from_size(size, num_labels=official["num_classes"])
    assert {field: getattr(config, field) for field in ARCHITECTURE} == {f: official[f] for f in ARCHITECTURE}


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameter_counts_with_1000_classes(size):
    with torch.device("meta"):
        model = InternImageForImageClassification(InternImageConfig.from_size(size.upper()))
    assert model.num_labels == 1000
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == PARAMETERS[size]


def test_from_size_takes_other_values():
    config = InternImageConfig.from_size("s", num_labels=7, drop_path_rate=0.3, out_features=["stage2", "stage4"])
    assert (config.channels, config.num_classes, config.drop_path_rate) == (80, 7, 0.3)
    assert config.out_indices == [2, 4]
    assert InternImageConfig.from_size("t", id2label={0: "cat"}).num_labels == 1
    with pytest.raises(ValueError, match="size is 'xxl', expected one of t, s, b, l, xl, h, g"):
        InternImageConfig.from_size("xxl")
    # what one configuration is changed to must not leak into the next
    config.depths[0] = 99
    assert InternImageConfig.from_size("s").depths[0] == 4


@pytest.mark.parametrize("build", [InternImageModel, InternImageForImageClassification, InternImageBackbone])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_builds_every_class(build, device):
    with torch.device(device):
        model = build(InternImageConfig())
    assert model.config.hidden_sizes == [64, 128, 256, 512]
    assert model.device.type == device


def test_names_transformers_users_expect():
    config = InternImageConfig()
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert config.num_channels == 3
    assert config.image_size == 224
    assert isinstance(config.hidden_sizes, list)
    assert (config.out_features, config.out_indices) == (["stage4"], [4])
    assert config.num_hidden_layers == config.num_stages == 4
    assert InternImageConfig(out_indices=(1, -1)).out_features == ["stage1", "stage4"]
    assert InternImageConfig(out_features=("stem", "stage2")).out_indices == [0, 2]
    assert InternImageConfig(depths=(1, 1, 1), groups=(4, 8, 16)).stage_names[-1] == "stage3"


def test_num_classes_and_num_labels_are_one_thing():
    assert InternImageConfig(num_classes=7).num_labels == 7
    assert InternImageConfig(num_labels=7).num_classes == 7
    config = InternImageConfig(id2label={0: "a", 1: "b", 2: "c"})
    assert config.num_classes == config.num_labels == 3
    config.num_classes = 4
    assert config.num_labels == len(config.id2label) == 4
    # what from_pretrained(..., num_labels=10) does with an official file
    official = manifest("internimage_t_1k_224")["config"]
    assert InternImageConfig.from_dict(dict(official), num_labels=10).num_classes == 10
    assert InternImageConfig.from_dict(dict(official), num_classes=10).num_labels == 10
    labels = {0: "a", 1: "b"}
    assert InternImageConfig.from_dict(dict(official), id2label=labels).num_classes == 2
    assert InternImageConfig(num_classes=2, id2label=labels).id2label == labels
    with pytest.raises(ValueError, match="num_classes is 5 but id2label has 2 entries"):
        InternImageConfig(num_classes=5, id2label=labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 66}, r"groups\[0\] is 4, which does not divide the 66 channels of stage 1"),
        ({"channels": 63, "groups": [3, 6, 12, 24]}, "channels is 63, expected an even number"),
        ({"channels": "64"}, "channels is '64', expected an integer of at least 1"),
        ({"channels": 0}, "channels is 0, expected an integer of at least 1"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"groups": [4, 8, 16]}, r"groups is \[4, 8, 16\] and depths is \[4, 4, 18, 4\]: expected the same length"),
        ({"groups": [4, 8, 16, 30]}, r"groups\[3\] is 30, which does not divide the 512 channels"),
        ({"groups": 4}, "groups is 4, expected a list of integers"),
        ({"depths": []}, r"depths is \[\], expected a list of integers of at least 1"),
        ({"depths": [4, 0, 18, 4]}, r"depths is \[4, 0, 18, 4\], expected a list of integers of at least 1"),
        ({"act_layer": "Tanh"}, "act_layer is 'Tanh', expected one of GELU, SiLU, ReLU"),
        ({"norm_layer": "GN"}, "norm_layer is 'GN', expected one of LN, BN"),
        ({"core_op": "DCNv4"}, "core_op is 'DCNv4', expected one of DCNv3, DCNv3_pytorch"),
        ({"drop_path_type": "cosine"}, "drop_path_type is 'cosine', expected one of linear, uniform"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate is 1.0, expected a number in \[0, 1\)"),
        ({"drop_rate": -0.1}, r"drop_rate is -0.1, expected a number in \[0, 1\)"),
        ({"dw_kernel_size": 4}, "dw_kernel_size is 4, expected an odd integer"),
        ({"dw_kernel_size": 4, "remove_center": True}, "dw_kernel_size is 4, expected an odd integer"),
        ({"remove_center": "yes"}, "remove_center is 'yes', expected True or False"),
        ({"post_norm": 1}, "post_norm is 1, expected True or False"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0, expected a finite number above 0"),
        ({"initializer_range": -0.02}, "initializer_range is -0.02, expected a finite number above 0"),
        ({"offset_scale": float("nan")}, "offset_scale is nan, expected a finite number"),
        ({"layer_scale": "small"}, "layer_scale is 'small', expected a finite number or None"),
        ({"mlp_ratio": 0.001}, "mlp_ratio is 0.001, expected a number that leaves at least one hidden feature"),
        ({"cls_scale": 0}, "cls_scale is 0, expected a number that leaves at least one feature"),
        ({"image_size": (1, 2, 3)}, r"image_size is \(1, 2, 3\), expected a positive integer or a pair"),
        (
            {"level2_post_norm": True, "level2_post_norm_block_ids": [5, 18]},
            r"level2_post_norm_block_ids is \[5, 18\], expected ascending block indices .* in 0..17",
        ),
        (
            {"level2_post_norm": True, "level2_post_norm_block_ids": [5, 5]},
            r"level2_post_norm_block_ids is \[5, 5\], expected ascending",
        ),
        ({"level2_post_norm_block_ids": 5}, "level2_post_norm_block_ids is 5, expected a list"),
        ({"use_clip_projector": True, "depths": [2], "groups": [4]}, r"use_clip_projector is True but depths is \[2\]"),
        ({"num_classes": -1}, "num_classes is -1, expected an integer of at least 0"),
        ({"num_labels": 2.5}, "num_labels is 2.5, expected an integer of at least 0"),
        ({"hidden_sizes": [1, 2, 3, 4]}, r"hidden_sizes is \[1, 2, 3, 4\] but channels=64 and 4 stages give"),
        ({"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
        ({"out_features": 3}, "out_features is 3, expected a list or None"),
        ({"out_features": "stage4"}, "out_features is 'stage4', expected a list or None"),
        ({"out_indices": True}, "out_indices is True, expected a list or None"),
        ({"hidden_sizes": 64}, "hidden_sizes is 64, expected a list or None"),
        # numbers of which PyTorch would make tensors that no machine holds, or fail with a text of its own
        ({"channels": 10**30}, "channels is 10*, expected an integer of at least 1 and at most 100000"),
        ({"num_channels": 2**31}, "num_channels is 2147483648, expected .* at most 100000"),
        ({"channels": 64_000}, r"the last stage would have 512000 channels, expected at most 100000"),
        ({"depths": [10**9, 1, 1, 1]}, r"depths is \[1000000000, 1, 1, 1\], expected .* at most 100000"),
        ({"depths": [4, 4, 90_000, 4]}, r"depths is \[4, 4, 90000, 4\], expected at most 10000 blocks"),
        ({"dw_kernel_size": 2**31 + 1}, "dw_kernel_size is 2147483649, expected an odd integer of at most 1001"),
        ({"image_size": 10**30}, "image_size is 10*, expected a positive integer .* at most 100000"),
        ({"mlp_ratio": 10**9}, "mlp_ratio is 1000000000, expected .* at most 100000 in the last stage of 512 channels"),
        ({"cls_scale": 1e30}, r"cls_scale is 1e\+30, expected .* at most 100000"),
        ({"initializer_range": 10**400}, "initializer_range is 10*, expected a finite number above 0"),
        ({"layer_scale": 1e300}, r"layer_scale is 1e\+300, expected a finite number or None"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_values_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        InternImageConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_detections": True}, "max_detections is True, expected an integer of at least 1 and at most 100000"),
        ({"fpn_channels": 10**30}, "fpn_channels is 10*, expected .* at most 100000"),
        ({"stage_iou_thresholds": 3}, "stage_iou_thresholds is 3, expected a list of numbers, one per stage"),
        ({"stage_loss_weights": [-1.0]}, r"stage_loss_weights is \[-1.0\], expected a list of numbers of at least 0"),
        ({"stage_box_stds": [[1, 1, 1, "1"]]}, "stage_box_stds is .*, expected four positive numbers per stage"),
        ({"box_loss_weight": None}, "box_loss_weight is None, expected a finite number of at least 0"),
        ({"score_threshold": float("nan")}, "score_threshold is nan, expected a finite number"),
        ({"nms_threshold": b"x"}, "nms_threshold is b'x', expected a finite number"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_values_of_mask_rcnn_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        InternImageMaskRCNNConfig(**fields)


FLAGS = (
    *("post_norm", "res_post_norm", "level2_post_norm", "center_feature_scale"),
    *("use_clip_projector", "remove_center", "with_cp"),
)


@pytest.mark.parametrize(
    ("names", "accepted", "refused", "rule"),
    [
        (FLAGS, [True, False], [0, "no", None], "expected True or False"),
        (["drop_rate", "drop_path_rate"], [0.0, 0.999], [-0.001, 1.0, 1.5, True], "expected a number in [0, 1)"),
        (["channels"], [32], [-2, True], "expected an integer of at least 1 and at most 100000"),
        (["num_channels"], [1, 100_000], [100_001], "expected an integer of at least 1 and at most 100000"),
        (["dw_kernel_size"], [None, 1, 1001], [-1, 0, 1003], "expected an odd integer of at most 1001"),
        (
            ["image_size"],
            [1, [7], (7, 9), 100_000],
            [0, [], (224, 0), 100_001],
            "expected a positive integer or a pair",
        ),
        (["layer_scale"], [None, 0.0, -1.0], [float("inf")], "expected a finite number or None"),
        (["offset_scale"], [0.0, -1.0], [None, float("inf")], "expected a finite number"),
        (["mlp_ratio"], [1 / 64, 195.3125], [0.0156, 195.32], "expected a number that leaves at least one hidden"),
        (["cls_scale"], [1 / 512, 195.3125], [0.0019, 195.32], "expected a number that leaves at least one feature"),
        (["num_labels"], [0, 1], [-1, 1_000_001], "expected an integer of at least 0 and at most 1000000"),
        (
            ["depths"],
            [[4, 4, 9_988, 4], (1, 1, 1, 1)],
            [[4, 4, 9_989, 4], [1, 1, 1, True]],
            "expected",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, (list, tuple)) and isinstance(value[0], str) else "",
)
def test_range_of_each_field(names, accepted, refused, rule):
    for name in names:
        for value in accepted:
            assert getattr(InternImageConfig(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match="^" + re.escape(f"{name} is {value!r}, {rule}")):
                InternImageConfig(**{name: value})


@pytest.mark.parametrize(
    ("ids", "is_valid"), [([0, 17], True), ([], True), ([17, 0], False), ([-1], False), ([18], False)]
)
def test_blocks_with_further_norms_are_of_the_third_stage(ids, is_valid):
    fields = {"level2_post_norm": True, "level2_post_norm_block_ids": ids}
    if is_valid:
        assert InternImageConfig(**fields).level2_post_norm_block_ids == ids
    else:
        with pytest.raises(ValueError, match=r"expected ascending block indices of the third stage, each in 0\.\.17"):
            InternImageConfig(**fields)
    with pytest.raises(ValueError, match=r"level2_post_norm is True but depths is \[1, 1\]: it needs three stages"):
        InternImageConfig(**fields, depths=[1, 1], groups=[4, 8])


WEIGHT, NUMBER = "expected a finite number of at least 0", "expected a finite number."


@pytest.mark.parametrize(
    ("names", "accepted", "refused", "rule"),
    [
        (["box_head_convs"], [0, 4], [-1, 1.0], "expected an integer of at least 0 and at most 100000"),
        (
            *(["fpn_channels", "box_head_linears", "box_head_size"], [1], [0, 100_001]),
            "expected an integer of at least 1 and at most 100000",
        ),
        (
            *(["rpn_train_proposals", "rpn_test_proposals", "max_detections"], [1, 100_000], [0, 100_001]),
            "expected an integer of at least 1 and at most 100000",
        ),
        (["box_loss_weight", "rpn_smooth_l1_beta"], [0.0, 2.0], [-0.1, float("inf")], WEIGHT),
        (["rpn_nms_threshold", "score_threshold", "nms_threshold"], [-1.0, 0.0, 1.0], [float("inf"), None], NUMBER),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_range_of_each_field_of_mask_rcnn(names, accepted, refused, rule):
    for name in names:
        for value in accepted:
            assert getattr(InternImageMaskRCNNConfig(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match="^" + re.escape(f"{name} is {value!r}, {rule}")):
                InternImageMaskRCNNConfig(**{name: value})


DEFAULTS = [
    (
        InternImageConfig(),
        {
            "core_op": "DCNv3",
            "num_channels": 3,
            "image_size": 224,
            "channels": 64,
            "depths": (4, 4, 18, 4),
            "groups": (4, 8, 16, 32),
            "dw_kernel_size": None,
            "layer_scale": None,
            "offset_scale": 1.0,
            "mlp_ratio": 4.0,
            "cls_scale": 1.5,
            **dict.fromkeys(FLAGS, False),
            "level2_post_norm_block_ids": None,
            "drop_rate": 0.0,
            "drop_path_rate": 0.0,
            "drop_path_type": "linear",
            "act_layer": "GELU",
            "norm_layer": "LN",
            "initializer_range": 0.02,
        },
    ),
    (InternImageDinoConfig(), DINO),
    (
        InternImageMaskRCNNConfig(),
        {
            **MASK_RCNN,
            "stage_iou_thresholds": (0.5,),
            "stage_box_stds": ((0.1, 0.1, 0.2, 0.2),),
            "stage_loss_weights": (1.0,),
        },
    ),
    (InternImageMaskRCNNConfig.from_size("XL"), {**CASCADE, "num_labels": 80}),
]


@pytest.mark.parametrize(("config", "expected"), DEFAULTS, ids=["InternImage", "DINO", "Mask R-CNN", "Cascade"])
def test_defaults_are_the_originals(config, expected):
    """Written out once more: they are what a user gets who sets nothing."""
    assert {name: getattr(config, name) for name in expected} == expected
    general = {*PreTrainedConfig.__dataclass_fields__, "backbone_config", "num_labels"}
    assert {name for name in type(config).__dataclass_fields__ if name[0] != "_"} - general == {*expected} - general


@pytest.mark.parametrize(
    ("size", "side"), [("t", 224), ("s", 224), ("b", 224), ("l", 384), ("xl", 384), ("h", 640), ("g", 512)]
)
def test_image_sizes_of_the_released_sizes(size, side):
    assert InternImageConfig.from_size(size).image_size == side


def test_backbones_of_the_original_detectors():
    for size in ("t", "s", "b", "l", "xl"):
        backbone = InternImageMaskRCNNConfig.from_size(size).backbone_config
        released = InternImageConfig.from_size(size, num_labels=0, layer_scale=1.0)
        assert (backbone.layer_scale, backbone.num_labels, backbone.out_indices) == (1.0, 0, [1, 2, 3, 4])
        for field in ARCHITECTURE:
            assert getattr(backbone, field) == getattr(released, field), field
    names = {0: "cat", 1: "dog"}
    assert InternImageMaskRCNNConfig.from_size("t", id2label=names).id2label == names
    with pytest.raises(ValueError, match="size is 'h', expected one of t, s, b, l, xl"):
        InternImageMaskRCNNConfig.from_size("h")


@pytest.mark.parametrize(
    "fields",
    [
        {"stage_iou_thresholds": [], "stage_box_stds": [], "stage_loss_weights": []},
        {"stage_iou_thresholds": [0.5, 0.6]},
        {"stage_box_stds": [[1, 1, 1, 1]] * 2},
        {"stage_loss_weights": [1.0, 0.5]},
    ],
    ids=str,
)
def test_each_stage_has_one_entry(fields):
    with pytest.raises(ValueError, match="entries, expected one each per stage"):
        InternImageMaskRCNNConfig(**fields)


@pytest.mark.parametrize("units", [[1, 1, 1], [1, 1, 1, 0], [1] * 5, 1])
def test_units_of_boxes_are_four_above_zero(units):
    with pytest.raises(ValueError, match=r"stage_box_stds is .*, expected four positive numbers per stage"):
        InternImageMaskRCNNConfig(stage_box_stds=[units])


@pytest.mark.parametrize(
    ("build", "ignored"),
    [
        (
            InternImageDinoConfig,
            {
                *("loss_dict", "auxiliary_outputs", "last_hidden_state", "decoder_hidden_states"),
                *("encoder_last_hidden_state", "encoder_hidden_states"),
                *("encoder_topk_indices", "encoder_topk_logits", "encoder_topk_boxes"),
            },
        ),
        (InternImageMaskRCNNConfig, {"loss_dict", "box_masks"}),
    ],
)
def test_outputs_that_an_evaluation_does_not_gather(build, ignored):
    assert set(build.keys_to_ignore_at_inference) == ignored


def test_other_names_of_the_detectors_fields():
    config = InternImageDinoConfig(d_model=64, encoder_attention_heads=4, encoder_layers=3)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (64, 4, 3)


@pytest.mark.parametrize(("levels", "is_valid"), [(100, True), (101, False)])
def test_values_of_a_file_are_at_most_100_levels_deep(levels, is_valid):
    """In a value, the object around it not counted."""
    for deep in (json.loads("[" * levels + "]" * levels), json.loads('{"a":' * levels + "1" + "}" * levels)):
        if is_valid:
            InternImageConfig.from_dict({"chunk_size_feed_forward": deep})
        else:
            with pytest.raises(ValueError, match="nested deeper than 100 levels"):
                InternImageConfig.from_dict({"chunk_size_feed_forward": deep})


def test_long_values_are_cut_in_messages():
    for length, shown in ((38, repr("x" * 38)), (39, repr("x" * 39)[:40] + "...")):
        with pytest.raises(ValueError, match=f"^id2label is {re.escape(shown)}, expected a mapping"):
            InternImageConfig(id2label="x" * length)


@pytest.mark.parametrize("name", ["auto_map", "id2label", "label2id"])
def test_maps_are_maps(name):
    with pytest.raises(ValueError, match=f"^{name} is 5, expected a mapping"):
        InternImageConfig(**{name: 5})


def test_numbers_beyond_float32_are_refused():
    assert InternImageConfig(offset_scale=3.4e38).offset_scale == 3.4e38
    for value in (3.41e38, -3.41e38):
        with pytest.raises(ValueError, match=r"offset_scale is .*, expected a finite number"):
            InternImageConfig(offset_scale=value)


@pytest.mark.parametrize("name", ["out_features", "out_indices", "hidden_sizes"])
@pytest.mark.parametrize("value", ["stage1", 5, {"stage1": 1}], ids=str)
def test_lists_are_lists(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*, expected a list or None"):
        InternImageConfig(**{name: value})


def test_widths_of_a_file_are_compared():
    config = InternImageConfig(hidden_sizes=[64, 128, 256, 512], stage_names=["any"])
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    with pytest.raises(ValueError, match=r"hidden_sizes is \[8, 16\] but channels=64 and 4 stages give \[64, 128, "):
        InternImageConfig(hidden_sizes=(8, 16))


@pytest.mark.parametrize("ids", [[1, 1], (2, 1), [0.0]])
def test_blocks_with_further_norms_are_ascending(ids):
    with pytest.raises(ValueError, match=r"level2_post_norm_block_ids is .*, expected"):
        InternImageConfig(level2_post_norm=True, level2_post_norm_block_ids=ids)
    if ids != [0.0]:
        assert InternImageConfig(level2_post_norm_block_ids=ids).level2_post_norm is False  # unused


def test_two_stages_are_too_few_for_norms_in_the_third():
    fields = {"level2_post_norm": True, "level2_post_norm_block_ids": [0], "depths": [1, 1], "groups": [4, 8]}
    with pytest.raises(ValueError, match="it needs three stages"):
        InternImageConfig(**fields)
    InternImageConfig(**{**fields, "depths": [1, 1, 1], "groups": [4, 8, 16]})
    with pytest.raises(
        ValueError, match=r"use_clip_projector is True but depths is \[4\]: the head reads the last two"
    ):
        InternImageConfig(use_clip_projector=True, depths=[4], groups=[4])
    InternImageConfig(use_clip_projector=True, depths=[1, 1], groups=[4, 8])


def test_labels_that_are_given_win():
    assert InternImageConfig(num_classes=5, num_labels=7).num_labels == 7
    assert InternImageConfig.from_size("t", num_classes=5).num_labels == 5
    assert InternImageConfig.from_size("t").num_labels == 1000
    for name in ("num_classes", "num_labels"):
        with pytest.raises(ValueError, match=f"^{name} is -3, expected an integer of at least 0"):
            InternImageConfig(**{name: -3})


def test_maps_of_other_code_are_kept():
    """The map of OpenGVLab's own classes goes, also where only one entry names them."""
    theirs = "modeling_internimage.InternImageModelForImageClassification"
    assert not hasattr(InternImageConfig(auto_map={"AutoConfig": "a.B", "AutoModel": theirs}), "auto_map")
    assert InternImageConfig(auto_map={"AutoConfig": "a.B"}).auto_map == {"AutoConfig": "a.B"}


def test_an_unknown_key_of_a_file_that_cannot_be_set_is_ignored(caplog):
    config = InternImageConfig.from_dict({"to_json_string": 1, "widht_of_this_test": 2})
    assert callable(config.to_json_string)
    assert config.widht_of_this_test == 2
    texts = [message for message in caplog.messages if "'to_json_string'" in message or "widht_of_this" in message]
    assert [text.rpartition(". It is ")[2] for text in texts] in (
        ["ignored.", "kept, but no model reads it."],
        [
            "its documentation lists them. It is ignored.",
            "its documentation lists them. It is kept, but no model reads it.",
        ],
    )
    caplog.clear()
    InternImageConfig.from_dict({"widht_of_this_test": 3})  # said once
    assert not caplog.messages


def test_at_most_two_names_are_proposed():
    with pytest.raises(ValueError, match=r"no field 'drop_rat'; did you mean 'drop_rate' or 'drop_path_rate'\?$"):
        InternImageConfig(drop_rat=0.1)
    for name, meant in (("problem_typ", "problem_type"), ("id2lable", "id2label"), ("label2i", "label2id")):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            InternImageConfig(**{name: 1})


def test_whole_numbers_are_taken_for_factors():
    """PyTorch's initialisation fails with those beyond 64 bits."""
    model = InternImageModel(tiny_config(layer_scale=10**30, initializer_range=10**30))
    assert model.levels[0].blocks[0].layer_scale1.detach().unique().tolist() == [pytest.approx(1e30)]


def test_a_value_set_later_is_checked_too():
    config = InternImageConfig()
    config.groups = [3, 6, 12, 24]
    with pytest.raises(ValueError, match=r"groups\[0\] is 3, which does not divide"):
        InternImageModel(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InternImageConfig(chanels=3), "InternImageConfig has no field 'chanels'; did you mean 'channels' or"),
        (lambda: InternImageConfig(dephts=[1]), "'dephts'; did you mean 'depths'"),
        (lambda: InternImageConfig(num_label=3), "'num_label'; did you mean 'num_labels'"),
        (lambda: InternImageConfig(out_feature=["stage1"]), "'out_feature'; did you mean 'out_features'"),
        (lambda: InternImageConfig(something_else=3), "no field 'something_else'; its documentation lists them"),
        (lambda: InternImageConfig.from_size("t", drop_path=0.1), "'drop_path'; did you mean .*'drop_path_rate'"),
        (
            lambda: CBInternImageConfig(round_gama=True),
            "CBInternImageConfig has no field 'round_gama'; .*'round_gamma'",
        ),
        (
            lambda: InternImageDinoConfig(num_querys=9),
            "InternImageDinoConfig .* 'num_querys'; did you mean 'num_queries'",
        ),
        (
            lambda: InternImageDinoConfig(backbone_config={"model_type": "internimage", "chanels": 3}),
            "InternImageConfig has no field 'chanels'",
        ),
        (lambda: InternImageMaskRCNNConfig(box_los="l1"), "InternImageMaskRCNNConfig .* 'box_los'; .*'box_loss'"),
        (lambda: InternImageMaskRCNNConfig.from_size("t", nms_treshold=1), "'nms_treshold'; did you mean 'nms_thresh"),
        (lambda: InternImageMaskRCNNConfig(backbone_config={"chanels": 3}), "InternImageConfig has no field 'chanels'"),
    ],
)
def test_misspelt_fields_are_refused_where_they_are_typed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "build", [InternImageConfig, CBInternImageConfig, InternImageDinoConfig, InternImageMaskRCNNConfig]
)
def test_unknown_keys_of_a_file_survive_with_a_warning(build, tmp_path, caplog):
    build().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert not caplog.messages
    key = f"chanels_of_{build.__name__}"  # each warning comes once
    fields[key] = 3
    if "backbone_config" in fields:
        fields["backbone_config"][key] = 4
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = build.from_pretrained(tmp_path)
    assert getattr(config, key) == 3
    assert any(f"{build.__name__} has no field '{key}'" in message for message in caplog.messages)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == fields
    assert getattr(AutoConfig.from_pretrained(tmp_path), key) == 3
    assert getattr(build.from_json_file(tmp_path / "config.json"), key) == 3
    changed, unused = build.from_pretrained(tmp_path, return_unused_kwargs=True, **{key: 5}, foo=6)
    assert getattr(changed, key) == 5
    assert unused == {"foo": 6}
    if "backbone_config" in fields:
        assert getattr(config.backbone_config, key) == 4


def test_keys_of_transformers_and_of_the_authors_are_no_news(tmp_path, caplog):
    old = {"torchscript": False, "pruned_heads": {}, "use_cache": True, "tie_word_embeddings": True, "max_length": 20}
    private = {"_name_or_path": "x", "_commit_hash": None, "_attn_implementation_autoset": True}
    given = {**PreTrainedConfig().to_dict(), **old, **private, "torch_dtype": "float32", "quantization_config": {}}
    given["model_type"] = "internimage"
    for fields in (given, *(manifest(name)["config"] for name in MANIFESTS)):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        AutoConfig.from_pretrained(tmp_path)
    assert not caplog.messages
    with pytest.raises(ValueError, match="'chanels'; did you mean 'channels'"):
        InternImageConfig.from_pretrained(tmp_path, chanels=3)
    assert InternImageConfig.from_pretrained(tmp_path, cache_dir=tmp_path, foo=3).channels


@pytest.mark.parametrize(
    "name",
    """
    add_cross_attention attn_implementation bos_token_id configuration_files cross_attention_hidden_size
    custom_pipelines decoder_start_token_id eos_token_id experts_implementation finetuning_task
    gradient_checkpointing is_decoder pad_token_id prefix pruned_heads
    quantization_config sep_token_id task_specific_params tf_legacy_loss
    tie_encoder_decoder tie_last_hidden_states tie_word_embeddings tokenizer_class torchscript transformers_weights
    use_bfloat16 use_cache num_beams temperature max_length top_k
    """.split(),
)
def test_keys_that_transformers_writes_are_no_news(name, caplog):
    """In some release of it, for some model."""
    InternImageConfig.from_dict({name: None})
    assert not caplog.messages


@pytest.mark.parametrize("build", [InternImageConfig, InternImageDinoConfig, InternImageMaskRCNNConfig])
def test_hostile_files_end_in_one_line_at_once(build, tmp_path):
    build().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    deep = json.loads("[" * 400 + "]" * 400)
    start = time.monotonic()
    for changed, message in (
        ({"num_labels": 10**9}, "num_labels is 1000000000, expected .* at most 1000000"),
        ({"auto_map": ["AutoModel"]}, r"auto_map is \['AutoModel'\], expected a mapping"),
        ({"auto_map": 5}, "auto_map is 5, expected a mapping"),
        ({"id2label": [1]}, r"id2label is \[1\], expected a mapping"),
        ({"chunk_size_feed_forward": deep}, "nested deeper than 100 levels"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**fields, **changed}))
        with pytest.raises(ValueError, match=message) as caught:
            build.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"config.json is nested too deep"):
        build.from_pretrained(tmp_path)
    config = build()
    with pytest.raises(ValueError, match="num_labels is 1000000000"):
        config.num_labels = 10**9
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "build", [InternImageConfig, CBInternImageConfig, InternImageDinoConfig, InternImageMaskRCNNConfig]
)
def test_every_field_is_documented_and_read(build):
    """Without a reader it would be a setting that does nothing."""
    general = set(PreTrainedConfig.__dataclass_fields__)
    fields = [name for name in build.__dataclass_fields__ if name not in general and not name.startswith("_")]
    package = Path(hf_internimage.__file__).parent
    code = "".join(path.read_text() for path in (package / "models").rglob("*.py") if "config" not in path.name)
    # image_size is for image processors, core_op for the original's files; the last are those of transformers' layers.
    readers = {"image_size", "core_op"} | (
        vars(build().deformable_detr_config()).keys() if build is InternImageDinoConfig else set()
    )
    documentation = "".join(each.__doc__ for each in build.__mro__ if issubclass(each, CheckedConfig))
    assert fields
    for name in fields:
        assert name in readers or f".{name}" in code, name
        assert re.search(rf"\b{name}\b", documentation), name


def test_the_initial_spread_is_initializer_range():
    """Of every linear layer that has no rule of its own; of no other tensor."""
    weights = []
    for spread in (0.02, 0.04):
        torch.manual_seed(0)
        model = InternImageForImageClassification(tiny_config(**OPTIONS["h"], initializer_range=spread))
        weights.append(model.state_dict())
    changed = {name for name, tensor in weights[0].items() if not torch.equal(tensor, weights[1][name])}
    linear = {name for name in weights[0] if re.search(r"(fc1|fc2|head|\.q|\.k|\.v|cross_dcn\.proj)\.weight$", name)}
    assert changed == linear
    for name in changed:
        torch.testing.assert_close(2 * weights[0][name], weights[1][name])
        assert weights[0][name].std().item() == pytest.approx(0.02, rel=0.1), name


def test_convolutions_start_as_pytorchs_own():
    """Weights and biases within 1 / sqrt(inputs of an output), and near that bound somewhere."""
    torch.manual_seed(0)
    model = InternImageForImageClassification(tiny_config(channels=64, depths=[1], groups=[4]))
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) >= 3
    for module in convolutions:
        bound = module.weight[0].numel() ** -0.5
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                assert 0.8 * bound < tensor.abs().max().item() <= bound


def test_a_field_that_did_nothing_is_still_taken():
    """init_std, of files saved before it was removed and of scripts that set it."""
    assert "init_std" not in InternImageDinoConfig(init_std=0.02).to_dict()
    assert "init_std" not in InternImageDinoConfig.from_dict({"init_std": 0.02}).to_dict()


@pytest.mark.parametrize("name", ["num_stages", "num_hidden_layers", "to_dict", "save_pretrained"])
def test_names_that_are_no_fields_cannot_be_set(name, tmp_path):
    """Properties that follow from other fields, and methods."""
    with pytest.raises(ValueError, match=f"has no field '{name}'"):
        InternImageConfig(**{name: 3})
    config = InternImageConfig.from_dict({name: 3})
    assert config.to_dict() == InternImageConfig().to_dict()
    assert config.num_stages == 4


@pytest.mark.parametrize("auto_class", [AutoModelForImageClassification, InternImageForImageClassification, AutoModel])
def test_misspelt_fields_are_named_when_a_model_is_loaded(auto_class, tmp_path):
    InternImageForImageClassification(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no field 'chanels'; did you mean 'channels'"):
        auto_class.from_pretrained(tmp_path, chanels=3)
    assert auto_class.from_pretrained(tmp_path, drop_path_rate=0.3).config.drop_path_rate == 0.3


def test_documentation_of_the_fields():
    """Each field once, the released values, and an example that runs."""
    text = inspect.getdoc(InternImageConfig)
    documented = re.findall(r"^    (\w+) \(`", text.partition("Args:")[2], re.MULTILINE)
    own = {name for name in InternImageConfig.__annotations__ if name[0] != "_"}
    assert sorted(documented) == sorted([*own, "num_labels", "out_features", "out_indices"])
    head, _, *rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    sizes = [InternImageConfig.from_size(size) for size in head[1:]]
    assert [size.lower() for size in head[1:]] == list(SIZES)
    assert {field for field, *_ in rows} == {field for fields in SIZES.values() for field in fields}
    for field, *values in rows:
        for config, value in zip(sizes, values, strict=True):
            actual = getattr(config, field)
            shown = " ".join(map(str, actual)) if isinstance(actual, (list, tuple)) else str(actual)
            assert shown == value, (field, value)
    tests = doctest.DocTestFinder(recurse=False).find(InternImageConfig, "InternImageConfig")
    runner = doctest.DocTestRunner()
    assert [runner.run(test).failed for test in tests] == [0]
    assert runner.tries >= 4
