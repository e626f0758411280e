# SPDX-License-Identifier: MIT
"""Every field of the configurations that files give, also those that no shape checks, against the published ones.

The published values are those of OpenGVLab/InternImage@31c962d, segmentation/configs and detection/configs, with the
defaults of mmseg 0.27 and mmdet 2.28. Those of the golden systems are in their descriptions. Numbers are written here a
second time on purpose: no value is taken from the package.
"""

import pytest
import torch
from support.golden_data import manifest
from support.golden_detectors import golden_images
from support.golden_heads import backbone_fields, document, expected, pixel_values, weights
from support.published_heads import CASCADE, DINO, MASK_RCNN
from support.synthetic_checkpoints import released_shapes
from torch.testing import assert_close
from transformers import PreTrainedConfig

from hf_internimage import InternImageConfig, InternImageDinoConfig, InternImageMaskRCNNConfig
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS
from hf_internimage.conversion import dino, mask2former, rcnn, upernet
from hf_internimage.conversion.systems import SYSTEMS

STAGES = ["stage1", "stage2", "stage3", "stage4"]
CONVERSIONS = {system.name: system.conversion for system in SYSTEMS}
ROWS = [row for row in SYSTEM_CHECKPOINTS if row.system in CONVERSIONS]

UPERNET = {
    "hidden_size": 512,
    "pool_scales": [1, 2, 3, 6],
    "use_auxiliary_head": True,
    "auxiliary_loss_weight": 0.4,
    "auxiliary_channels": 256,
    "auxiliary_num_convs": 1,
    "auxiliary_concat_input": False,
    "loss_ignore_index": 255,
}
MASK2FORMER = {
    "feature_size": 256,
    "mask_feature_size": 256,
    "hidden_dim": 256,
    "encoder_feedforward_dim": 1024,
    "dim_feedforward": 2048,
    "num_attention_heads": 8,
    "num_queries": 100,
    "encoder_layers": 6,
    "decoder_layers": 10,  # nine, and the prediction from the learned queries
    "activation_function": "relu",
    "dropout": 0.0,
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
    "ignore_value": 255,
    "no_object_weight": 0.1,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "train_num_points": 12544,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
    "use_auxiliary_loss": True,
}
LARGE_MASK2FORMER = {  # ADE20K and COCO-Stuff
    **MASK2FORMER,
    "feature_size": 1024,
    "mask_feature_size": 1024,
    "hidden_dim": 1024,
    "encoder_feedforward_dim": 4096,
    "dim_feedforward": 4096,
    "num_attention_heads": 32,
    "num_queries": 200,
}
LARGE_DINO = {**DINO, "num_denoising": 1000}  # H and G
CLASSIFIERS = {  # whose configurations on the Hub state the architecture of a size
    "t": "internimage_t_1k_224",
    "s": "internimage_s_1k_224",
    "b": "internimage_b_1k_224",
    "l": "internimage_l_22kto1k_384",
    "xl": "internimage_xl_22kto1k_384",
    "h": "internimage_h_22kto1k_640",
    "g": "internimage_g_22kto1k_512",
}
LAYER_SCALE = {"t": 1.0, "s": 1.0, "b": 1.0, "l": 1.0, "xl": 1.0, "h": None, "g": None}


def published(row):
    """The fields of the head in the published configuration."""
    if row.system == "mask2former":
        return LARGE_MASK2FORMER if row.dataset.startswith(("ADE20K", "COCO-Stuff")) else MASK2FORMER
    if row.system in ("dino", "cb_dino"):
        return LARGE_DINO if row.size in ("h", "g") else DINO
    return {"upernet": UPERNET, "mask_rcnn": MASK_RCNN, "cascade_rcnn": CASCADE}[row.system]


