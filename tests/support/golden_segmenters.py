# SPDX-License-Identifier: MIT
"""The original's tiny segmenters (tests/golden/heads) as transformers' models, with converted weights."""

import torch
from transformers import Mask2FormerConfig, UperNetConfig

from hf_internimage import InternImageConfig
from hf_internimage.conversion import mask2former, upernet
from hf_internimage.models.semantic_maps import semantic_scores
from support.golden_heads import backbone_fields, document, weights

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def backbone(name):
    return InternImageConfig(**backbone_fields(document(name)["config"]["backbone"]), out_features=STAGES)


def upernet_config():
    head, auxiliary = (document("upernet_tiny")["config"][part] for part in ("decode_head", "auxiliary_head"))
    return UperNetConfig(
        backbone_config=backbone("upernet_tiny"),
        hidden_size=head["channels"],
        pool_scales=head["pool_scales"],
        num_labels=head["num_classes"],
        auxiliary_channels=auxiliary["channels"],
        auxiliary_num_convs=auxiliary["num_convs"],
    )


def mask2former_config():
    head = document("mask2former_tiny")["config"]["decode_head"]
    encoder = head["pixel_decoder"]["encoder"]
    decoder = head["transformer_decoder"]
    return Mask2FormerConfig(
        backbone_config=backbone("mask2former_tiny"),
        feature_size=head["feat_channels"],
        mask_feature_size=head["out_channels"],
        hidden_dim=head["feat_channels"],
        encoder_layers=encoder["num_layers"],
        encoder_feedforward_dim=encoder["transformerlayers"]["ffn_cfgs"]["feedforward_channels"],
        decoder_layers=decoder["num_layers"] + 1,
        dim_feedforward=decoder["transformerlayers"]["feedforward_channels"],
        num_attention_heads=4,
        num_queries=head["num_queries"],
        num_labels=head["num_classes"],
        dropout=0.0,
    )


def golden_segmenter(name, dtype=torch.float32):
    """The tiny segmenter "upernet_tiny" or "mask2former_tiny", in evaluation mode."""
    system, config = {
        "upernet_tiny": (upernet, upernet_config),
        "mask2former_tiny": (mask2former, mask2former_config),
    }[name]
    model = system.build_model(config())
    converted = system.convert(weights(name), model.config)
    assert converted.dropped == {}
    model.load_state_dict(converted.tensors, strict=True)
    return model.to(dtype).eval()


def decided_segmenter(name, pixel_values):
    """The tiny segmenter with a classifier that sees several classes in these images; as it is, they are all of one."""
    model = golden_segmenter(name)
    with torch.no_grad():
        if name == "upernet_tiny":
            model.decode_head.classifier.bias -= model(pixel_values).logits.mean(dim=(0, 2, 3))
            return model
        classifier = model.class_predictor
        classifier.weight *= 3
        classifier.bias -= model(pixel_values).class_queries_logits.mean(dim=(0, 1))
        classifier.bias[-1] -= 30  # "no object"
        for _ in range(3):
            area = semantic_scores(model(pixel_values)).mean(dim=(0, 2, 3))
            classifier.bias[:-1] -= (area / area.mean()).log()
    return model
