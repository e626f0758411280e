# SPDX-License-Identifier: MIT
"""Checkpoint conversion: names, whole files through the command line, and every kind of bad file."""

import importlib.util
import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import golden_data
import pytest
import torch
from golden_data import MANIFESTS, TINY, fill, manifest, model_case, model_input
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from hf_internimage import InternImageConfig, InternImageForImageClassification, conversion
from hf_internimage.checkpoints import CHECKPOINTS, imagenet_1k_labels

# Layer-scale tensors of the released classifiers: golden/manifests/original_pth.md.
LAYER_SCALES = {"t": 0, "s": 66, "b": 66, "l": 74, "xl": 78, "h": 0, "g": 0}
golden_weights = golden_data._weights  # under the Hub's names; callers leave them as they are


def load_script(name):
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script("convert_checkpoint")


def original_name(name):
    """The original's name of a tensor, from the Hub's: no prefix, and gamma for layer_scale."""
    return name.removeprefix("model.").replace("layer_scale", "gamma")


def original(weights):
    return {original_name(name): tensor for name, tensor in weights.items()}


def save_config(path, name, **changes):
    path.write_text(json.dumps({**model_case(name)[0]["config"], **changes}))
    return path


def convert(*args):
    return script.main([str(arg) for arg in args])


def assert_written(folder, weights):
    """The weight file holds exactly these tensors, bit for bit."""
    written = load_file(folder / "model.safetensors")
    assert sorted(written) == sorted(weights)
    for name, tensor in weights.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name


def load(folder):
    """The model of a folder, through the Auto class, with nothing missing and nothing left over."""
    model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert type(model) is InternImageForImageClassification
    assert {key: value for key, value in report.items() if value} == {}
    return model.eval()


@torch.no_grad()
def assert_logits(model, name, classes=slice(None)):
    case, expected = model_case(name)
    for which in case["inputs"]:
        logits = model(model_input(name, which)).logits
        wanted = expected["logits" if which == "plain" else f"{which}/logits"][:, classes]
        assert_close(logits, wanted, rtol=0, atol=case["atol_float32"])


@pytest.fixture(autouse=True)
def one_thread():
    """Threads take longer than they save with models this small, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_t(tmp_path):
    """A good checkpoint in the original's layout and its configuration, in an otherwise empty folder."""
    torch.save({"model": original(golden_weights("tiny_t"))}, tmp_path / "good.pth")
    save_config(tmp_path / "config.json", "tiny_t")
    return tmp_path


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
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
        found = conversion.to_hub_layout(conversion.find_state_dict(file))
        assert conversion.shapes_of(found) == keys, layout

    assert conversion.guess_size(keys) == checkpoint.size
    config = conversion.guess_config(keys)
    official = reference["config"]
    assert config.num_labels == checkpoint.num_labels == official["num_classes"]
    for name in ("channels", "depths", "groups", "layer_scale", "offset_scale", "post_norm", "dw_kernel_size"):
        assert getattr(config, name) == official[name], name
    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    assert conversion.shapes_of(model.state_dict()) == {conversion.module_name(k): v for k, v in keys.items()}
    assert all(conversion.hub_name(name) in keys for name in model.state_dict())
    assert model.num_parameters() == reference["num_parameters"]
    conversion.check_tensors(conversion.shapes_of(found), keys)

    assert checkpoint.repo_id == reference["repository"]
    assert checkpoint.image_size == reference["preprocessor_config"]["crop_size"]
    assert script._published_image_size(checkpoint.size, checkpoint.num_labels) == checkpoint.image_size


