# SPDX-License-Identifier: MIT
"""Conversion of segmenters and detectors on a FlashInternImage: the heads of InternImage's, and another backbone."""

from collections import OrderedDict

import pytest
import torch
from support import golden_flash
from support import synthetic_checkpoints as synthetic
from support.conversion_tools import convert
from support.rcnn_tools import why_no_torchvision
from transformers import AutoModelForSemanticSegmentation

from hf_internimage import (
    FlashInternImageBackbone,
    FlashInternImageConfig,
    InternImageConfig,
    InternImageMaskRCNNConfig,
)
from hf_internimage.conversion import rcnn
from hf_internimage.conversion.build import build_model
from hf_internimage.conversion.systems import find_system
from hf_internimage.models.configuration_internimage_mask_rcnn import STAGES

needs_torchvision = pytest.mark.skipif(why_no_torchvision() is not None, reason=str(why_no_torchvision()))
SMALL = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}


def released(size):
    """The backbone of the authors' segmenters and detectors, which have layer scale in T, too."""
    return FlashInternImageConfig.from_size(size, num_labels=0, layer_scale=1.0)


def shapes_of_system(system, config):
    if system == "mask2former":
        return synthetic.mask2former(config, 150, 256, 8, 1024, 2048, 100 if config.channels == 64 else 200)
    return getattr(synthetic, system)(config, 80 if system == "dino" else 150)


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_synthetic_backbones_have_the_names_of_the_original(size):
    """Those of the classifiers without their heads, and in T layer scale."""
    name = "l_22k_384" if size == "l" else f"{size}_1k_224"
    manifest = golden_flash.manifest(f"flash_intern_image_{name}")
    expected = {
        f"backbone.{name}": tuple(shape)
        for name, shape in manifest["keys"].items()
        if name not in manifest["head_only_keys"]
    }
    found = synthetic.backbone(released(size))
    added = {name for name in found if size == "t" and name.endswith(("gamma1", "gamma2"))}
    assert len(added) == (60 if size == "t" else 0)
    assert {name: shape for name, shape in found.items() if name not in added} == expected


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
@pytest.mark.parametrize("name", ["upernet", "mask2former", "dino"])
def test_released_shapes(name, size):
    shapes = shapes_of_system(name, released(size))
    system = find_system(shapes)
    assert system.name == name
    config = system.conversion.guess_config(shapes)
    backbone = config.backbone_config
    assert type(backbone) is FlashInternImageConfig
    for field in ("channels", "depths", "groups", "offset_scale", "post_norm", "dw_kernel_size", "layer_scale"):
        assert getattr(backbone, field) == getattr(released(size), field), field
    assert (backbone.dcn_output_bias, backbone.mlp_fc2_bias) == (size == "l", size == "l")
    converted = system.conversion.convert(synthetic.state_dict(shapes, expanded=True), config)
    build_model(system, config, converted.tensors, torch.float32)  # compares every name and shape


def test_a_file_becomes_a_segmenter(tmp_path, capsys):
    config = FlashInternImageConfig.from_size("t", num_labels=0, layer_scale=1.0)
    shapes = synthetic.upernet(config, 5, channels=8, auxiliary_channels=8)
    torch.save({"state_dict": synthetic.state_dict(shapes)}, tmp_path / "upernet_flash_internimage_t.pth")
    assert convert(tmp_path / "upernet_flash_internimage_t.pth", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "UperNet with FlashInternImage-T, 5 classes" in printed
    assert "(the default;" in printed
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 5, 64, 96)
    row = "upernet_internimage_t_512_160k_ade20k"
    path = tmp_path / "upernet_flash_internimage_t.pth"
    assert convert(path, tmp_path / "other", "--checkpoint", row) == 1
    assert "This is UperNet with FlashInternImage-T, and --checkpoint names published" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def small_detector():
    config = FlashInternImageConfig(**SMALL, num_labels=0, out_features=STAGES)
    return InternImageMaskRCNNConfig(
        backbone_config=config, num_labels=3, fpn_channels=24, fpn_norm="layer_norm", box_head_size=16
    )


@needs_torchvision
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, "atol_float32"), (torch.float64, "atol_float64")])
def test_feature_pyramid_matches_the_original(dtype, tolerance):
    """Its LayerNorms, names and sizes."""
    case, expected = golden_flash.load("fpn_vitdet")
    filled = golden_flash.fill_flash().fill_state_dict(case["keys"])
    with torch.no_grad():
        model = rcnn.build_model(small_detector())
        converted = rcnn.convert(filled, small_detector()).tensors
        model.fpn.load_state_dict({name.removeprefix("fpn."): tensor for name, tensor in converted.items()})
        maps = OrderedDict(
            (name, torch.from_numpy(golden_flash.fill_flash().normal(name, shape)).to(dtype))
            for name, shape in case["inputs"].items()
        )
        levels = list(model.fpn.to(dtype)(maps).values())
    assert len(levels) == len(expected) == case["arguments"]["num_outs"]
    for index, level in enumerate(levels):
        torch.testing.assert_close(level, expected[f"output_{index}"].to(dtype), rtol=0, atol=case[tolerance])


@needs_torchvision
@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_released_detectors(size):
    """Mask R-CNN of T, S and B, Cascade Mask R-CNN of L, the latter with the copies of a moving average."""
    name = "cascade_rcnn" if size == "l" else "mask_rcnn"
    shapes = getattr(synthetic, name)(released(size), 80)
    copies = {f"ema_{name.replace('.', '_')}": shape for name, shape in shapes.items()} if size == "l" else {}
    system = find_system([f"module.{name}" for name in shapes])
    assert system.name == name
    config = rcnn.guess_config({**shapes, **copies})
    assert config.fpn_norm == "layer_norm"
    assert config.num_stages == (3 if size == "l" else 1)
    assert type(config.backbone_config) is FlashInternImageConfig
    assert config.backbone_config.offset_scale == released(size).offset_scale
    empty = {name: torch.empty(shape, device="meta") for name, shape in {**shapes, **copies}.items()}
    converted = rcnn.convert(empty, config)
    assert converted.dropped.keys() == copies.keys()
    with torch.device("meta"):
        model = rcnn.build_model(config)
    built = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.tensors.items()} == built


@needs_torchvision
def test_a_detector_starts_and_loads_again(tmp_path):
    torch.manual_seed(0)
    model = rcnn.build_model(small_detector()).eval()
    norms = [block[1] for block in (*model.fpn.inner_blocks, *model.fpn.layer_blocks)]
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in norms)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded.backbone) is FlashInternImageBackbone
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = loaded.eval().pyramid(pixels), model.pyramid(pixels)
    assert len(found) == 5
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_values_of_detectors_that_cannot_work():
    with pytest.raises(ValueError, match="fpn_norm is 'LN', expected 'layer_norm' or None"):
        InternImageMaskRCNNConfig(fpn_norm="LN")
    with pytest.raises(ValueError, match="model_type 'resnet', expected 'internimage' or 'flash_internimage'"):
        InternImageMaskRCNNConfig(backbone_config={"model_type": "resnet"})
    assert InternImageMaskRCNNConfig().fpn_norm is None


def test_an_internimage_stays_one():
    shapes = synthetic.upernet(InternImageConfig.from_size("t", layer_scale=1.0), 150)
    assert find_system(shapes).conversion.guess_config(shapes).backbone_config.model_type == "internimage"
