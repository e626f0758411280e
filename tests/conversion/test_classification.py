# SPDX-License-Identifier: MIT
"""Conversion of classifiers: names, and whole files through the command line."""

import json
import sys
from types import ModuleType

import pytest
import torch
from support.conversion_tools import (
    assert_logits,
    assert_written,
    convert,
    load,
    original,
    original_name,
    save_config,
    write_safetensors,
)
from support.golden_data import MANIFESTS, TINY, golden_weights, manifest, model_case
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import logging

from hf_internimage import InternImageConfig, InternImageForImageClassification, conversion
from hf_internimage.checkpoints.classifiers import CHECKPOINTS, imagenet_1k_labels
from hf_internimage.conversion import convert as convert_module
from hf_internimage.conversion.prepare_classifier import published_image_size

INTERNIMAGES = [checkpoint for checkpoint in CHECKPOINTS if checkpoint.model_type == "internimage"]
# Layer-scale tensors of the released classifiers: golden/manifests/original_pth.md.
LAYER_SCALES = {"t": 0, "s": 66, "b": 66, "l": 74, "xl": 78, "h": 0, "g": 0}


@pytest.mark.parametrize("checkpoint", INTERNIMAGES, ids=lambda checkpoint: checkpoint.name)
def test_published_names_and_shapes(checkpoint):
    reference = manifest(checkpoint.name)
    keys = {name: tuple(shape) for name, shape in reference["keys"].items()}
    tensors = {original_name(name): torch.empty(shape, device="meta") for name, shape in keys.items()}
    assert sum("gamma" in name for name in tensors) == LAYER_SCALES[checkpoint.size]
    layouts = {
        "original": {"model": tensors},
        "flat": tensors,
        "distributed": {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        "hub": {name: tensors[original_name(name)] for name in keys},
    }
    for layout, file in layouts.items():
        converted = conversion.to_hub_layout(conversion.find_state_dict(file))
        assert conversion.shapes_of(converted) == keys, layout

    assert conversion.guess_size(keys) == checkpoint.size
    config = conversion.guess_config(keys)
    official = reference["config"]
    assert config.num_labels == checkpoint.num_labels == official["num_classes"]
    for name in ("channels", "depths", "groups", "layer_scale", "offset_scale", "post_norm", "dw_kernel_size"):
        assert getattr(config, name) == official[name], name
    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    assert {
        conversion.hub_name(name): shape for name, shape in conversion.shapes_of(model.state_dict()).items()
    } == keys
    assert model.num_parameters() == reference["num_parameters"]
    conversion.check_tensors(conversion.shapes_of(converted), keys)

    assert checkpoint.repo_id == reference["repository"]
    assert checkpoint.image_size == reference["preprocessor_config"]["crop_size"]
    assert published_image_size(checkpoint.size, checkpoint.num_labels) == checkpoint.image_size


def test_published_checkpoints_are_all_there():
    assert sorted(checkpoint.name for checkpoint in INTERNIMAGES) == MANIFESTS
    assert {(c.size, c.image_size): c.top1 for c in INTERNIMAGES if c.num_labels == 1000} == {
        ("t", 224): 83.5,
        ("s", 224): 84.2,
        ("b", 224): 84.9,
        ("l", 384): 87.7,
        ("xl", 384): 88.0,
        ("h", 640): 89.6,
        ("g", 512): 90.1,
    }
    assert all(c.top1 is None for c in INTERNIMAGES if c.num_labels != 1000)
    assert {c.licence for c in INTERNIMAGES} == {"mit"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("levels.0.blocks.12.gamma1", "model.levels.0.blocks.12.layer_scale1"),
        ("module.levels.3.blocks.0.gamma2", "model.levels.3.blocks.0.layer_scale2"),
        ("levels.0.blocks.0.gamma3", "model.levels.0.blocks.0.gamma3"),
        ("levels.0.gamma1", "model.levels.0.gamma1"),
        ("cb_modules.1.gamma1", "model.cb_modules.1.gamma1"),
        ("cb_modules.1.levels.0.blocks.0.gamma1", "model.cb_modules.1.levels.0.blocks.0.gamma1"),
        ("head.weight", "model.head.weight"),
        ("model.head.weight", "model.head.weight"),
        ("module.model.levels.0.norm.0.bias", "model.levels.0.norm.0.bias"),
    ],
)
def test_only_block_gammas_are_renamed(name, expected):
    assert conversion.hub_name(name) == expected


