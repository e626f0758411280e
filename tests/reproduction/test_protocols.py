# SPDX-License-Identifier: MIT
"""Which published scores can be measured, how, and why the others cannot."""

import re

import pytest

from hf_internimage.checkpoints import list_models
from hf_internimage.reproduction import find_protocol, protocols
from hf_internimage.reproduction.protocols import MULTI_SCALE, SCALE_RATIOS, SINGLE_SCALE


def test_every_other_model_says_why_not():
    measured = {protocol.name for protocol in protocols()}
    for model in list_models():
        if model.name in measured:
            assert find_protocol(model.name).score in model.scores
        else:
            with pytest.raises(ValueError, match=f"^{re.escape(model.name)} cannot be reproduced: "):
                find_protocol(model.name)


def test_the_papers_main_results_can_be_measured():
    names = {(protocol.name, protocol.score.views) for protocol in protocols()}
    assert len(names) == len(protocols())
    listed = list_models(task="classification")
    classifiers = [model.name for model in listed if model.scores and model.system == "classification"]
    assert len(classifiers) == 7
    assert {(name, SINGLE_SCALE) for name in classifiers} <= names
    for name in (
        *("upernet_internimage_t_512_160k_ade20k", "mask2former_internimage_h_896_80k_cocostuff2ade20k"),
        *("upernet_internimage_xl_512x1024_160k_mapillary2cityscapes",),
        "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",
    ):
        assert {(name, SINGLE_SCALE), (name, MULTI_SCALE)} <= names
    for name in ("dino_4scale_internimage_t_1x_coco", "dino_4scale_cbinternimage_h_objects365_coco"):
        assert (name, SINGLE_SCALE) in names
        assert (name, MULTI_SCALE) not in names


def test_scores_and_views():
    protocol = find_protocol("mask_rcnn_internimage_t_fpn_1x_coco")
    assert (protocol.score.metric, protocol.score.value, protocol.tolerance) == ("box AP", 47.2, 0.2)
    assert (protocol.scale_ratios, protocol.flip) == ((1.0,), False)
    protocol = find_protocol("upernet_internimage_t_512_160k_ade20k", MULTI_SCALE)
    assert (protocol.score.value, protocol.scale_ratios, protocol.flip) == (48.1, SCALE_RATIOS, True)
    protocol = find_protocol("mask2former_internimage_h_896_80k_cocostuff2ade20k", MULTI_SCALE)
    assert protocol.scale_ratios[0] == 768 / 896  # of its own configuration


@pytest.mark.parametrize(
    ("name", "views", "message"),
    [
        ("internimage_t_1k", SINGLE_SCALE, "is no published checkpoint; did you mean internimage_t_1k_224"),
        ("internimage_l_22k_384", SINGLE_SCALE, "the authors report no score for it"),
        ("internimage_t_1k_224", MULTI_SCALE, "the authors report no multi-scale score for it"),
        ("dino_4scale_internimage_h_objects365_coco_ss", SINGLE_SCALE, "the authors publish no file"),
        ("segformer_internimage_l_512x1024_160k_mapillary2cityscapes", SINGLE_SCALE, "no model for its head"),
        ("mask2former_internimage_h_480_40k_nyu", SINGLE_SCALE, "no evaluation for NYU Depth v2"),
        ("dino_4scale_cbinternimage_h_objects365_coco", MULTI_SCALE, "do not publish the settings"),
    ],
)  # fmt: skip
def test_reasons(name, views, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find_protocol(name, views)
