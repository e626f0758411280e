# SPDX-License-Identifier: MIT
"""Conversion of FlashInternImage's classifiers, which are told from InternImage's by the names of their tensors."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import golden_flash
from support.conversion_tools import convert, original
from support.golden_data import golden_weights, manifest
from transformers import AutoModelForImageClassification

from hf_internimage import FlashInternImageForImageClassification, complexity, conversion
from hf_internimage.checkpoints.classifiers import FLASH_CHECKPOINTS
from hf_internimage.conversion import flash_classification
from hf_internimage.conversion.build import file_shapes
from hf_internimage.conversion.prepare_classifier import published_image_size
from hf_internimage.conversion.systems import find_system
from hf_internimage.models.configuration_flash_internimage import FlashInternImageConfig


@pytest.mark.parametrize("checkpoint", FLASH_CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_published_names_and_shapes(checkpoint):
    reference = golden_flash.manifest(checkpoint.name)
    assert reference["file"] == f"{checkpoint.name}.pth"
    names = {name: tuple(shape) for name, shape in reference["keys"].items()}
    for prefix in ("", "module.", "model."):
        assert find_system([f"{prefix}{name}" for name in names]).name == "flash_classification"
    shapes = {conversion.hub_name(name): shape for name, shape in names.items()}
    config = flash_classification.guess_config(shapes)
    for field, value in reference["config"].items():
        assert getattr(config, field) == value, field
    with torch.device("meta"):
        model = flash_classification.build_model(config)
    conversion.check_tensors(shapes, file_shapes(model))
    assert model.num_parameters() == reference["num_parameters"] == checkpoint.parameters
    assert config.num_labels == reference["num_classes"] == checkpoint.num_labels
    assert config.image_size == reference["image_size"] == checkpoint.image_size
    assert published_image_size(checkpoint.size, checkpoint.num_labels, "flash_internimage") == checkpoint.image_size
    assert complexity.count_macs(config).total == checkpoint.macs


def test_published_checkpoints():
    """Names, accuracies and addresses in the README of the original."""
    assert {row.name: row.top1 for row in FLASH_CHECKPOINTS} == {
        "flash_intern_image_t_1k_224": 83.6,
        "flash_intern_image_s_1k_224": 84.4,
        "flash_intern_image_b_1k_224": 84.9,
        "flash_intern_image_l_22k_384": None,
        "flash_intern_image_l_22kto1k_384": 88.1,
    }
    address = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth"
    assert FLASH_CHECKPOINTS[0].source == address
    for row in FLASH_CHECKPOINTS:
        assert (row.model_type, row.licence, row.reported_gflops) == ("flash_internimage", "mit", None)
        assert row.data == {"1k": ("ImageNet-1K",), "22k": ("ImageNet-22K",)}.get(
            row.name.split("_")[-2], ("ImageNet-22K", "ImageNet-1K")
        )
        assert row.base == ("flash_intern_image_l_22k_384" if "22kto1k" in row.name else None)


def test_an_internimage_is_no_flash_internimage():
    names = [name.removeprefix("model.") for name in manifest("internimage_t_1k_224")["keys"]]
    assert find_system(names).name == "classification"


@pytest.mark.parametrize("name", golden_flash.TINY)
def test_original_file_gives_the_golden_logits(name, tmp_path, capsys):
    case, expected = golden_flash.load(f"models/{name}")
    torch.save({"model": golden_flash.weights(name)}, tmp_path / "original.pth")
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    options = ("--config", tmp_path / "config.json", "--image-size", 64)
    assert convert(tmp_path / "original.pth", tmp_path / "out", *options) == 0
    printed = capsys.readouterr()
    assert "FlashInternImage, 10 classes (no names), 64x64 pixels, float32" in printed.out
    written = load_file(tmp_path / "out" / "model.safetensors")
    for original_name, tensor in golden_flash.weights(name).items():  # back to the names of the original
        assert torch.equal(written.pop(conversion.hub_name(original_name)), tensor)
    assert not written
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(model) is FlashInternImageForImageClassification
    with torch.no_grad():
        logits = model(golden_flash.model_input(name)).logits
    atol = case["float32_noise"]["logits"]["atol"]
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=atol)


def test_released_size_needs_no_configuration(tmp_path, capsys):
    torch.save({"model": golden_flash.weights("full_t")}, tmp_path / "t.pth")
    assert convert(tmp_path / "t.pth", tmp_path / "out") == 0
    assert "FlashInternImage-T, 1000 classes (ImageNet-1K names), 224x224 pixels" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["image_size"]) == ("flash_internimage", 224)
    assert "FlashInternImageForImageClassification" in config["architectures"]


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        (lambda: golden_flash.weights("tiny_t"), {"model_type": "internimage"}, "give a config.json with model_type"),
        (
            lambda: original(golden_weights("tiny_t")),
            {"model_type": "flash_internimage"},
            "give a config.json with model_type 'internimage'",
        ),
    ],
    ids=["flash", "internimage"],
)
def test_configurations_of_the_other_family_are_refused(weights, config, message, tmp_path, capsys):
    torch.save({"model": weights()}, tmp_path / "file.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "file.pth", tmp_path / "out", "--config", tmp_path / "config.json") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_that_internimage_alone_has_are_refused():
    keys = manifest("internimage_xl_22kto1k_384")["keys"]
    with pytest.raises(ValueError, match="size is 'xl', expected one of t, s, b, l"):
        flash_classification.guess_config(keys)
    assert "xl" not in FlashInternImageConfig._sizes
