# SPDX-License-Identifier: MIT
"""Segmentation and detection checkpoints through the command line: written folders, and refused files."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import synthetic_checkpoints as synthetic
from support.conversion_tools import convert
from support.golden_heads import expected, pixel_values, weights
from support.golden_segmenters import mask2former_config, upernet_config
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    UperNetForSemanticSegmentation,
)

from hf_internimage import InternImageDetectionImageProcessor, InternImageSegmentationImageProcessor
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS, find_checkpoint
from hf_internimage.conversion import prepare_system, rcnn
from hf_internimage.conversion.inputs import read_config
from hf_internimage.conversion.prepare_system import image_processor
from hf_internimage.conversion.renaming import Converted
from hf_internimage.conversion.systems import SYSTEMS

ADE20K_T = "upernet_internimage_t_512_160k_ade20k"
CITYSCAPES_T = "upernet_internimage_t_512x1024_160k_cityscapes"


def save(path, state_dict, classes=None, **others):
    """Write a file as mmcv does, with the optimizer's state and numpy's values beside the weights."""
    meta = {"mmcv_version": "1.5.0", "CLASSES": classes, "PALETTE": np.zeros((3, 3), np.uint8), "config": "a = 1"}
    meta["hook_msgs"] = {"best_score": np.float64(0.5), "best_ckpt": "best.pth"}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"meta": meta, "state_dict": state_dict, "optimizer": optimizer, **others}, path)
    return path


@pytest.fixture
def tiny(tmp_path):
    """Return a folder with golden files of both segmenters and their configurations."""
    save(tmp_path / "upernet.pth", weights("upernet_tiny"), [f"name {index}" for index in range(9)])
    save(tmp_path / "mask2former.pth", weights("mask2former_tiny"))
    upernet_config().save_pretrained(tmp_path / "upernet")
    mask2former_config().save_pretrained(tmp_path / "mask2former")
    return tmp_path


def convert_tiny(folder, name, *options, out="out"):
    return convert(folder / f"{name}.pth", folder / out, "--config", folder / name / "config.json", *options)


@torch.no_grad()
def test_upernet_gives_the_golden_logits(tiny, capsys):
    assert convert_tiny(tiny, "upernet") == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "UperNet with an InternImage, 9 classes (names of the file), float32" in printed
    assert "not part of the model: optimizer" in printed
    assert "the default; name the published checkpoint" in printed
    model, report = AutoModelForSemanticSegmentation.from_pretrained(tiny / "out", output_loading_info=True)
    assert type(model) is UperNetForSemanticSegmentation
    assert not any(report.values())
    assert model.config.id2label[8] == "name 8"
    original, atol = expected("upernet_tiny", "logits")
    assert_close(model.eval()(pixel_values("upernet_tiny")).logits, original, rtol=0, atol=atol)
    assert type(AutoImageProcessor.from_pretrained(tiny / "out")) is InternImageSegmentationImageProcessor


@torch.no_grad()
def test_mask2former_gives_the_golden_logits(tiny, capsys):
    left_over = {"decode_head.conv_seg.weight": torch.ones(7, 64, 1, 1), "decode_head.conv_seg.bias": torch.ones(7)}
    copies = {"ema_backbone_patch_embed_conv1_bias": torch.ones(8)}
    state = {**weights("mask2former_tiny"), **left_over, **copies}
    save(tiny / "mask2former.pth", {f"module.{name}": tensor for name, tensor in state.items()})
    assert convert_tiny(tiny, "mask2former") == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "Mask2Former with an InternImage, 7 classes (no names), float32" in printed
    assert "left out: 2 tensors (module.decode_head.conv_seg.weight, module.decode_head.conv_seg.bias): " in printed
    assert re.search(r"left out: 1 tensors \(module\.ema_\w+\): .*EMA hook", printed)
    model, report = AutoModelForUniversalSegmentation.from_pretrained(tiny / "out", output_loading_info=True)
    assert type(model) is Mask2FormerForUniversalSegmentation
    assert not any(report.values())
    outputs = model.eval()(pixel_values("mask2former_tiny"))
    for name in ("class_queries_logits", "masks_queries_logits"):
        original, atol = expected("mask2former_tiny", name)
        assert_close(getattr(outputs, name), original, rtol=0, atol=atol)
    assert model.criterion.empty_weight.tolist() == pytest.approx([1] * 7 + [0.1])


def test_type_and_names(tiny, capsys):
    (tiny / "names.txt").write_text("".join(f"other {index}\n" for index in range(9)))
    assert convert_tiny(tiny, "upernet", "--dtype", "bfloat16", "--labels", tiny / "names.txt") == 0
    written = load_file(tiny / "out" / "model.safetensors")
    for name, tensor in written.items():
        kind = torch.int64 if name.endswith("num_batches_tracked") else torch.bfloat16
        assert tensor.dtype == kind, name
    assert torch.equal(
        written["decode_head.classifier.bias"], weights("upernet_tiny")["decode_head.conv_seg.bias"].bfloat16()
    )
    config = json.loads((tiny / "out" / "config.json").read_text())
    assert config["id2label"]["8"] == "other 8"
    assert config["dtype"] == "bfloat16"


def released_file(folder, name, **changes):
    """Write a small file with a released checkpoint's names and shapes: each tensor stores one number."""
    shapes = synthetic.released_shapes(find_checkpoint(name))
    state = synthetic.state_dict(shapes, torch.float16, expanded=True)
    return save(folder / f"{name}.pth", state, **changes)