@pytest.mark.parametrize("name", TINY)
def test_original_file_gives_the_golden_logits(name, tmp_path, capsys):
    torch.save({"model": original(golden_weights(name))}, tmp_path / "original.pth")
    config = save_config(tmp_path / "config.json", name)
    assert convert(tmp_path / "original.pth", tmp_path / "out", "--config", config, "--image-size", 64) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{len(golden_weights(name))} tensors, {model_case(name)[0]['num_parameters']:,} parameters" in printed.out
    assert len(printed.out.splitlines()) == 3
    assert sorted(tmp_path.iterdir()) == [config, tmp_path / "original.pth", tmp_path / "out"]
    assert_written(tmp_path / "out", golden_weights(name))
    assert_logits(load(tmp_path / "out"), name)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert type(processor).__name__ == "InternImageImageProcessorPil"
    assert dict(processor.size) == {"shortest_edge": 64}
    assert dict(processor.crop_size) == {"height": 64, "width": 64}


def test_released_size_needs_no_configuration(tmp_path, capsys):
    torch.save({"model": original(golden_weights("full_t"))}, tmp_path / "t.pth")
    logging.enable_progress_bar()
    assert convert(tmp_path / "t.pth", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "InternImage-T, 1000 classes (ImageNet-1K names), 224x224 pixels, float32" in printed.out
    model = load(tmp_path / "out")
    assert_logits(model, "full_t")
    assert model.config.id2label == dict(enumerate(imagenet_1k_labels()))
    assert model.config.label2id["toilet tissue, toilet paper, bathroom tissue"] == 999
    assert model.config.image_size == 224
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 224, "width": 224}


def write_flat(path, weights):
    torch.save(original(weights), path)


def write_old_format(path, weights):
    torch.save({"model": original(weights)}, path, _use_new_zipfile_serialization=False)


def write_distributed(path, weights):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in original(weights).items()}}, path)


def write_module_layout(path, weights):
    model = InternImageForImageClassification(InternImageConfig(**model_case("tiny_t")[0]["config"]))
    model.load_state_dict(weights, strict=True)
    torch.save(model.state_dict(), path)


def write_training_run(path, weights):
    """Write a yacs configuration and moving averages beside the weights, as the original's training does."""
    node = type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})
    config = node(MODEL=node(TYPE="intern_image"))
    config.__dict__["__immutable__"] = True
    package, module = ModuleType("yacs"), ModuleType("yacs.config")
    module.CfgNode = node
    averages = {name: torch.full_like(tensor, 7) for name, tensor in original(weights).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", package)
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save({"model": original(weights), "model_ema": averages, "config": config, "epoch": 3}, path)


def write_one_buffer(path, weights):
    """Write all weights as views of one buffer, as some sharded training does."""
    buffer = torch.cat([tensor.flatten() for tensor in weights.values() if tensor.is_floating_point()])
    views, start = {}, 0
    for name, tensor in original(weights).items():
        if tensor.is_floating_point():
            views[name], start = buffer[start : start + tensor.numel()].view(tensor.shape), start + tensor.numel()
        else:
            views[name] = tensor
    torch.save({"model": views}, path)


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        (".pt", write_flat),
        (".pth", write_old_format),
        (".pth", write_distributed),
        (".bin", write_module_layout),
        (".pth", write_training_run),
        (".pth", write_one_buffer),
        (".safetensors", write_safetensors),
    ],
    ids=lambda value: value.__name__.removeprefix("write_") if callable(value) else value,
)
def test_every_layout_gives_the_same_weights(ending, write, tiny_t, capsys):
    path = tiny_t / f"file{ending}"
    write(path, golden_weights("tiny_t"))
    assert convert(path, tiny_t / "out", "--config", tiny_t / "config.json") == 0, capsys.readouterr().err
    assert_written(tiny_t / "out", golden_weights("tiny_t"))


def test_two_names_of_one_tensor(tiny_t):
    """Equal weights that share memory are stored twice, not refused as tied."""
    weights = dict(golden_weights("tiny_t"))
    weights["model.levels.0.norm.0.weight"] = weights["model.levels.0.blocks.0.norm1.0.weight"]
    torch.save(original(weights), tiny_t / "shared.pth")
    assert convert(tiny_t / "shared.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 0
    assert_written(tiny_t / "out", weights)


def test_large_models_are_sharded(tmp_path, monkeypatch):
    torch.save({"model": original(golden_weights("tiny_g"))}, tmp_path / "g.pth")
    monkeypatch.setattr(convert_module, "_MAX_SHARD_SIZE", "8MB")
    assert convert(tmp_path / "g.pth", tmp_path / "out", "--config", save_config(tmp_path / "c.json", "tiny_g")) == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) >= 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(golden_weights("tiny_g"))
    assert_logits(load(tmp_path / "out"), "tiny_g")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(dtype, tiny_t):
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", tiny_t / "config.json", "--dtype", dtype) == 0
    weights = golden_weights("tiny_t")
    assert_written(
        tiny_t / "out",
        {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in weights.items()},
    )
    assert AutoConfig.from_pretrained(tiny_t / "out").dtype == getattr(torch, dtype)


