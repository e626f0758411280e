# SPDX-License-Identifier: MIT
"""Fields of configurations on the command line: misspelt ones, and those that contradict a checkpoint."""

import json

import pytest
from support.golden_data import tiny_config
from support.golden_detectors import tiny_dino_config
from transformers import ConvNextConfig, PreTrainedConfig, SegformerConfig, UperNetConfig

from hf_internimage import InternImageConfig
from hf_internimage.training.classification import main as classification
from hf_internimage.training.command_line import UsageError
from hf_internimage.training.detection import main as detection
from hf_internimage.training.overrides import refuse_contradictions
from hf_internimage.training.segmentation import main as segmentation

CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
UPERNET = UperNetConfig(backbone_config=tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"]))


class Data:
    label_names, multi_label = ("cat", "dog"), False


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (classification, {"config_overrides": {"chanels": 3}}, "InternImageConfig .* 'chanels'; .*'channels'"),
        *(
            (classification, {"config_overrides": {name: value}}, message)
            for name, value, message in (
                ("num_stages", 2, "has no field 'num_stages'"),
                ("num_hidden_layers", 2, "has no field 'num_hidden_layers'"),
                ("to_dict", 2, "has no field 'to_dict'"),
                ("num_labels", 7, "config_overrides has num_labels, which the script sets"),
                ("id2label", {"0": "a"}, "config_overrides has id2label, which the script sets"),
                ("return_dict", False, "config_overrides has return_dict, which the script sets"),
                ("dtype", "float16", "config_overrides has dtype, which the script sets"),
                ("model_type", "vit", "config_overrides has model_type, which the script sets"),
            )
        ),
        (
            classification,
            {"config_overrides": {"hiden_sizes": [8]}, "model_type": "convnext"},
            "config_overrides: ConvNextConfig has no field 'hiden_sizes'; did you mean 'hidden_sizes'",
        ),
        (segmentation, {"config_overrides": {"chanels": 3}}, "InternImageConfig .* 'chanels'; .*'channels'"),
        (segmentation, {"head_overrides": {"auxiliary_chanels": 3}}, "'auxiliary_chanels'; .*'auxiliary_channels'"),
        (detection, {"config_overrides": {"chanels": 3}}, "InternImageConfig has no field 'chanels'; .*'channels'"),
        (detection, {"head_overrides": {"num_querys": 3}}, "InternImageDinoConfig .*'num_querys'; .*'num_queries'"),
        (detection, {"head": "detr", "config_overrides": {"chanels": 3}}, "'chanels'; did you mean 'channels'"),
        (detection, {"head": "detr", "head_overrides": {"num_querys": 3}}, "'num_querys'; .*'num_queries'"),
    ],
)
def test_misspelt_fields_of_new_models(task, fields, message):
    fields = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    with pytest.raises((UsageError, ValueError), match=message):
        task.build_model(task.ModelArguments(**fields), Data())


@pytest.mark.parametrize(
    ("task", "config", "fields", "message"),
    [
        (classification, tiny_config(), {"config_overrides": {"depths": [2, 2, 2, 2]}}, r"depths=\[2, 2, 2, 2\], but"),
        (classification, tiny_config(), {"config_overrides": {"layer_scale": 1.0}}, "trained with None: leave it out"),
        (classification, tiny_config(), {"config_overrides": {"offset_scale": 2.0}}, "offset_scale=2.0, but .* 1.0"),
        (classification, tiny_config(), {"config_overrides": {"chanels": 3}}, "'chanels'; did you mean 'channels'"),
        (classification, CONVNEXT, {"config_overrides": {"hidden_act": "relu"}}, "hidden_act='relu', but .* 'gelu'"),
        (detection, tiny_dino_config(), {"config_overrides": {"post_norm": True}}, "post_norm=True, but .* False"),
        (
            detection,
            tiny_dino_config(),
            {"head_overrides": {"num_queries": 9}},
            "head_overrides has num_queries=9, but",
        ),
        (detection, tiny_dino_config(), {"head_overrides": {"num_querys": 9}}, "'num_querys'; .*'num_queries'"),
        (
            segmentation,
            SegformerConfig(),
            {"config_overrides": {"channels": 8}},
            "has no backbone_config: leave out config_",
        ),
        (segmentation, UPERNET, {"head_overrides": {"pool_scales": [1]}}, r"pool_scales=\[1\], but .* \[1, 2, 3, 6\]"),
    ],
)
def test_contradictions_of_a_checkpoint_are_refused_before_it_is_loaded(task, config, fields, message, tmp_path):
    config.save_pretrained(tmp_path)  # without weights
    fields = {name: json.dumps(value) for name, value in fields.items()}
    arguments = task.ModelArguments(model_name_or_path=str(tmp_path), **fields)
    with pytest.raises(UsageError, match=message) as caught:
        task.build_model(arguments, Data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (tiny_config(), {"drop_rate": 0.1, "drop_path_type": "uniform", "with_cp": True, "image_size": 96}),
        (tiny_config(), {"cls_scale": 2.0, "channels": 16, "depths": (1, 1, 2, 1)}),
        (CONVNEXT, {"drop_path_rate": 0.1, "hidden_sizes": (8, 16)}),
        (tiny_dino_config(), {"num_denoising": 5, "label_noise_ratio": 0.1, "bbox_cost": 1.0, "auxiliary_loss": False}),
        (UPERNET, {"auxiliary_loss_weight": 0.1}),
    ],
)
def test_fields_of_the_training_and_of_what_is_made_anew_may_differ(config, fields):
    if isinstance(config, InternImageConfig):
        fields = {name: list(config.depths) if name == "depths" else value for name, value in fields.items()}
    refuse_contradictions("config_overrides", "folder", config, fields)


WORDS = (
    *("aux", "coefficient", "cost", "drop", "focal", "init", "loss", "noise", "noising", "sample", "weight"),
    *("size", "depth", "heads"),
)


class Worded(PreTrainedConfig):
    """A configuration with a field for each of these words in its name."""

    model_type = "worded"

    def __init__(self, **fields):
        super().__init__(**{name: value for name, value in fields.items() if not name.startswith("a_")})
        for word in WORDS:
            setattr(self, f"a_{word}_b", fields.get(f"a_{word}_b", 1))


@pytest.mark.parametrize("word", WORDS)
def test_fields_of_the_training_are_known_by_their_words(word):
    name = f"a_{word}_b"
    refuse_contradictions("option", "folder", Worded(), {name: 1})
    if word in ("size", "depth", "heads"):
        with pytest.raises(UsageError, match=f"^option has {name}=2, but folder was trained with 1: leave it out, or"):
            refuse_contradictions("option", "folder", Worded(), {name: 2})
    else:
        refuse_contradictions("option", "folder", Worded(), {name: 2})


@pytest.mark.parametrize("name", ["layer_scale", "num_channels", "channels", "norm_layer", "groups"])
def test_fields_of_tensors_may_not_differ(name):
    other = {"layer_scale": 0.5, "num_channels": 4, "channels": 32, "norm_layer": "BN", "groups": [2, 4, 8, 16]}
    with pytest.raises(UsageError, match=f"option has {name}="):
        refuse_contradictions("option", "folder", tiny_config(), {name: other[name]})
    refuse_contradictions("option", "folder", tiny_config(), {name: getattr(tiny_config(), name)})