def test_published_checkpoints_are_all_there():
    assert sorted(checkpoint.name for checkpoint in CHECKPOINTS) == MANIFESTS
    assert {(c.size, c.image_size): c.top1 for c in CHECKPOINTS if c.num_labels == 1000} == {
        ("t", 224): 83.5,
        ("s", 224): 84.2,
        ("b", 224): 84.9,
        ("l", 384): 87.7,
        ("xl", 384): 88.0,
        ("h", 640): 89.6,
        ("g", 512): 90.1,
    }
    assert all(c.top1 is None for c in CHECKPOINTS if c.num_labels != 1000)
    assert {c.licence for c in CHECKPOINTS} == {"mit"}


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
    torch.save({conversion.module_name(name): tensor for name, tensor in weights.items()}, path)


def write_training_run(path, weights):
    """With a yacs configuration and moving averages beside the weights, as the original's training saves them."""
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
    """All weights as views of one buffer, as some sharded training leaves them."""
    buffer = torch.cat([tensor.flatten() for tensor in weights.values() if tensor.is_floating_point()])
    views, start = {}, 0
    for name, tensor in original(weights).items():
        if tensor.is_floating_point():
            views[name], start = buffer[start : start + tensor.numel()].view(tensor.shape), start + tensor.numel()
        else:
            views[name] = tensor
    torch.save({"model": views}, path)


def write_safetensors(path, weights):
    save_file(weights, path)


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
    monkeypatch.setattr(script, "_MAX_SHARD_SIZE", "8MB")
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


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights_but(**changes):
    """The good checkpoint with tensors replaced (`__` stands for a dot), or removed if None."""
    weights = original(golden_weights("tiny_t"))
    for name, tensor in changes.items():
        weights[name.replace("__", ".")] = tensor
    return {"model": {name: tensor for name, tensor in weights.items() if tensor is not None}}


def bad_truncated(path):
    data = (path.parent / "good.pth").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def bad_truncated_safetensors(path):
    write_safetensors(path, golden_weights("tiny_t"))
    path.write_bytes(path.read_bytes()[:-1000])


def bad_code(path):
    torch.save({"model": original(golden_weights("tiny_t")), "x": RunsCode(path.parent / "ran")}, path)


def bad_code_old_format(path):
    torch.save({"x": RunsCode(path.parent / "ran")}, path, _use_new_zipfile_serialization=False)


def bad_code_plain_pickle(path):
    path.write_bytes(pickle.dumps({"x": RunsCode(path.parent / "ran")}))


def bad_duplicate(path):
    weights = golden_weights("tiny_t")
    torch.save({**original(weights), **weights}, path)


def save(content):
    return lambda path: torch.save(content() if callable(content) else content, path)


