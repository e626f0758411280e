# SPDX-License-Identifier: MIT
"""Mask R-CNN and Cascade Mask R-CNN: configuration, conversion of released files, and use without torchvision."""

import importlib
import re
import sys

import pytest
import torch
from support.golden_heads import document, weights
from support.rcnn_tools import golden_config, tiny_config, why_no_torchvision
from transformers import AutoConfig, AutoImageProcessor

from hf_internimage import InternImageBackbone, InternImageConfig, InternImageMaskRCNNConfig
from hf_internimage.conversion import rcnn as conversion
from hf_internimage.conversion.systems import find_system

SIZES = ("t", "s", "b", "l", "xl")
every_size = pytest.mark.parametrize("size", SIZES)


def released_shapes(size):
    """Return names and shapes of a released file, as OpenGVLab/InternImage's configurations build mmdet's modules."""
    cascade = size in ("l", "xl")
    config = InternImageConfig.from_size(size, layer_scale=1.0, out_features=["stage1", "stage2", "stage3", "stage4"])
    with torch.device("meta"):
        backbone = InternImageBackbone(config)
    shapes = {f"backbone.{k.replace('layer_scale', 'gamma')}": tuple(v.shape) for k, v in backbone.state_dict().items()}

    def layer(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = (shape[1 if name.endswith("upsample") else 0],)

    for index, channels in enumerate(config.hidden_sizes):
        layer(f"neck.lateral_convs.{index}.conv", 256, channels, 1, 1)
        layer(f"neck.fpn_convs.{index}.conv", 256, 256, 3, 3)
    layer("rpn_head.rpn_conv", 256, 256, 3, 3)
    layer("rpn_head.rpn_cls", 3, 256, 1, 1)
    layer("rpn_head.rpn_reg", 12, 256, 1, 1)
    for stage in ("0.", "1.", "2.") if cascade else ("",):
        box, mask = f"roi_head.bbox_head.{stage}", f"roi_head.mask_head.{stage}"
        layer(f"{box}fc_cls", 81, 1024)
        layer(f"{box}fc_reg", 320, 1024)
        for index in range(4 if cascade else 0):
            layer(f"{box}shared_convs.{index}.conv", 256, 256, 3, 3, bias=False)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{box}shared_convs.{index}.bn.{name}"] = (256,)
            shapes[f"{box}shared_convs.{index}.bn.num_batches_tracked"] = ()
        layer(f"{box}shared_fcs.0", 1024, 256 * 49)
        if not cascade:
            layer(f"{box}shared_fcs.1", 1024, 1024)
        for index in range(4):
            layer(f"{mask}convs.{index}.conv", 256, 256, 3, 3)
        layer(f"{mask}upsample", 256, 256, 2, 2)
        layer(f"{mask}conv_logits", 80, 256, 1, 1)
    return shapes


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@every_size
def test_released_file_is_recognised(size):
    shapes = released_shapes(size)
    assert conversion.matches(shapes)
    system = find_system([f"module.{name}" for name in shapes])
    assert system.name == ("mask_rcnn" if size in "tsb" else "cascade_rcnn")
    config = conversion.guess_config(shapes)
    assert config.to_dict() == InternImageMaskRCNNConfig.from_size(size).to_dict()
    converted = conversion.convert(empty(shapes), config)
    assert converted.dropped == {}
    assert len(converted.tensors) == len(shapes)
    assert sorted(tuple(tensor.shape) for tensor in converted.tensors.values()) == sorted(shapes.values())


@pytest.mark.skipif(why_no_torchvision() is not None, reason=str(why_no_torchvision()))
@every_size
def test_released_file_fits_the_model(size):
    shapes = released_shapes(size)
    config = conversion.guess_config(shapes)
    with torch.device("meta"):
        model = conversion.build_model(config)
    converted = {name: tensor.shape for name, tensor in conversion.convert(empty(shapes), config).tensors.items()}
    assert converted == {name: tensor.shape for name, tensor in model.state_dict().items()}


NAMES = {
    "backbone.levels.2.blocks.1.gamma2": "backbone.levels.2.blocks.1.layer_scale2",
    "backbone.patch_embed.conv1.weight": "backbone.patch_embed.conv1.weight",
    "neck.lateral_convs.3.conv.bias": "fpn.inner_blocks.3.0.bias",
    "neck.fpn_convs.0.conv.weight": "fpn.layer_blocks.0.0.weight",
    "rpn_head.rpn_conv.weight": "rpn.head.conv.0.0.weight",
    "rpn_head.rpn_cls.bias": "rpn.head.cls_logits.bias",
    "rpn_head.rpn_reg.weight": "rpn.head.bbox_pred.weight",
}
MASK_RCNN = {
    "roi_head.bbox_head.shared_fcs.0.weight": "roi_heads.box_heads.0.layers.1.weight",
    "roi_head.bbox_head.shared_fcs.1.bias": "roi_heads.box_heads.0.layers.3.bias",
    "roi_head.bbox_head.fc_cls.weight": "roi_heads.box_heads.0.classifier.weight",
    "roi_head.bbox_head.fc_reg.bias": "roi_heads.box_heads.0.regressor.bias",
    "roi_head.mask_head.convs.2.conv.bias": "roi_heads.mask_heads.0.layers.2.0.bias",
    "roi_head.mask_head.upsample.weight": "roi_heads.mask_heads.0.predictor.conv5_mask.weight",
    "roi_head.mask_head.conv_logits.weight": "roi_heads.mask_heads.0.predictor.mask_fcn_logits.weight",
}
CASCADE = {
    "roi_head.bbox_head.2.shared_convs.3.conv.weight": "roi_heads.box_heads.2.layers.3.0.weight",
    "roi_head.bbox_head.1.shared_convs.0.bn.running_var": "roi_heads.box_heads.1.layers.0.1.running_var",
    "roi_head.bbox_head.0.shared_fcs.0.weight": "roi_heads.box_heads.0.layers.5.weight",
    "roi_head.bbox_head.1.fc_cls.bias": "roi_heads.box_heads.1.classifier.bias",
    "roi_head.mask_head.2.convs.0.conv.weight": "roi_heads.mask_heads.2.layers.0.0.weight",
    "roi_head.mask_head.1.conv_logits.bias": "roi_heads.mask_heads.1.predictor.mask_fcn_logits.bias",
}


@pytest.mark.parametrize("cascade", [False, True], ids=["mask_rcnn", "cascade"])
def test_names(cascade):
    names = {**NAMES, **(CASCADE if cascade else MASK_RCNN)}
    tensors = {name: torch.rand(2) for name in names}
    converted = conversion.convert({f"module.{name}": tensor for name, tensor in tensors.items()}, tiny_config(cascade))
    assert converted.tensors.keys() == set(names.values())
    for name, target in names.items():
        assert converted.tensors[target] is tensors[name]


def test_golden_file_is_used_up():
    converted = conversion.convert(weights("maskrcnn_tiny"), golden_config())
    assert sum(tensor.numel() for tensor in converted.tensors.values()) == document("maskrcnn_tiny")["num_parameters"]


def test_copies_of_a_moving_average_are_dropped():
    """Cascade Mask R-CNN 3x has been trained with mmdet's ExpMomentumEMAHook."""
    shapes = released_shapes("xl")
    copies = {"ema_" + name.replace(".", "_"): shape for name, shape in shapes.items()}
    converted = conversion.convert(empty({**shapes, **copies}), conversion.guess_config({**shapes, **copies}))
    assert len(converted.tensors) == len(shapes)
    assert converted.dropped.keys() == set(copies)


def without(part):
    return lambda shapes: [shapes.pop(name) for name in list(shapes) if part in name]


@pytest.mark.parametrize(
    ("size", "change", "message"),
    [
        ("xl", without("bbox_head.2"), "stages 0, 1, expected 0, 1, 2"),
        ("t", without("mask_head"), "no roi_head.mask_head"),
        ("t", lambda shapes: shapes.update({"roi_head.bbox_head.fc_reg.weight": (4, 1024)}), "4 rows for 80 classes"),
        ("t", without("fc_cls.weight"), "fc_cls.weight is missing"),
        ("t", without("lateral_convs"), "neck.lateral_convs.0.conv.weight is missing"),
        ("t", without("levels.3.blocks.3"), r"depths=\[4, 4, 18, 3\]"),
    ],
)
def test_odd_files_are_refused(size, change, message):
    shapes = released_shapes(size)
    change(shapes)
    with pytest.raises(ValueError, match=message):
        conversion.guess_config(shapes)


def test_other_files_are_refused():
    for name in ("upernet_tiny", "mask2former_tiny", "dino_tiny", "cb_internimage_tiny"):
        assert not conversion.matches(document(name)["keys"])
    with pytest.raises(ValueError, match=r"1 tensors have names .*roi_head.semantic_head.weight"):
        conversion.convert({"roi_head.semantic_head.weight": torch.zeros(1)}, tiny_config())
    with pytest.raises(ValueError, match=r"1 tensors have names .*roi_head.bbox_head.0.fc_cls.weight"):
        conversion.convert({"roi_head.bbox_head.0.fc_cls.weight": torch.zeros(1)}, tiny_config())


@every_size
def test_configuration_round_trip(size, tmp_path):
    config = InternImageMaskRCNNConfig.from_size(size.upper(), num_labels=7)
    assert config.num_stages == (3 if size in ("l", "xl") else 1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is InternImageMaskRCNNConfig
    assert type(loaded.backbone_config) is InternImageConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.backbone_config.channels == InternImageConfig.from_size(size).channels
    assert loaded.backbone_config.layer_scale == 1.0
    assert loaded.num_labels == 7


def test_default_configuration_is_the_smallest():
    assert InternImageMaskRCNNConfig(num_labels=80).to_dict() == InternImageMaskRCNNConfig.from_size("t").to_dict()


def test_image_processor_is_found_by_the_configuration(tmp_path):
    InternImageMaskRCNNConfig().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__name__ == "InternImageDetectionImageProcessor"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": {"model_type": "resnet"}}, "model_type 'resnet', expected 'internimage'"),
        ({"backbone_config": InternImageConfig()}, "out_features is"),
        ({"stage_iou_thresholds": [0.5, 0.6]}, "have 2, 1 and 1 entries"),
        ({"stage_iou_thresholds": [], "stage_box_stds": [], "stage_loss_weights": []}, "have 0, 0 and 0 entries"),
        ({"stage_box_stds": [[0.1, 0.1, 0.2]]}, "expected four positive numbers"),
        ({"stage_box_stds": [[0.1, 0.1, 0.2, 0.0]]}, "expected four positive numbers"),
        ({"box_loss": "ciou"}, "box_loss is 'ciou', expected one of l1, giou"),
        ({"fpn_channels": 0}, "fpn_channels is 0, expected an integer of at least 1"),
        ({"max_detections": 1.5}, "max_detections is 1.5"),
    ],
)
def test_bad_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        InternImageMaskRCNNConfig(**fields)


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="size is 'h', expected one of t, s, b, l, xl"):
        InternImageMaskRCNNConfig.from_size("h")


def forget(monkeypatch, *packages):
    """Remove these packages from the imported modules, until the test ends."""
    for name in list(sys.modules):
        if any(name == package or name.startswith(f"{package}.") for package in packages):
            monkeypatch.delitem(sys.modules, name)


def test_without_torchvision(monkeypatch):
    """One clear error; the tests of configuration and names, above, need no torchvision."""
    forget(monkeypatch, "hf_internimage.models.mask_rcnn", "torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    message = 'needs torchvision, which is not installed: pip install "hf-internimage\\[torchvision\\]"$'
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module("hf_internimage.models.mask_rcnn")
    with pytest.raises(ModuleNotFoundError, match=message):
        conversion.build_model(InternImageMaskRCNNConfig())


def test_torchvision_that_does_not_load(monkeypatch, tmp_path):
    forget(monkeypatch, "hf_internimage.models.mask_rcnn", "torchvision")
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    reason = re.escape("(operator torchvision::nms does not exist)")
    advice = re.escape(f"install the torchvision built for PyTorch {torch.__version__}")
    with pytest.raises(ImportError, match=f"cannot be loaded here {reason}: {advice}"):
        importlib.import_module("hf_internimage.models.mask_rcnn")
