# SPDX-License-Identifier: MIT
"""Files and options that cannot be converted: one clear sentence, and nothing is left behind."""

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversion_tools import (
    convert,
    original,
    save_config,
    write_safetensors,
)
from support.golden_data import fill, golden_weights, manifest
from support.paths import SCRIPTS

from hf_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    conversion,
)
from hf_internimage.conversion import prepare_classifier
from hf_internimage.conversion.inputs import read_checkpoint
from hf_internimage.conversion.output import check_destination
from hf_internimage_cli.main import main


class RunsCode:
    """Make a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights_but(**changes):
    """Return the good checkpoint with tensors replaced, or removed if None; `__` stands for a dot in names."""
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


def bad_compressed(path):
    with zipfile.ZipFile(path.parent / "good.pth") as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for part in good.infolist():
            bad.writestr(part.filename, good.read(part))


def bad_inflating(path):
    """A megabyte that becomes a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as part:
        for _ in range(1024):
            part.write(bytes(1 << 20))


def bad_overlapping(path):
    """Twice the same part."""
    shutil.copyfile(path.parent / "good.pth", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("good/more", b"more")
        archive.filelist += [part for part in archive.filelist if part.file_size > 1000]


def bad_link_loop(path):
    path.symlink_to(path.name)


def bad_nested_tensor(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        torch.save(weights_but(head__bias=torch.nested.nested_tensor([torch.zeros(5), torch.zeros(5)])), path)


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
    "compressed.pth": (bad_compressed, "Its parts are compressed or overlap, which torch.save never"),
    "inflating.pth": (bad_inflating, "Its parts are compressed or overlap, which torch.save never"),
    "overlapping.pth": (bad_overlapping, "Its parts are compressed or overlap, which torch.save never"),
    "link_loop.pth": (bad_link_loop, "Not a file"),
    "meta.pth": (
        save(lambda: weights_but(head__bias=torch.zeros(10, device="meta"))),
        r"head\.bias is on the meta device, without values; give a checkpoint with all weights",
    ),
    "expanded.pth": (
        save(lambda: weights_but(head__weight=torch.zeros(1).expand(10**9, 192))),
        r"head\.weight has 192,000,000,000 elements of shape \(1000000000, 192\), far more than the file holds",
    ),
    "nested_tensor.pth": (
        bad_nested_tensor,
        r"head\.bias is a nested tensor; give a checkpoint with dense tensors",
    ),
    "nested_entries.pth": (
        lambda path: path.write_bytes(b"(" * 10**6 + b"t" * 10**6 + b"."),
        "Nested too deeply|Not a readable checkpoint",
    ),
    "list.pth": (save([torch.zeros(2)]), "Found a list in place of a state dict"),
    "no_tensors.pth": (save({"model": {}}), "Found an empty dict"),
    "not_tensors.pth": (save({"epoch": 3}), "Entry 'epoch' is a int, not a tensor"),
    "other_model.pth": (
        save({"conv1.weight": torch.zeros(2), "layer1.0.bn1.bias": torch.zeros(3)}),
        r"Its 2 tensors \(conv1\.weight, layer1\.0\.bn1\.bias\) are not those of an InternImage",
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
        r"2 of another shape \(model\.head\.bias .*, model\.head\.weight is \(12, 192\), expected \(10, 192\)\)",
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
        r"This is a detection checkpoint \(its tensors are backbone\.\*, roi_head\.\*\).*give a complete check",
    ),
    "segmentation.pth": (
        save(lambda: {"state_dict": {"module.backbone.x": torch.zeros(2), "module.decode_head.x": torch.zeros(2)}}),
        r"This is a segmentation checkpoint \(its tensors are backbone\.\*, decode_head\.\*\)",
    ),
    "backbone.pth": (save({"backbone.x": torch.zeros(2)}), "This is a detection or segmentation checkpoint"),
}


def assert_refused(capsys, before, folder, *messages):
    """Check for one sentence on stderr, nothing on stdout, and an unchanged folder."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert printed.err.startswith("error: ")
    for message in messages:
        assert re.search(message, printed.err), printed.err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("file", BAD_FILES)
def test_bad_files(file, tiny_t, capsys, recwarn):
    make, message = BAD_FILES[file]
    make(tiny_t / file)
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / file, tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, message, re.escape(f"error: {tiny_t / file}: "))
    assert [str(warning.message) for warning in recwarn] == []


def test_every_changed_byte_is_refused_or_changes_nothing(tiny_t):
    """In each part of the archive and between them; torch.load itself takes most of these files."""
    path = tiny_t / "damaged.pth"
    good = (tiny_t / "good.pth").read_bytes()
    expected = read_checkpoint(tiny_t / "good.pth")[0]
    with zipfile.ZipFile(tiny_t / "good.pth") as archive:
        parts = [part.header_offset for part in archive.infolist()]
        data = [good.index(archive.read(part)) for part in archive.infolist() if part.file_size > 1000]
    chance = random.Random(15)
    positions = {*parts[::5], *(offset + 26 for offset in parts[::5]), *(start + 500 for start in data)}
    positions |= {chance.randrange(len(good)) for _ in range(60)} | {len(good) - back for back in (1, 12, 22, 60, 400)}
    refusals = []
    for position in sorted(positions):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        try:
            weights = read_checkpoint(path)[0]
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert position not in {start + 500 for start in data}
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items()), position
    pattern = f"{path}: (Damaged, the checksum of '.*' is wrong|Not a readable|Its parts are)"
    assert [text for text in refusals if not re.match(pattern, text)] == []
    assert len(refusals) > len(positions) / 2


def test_parts_of_other_sizes_are_refused(tiny_t, capsys):
    """Their checksums are right; torch.load takes them, and the values of the tensor go on into what comes next."""
    with zipfile.ZipFile(tiny_t / "good.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    tensors = sorted((name for name in parts if "/data/" in name), key=lambda name: len(parts[name]))
    one, other = tensors[0], tensors[-1]
    parts[one], parts[other] = parts[other], parts[one]
    with zipfile.ZipFile(tiny_t / "damaged.pth", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    torch.load(tiny_t / "damaged.pth", mmap=True)
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "damaged.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, r"damaged.pth: Damaged, '.*/data/\d+' has \d+ bytes, expected \d+; download")


def test_a_changed_byte_of_a_tensor_is_one_line(tiny_t, capsys):
    good = (tiny_t / "good.pth").read_bytes()
    start = good.index(original(golden_weights("tiny_t"))["head.weight"].numpy().tobytes())
    (tiny_t / "damaged.pth").write_bytes(good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :])
    torch.load(tiny_t / "damaged.pth", mmap=True)  # takes it
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "damaged.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, "damaged.pth: Damaged, the checksum of '.*/data/.*' is wrong; download")


def test_the_destination_in_a_loop_of_links(tiny_t, capsys):
    bad_link_loop(tiny_t / "loop")
    before = sorted(tiny_t.iterdir())
    for destination in (tiny_t / "loop", tiny_t / "loop" / "out"):
        assert convert(tiny_t / "good.pth", destination, "--config", tiny_t / "config.json") == 1
        assert_refused(capsys, before, tiny_t, "loop")


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
    assert_refused(capsys, before, tiny_t, r"Its 1 tensors \(a\) are not those of an InternImage;", "other.pth")


@pytest.mark.parametrize("option", [("--checkpoint", "internimage_t_1k_224"), ("--num_labels", 5)], ids=lambda o: o[0])
def test_options_of_other_systems(option, tiny_t, capsys):
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", tiny_t / "config.json", *option) == 1
    assert_refused(capsys, before, tiny_t, f"{option[0]} is not for image classifier checkpoints; leave it out")


BAD_OPTIONS = {
    "labels_count": (("--labels", "l.txt"), "a\nb\n", "Has 2 names for 10 classes"),
    "labels_blank": (("--labels", "l.txt"), "a\n\nb\n", "The name of class 1 is ''"),
    "labels_json": (("--labels", "l.json"), '["a", ', "Invalid JSON"),
    "labels_ids": (("--labels", "l.json"), '{"1": "a", "2": "b"}', "The 2 ids are not 0 to 1"),
    "labels_number": (("--labels", "l.json"), "[1, 2]", "The name of class 0 is 1, expected text"),
    "labels_other": (("--labels", "l.json"), "3", "Found a int, expected a list of names"),
    "labels_binary": (("--labels", "l.txt"), b"\xff\xfe\x00", "Not a text file in UTF-8"),
    "labels_deep": (("--labels", "l.json"), "[" * 10**5, "Nested too deeply"),
    "labels_digits": (("--labels", "l.json"), "[" + "1" * 10**4 + "]", "Exceeds the limit"),
    "labels_absent": (("--labels", "l.txt"), None, r"Cannot be read \(No such file or directory\)"),
    "map_text": (("--head-map", "m.txt"), "1\ntwo\n", "Line 2 is 'two', expected one integer"),
    "map_count": (("--head-map", "m.txt"), "1\n2\n", "has 2 indices, expected 10"),
    "map_range": (("--head-map", "m.txt"), "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", "index 10, but the head has rows 0 to 9"),
    "map_repeats": (("--head-map", "m.txt"), "1\n1\n1\n4\n5\n6\n7\n8\n9\n0\n", "repeats 2 indices"),
    "config_json": (("--config", "c.json"), "{", "Invalid JSON"),
    "config_deep": (("--config", "c.json"), '{"a": ' * 10**5, "Nested too deeply"),
    "config_other": (
        ("--config", "c.json"),
        '{"model_type": "resnet"}',
        r"system \(image classifier\): model_type is 'resnet'",
    ),
    "config_value": (("--config", "c.json"), '{"channels": "many"}', "channels is 'many'"),
    "config_type": (("--config", "c.json"), '{"id2label": [1, 2]}', r"id2label is \[1, 2\]"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case, tiny_t, capsys):
    (option, file), content, message = BAD_OPTIONS[case]
    if content is not None:
        (tiny_t / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = () if option == "--config" else ("--config", tiny_t / "config.json")
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out", *config, option, tiny_t / file) == 1
    assert_refused(capsys, before, tiny_t, message, re.escape(f"error: {tiny_t / file}: "))


@pytest.mark.parametrize(
    ("in_config", "options", "expected"),
    [
        ({"image_size": 1}, ["--image-size", 1], 1),
        ({}, [], 96),
        ({"image_size": 128}, [], 128),
        ({"image_size": [64, 128]}, [], [64, 128]),
        ({"image_size": 128}, ["--image-size", 160], 160),
        ({"num_classes": 4}, ["--head-map", "map.txt"], 96),
    ],
    ids=["one", "published", "config", "config_pair", "option", "head_map"],
)
def test_image_size(in_config, options, expected, tiny_t, monkeypatch):
    # The published checkpoint with these tensors: 10 classes, of a size that has no name.
    published = SimpleNamespace(model_type="internimage", size=None, num_labels=10, image_size=96)
    monkeypatch.setattr(prepare_classifier, "CHECKPOINTS", [published])
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
    assert_refused(capsys, before, tmp_path, "error: The image size is 80x80, .* multiple of 32")


@pytest.mark.parametrize(
    ("sides", "taken"), [([96, 80], False), ([80, 96], False), ([96, 160], True), ([56, 30], True)]
)
def test_each_side_counts_for_the_projector(sides, taken):
    """Its pooling needs an even number of positions, which the stages before it round up."""
    config = InternImageConfig.from_size("h", image_size=sides)
    if taken:
        assert prepare_classifier._set_image_size(config, None) == tuple(sides)
    else:
        with pytest.raises(ValueError, match=f"The image size is {sides[0]}x{sides[1]}, which the head of this model"):
            prepare_classifier._set_image_size(config, None)


@pytest.mark.parametrize(
    ("fields", "classes"),
    [
        ({}, None), ({"num_labels": 0}, 0), ({"num_labels": 3, "num_classes": 4}, 3), ({"num_classes": 4}, 4),
        ({"num_labels": None, "id2label": {"0": "a", "1": "b"}}, 2), ({"id2label": {}}, None),
    ],
)  # fmt: skip
def test_classes_that_a_configuration_states(fields, classes):
    assert prepare_classifier._stated_classes(fields) == classes


@pytest.mark.parametrize(
    ("labels", "rows", "classes"), [(None, 1000, 1000), (3, 3, 3), (None, 3, None), (4, 3, None), (1000, 1000, 1000)]
)
def test_a_head_map_without_stated_classes_is_for_the_names_or_imagenet(labels, rows, classes, tiny_t, capsys):
    fields = json.loads((tiny_t / "config.json").read_text())
    for name in ("num_labels", "num_classes", "id2label", "label2id"):
        fields.pop(name, None)
    (tiny_t / "config.json").write_text(json.dumps(fields))
    (tiny_t / "map.txt").write_text("".join(f"{index}\n" for index in range(rows)))
    options = ["--config", tiny_t / "config.json", "--head-map", tiny_t / "map.txt"]
    if labels is not None:
        (tiny_t / "names.txt").write_text("".join(f"name {index}\n" for index in range(labels)))
        options += ["--labels", tiny_t / "names.txt"]
    weights = weights_but(head__weight=torch.zeros(1200, 192), head__bias=torch.zeros(1200))
    torch.save(weights, tiny_t / "large.pth")
    assert convert(tiny_t / "large.pth", tiny_t / "out", *options) == (0 if classes else 1)
    printed = capsys.readouterr()
    if classes:
        origin = f"names of {tiny_t / 'names.txt'}" if labels else "ImageNet-1K names"
        assert f", {classes} classes ({origin}), " in printed.out
    else:
        assert f"has 3 indices, expected {labels or 1000}" in printed.err


def test_a_link_to_nothing_is_no_destination(tiny_t, capsys):
    (tiny_t / "link").symlink_to(tiny_t / "absent" / "folder")
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "link", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, "Its parent folder does not exist; make it first")
    (tiny_t / "dangling").symlink_to(tiny_t / "absent")
    with pytest.raises(ValueError, match="dangling: Exists already and is not an empty folder"):
        check_destination(tiny_t / "dangling")


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

    monkeypatch.setattr(InternImageImageProcessorPil, "save_pretrained", full)
    before = sorted(tiny_t.iterdir())
    assert convert(tiny_t / "good.pth", tiny_t / "out", "--config", tiny_t / "config.json") == 1
    assert_refused(capsys, before, tiny_t, "No space left on device")


def test_written_file_is_checked(tiny_t, capsys, monkeypatch):
    honest = InternImageForImageClassification.save_pretrained

    def forgetful(self, folder, **kwargs):
        honest(self, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.head.bias"]
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(InternImageForImageClassification, "save_pretrained", forgetful)
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
    assert main(["convert", *arguments]) == 2
    assert capsys.readouterr().err.startswith("hf-internimage convert: error: ")


def test_script_ends_with_the_status_of_the_command_line(tmp_path):
    command = [sys.executable, str(SCRIPTS / "convert_checkpoint.py"), "absent.pth", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == "error: absent.pth: Not a file; give the path of one checkpoint file.\n"
    assert list(tmp_path.iterdir()) == []


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