BAD_FILES = {
    "truncated.pth": (bad_truncated, "Not a readable checkpoint"),
    "truncated.safetensors": (bad_truncated_safetensors, "Not a readable checkpoint"),
    "random.pth": (lambda path: path.write_bytes(bytes(fill().normal("random", (999,)))), "Not a readable checkpoint"),
    "random.safetensors": (lambda path: path.write_bytes(bytes(range(256))), "Not a readable checkpoint"),
    "empty.pth": (lambda path: path.write_bytes(b""), "Not a readable checkpoint"),
    "pointer.pth": (lambda path: path.write_text("version https://git-lfs.github.com"), "Not a readable checkpoint"),
    "code.pth": (bad_code, r"it holds the Python object \w+\.mkdir, and unpickling such objects can run code"),
    "code_old_format.pth": (bad_code_old_format, "Python object|Not a readable checkpoint"),
    "code_plain_pickle.pkl.pth": (bad_code_plain_pickle, "Python object|Not a readable checkpoint"),
    "module.pth": (save(lambda: torch.nn.Linear(2, 2)), "it holds the Python object torch.nn.modules.linear.Linear"),
    "absent.pth": (lambda path: None, "Not a file"),
    "folder.pth": (lambda path: path.mkdir(), "Not a file"),
    "weights.onnx": (lambda path: path.write_bytes(b"x"), "Unknown ending '.onnx'"),
    "list.pth": (save([torch.zeros(2)]), "Found a list in place of a state dict"),
    "no_tensors.pth": (save({"model": {}}), "Found an empty dict"),
    "not_tensors.pth": (save({"epoch": 3}), "Entry 'epoch' is a int, not a tensor"),
    "other_model.pth": (
        save({"conv1.weight": torch.zeros(2), "layer1.0.bn1.bias": torch.zeros(3)}),
        r"Its 2 tensors are not those of an InternImage classifier|model\.head\.weight is missing",
    ),
    "one_missing.pth": (
        save(lambda: weights_but(levels__2__blocks__1__dcn__mask__weight=None)),
        r"do not fit the model: 1 missing \(model\.levels\.2\.blocks\.1\.dcn\.mask\.weight\);",
    ),
    "one_misshapen.pth": (
        save(lambda: weights_but(levels__0__norm__0__bias=torch.zeros(17))),
        r"do not fit the model: 1 of another shape \(model\.levels\.0\.norm\.0\.bias is \(17,\), expected \(16,\)\);",
    ),
    "one_unexpected.pth": (
        save(lambda: weights_but(levels__0__blocks__0__gamma1=torch.zeros(16))),
        r"do not fit the model: 1 unexpected \(model\.levels\.0\.blocks\.0\.layer_scale1\);",
    ),
    "many_missing.pth": (
        save(lambda: {k: v for k, v in original(golden_weights("tiny_t")).items() if "levels.2" not in k}),
        r"do not fit the model: 65 missing \(model\.\S+, model\.\S+, model\.\S+, \.\.\.\);",
    ),
    "other_classes.pth": (
        save(lambda: weights_but(head__weight=torch.zeros(12, 192), head__bias=torch.zeros(12))),
        r"2 of another shape \(model\.head\.weight is \(12, 192\), expected \(10, 192\), model\.head\.bias",
    ),
    "no_head.pth": (save(lambda: weights_but(head__weight=None)), r"model\.head\.weight is missing"),
    "flat_head.pth": (save(lambda: weights_but(head__weight=torch.zeros(5))), r"model\.head\.weight is \(5,\)"),
    "not_a_number.pth": (
        save(lambda: weights_but(head__bias=torch.full((10,), float("nan")))),
        r"model\.head\.bias has values that are not finite",
    ),
    "integers.pth": (
        save(lambda: weights_but(head__bias=torch.zeros(10, dtype=torch.int8))),
        r"model\.head\.bias is torch\.int8 .* expected dense floating-point",
    ),
    "duplicate.pth": (bad_duplicate, r"'patch_embed\.\S+' and 'model\.patch_embed\.\S+' both mean"),
    "detection.pth": (
        save(lambda: {"state_dict": {"backbone.levels.0.x": torch.zeros(2), "roi_head.bbox_head.x": torch.zeros(2)}}),
        r"This is a detection checkpoint \(its tensors are backbone\.\*, roi_head\.\*\).*give a classification check",
    ),
    "segmentation.pth": (
        save(lambda: {"state_dict": {"module.backbone.x": torch.zeros(2), "module.decode_head.x": torch.zeros(2)}}),
        r"This is a segmentation checkpoint \(its tensors are backbone\.\*, decode_head\.\*\)",
    ),
    "backbone.pth": (save({"backbone.x": torch.zeros(2)}), "This is a detection or segmentation checkpoint"),
}


