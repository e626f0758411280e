# SPDX-License-Identifier: MIT
"""Damaged files and interrupted saves: each ends in one line, or in exactly the right weights."""

import contextlib
import functools
import io
import os
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from support.conversion_tools import convert, original, save_config
from support.golden_data import golden_weights, tiny_config

from hf_internimage import InternImageForImageClassification, hub

# Functions of `os` that saves consist of.
_CHANGES = ("link", "mkdir", "replace", "rename", "rmdir", "symlink", "unlink", "fsync")
_REFUSALS = (ValueError, TypeError, OSError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError)
transformers.utils.logging.disable_progress_bar()


@functools.cache
def _good():
    """A folder with good.pth, the original's layout; its config.json; converted/, what becomes of them."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name)
    torch.save({"model": original(golden_weights("tiny_t"))}, path / "good.pth")
    save_config(path / "config.json", "tiny_t")
    assert _converted(path / "good.pth", path / "config.json", path / "converted") == ""
    return folder, path


def _converted(source, config, destination):
    """Return the line with which a conversion refuses, or "" if it does not; there may be warnings as well."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = convert(source, destination, "--config", config)
    lines = [line for line in errors.getvalue().splitlines() if not line.endswith("but no model reads it.")]
    text = "\n".join(lines)
    assert status == len(lines) <= 1, f"exit status {status}, {len(lines)} lines: {text}"
    assert len(text) < 2000, f"too long: {text}"
    assert destination.exists() == (not text), "a refused conversion left a folder"
    return text


def _assert_converted_to(expected, source, config, folder):
    if not _converted(source, config, folder / "out"):
        _assert_equal(load_file(folder / "out" / "model.safetensors"), expected)


def _assert_equal(tensors, expected):
    assert sorted(tensors) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), f"{name} has other values, without an error"


def _damaged(draw, content, end=None):
    """The bytes with one changed, some removed, some inserted, or cut off; changes begin before `end`."""
    place = draw.randrange(len(content) if end is None else end)
    length = draw.choice((1, 1, 7, 64, 1000))
    inserted = draw.choice((draw.randbytes(length), bytes(length), content[:length], content[-length:]))
    return draw.choice(
        (
            content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
            content[:place] + draw.randbytes(1) + content[place + 1 :],
            content[:place] + content[place + length :],
            content[:place] + inserted + content[place:],
            content[:place],
        )
    )


def damaged_checkpoints_are_refused(draw):
    """A .pth file. In the archive's directory, at its end, a change is more dangerous than its size says."""
    _, good = _good()
    content = (good / "good.pth").read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if draw.random() < 0.5:
            content = _damaged(draw, content)
        else:
            start = content.index(b"PK\x01\x02")
            content = content[:start] + _damaged(draw, content[start:])
        (folder / "damaged.pth").write_bytes(content)
        expected = load_file(good / "converted" / "model.safetensors")
        _assert_converted_to(expected, folder / "damaged.pth", good / "config.json", folder)


