# SPDX-License-Identifier: MIT
"""Conversion of segmenters and detectors on a FlashInternImage: the heads of InternImage's, and another backbone."""

import pytest
import torch
from support import golden_flash
from support import synthetic_checkpoints as synthetic
from support.conversion_tools import convert
from transformers import AutoModelForSemanticSegmentation

from hf_internimage import FlashInternImageConfig, InternImageConfig, InternImageMaskRCNNConfig
from hf_internimage.conversion.build import build_model
from hf_internimage.conversion.systems import find_system

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


def test_mask_rcnn_takes_no_flash_internimage():
    """Its neck has norms, which the model does not have."""
    for backbone in (FlashInternImageConfig(**SMALL), {"model_type": "flash_internimage", **SMALL}):
        with pytest.raises(ValueError, match="model_type 'flash_internimage', expected 'internimage'"):
            InternImageMaskRCNNConfig(backbone_config=backbone)
    shapes = synthetic.mask_rcnn(released("t"), 80)
    with pytest.raises(ValueError, match="model_type 'flash_internimage', expected 'internimage'"):
        find_system(shapes).conversion.guess_config(shapes)


def test_an_internimage_stays_one():
    shapes = synthetic.upernet(InternImageConfig.from_size("t", layer_scale=1.0), 150)
    assert find_system(shapes).conversion.guess_config(shapes).backbone_config.model_type == "internimage"