def assert_fields(config, fields):
    """The configuration has these fields, and all its others, but for backbone and labels, are its class's defaults."""
    general = {*PreTrainedConfig().to_dict(), "backbone_config", "_other_names"}
    others = set(config.to_dict()) - general - set(fields)
    if isinstance(config, (InternImageDinoConfig, InternImageMaskRCNNConfig)):
        assert not others
    for name, value in fields.items():
        found = getattr(config, name)
        if isinstance(value, list):
            found = [list(part) if isinstance(part, tuple) else part for part in found]
        assert found == value, name
    defaults = type(config)()
    for name in others:
        assert getattr(config, name) == getattr(defaults, name), name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_released_files(row):
    config = CONVERSIONS[row.system].guess_config(released_shapes(row))
    assert_fields(config, published(row))
    assert config.num_labels == row.num_labels

    backbone = config.backbone_config
    assert backbone.model_type == ("cb_internimage" if row.system == "cb_dino" else "internimage")
    official = manifest(CLASSIFIERS[row.size])["config"]
    own = set(InternImageConfig().to_dict()) - set(PreTrainedConfig().to_dict())
    changed = {
        "layer_scale": LAYER_SCALE[row.size],
        "out_features": STAGES[1:] if "dino" in row.system else STAGES,
        "use_clip_projector": False,
        "drop_path_rate": 0.0,  # a setting of training, which recipes give
    }
    changed["out_indices"] = [1 + STAGES.index(stage) for stage in changed["out_features"]]
    for name in own & (set(official) | set(changed)) - {"image_size", "with_cp"}:
        assert getattr(backbone, name) == changed.get(name, official.get(name)), name


# ---- The golden systems: the original's configuration beside its tensors and results ----


def of_upernet(config):
    head, auxiliary = config["decode_head"], config["auxiliary_head"]
    return {
        "hidden_size": head["channels"],
        "pool_scales": head["pool_scales"],
        "num_labels": head["num_classes"],
        "use_auxiliary_head": True,
        "auxiliary_loss_weight": auxiliary["loss_decode"]["loss_weight"] / head["loss_decode"]["loss_weight"],
        "auxiliary_channels": auxiliary["channels"],
        "auxiliary_num_convs": auxiliary["num_convs"],
        "auxiliary_concat_input": auxiliary["concat_input"],
    }


def of_mask2former(config):
    head = config["decode_head"]
    encoder, decoder = head["pixel_decoder"]["encoder"], head["transformer_decoder"]
    encoder_layer, decoder_layer = encoder["transformerlayers"], decoder["transformerlayers"]
    (heads,) = {layer["attn_cfgs"]["num_heads"] for layer in (encoder_layer, decoder_layer)}
    (dropout,) = {
        encoder_layer["attn_cfgs"]["dropout"],
        encoder_layer["ffn_cfgs"]["ffn_drop"],
        decoder_layer["attn_cfgs"]["attn_drop"],
        decoder_layer["attn_cfgs"]["proj_drop"],
        decoder_layer["ffn_cfgs"]["ffn_drop"],
    }
    return {
        "feature_size": head["feat_channels"],
        "mask_feature_size": head["out_channels"],
        "hidden_dim": decoder_layer["attn_cfgs"]["embed_dims"],
        "encoder_layers": encoder["num_layers"],
        "encoder_feedforward_dim": encoder_layer["ffn_cfgs"]["feedforward_channels"],
        "decoder_layers": decoder["num_layers"] + 1,
        "dim_feedforward": decoder_layer["feedforward_channels"],
        "num_attention_heads": heads,
        "num_queries": head["num_queries"],
        "num_labels": head["num_classes"],
        "dropout": dropout,
        "pre_norm": decoder_layer["operation_order"][0] == "norm",
        "enforce_input_projection": head["enforce_decoder_input_project"],
        "activation_function": decoder_layer["ffn_cfgs"]["act_cfg"]["type"].lower(),
        "no_object_weight": head["loss_cls"]["class_weight"][-1],
        "class_weight": head["loss_cls"]["loss_weight"],
        "mask_weight": head["loss_mask"]["loss_weight"],
        "dice_weight": head["loss_dice"]["loss_weight"],
    }