def exchanged_parts_are_refused(draw):
    """Two parts of the archive have each other's content. If they fit, these are the weights of that file."""
    _, good = _good()
    with zipfile.ZipFile(good / "good.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    one, other = draw.sample(list(parts), 2)
    if draw.random() < 0.3:  # of one size
        one, other = draw.choice([(a, b) for a in parts for b in parts if a < b and len(parts[a]) == len(parts[b])])
    parts[one], parts[other] = parts[other], parts[one]
    compression = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(folder / "exchanged.pth", "w", compression, compresslevel=1) as archive:
            for part, content in parts.items():
                archive.writestr(part, content)
        refusal = _converted(folder / "exchanged.pth", good / "config.json", folder / "out")
        if compression != zipfile.ZIP_STORED:  # before anything is inflated
            assert "Its parts are compressed" in refusal, refusal
        if refusal:
            return
        written = load_file(folder / "out" / "model.safetensors")
        expected = load_file(good / "converted" / "model.safetensors")
        assert _flat(written) == _flat(expected), "other weights"
        if len(parts[one]) != len(parts[other]):
            _assert_equal(written, expected)


def _flat(tensors):
    return sorted(tensor.numpy().tobytes() for tensor in tensors.values())


def damaged_configurations_are_refused(draw):
    """The config.json of a conversion, or of a converted folder."""
    _, good = _good()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_bytes(_damaged(draw, (good / "converted" / "config.json").read_bytes()))
        expected = load_file(good / "converted" / "model.safetensors")
        if draw.random() < 0.5:
            _assert_converted_to(expected, good / "good.pth", folder / "config.json", folder)
        else:
            os.link(good / "converted" / "model.safetensors", folder / "model.safetensors")
            _assert_loaded_or_refused(folder, expected)


def damaged_folders_are_refused(draw):
    """Weights of a folder. Their format has no checksums: a change within the values of a tensor cannot be seen."""
    _, good = _good()
    content = (good / "converted" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    damaged = _damaged(draw, content, end=header)
    if draw.random() < 0.3:
        damaged = content[: draw.randrange(len(content))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.link(good / "converted" / "config.json", folder / "config.json")
        (folder / "model.safetensors").write_bytes(damaged)
        _assert_loaded_or_refused(folder, load_file(good / "converted" / "model.safetensors"))


def _assert_loaded_or_refused(folder, expected):
    """Load a folder: an error, transformers' report of the tensors that do not fit, or the right weights."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            model, info = InternImageForImageClassification.from_pretrained(folder, output_loading_info=True)
    except _REFUSALS as error:
        if not str(error):
            raise
        return
    if not any(info.values()):
        with tempfile.TemporaryDirectory() as again:
            model.save_pretrained(again)
            _assert_equal(load_file(Path(again) / "model.safetensors"), expected)


@functools.cache
def _versions():
    """Three models with the arguments of their saves, and the files that each save writes."""
    versions = []
    for seed, (fields, size) in enumerate((({}, "5GB"), ({"num_labels": 9}, "5GB"), ({"channels": 32}, "400KB"))):
        torch.manual_seed(seed)
        model = InternImageForImageClassification(tiny_config(**fields))
        options = {"card": f"version {seed}", "max_shard_size": size}
        with tempfile.TemporaryDirectory() as folder:
            hub.save_for_hub(model, folder, **options)
            versions.append((model, options, _files(folder)))
    return versions


def _files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def interrupted_saves_leave_one_model(draw):
    """`save_for_hub` over a folder is killed or fails at a change of a file, perhaps again and again."""
    mine = {"notes.txt": b"mine"}
    with tempfile.TemporaryDirectory() as folder:
        model, options, state = draw.choice(_versions())
        hub.save_for_hub(model, folder, **options)
        Path(folder, "notes.txt").write_bytes(mine["notes.txt"])
        for _ in range(draw.choice((1, 1, 2, 3))):
            model, options, following = draw.choice(_versions())
            failure, number = draw.choice(("killed", "killed", "error")), draw.randrange(100)
            _save_in_a_child(model, folder, options, failure, number)
            files = _files(folder)
            assert files in (state | mine, following | mine), f"{failure} at {number}: {_compared(files, state)}"
            state = following if files == following | mine else state
        loaded = InternImageForImageClassification.from_pretrained(folder, output_loading_info=True)[1]
        assert not any(loaded.values()), loaded
        model, options, following = draw.choice(_versions())
        hub.save_for_hub(model, folder, **options)
        assert _files(folder) == following | mine
        assert sorted(os.listdir(folder)) == sorted(following | mine), "leftovers"
        assert not any(path.is_symlink() for path in Path(folder).iterdir())


def _save_in_a_child(model, folder, options, failure, number):
    """Save in a forked process, in which the change of that number fails, or ends the process."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        fail_at_change(number, failure)
        hub.save_for_hub(model, folder, **options)
    finally:
        os._exit(0)


def fail_at_change(number, failure):
    """Let the change of a file with that number, from 0, raise an error or end this process ("killed")."""
    count = 0

    def fail(change, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number + 1:
            if failure == "killed":
                os._exit(9)
            raise OSError("no space left")
        return change(*args, **kwargs)

    for name in _CHANGES:
        setattr(os, name, functools.partial(fail, getattr(os, name)))


def _compared(files, state):
    return {name: "as before" if state.get(name) == content else "other" for name, content in files.items()}


CHECKS = (
    damaged_checkpoints_are_refused,
    exchanged_parts_are_refused,
    damaged_configurations_are_refused,
    damaged_folders_are_refused,
    interrupted_saves_leave_one_model,
)
