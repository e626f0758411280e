# SPDX-License-Identifier: MIT
"""Tiny models of each kind of system, for exports: one takes a second or two for each block."""

from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_internimage import InternImageBackbone
from support.golden_data import tiny_config
from support.golden_detectors import tiny_composite_config, tiny_dino
from support.golden_segmenters import STAGES

SIDES = (64, 96)
ONE_BLOCK = {"depths": [1, 1, 1, 1]}
TWO_STAGES = {"depths": [1, 1], "groups": [1, 2]}


def backbone():
    return InternImageBackbone(tiny_config(**TWO_STAGES, out_features=["stem", "stage2"]))


def upernet():
    config = tiny_config(**TWO_STAGES, out_features=STAGES[:2])
    head = {"hidden_size": 16, "pool_scales": [2, 3], "use_auxiliary_head": False}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **head, num_labels=5))


def mask2former():
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=tiny_config(**ONE_BLOCK, out_features=STAGES),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            num_attention_heads=4,
            num_queries=5,
            num_labels=5,
            dropout=0.0,
        )
    )


def composite_dino():
    backbone = tiny_composite_config(**TWO_STAGES, out_features=STAGES[:2])
    return tiny_dino(backbone, encoder_layers=1, num_feature_levels=2)