def of_dino(config):
    head = config["bbox_head"]
    transformer = head["transformer"]
    encoder, decoder = transformer["encoder"], transformer["decoder"]
    noise = head["dn_cfg"]["noise_scale"]
    return {
        "d_model": config["neck"]["out_channels"],
        "num_feature_levels": config["neck"]["num_outs"],
        "encoder_layers": encoder["num_layers"],
        "decoder_layers": decoder["num_layers"],
        "encoder_ffn_dim": encoder["transformerlayers"]["feedforward_channels"],
        "decoder_ffn_dim": decoder["transformerlayers"]["feedforward_channels"],
        "encoder_attention_heads": encoder["transformerlayers"]["attn_cfgs"]["num_heads"],
        "decoder_attention_heads": decoder["transformerlayers"]["attn_cfgs"][0]["num_heads"],
        "activation_function": encoder["transformerlayers"]["ffn_cfgs"]["act_cfg"]["type"].lower(),
        "dropout": encoder["transformerlayers"]["ffn_dropout"],
        "attention_dropout": decoder["transformerlayers"]["attn_cfgs"][0]["dropout"],
        "activation_dropout": decoder["transformerlayers"]["ffn_cfgs"]["ffn_drop"],
        "num_queries": head["num_query"],
        "num_labels": head["num_classes"],
        "encoder_position_temperature": head["positional_encoding"]["temperature"],
        "num_denoising": head["dn_cfg"]["group_cfg"]["num_dn_queries"],
        "label_noise_ratio": noise["label"],
        "box_noise_scale": noise["box"],
        "class_loss_coefficient": head["loss_cls"]["loss_weight"],
        "bbox_loss_coefficient": head["loss_bbox"]["loss_weight"],
        "giou_loss_coefficient": head["loss_iou"]["loss_weight"],
        "focal_alpha": head["loss_cls"]["alpha"],
        "inverse_sigmoid_eps": document("dino_tiny")["inverse_sigmoid"]["eps"],
    }


def of_mask_rcnn(config):
    box, test = config["roi_head"]["bbox_head"], config["test_cfg"]
    return {
        "fpn_channels": config["neck"]["out_channels"],
        "box_head_size": box["fc_out_channels"],
        "box_head_linears": int(box["type"].removeprefix("Shared").removesuffix("FCBBoxHead")),
        "num_labels": box["num_classes"],
        "stage_box_stds": [box["bbox_coder"]["target_stds"]],
        "box_loss": box["loss_bbox"]["type"].removesuffix("Loss").lower(),
        "box_loss_weight": box["loss_bbox"]["loss_weight"],
        "rpn_test_proposals": test["rpn"]["max_per_img"],
        "rpn_nms_threshold": test["rpn"]["nms"]["iou_threshold"],
        "score_threshold": test["rcnn"]["score_thr"],
        "nms_threshold": test["rcnn"]["nms"]["iou_threshold"],
        "max_detections": test["rcnn"]["max_per_img"],
    }


GOLDEN = {
    "upernet_tiny": (upernet, of_upernet, UPERNET),
    "mask2former_tiny": (mask2former, of_mask2former, MASK2FORMER),
    "dino_tiny": (dino, of_dino, DINO),
    "maskrcnn_tiny": (rcnn, of_mask_rcnn, MASK_RCNN),
}


def guess(name, monkeypatch):
    """The configuration from the shapes of a golden system, whose backbone is of no released size."""
    module = GOLDEN[name][0]
    fields = backbone_fields(document(name)["config"]["backbone"])
    monkeypatch.setattr(module, "backbone_config", lambda *_: InternImageConfig(**fields, out_features=STAGES))
    if module is dino:
        monkeypatch.setattr(dino, "released_size", lambda *_: "t")
    return module.guess_config({key: tuple(tensor.shape) for key, tensor in weights(name).items()})


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_systems(name, monkeypatch):
    _, translate, released = GOLDEN[name]
    fields = translate(document(name)["config"])
    assert_fields(guess(name, monkeypatch), {**released, **fields})


@pytest.mark.parametrize("name", ["upernet_tiny", "mask2former_tiny", "dino_tiny"])
@torch.no_grad()
def test_golden_systems_with_the_guessed_configuration_give_the_original_results(name, monkeypatch):
    module = GOLDEN[name][0]
    config = guess(name, monkeypatch)
    model = module.build_model(config)
    model.load_state_dict(module.convert(weights(name), config).tensors, strict=True)
    inputs = golden_images() if name == "dino_tiny" else (pixel_values(name),)
    outputs = model.eval()(*inputs)
    for result in ("class_queries_logits", "masks_queries_logits") if name == "mask2former_tiny" else ("logits",):
        original, atol = expected(name, result)
        assert_close(getattr(outputs, result), original, rtol=0, atol=atol)