def test_released_file_is_known_by_its_name(tmp_path, capsys):
    path = released_file(tmp_path, CITYSCAPES_T, classes=[f"street {index}" for index in range(19)])
    assert convert(path, tmp_path / "all", "--dtype", "float16") == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "UperNet with InternImage-T, 150 classes (no names), float16" in printed
    assert "the file names 19 classes, the classifier has 150" in printed
    assert f"shorter side 1024, longer at most 2048 pixels, as tested by the authors ({CITYSCAPES_T})" in printed
    processor = AutoImageProcessor.from_pretrained(tmp_path / "all")
    assert dict(processor.size) == {"shortest_edge": 1024, "longest_edge": 2048}
    assert (processor.size_divisor, processor.do_reduce_labels) == (1, False)

    assert convert(path, tmp_path / "few", "--dtype", "float16", "--num-labels", 19, "--size", "T") == 0
    printed = capsys.readouterr().out
    assert "19 classes (names of the file)" in printed
    assert f"as tested by the authors ({CITYSCAPES_T})" in printed
    written = load_file(tmp_path / "few" / "model.safetensors")
    assert written["decode_head.classifier.weight"].shape == (19, 512, 1, 1)
    assert written["auxiliary_head.classifier.bias"].shape == (19,)
    assert json.loads((tmp_path / "few" / "config.json").read_text())["id2label"]["18"] == "street 18"


def test_named_checkpoint_sets_the_image_processor(tmp_path, capsys):
    path = released_file(tmp_path, ADE20K_T).rename(tmp_path / "best.pth")
    assert convert(path, tmp_path / "out", "--dtype", "float16", "--checkpoint", ADE20K_T) == 0, capsys.readouterr().err
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert (processor.size_divisor, processor.do_reduce_labels) == (32, True)


def test_detector_gets_its_image_processor(tmp_path, capsys):
    path = released_file(tmp_path, "dino_4scale_internimage_t_1x_coco")
    assert convert(path, tmp_path / "out", "--dtype", "float16") == 0, capsys.readouterr().err
    assert "DINO with InternImage-T, 80 classes (no names), float16" in capsys.readouterr().out
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is InternImageDetectionImageProcessor
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}
    assert processor.top_k == 100