def test_empty_destination_is_used(tiny_t):
    (tiny_t / "out").mkdir()
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 0
    assert_written(tiny_t / "out", golden_weights("tiny_t"))


def test_head_map_picks_classes(tiny_t):
    (tiny_t / "map.txt").write_text("7\n0\n9\n9\n")
    (tiny_t / "labels.txt").write_text("seven\nzero\nnine\nnine again\n")
    config = save_config(tiny_t / "config.json", "tiny_t", num_classes=4)
    options = ("--config", config, "--head-map", tiny_t / "map.txt", "--labels", tiny_t / "labels.txt")
    assert convert(tiny_t / "good.pth", tiny_t / "out", *options) == 0
    model = load(tiny_t / "out")
    assert_logits(model, "tiny_t", [7, 0, 9, 9])
    assert model.config.id2label == {0: "seven", 1: "zero", 2: "nine", 3: "nine again"}


def head_of_22k():
    rows = torch.arange(21841.0)
    other = torch.ones(3)
    return {"model.head.weight": rows[:, None].expand(-1, 4), "model.head.bias": -rows, "model.x": other}


def test_map_22k_to_1k():
    indices = [21 * index + 5 for index in range(1000)]
    indices[850] = indices[849]  # the original's list names one row twice
    mapped = conversion.map_head(head_of_22k(), indices)
    assert mapped["model.head.weight"].shape == (1000, 4)
    assert mapped["model.head.weight"][:, 3].tolist() == indices
    assert mapped["model.head.bias"].tolist() == [-index for index in indices]
    assert mapped["model.x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda indices: indices[:-1], "has 999 indices, expected 1000"),
        (lambda indices: [*indices[:-1], 21841], "has index 21841, but the head has rows 0 to 21840"),
        (lambda indices: [-1, *indices[1:]], "has index -1"),
        (lambda indices: [*indices[:-2], 0, 0], "repeats 2 indices, expected at most 1"),
    ],
)
def test_bad_head_maps(change, message):
    with pytest.raises(ValueError, match=message):
        conversion.map_head(head_of_22k(), change(list(range(1000))))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.txt", "".join(f"name {index}\r\n" for index in range(10)) + "\n"),
        ("labels.json", json.dumps([f"name {index}" for index in range(10)])),
        ("labels.json", json.dumps({str(index): f"name {index}" for index in reversed(range(10))})),
    ],
    ids=["text", "list", "object"],
)
def test_labels(file, content, tiny_t):
    (tiny_t / file).write_bytes(content.encode())
    options = ("--config", tiny_t / "config.json", "--labels", tiny_t / file)
    assert convert(tiny_t / "good.pth", tiny_t / "out", *options) == 0
    config = AutoConfig.from_pretrained(tiny_t / "out")
    assert config.id2label == {index: f"name {index}" for index in range(10)}
    assert config.label2id == {f"name {index}": index for index in range(10)}


def test_names_of_the_configuration_are_kept(tiny_t, capsys):
    names = {str(index): f"kept {index}" for index in range(10)}
    config = save_config(
        tiny_t / "named.json", "tiny_t", id2label=names, label2id={v: int(k) for k, v in names.items()}
    )
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", config) == 0
    assert AutoConfig.from_pretrained(tiny_t / "out").id2label[9] == "kept 9"
    assert "10 classes (names of the configuration)" in capsys.readouterr().out


def test_imagenet_1k_labels():
    labels = imagenet_1k_labels()
    assert len(labels) == 1000
    assert all(label and label == label.strip() for label in labels)
    expected = {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        281: "tabby",
        282: "tiger cat",
        285: "Egyptian cat",
        340: "zebra",
        404: "airliner",
        850: "teddy",
        999: "toilet tissue",
    }
    assert {index: labels[index].split(", ")[0] for index in expected} == expected
    assert len(set(labels)) == 999
    assert labels[134] == labels[517] == "crane"