def assert_refused(capsys, before, folder, *messages):
    """One sentence on stderr, nothing on stdout, and the folder as it was."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert printed.err.startswith("convert_checkpoint.py: error: ")
    for message in messages:
        assert re.search(message, printed.err), printed.err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("file", BAD_FILES)
def test_bad_files(file, tiny_t, capsys, recwarn):
    make, message = BAD_FILES[file]
    make(tiny_t / file)
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / file, tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, message, re.escape(str(tiny_t / file)))
    assert [str(warning.message) for warning in recwarn] == []


def test_code_would_run_if_it_was_loaded_carelessly(tiny_t):
    bad_code(tiny_t / "code.pth")
    torch.load(tiny_t / "code.pth", weights_only=False)
    assert (tiny_t / "ran").is_dir()


def test_unknown_size_and_wrong_size(tiny_t, capsys):
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out") == 1
    message = r"channels=16 and depths=\[2, 1, 3, 1\] are those of no released size \(t, s, b, l, xl, h, g\)"
    assert_refused(capsys, before, tiny_t, message, "good.pth")
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--size", "T") == 1
    assert_refused(capsys, before, tiny_t, r"do not fit the model: \d+ missing .*, \d+ of another shape", "good.pth")
    torch.save({"a": torch.zeros(2)}, tiny_t / "other.pth")
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "other.pth", tiny_t / "out") == 1
    assert_refused(capsys, before, tiny_t, "Its 1 tensors are not those of an InternImage classifier", "other.pth")


BAD_OPTIONS = {
    "labels_count": (("--labels", "l.txt"), "a\nb\n", "Has 2 names for 10 classes"),
    "labels_blank": (("--labels", "l.txt"), "a\n\nb\n", "The name of class 1 is ''"),
    "labels_json": (("--labels", "l.json"), '["a", ', "Invalid JSON"),
    "labels_ids": (("--labels", "l.json"), '{"1": "a", "2": "b"}', "The 2 ids are not 0 to 1"),
    "labels_number": (("--labels", "l.json"), "[1, 2]", "The name of class 0 is 1, expected text"),
    "labels_other": (("--labels", "l.json"), "3", "Found a int, expected a list of names"),
    "labels_binary": (("--labels", "l.txt"), b"\xff\xfe\x00", "Not a text file in UTF-8"),
    "labels_absent": (("--labels", "l.txt"), None, r"Cannot be read \(No such file or directory\)"),
    "map_text": (("--head-map", "m.txt"), "1\ntwo\n", "Line 2 is 'two', expected one integer"),
    "map_count": (("--head-map", "m.txt"), "1\n2\n", "has 2 indices, expected 10"),
    "map_range": (("--head-map", "m.txt"), "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", "index 10, but the head has rows 0 to 9"),
    "map_repeats": (("--head-map", "m.txt"), "1\n1\n1\n4\n5\n6\n7\n8\n9\n0\n", "repeats 2 indices"),
    "config_json": (("--config", "c.json"), "{", "Invalid JSON"),
    "config_other": (("--config", "c.json"), '{"model_type": "resnet"}', "Not an InternImage configuration"),
    "config_value": (("--config", "c.json"), '{"channels": "many"}', "channels is 'many'"),
    "config_type": (("--config", "c.json"), '{"id2label": [1, 2]}', "Not a usable configuration"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case, tiny_t, capsys):
    (option, file), content, message = BAD_OPTIONS[case]
    if content is not None:
        (tiny_t / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = () if option == "--config" else ("--config", tiny_t / "config.json")
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out", *config, option, tiny_t / file) == 1
    assert_refused(capsys, before, tiny_t, message, re.escape(str(tiny_t / file)))


@pytest.mark.parametrize(
    ("in_config", "options", "expected"),
    [
        ({}, [], 96),
        ({"image_size": 128}, [], 128),
        ({"image_size": [64, 128]}, [], [64, 128]),
        ({"image_size": 128}, ["--image-size", 160], 160),
        ({"num_classes": 4}, ["--head-map", "map.txt"], 96),
    ],
    ids=["published", "config", "config_pair", "option", "head_map"],
)
def test_image_size(in_config, options, expected, tiny_t, monkeypatch):
    # The published checkpoint with these tensors: 10 classes, of a size that has no name.
    monkeypatch.setattr(script, "CHECKPOINTS", [SimpleNamespace(size=None, num_labels=10, image_size=96)])
    monkeypatch.chdir(tiny_t)
    Path("map.txt").write_text("1\n2\n3\n4\n")
    save_config(Path("config.json"), "tiny_t", **in_config)
    assert convert("good.pth", "out", "--config", "config.json", *options) == 0
    assert json.loads(Path("out/config.json").read_text())["image_size"] == expected
    height, width = expected if isinstance(expected, list) else (expected, expected)
    processor = json.loads(Path("out/preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": height, "width": width}
    assert processor["size"] == {"shortest_edge": max(height, width)}


def test_sizes_the_projector_cannot_take_are_refused(tmp_path, capsys):
    torch.save({"model": original(golden_weights("tiny_h"))}, tmp_path / "h.pth")
    config = save_config(tmp_path / "config.json", "tiny_h")
    before = sorted(tmp_path.iterdir())
    assert convert(tmp_path / "h.pth", tmp_path / "out", "--config", config, "--image-size", 80) == 1
    assert_refused(capsys, before, tmp_path, "image size is 80x80, .* multiple of 32")


def test_values_too_large_for_half_precision(tiny_t, capsys):
    torch.save(weights_but(head__bias=torch.full((10,), 1e5)), tiny_t / "large.pth")
    before = sorted(tiny_t.iterdir())
    arguments = (tiny_t / "large.pth", tiny_t / "out", "--config", tiny_t / "config.json")
    assert convert(*arguments, "--dtype", "float16") == 1
    assert_refused(capsys, before, tiny_t, r"model\.head\.bias has values that are too large for torch\.float16")
    assert convert(*arguments, "--dtype", "bfloat16") == 0


def test_existing_destination_is_left_alone(tiny_t, capsys):
    (tiny_t / "out").mkdir()
    (tiny_t / "out" / "mine.txt").write_text("mine")
    (tiny_t / "file").write_text("mine")
    before = sorted(tiny_t.iterdir())
    for name, message in (("out", "Exists already"), ("file", "Exists already"), ("no/out", "parent folder does not")):
        assert convert(tiny_t / "good.pth", tiny_t / name, "--config", tiny_t / "config.json") == 1
        assert_refused(capsys, before, tiny_t, message, re.escape(str(tiny_t / name)))
    assert (tiny_t / "out" / "mine.txt").read_text() == "mine"
    assert (tiny_t / "file").read_text() == "mine"
    assert len(list((tiny_t / "out").iterdir())) == 1


def test_failed_write_leaves_nothing(tiny_t, capsys, monkeypatch):
    def full(self, folder):
        assert (Path(folder) / "model.safetensors").is_file()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(script.InternImageImageProcessorPil, "save_pretrained", full)
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, "No space left on device")


def test_written_file_is_checked(tiny_t, capsys, monkeypatch):
    honest = script.InternImageForImageClassification.save_pretrained

    def forgetful(self, folder, **kwargs):
        honest(self, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.head.bias"]
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(script.InternImageForImageClassification, "save_pretrained", forgetful)
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, r"1 missing \(model\.head\.bias\)")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.pth"],
        ["a", "b", "--size", "q"],
        ["a", "b", "--size", "t", "--config", "c"],
        ["a", "b", "--image-size", "0"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_another_depth_is_no_released_size():
    shapes = {
        name: shape for name, shape in manifest("internimage_t_1k_224")["keys"].items() if ".blocks.17." not in name
    }
    with pytest.raises(ValueError, match=r"channels=64 and depths=\[4, 4, 17, 4\] are those of no released size"):
        conversion.guess_size(shapes)


def test_guessed_and_given_sizes_agree():
    for size in conversion.SIZES:
        config = InternImageConfig.from_size(size, num_labels=7)
        with torch.device("meta"):
            shapes = conversion.shapes_of(InternImageForImageClassification(config).state_dict())
        shapes = {conversion.hub_name(name): shape for name, shape in shapes.items()}
        assert conversion.guess_config(shapes).to_dict() == config.to_dict()