def refused(capsys, folder, *arguments):
    """Return the sentence on stderr, after a check that nothing is written or printed."""
    before = sorted(folder.rglob("*"))
    assert convert(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert sorted(folder.rglob("*")) == before
    return printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", 512], "--image_size is not for UperNet checkpoints"),
        (["--head-map", "map.txt"], "--head_map is not for UperNet checkpoints"),
        (["--checkpoint", "upernet_t"], "is no published checkpoint; give one such as upernet_internimage_"),
        (["--checkpoint", ADE20K_T], "and 150 classes, but the file has upernet with size None and 9 classes"),
        (["--num-labels", 10], r"has 9 classes, of which 10 cannot be kept; choose 1 to 9"),
        (["--num-labels", 4], r"UperNet .*do not fit the model: .* is \(4,\), expected \(9,\)"),
    ],
)
def test_options_that_do_not_fit(options, message, tiny, capsys):
    arguments = (tiny / "upernet.pth", tiny / "out", "--config", tiny / "upernet" / "config.json", *options)
    assert re.search(message, refused(capsys, tiny, *arguments))


def test_fewer_labels_are_for_upernet_only(tiny, capsys):
    arguments = (tiny / "mask2former.pth", tiny / "out", "--num-labels", 2)
    assert "--num_labels is not for Mask2Former checkpoints" in refused(capsys, tiny, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("decode_head.bottleneck.conv.weight"),
            r"UperNet with an InternImage\. .*1 missing \(",
        ),
        (
            lambda state: state.pop("backbone.levels.2.blocks.1.gamma1"),
            r"1 missing \(backbone\.levels\.2\.blocks\.1\.lay",
        ),
        (lambda state: state.update({"backbone.x": torch.ones(2)}), r"1 tensors have names .*\(backbone\.x\)"),
        (
            lambda state: state.update({"decode_head.bottleneck.conv.weight": torch.ones(2, 2, 3, 3)}),
            r"of another shape \(decode_head\.bottleneck\.conv\.weight is \(2, 2, 3, 3\), expected \(32, 256, 3, 3\)\)",
        ),
        (
            lambda state: state.update({"decode_head.conv_seg.bias": torch.full((9,), float("inf"))}),
            r"decode_head\.classifier\.bias has values that are not finite",
        ),
    ],
    ids=["missing", "no_layer_scale", "unknown", "misshapen", "infinite"],
)
def test_files_that_do_not_fit(change, message, tiny, capsys):
    state = dict(weights("upernet_tiny"))
    change(state)
    path = save(tiny / "changed.pth", state)
    error = refused(capsys, tiny, path, tiny / "out", "--config", tiny / "upernet" / "config.json")
    assert re.search(message, error), error
    assert str(path) in error


def test_file_of_another_system_or_size(tiny, capsys):
    error = refused(capsys, tiny, tiny / "upernet.pth", tiny / "out", "--config", tiny / "mask2former" / "config.json")
    assert "(UperNet): model_type is 'mask2former'; give a config.json with model_type 'upernet'" in error
    error = refused(capsys, tiny, tiny / "upernet.pth", tiny / "out")
    assert "channels=16 and depths=[1, 1, 2, 1] are those of no released size" in error
    path = released_file(tiny, ADE20K_T)
    error = refused(capsys, tiny, path, tiny / "out", "--size", "L")
    assert "This is UperNet with InternImage-T by its channels and depths, not a model of size 'l'" in error
    row = next(row for row in SYSTEM_CHECKPOINTS if row.system == "segformer")
    path = save(tiny / "segformer.pth", synthetic.state_dict(synthetic.released_shapes(row), expanded=True))
    error = refused(capsys, tiny, path, tiny / "out")
    assert "This is a segmentation checkpoint with a SegFormer head" in error
    assert all(system.title in error for system in SYSTEMS)


def test_missing_package_is_named(tmp_path, capsys, monkeypatch):
    def absent(config):
        raise ModuleNotFoundError("the model needs torchvision, which is not installed", name="torchvision")

    monkeypatch.setattr(rcnn, "build_model", absent)
    path = released_file(tmp_path, "mask_rcnn_internimage_t_fpn_1x_coco")
    assert "torchvision is missing: pip install" in refused(capsys, tmp_path, path, tmp_path / "out")


def test_synthetic_files_are_made_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(synthetic, "released_shapes", lambda row: {"x": (2, 3), "y.num_batches_tracked": ()})
    assert synthetic.main([ADE20K_T, str(tmp_path / "x.pth"), "--dtype", "float16"]) == 0
    file = torch.load(tmp_path / "x.pth", weights_only=True)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in file["state_dict"].items()} == {
        "x": (torch.float16, (2, 3)),
        "y.num_batches_tracked": (torch.int64, ()),
    }
    assert len(file["meta"]["CLASSES"]) == 150
    with pytest.raises(SystemExit):
        synthetic.main(["unknown", str(tmp_path / "y.pth")])


def test_systems_have_names_of_their_own():
    names = [system.name for system in SYSTEMS]
    assert len(set(names)) == len(names) == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "Its backbone is of type 'resnet'; give a backbone_config"), ({"hidden_size": "x"}, "Not a usable config")],
    ids=["no backbone", "wrong type"],
)
def test_unusable_configurations_are_refused(fields, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "upernet", **fields}))
    system = next(system for system in SYSTEMS if system.name == "upernet")
    with pytest.raises(ValueError, match=message):
        read_config(path, system)


@pytest.mark.parametrize("row", SYSTEM_CHECKPOINTS, ids=lambda row: row.name)
def test_image_processors_have_the_test_settings(row):
    for system in SYSTEMS:
        if system.name == row.system:
            processor = image_processor(system, row)
            assert dict(processor.size) == {"shortest_edge": row.shortest_edge, "longest_edge": row.longest_edge}
            assert processor.size_divisor == (row.size_divisor or 1)
            if row.task == "semantic-segmentation":
                assert type(processor) is InternImageSegmentationImageProcessor
                assert processor.do_reduce_labels == row.reduce_labels
            else:
                assert type(processor) is InternImageDetectionImageProcessor
                assert processor.top_k == row.max_detections
            default = image_processor(system, None)
            assert default.to_dict() == type(processor)().to_dict()


@pytest.mark.parametrize("dropped", [{}, {"a": "why", "b": "not", "c": "why"}])
def test_what_is_not_in_the_model_is_told(dropped):
    def lines(class_names, unused, origin):
        inputs = SimpleNamespace(class_names=class_names, unused_entries=unused)
        return prepare_system._unused_lines(inputs, Converted({}, dropped), origin, 150)

    expected = ["left out: 2 tensors (a, c): why", "left out: 1 tensors (b): not"] if dropped else []
    assert lines([], [], "no names") == expected
    assert lines(["x"], [], "names of the file") == expected
    told = "the file names 1 classes, the classifier has 150: names not taken"
    assert lines(["x"], ["meta", "zeta"], "no names") == [told, *expected, "not part of the model: meta, zeta"]


def test_the_size_has_to_be_that_of_the_file(tmp_path, capsys):
    path = released_file(tmp_path, CITYSCAPES_T)
    message = "This is UperNet with InternImage-T by its channels and depths, not a model of size 's'; leave --size out"
    assert message in refused(capsys, tmp_path, path, tmp_path / "out", "--size", "s")
    printed = convert(path, tmp_path / "out", "--dtype", "float16", "--checkpoint", f"{CITYSCAPES_T}.pth")
    assert printed == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not part of the model: optimizer" in lines
    assert lines[-1] == f"written to {tmp_path / 'out'}"
    assert not any(line.startswith("tested with sliding windows") for line in lines)


def test_sliding_windows_are_told():
    (row,) = (row for row in SYSTEM_CHECKPOINTS if row.name == "upernet_internimage_t_512x1024_160k_cityscapes")
    system = next(system for system in SYSTEMS if system.name == "upernet")
    processor = image_processor(system, row)
    for windows, told in (({"crop_size": 500, "stride": 300}, ["tested with sliding windows of 500 pixels every 300"]),
                          ({"crop_size": None, "stride": None}, [])):  # fmt: skip
        changed = replace(row, **windows)
        size = f"images: shorter side 1024, longer at most 2048 pixels, as tested by the authors ({row.name})"
        assert prepare_system._test_lines(processor, changed) == [size, *told]
    assert prepare_system._test_lines(processor, None)[0].endswith(
        "2048 pixels (the default; name the published checkpoint by --checkpoint if it is one)"
    )
