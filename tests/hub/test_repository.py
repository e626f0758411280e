# SPDX-License-Identifier: MIT
"""Repositories for the Hub: what they hold, that they work without the package, and how they get there."""

import contextlib
import importlib
import itertools
import json
import os
import re
import shutil
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image
from safetensors.torch import load_file, save_file
from support.golden_data import (
    awaken,
    golden_model,
    model_case,
    model_input,
    tiny_config,
    write_official_folder,
)
from support.golden_detectors import golden_dino
from support.island import ISLAND, MODELS_FOLDER
from support.loading import WITHOUT_THE_PACKAGE, assert_loaded_fully, every_class, run_python
from support.loopback_hub import LoopbackHub
from support.paths import TESTS
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    DetrForObjectDetection,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    UperNetForSemanticSegmentation,
    ViTImageProcessorPil,
)
from transformers.utils import is_torchvision_available

from hf_internimage import (
    InternImageBackbone,
    InternImageConfig,
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageModel,
    InternImageSegmentationImageProcessor,
    heads,
)
from hf_internimage.hub import repository as hub
from hf_internimage.hub import tokens
from hf_internimage.hub.tokens import without_tokens
from hf_internimage_cli.main import main

WRITTEN = {*ISLAND, "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
ODD_SIZE = {"size": {"shortest_edge": 96}, "crop_size": {"height": 64, "width": 96}}
NAME = "tester/tiny.h-1"  # as a module, transformers has to rename it


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_json(path):
    return json.loads(path.read_text())


def small(build=InternImageForImageClassification, **fields):
    torch.manual_seed(3)
    return awaken(build(tiny_config(**fields))).eval()


def picture(width, height, mode="RGB"):
    generator = torch.Generator().manual_seed(width * 1000 + height)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).convert(mode)


def assert_golden_logits(name, logits):
    case, expected = model_case(name)
    torch.testing.assert_close(
        torch.tensor(logits), expected["logits"], rtol=0, atol=case["float32_noise"]["logits"]["atol"]
    )


@every_class
def test_what_a_repository_holds(build, tmp_path):
    model = small(build, out_features=["stage2", "stage3"])
    hub.save_for_hub(model, tmp_path / "parent" / "repo")
    folder = tmp_path / "parent" / "repo"
    assert set(os.listdir(folder)) == WRITTEN
    assert os.listdir(tmp_path / "parent") == ["repo"]
    for file in ISLAND:
        assert (folder / file).read_bytes() == (MODELS_FOLDER / file).read_bytes()
    config = read_json(folder / "config.json")
    assert config["auto_map"] == hub.AUTO_MAPS["internimage"]
    assert config["architectures"] == [build.__name__]
    assert config["out_features"] == ["stage2", "stage3"]
    assert not any(str(tmp_path) in text.decode(errors="replace") for text in contents(folder).values())

    loaded, info = build.from_pretrained(folder, output_loading_info=True)
    assert_loaded_fully(info)
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    hub.save_for_hub(loaded, tmp_path / "again" / "repo")
    assert contents(tmp_path / "again" / "repo") == contents(folder)


def test_auto_map_names_the_registered_classes():
    registered = (InternImageConfig, InternImageModel, InternImageForImageClassification, InternImageBackbone)
    expected = {build._auto_class: f"{build.__module__.split('.')[-1]}.{build.__name__}" for build in registered}
    assert expected == hub.AUTO_MAPS["internimage"]


def test_a_classifier_keeps_the_official_layout_and_its_labels(tmp_path):
    labels = {0: "cat", 1: "dog", 2: "newt"}
    model = InternImageForImageClassification(tiny_config(num_labels=3, id2label=labels))
    hub.save_for_hub(model, tmp_path / "repo")
    assert "model.head.weight" in load_file(tmp_path / "repo" / "model.safetensors")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "repo").config.id2label == labels
    assert type(AutoModel.from_pretrained(tmp_path / "repo")) is InternImageModel


def test_shards_of_an_earlier_save_go_and_other_files_stay(tmp_path):
    model = small()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "model.safetensors").write_text("not in the top folder")
    (tmp_path / "model-final.safetensors").write_text("of another name")
    others = contents(tmp_path)
    hub.save_for_hub(model, tmp_path, max_shard_size="200KB")
    sharded = set(os.listdir(tmp_path))
    assert "model.safetensors" not in sharded
    assert len([name for name in sharded if name.startswith("model-0")]) > 2
    loaded = InternImageForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())

    hub.save_for_hub(model, tmp_path)
    assert set(os.listdir(tmp_path)) == WRITTEN | {"notes.txt", "logs", "model-final.safetensors"}
    hub.save_for_hub(small(), tmp_path, max_shard_size=200_000)
    assert set(os.listdir(tmp_path)) == sharded
    assert {name: contents(tmp_path)[name] for name in others} == others


def test_other_dtypes_and_saving_over_the_loaded_files(tmp_path):
    model = small().to(torch.bfloat16)
    hub.save_for_hub(model, tmp_path)
    assert read_json(tmp_path / "config.json")["dtype"] == "bfloat16"
    loaded = InternImageForImageClassification.from_pretrained(tmp_path)  # may map the file
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        loaded.head.bias.fill_(1.5)
    hub.save_for_hub(loaded, tmp_path)
    again = InternImageForImageClassification.from_pretrained(tmp_path)
    assert (again.head.bias == 1.5).all()
    for key, tensor in model.state_dict().items():
        assert key == "head.bias" or torch.equal(again.state_dict()[key], tensor), key


def test_source_files_of_an_older_version_go(tmp_path, monkeypatch):
    """As of a model that was loaded by the code of its repository: save_pretrained writes that code again."""
    real = PreTrainedModel.save_pretrained

    def save_pretrained(self, folder, **options):
        real(self, folder, **options)
        for name in ("older_internimage.py", "layers_internimage.py"):
            (Path(folder) / name).write_text("older")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)
    hub.save_for_hub(small(), tmp_path)
    assert set(os.listdir(tmp_path)) == WRITTEN
    assert (tmp_path / "layers_internimage.py").read_bytes() == (MODELS_FOLDER / "layers_internimage.py").read_bytes()


def fail(*args, **kwargs):
    raise OSError("no space left")


def fail_at_move(count):
    """os.replace, but for the move of that number."""
    real, moves = os.replace, []

    def replace(source, target):
        moves.append(source)
        if len(moves) == count:
            fail()
        real(source, target)

    return replace


STEPS = {
    "weights": lambda patch: patch.setattr(PreTrainedModel, "save_pretrained", fail),
    "code": lambda patch: patch.setattr(hub.auto, "source_files", fail),
    "auto_map": lambda patch: patch.setattr(hub, "_set_in_json", fail),
    "preprocessor": lambda patch: patch.setattr(InternImageImageProcessorPil, "save_pretrained", fail),
    "first move": lambda patch: patch.setattr(os, "replace", fail_at_move(1)),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_save_changes_nothing(step, tmp_path, monkeypatch):
    hub.save_for_hub(small(), tmp_path / "repo", max_shard_size="400KB", card="# Old\n")
    (tmp_path / "repo" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        STEPS[step](patch)
        with pytest.raises(OSError, match="no space left"):
            hub.save_for_hub(small(channels=32), tmp_path / "repo", card="# New\n")
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path / "repo")) == sorted(path.partition("/")[2] for path in before)
    hub.save_for_hub(small(channels=32), tmp_path / "repo", card="# New\n")
    assert set(os.listdir(tmp_path / "repo")) == WRITTEN | {"notes.txt"}


def test_an_error_at_any_move_changes_nothing(tmp_path, monkeypatch):
    hub.save_for_hub(small(), tmp_path / "repo", max_shard_size="400KB", card="# Old\n")
    (tmp_path / "repo" / "notes.txt").write_text("mine")
    before, model = contents(tmp_path), small(channels=32)
    for move in itertools.count(1):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail_at_move(move))
            with contextlib.suppress(OSError):  # of `fail`
                hub.save_for_hub(model, tmp_path / "repo", card="# New\n")
                break
        assert contents(tmp_path) == before, move
        assert not any(path.is_symlink() for path in (tmp_path / "repo").iterdir()), move
    assert move > 2 * len(WRITTEN)
    assert set(os.listdir(tmp_path / "repo")) == WRITTEN | {"notes.txt"}


def copy_before_each_change(folder, copies, patch):
    """Copy the folder before each change of its names: what a process that is killed there leaves."""
    copying, copy = [], shutil.copytree  # `os` is patched while it runs

    def watch(change):
        def changed(*args, **kwargs):
            if not copying:
                copying.append(True)
                copy(folder, copies / f"{len(os.listdir(copies)):03}", symlinks=True)
                copying.clear()
            return change(*args, **kwargs)

        return changed

    for name in ("link", "mkdir", "replace", "rmdir", "symlink", "unlink"):
        patch.setattr(os, name, watch(getattr(os, name)))


SAVES = {  # name -> fields of the model before and after, and their largest files
    "other classes": ({"num_labels": 5}, {"num_labels": 9}, "5GB", "5GB"),
    "without hard links": ({"num_labels": 5}, {"num_labels": 9}, "5GB", "5GB"),
    "sharded, then larger": ({}, {"channels": 32}, "200KB", "5GB"),
    "then sharded": ({}, {"channels": 32, "num_labels": 3}, "5GB", "400KB"),
    "as many shards": ({"num_labels": 5}, {"num_labels": 4}, "300KB", "300KB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SAVES)
def test_a_process_killed_at_any_change_leaves_the_old_or_the_new_model(case, tmp_path, monkeypatch):
    """Weights, configuration, image processor, card and code of one and the same save; the next one cleans up."""
    old_fields, new_fields, old_shards, new_shards = SAVES[case]
    folder, copies = tmp_path / "repo", tmp_path / "copies"
    copies.mkdir()
    models = {"old": small(image_size=64, **old_fields), "new": small(image_size=96, **new_fields)}
    with torch.no_grad():
        models["new"].head.bias += 1
    hub.save_for_hub(models["old"], folder, card="old", max_shard_size=old_shards)
    (folder / "layers_internimage.py").write_text("old")
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with monkeypatch.context() as patch:
        if case == "without hard links":
            patch.setattr(os, "link", fail)
        copy_before_each_change(folder, copies, patch)
        hub.save_for_hub(models["new"], folder, card="new", max_shard_size=new_shards)
    after = contents(folder)

    versions = []
    for number, copy in enumerate(sorted(copies.iterdir())):
        versions.append((copy / "README.md").read_text())
        files = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}  # no links to nothing
        assert files == (before if versions[-1] == "old" else after), copy
        if number % 6 == 0:
            expected = models[versions[-1]]
            loaded, info = InternImageForImageClassification.from_pretrained(copy, output_loading_info=True)
            assert_loaded_fully(info)
            assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in expected.state_dict().items())
            assert loaded.config.image_size == expected.config.image_size
            assert AutoImageProcessor.from_pretrained(copy).crop_size["height"] == expected.config.image_size
    assert versions == sorted(versions, reverse=True)
    assert {"old", "new"} == set(versions)
    assert len(versions) > 3 * len(WRITTEN)

    for copy in sorted(copies.iterdir())[::9]:
        hub.save_for_hub(models["new"], copy, card="new", max_shard_size=new_shards)
        assert set(os.listdir(copy)) == set(after)
        assert not any(path.is_symlink() for path in copy.iterdir())


def test_without_symbolic_links_files_are_replaced_one_after_another(tmp_path, monkeypatch):
    hub.save_for_hub(small(), tmp_path, max_shard_size="200KB", card="# Old\n")
    before = contents(tmp_path)
    monkeypatch.setattr(os, "symlink", fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_move(5))
        with pytest.raises(OSError, match="no space left"):
            hub.save_for_hub(small(channels=32), tmp_path, card="# New\n")
    assert contents(tmp_path) == before
    hub.save_for_hub(small(channels=32), tmp_path, card="# New\n")
    assert set(contents(tmp_path)) == WRITTEN
    assert InternImageForImageClassification.from_pretrained(tmp_path).config.channels == 32


def test_a_link_to_a_file_elsewhere_is_replaced_and_that_file_stays(tmp_path, monkeypatch):
    """As in the cache of the Hub."""
    hub.save_for_hub(small(), tmp_path / "blobs", card="# Old\n")
    (tmp_path / "repo").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "repo" / path.name).symlink_to(Path("..", "blobs", path.name))
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_move(9))
        with pytest.raises(OSError, match="no space left"):
            hub.save_for_hub(small(channels=32), tmp_path / "repo", card="# New\n")
    assert contents(tmp_path) == before
    hub.save_for_hub(small(channels=32), tmp_path / "repo", card="# New\n")
    assert not any(path.is_symlink() for path in (tmp_path / "repo").iterdir())
    assert InternImageForImageClassification.from_pretrained(tmp_path / "repo").config.channels == 32
    assert contents(tmp_path / "blobs") == {Path(name).name: data for name, data in before.items() if "blobs" in name}


@pytest.mark.parametrize("step", ["weights", "auto_map", "preprocessor", "first move"])
def test_a_failed_save_makes_no_folder(step, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        STEPS[step](patch)
        with pytest.raises(OSError, match="no space left"):
            hub.save_for_hub(small(), tmp_path / "repo")
    assert os.listdir(tmp_path) == []


class Subclass(InternImageForImageClassification):
    pass


def without_weights():
    with torch.device("meta"):
        return InternImageForImageClassification(tiny_config())


def with_another_head():
    model = small()
    model.head = nn.Linear(model.head.in_features, 7)
    return model


def with_an_adapter():
    model = small()
    model._hf_peft_config_loaded = True
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Linear(2, 2),
            r"model is a Linear, expected .*InternImageBackbone, .*InternImageForImageClass.*wrappers",
        ),
        (lambda: Subclass(tiny_config()), "model is a Subclass, expected"),
        (lambda: nn.DataParallel(small()), "model is a DataParallel, expected"),
        (without_weights, "meta device; load them first"),
        (with_an_adapter, "adapters loaded; merge them"),
        (with_another_head, r"not what its configuration describes: .*head.weight is \(7, 192\), expected \(5, 192\)"),
    ],
)
def test_models_that_a_repository_cannot_hold(make, message, tmp_path):
    model = make()
    with pytest.raises(ValueError, match=message):
        hub.save_for_hub(model, tmp_path / "repo")
    with pytest.raises(ValueError, match=message):  # before anything is asked of the Hub
        hub.push(model, NAME)
    assert os.listdir(tmp_path) == []


def test_the_destination_is_no_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; give the path of a folder"):
        hub.save_for_hub(small(), tmp_path / "file")
    with pytest.raises(ValueError, match="file is a file; give the path of a folder"):
        hub.push(small(), NAME, folder=tmp_path / "file")
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    hub.save_for_hub(small(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert set(os.listdir(tmp_path / "real")) == WRITTEN


PROCESSORS = {
    "released": {},
    "another size": {"size": {"shortest_edge": 97}, "crop_size": {"height": 97, "width": 97}},
    "not square": {"size": {"shortest_edge": 130}, "crop_size": {"height": 64, "width": 130}},
    "larger crop": {"size": {"shortest_edge": 50}, "crop_size": {"height": 81, "width": 60}},
    "both sides": {"size": {"height": 61, "width": 93}, "do_center_crop": False},
    "other numbers": {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 2,
        "rescale_factor": 0.01,
    },
    "nothing": dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_built_in_processor_gives_the_same_pixels(name, tmp_path):
    ours = InternImageImageProcessorPil(**PROCESSORS[name])
    hub.save_for_hub(small(), tmp_path, image_processor=ours)
    assert read_json(tmp_path / "preprocessor_config.json")["image_processor_type"] == "CLIPImageProcessor"
    built_in = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(built_in) is CLIPImageProcessorPil
    again = InternImageImageProcessorPil.from_pretrained(tmp_path)
    for size in ((224, 224), (331, 117), (97, 130), (64, 301), (23, 31)):
        for mode in ("RGB", "L", "RGBA", "P"):
            image = picture(*size, mode)
            expected = ours(image, return_tensors="pt").pixel_values
            for processor in (built_in, again):
                assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected), (size, mode)


def test_the_default_processor_has_the_size_of_the_model(tmp_path):
    for image_size, expected in ((96, (96, 96, 96)), ([64, 128], (128, 64, 128)), ((32,), (32, 32, 32))):
        hub.save_for_hub(small(image_size=image_size), tmp_path)
        saved = read_json(tmp_path / "preprocessor_config.json")
        assert (saved["size"]["shortest_edge"], *(saved["crop_size"][side] for side in ("height", "width"))) == expected
    with pytest.raises(ValueError, match=r"num_channels is 4, .*; give image_processor"):
        hub.save_for_hub(small(num_channels=4), tmp_path / "four")
    hub.save_for_hub(
        small(num_channels=4), tmp_path / "four", image_processor=InternImageImageProcessorPil(do_normalize=False)
    )


def test_other_image_processors(tmp_path, monkeypatch):
    hub.save_for_hub(small(), tmp_path / "vit", image_processor=ViTImageProcessorPil(size=48))
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "vit", backend="pil")) is ViTImageProcessorPil

    (tmp_path / "my_processor.py").write_text(
        "from transformers import CLIPImageProcessorPil\n\nclass MyProcessor(CLIPImageProcessorPil):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    processor = importlib.import_module("my_processor").MyProcessor()
    for wrong, message in (
        (processor, "image_processor is a MyProcessor, .*; call its register_for_auto_class"),
        ({}, "image_processor is a dict, expected"),
    ):
        with pytest.raises(ValueError, match=message):
            hub.save_for_hub(small(), tmp_path / "mine", image_processor=wrong)
    assert not (tmp_path / "mine").exists()
    type(processor).register_for_auto_class()
    hub.save_for_hub(small(), tmp_path / "mine", image_processor=processor)
    assert set(os.listdir(tmp_path / "mine")) == WRITTEN | {"my_processor.py"}
    saved = read_json(tmp_path / "mine" / "preprocessor_config.json")
    assert saved["auto_map"] == {"AutoImageProcessor": "my_processor.MyProcessor"}


@every_class
def test_the_card_of_a_model_nothing_is_known_of(build, tmp_path):
    hub.save_for_hub(small(build), tmp_path / "newts")
    text = (tmp_path / "newts" / "README.md").read_text()
    data = ModelCard(text).data
    task = "image-classification" if build is InternImageForImageClassification else "image-feature-extraction"
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        task,
        ["internimage", task, "dcnv3", "vision"],
    )
    assert data.license is None
    assert "# newts\n" in text
    compile(text.split("```python\n")[1].split("```")[0], "README.md", "exec")


def test_whose_card_it_is(tmp_path):
    mine = "---\nlicense: mit\n---\n# Größe\r\n"
    hub.save_for_hub(small(), tmp_path, card=mine)
    assert (tmp_path / "README.md").read_bytes() == mine.encode()
    hub.save_for_hub(small(), tmp_path)
    assert (tmp_path / "README.md").read_bytes() == mine.encode()
    card = ModelCard("---\nlicense: apache-2.0\n---\n# Other\n")
    hub.save_for_hub(small(), tmp_path, card=card)
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"


class Hub:
    """The loopback Hub, and what runs against it in processes of their own."""

    def __init__(self, server, folder):
        self.server, self.folder = server, folder
        self.saved, self.scratch = folder / "saved", folder / "scratch"
        self.scratch.mkdir()

    def run(self, code, home="home", **environment):
        """The code's standard output. It finds the tests' modules, and its temporary files are in `scratch`."""
        code = f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n" + textwrap.dedent(code)
        environment = {**self.server.environment(self.folder / home), "TMPDIR": str(self.scratch), **environment}
        return run_python(code, **environment)

    def files(self, repo_id, revision="main"):
        files = self.server.files(repo_id, revision)
        del files[".gitattributes"]
        return files


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The golden model tiny_h and its processor, saved in `saved` and pushed as NAME."""
    folder = tmp_path_factory.mktemp("pushed")
    with LoopbackHub(folder / "server") as server:
        hub_ = Hub(server, folder)
        hub.save_for_hub(golden_model("tiny_h"), hub_.saved, image_processor=InternImageImageProcessorPil(**ODD_SIZE))
        torch.save(model_input("tiny_h"), folder / "input.pt")
        picture(301, 227).save(folder / "picture.png")
        hub_.printed = hub_.run(
            f"""
            from support.golden_data import golden_model
            from hf_internimage import InternImageImageProcessorPil, hub

            processor = InternImageImageProcessorPil(**{ODD_SIZE})
            print(hub.push(golden_model("tiny_h"), {NAME!r}, image_processor=processor, max_shard_size="10MB").oid)
            """
        )
        yield hub_


def test_a_push_uploads_what_save_for_hub_writes(pushed):
    commits = list(pushed.server.repositories[NAME].commits.values())
    assert [commit.title for commit in commits] == ["initial commit", "Upload InternImageForImageClassification"]
    assert pushed.printed.split() == [commits[-1].oid]
    uploaded, saved = pushed.files(NAME), contents(pushed.saved)
    assert len([name for name in uploaded if name.startswith("model-")]) > 2
    assert all(uploaded[name] == saved[name] for name in WRITTEN - {"README.md", "model.safetensors"})
    assert f'model="{NAME}"' in uploaded["README.md"].decode()
    assert os.listdir(pushed.scratch) == []


# Prints what a model, a processor and a pipeline from `SOURCE` give.
USE = """
import json, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

pixels = torch.load(FOLDER + "/input.pt")
seen = {}

@torch.no_grad()
def use(auto, **options):
    model, info = auto.from_pretrained(SOURCE, trust_remote_code=True, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    seen[auto.__name__] = type(model).__module__
    return model.eval()(pixels, return_dict=True)

seen["logits"] = use(AutoModelForImageClassification).logits.tolist()
seen["features"] = use(AutoModel).pooler_output.tolist()
processor = AutoImageProcessor.from_pretrained(SOURCE, backend="pil")
seen["processor"] = type(processor).__name__
picture = Image.open(FOLDER + "/picture.png")
seen["pixels"] = processor(picture, return_tensors="pt").pixel_values.tolist()
classify = pipeline("image-classification", model=SOURCE, trust_remote_code=True)
seen["classes"] = classify(picture, top_k=10)
"""
DONE = "\nprint(json.dumps(seen))\n"


def use(source, folder):
    return f"SOURCE, FOLDER = {str(source)!r}, {str(folder)!r}\n{USE}"


def assert_used(seen, module):
    """What the process saw are the numbers of this one, and its classes are of the module that starts so."""
    for auto in ("AutoModel", "AutoModelForImageClassification"):
        assert seen[auto].startswith(module), seen[auto]
        assert seen[auto].endswith(".modeling_internimage")
    assert_golden_logits("tiny_h", seen["logits"])
    assert seen["processor"] == "CLIPImageProcessorPil"
    model, processor = golden_model("tiny_h"), InternImageImageProcessorPil(**ODD_SIZE)
    pixel_values = processor(picture(301, 227), return_tensors="pt").pixel_values
    assert torch.equal(torch.tensor(seen["pixels"]), pixel_values)
    with torch.no_grad():
        features = model.model(model_input("tiny_h")).pooler_output
        scores = model(pixel_values).logits.softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(seen["features"]), features, rtol=0, atol=1e-4)
    atol = 0.02 if is_torchvision_available() else 1e-5  # a pipeline takes torchvision where there is one
    for entry in seen["classes"]:
        assert entry["score"] == pytest.approx(scores[int(entry["label"].removeprefix("LABEL_"))].item(), abs=atol)


def test_without_the_package_from_the_hub_and_then_offline(pushed):
    code = WITHOUT_THE_PACKAGE + use(NAME, pushed.folder)
    printed = pushed.run(
        code
        + """
from transformers import AutoBackbone

out = use(AutoBackbone, out_features=["stage1", "stage4"])
seen["maps"] = [list(features.shape) for features in out.feature_maps]
seen["mean"] = out.feature_maps[-1].mean((2, 3)).tolist()
"""
        + DONE,
        home="without",
    )
    seen = json.loads(printed)
    assert_used(seen, "transformers_modules.tester.tiny_dot_h_hyphen_1.")
    assert seen["AutoBackbone"] == seen["AutoModel"]
    size = model_input("tiny_h").shape[-1]
    channels = model_case("tiny_h")[0]["config"]["channels"]
    assert seen["maps"] == [[2, channels, size // 4, size // 4], [2, channels * 8, size // 32, size // 32]]
    torch.testing.assert_close(torch.tensor(seen["mean"]), torch.tensor(seen["features"]))

    pushed.server.log.clear()
    offline = json.loads(pushed.run(code + DONE, home="without", HF_HUB_OFFLINE="1"))
    assert offline == {key: seen[key] for key in offline}
    assert pushed.server.log == []


def test_without_the_package_from_a_folder(pushed):
    seen = json.loads(pushed.run(WITHOUT_THE_PACKAGE + use(pushed.saved, pushed.folder) + DONE, HF_HUB_OFFLINE="1"))
    assert_used(seen, "transformers_modules.saved.")


def test_with_the_package_its_own_classes_are_used(pushed):
    """Also with trust_remote_code=True; the repository's files are not even fetched."""
    seen = json.loads(pushed.run("import hf_internimage\n" + use(NAME, pushed.folder) + DONE, home="with"))
    assert_used(seen, "hf_internimage.")
    assert not list((pushed.folder / "with").rglob("*.py"))


def test_installed_but_not_imported(pushed):
    """The repository's own code runs, with the package's operator; then both live in one process."""
    printed = pushed.run(
        f"""
import sys
SOURCE, FOLDER = {NAME!r}, {str(pushed.folder)!r}
from transformers import AutoModelForImageClassification

remote = AutoModelForImageClassification.from_pretrained(SOURCE, trust_remote_code=True).eval()
layers = sys.modules[type(remote).__module__.replace("modeling_", "layers_")]
from hf_internimage import ops
assert layers.dcnv3 is ops.dcnv3 and layers.fused_cpu is ops.fused_cpu
assert layers.__name__.startswith("transformers_modules."), layers.__name__
{USE}
seen["remote"] = type(remote).__module__
with torch.no_grad():
    seen["remote_logits"] = remote(pixels).logits.tolist()
ours = AutoModelForImageClassification.from_pretrained(SOURCE)
assert type(ours) is not type(remote) and type(ours.config) is not type(remote.config)
for key, tensor in ours.state_dict().items():
    assert torch.equal(remote.state_dict()[key], tensor), key

from hf_internimage import hub
remote.save_pretrained(FOLDER + "/resaved_by_transformers")
hub.save_for_hub(remote, FOLDER + "/resaved", image_processor=processor)
{DONE}""",
        home="installed",
    )
    seen = json.loads(printed)
    assert seen["remote"].startswith("transformers_modules.tester.")
    assert_used(seen, "hf_internimage.")
    assert seen["remote_logits"] == seen["logits"]
    assert contents(pushed.folder / "resaved") == {
        **contents(pushed.saved),
        "README.md": (pushed.folder / "resaved" / "README.md").read_bytes(),
    }
    again = AutoModelForImageClassification.from_pretrained(pushed.folder / "resaved_by_transformers")
    assert type(again) is InternImageForImageClassification


def test_push_again_and_elsewhere(pushed):
    """What stays and goes in the repository, in a folder and in a branch."""
    mine = "---\nlicense: mit\n---\n# Mine\n"
    (pushed.folder / "kept").mkdir()
    (pushed.folder / "kept" / "optimizer.pt").write_text("not for the Hub")
    printed = pushed.run(
        f"""
        from huggingface_hub import HfApi
        from hf_internimage import InternImageModel
        from support.golden_data import awaken, tiny_config
        from hf_internimage import hub

        model = awaken(InternImageModel(tiny_config()))
        api, folder = HfApi(), {str(pushed.folder / "kept")!r}
        print(hub.push(model, "newts", private=True, max_shard_size="200KB", commit_message="First").oid)
        api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="tester/newts")
        print(hub.push(model, "tester/newts", private=True, folder=folder).oid)
        print(hub.push(model, "newts").oid)  # nothing new
        print(hub.push(model, "newts", card={mine!r}, revision="v2").oid)
        print(hub.push(model, "newts", revision="v2").oid)
        print(hub.push(model, "hf-internimage-tests/newts", folder=folder, revision="main").repo_url)
        print(hub.push(model, "branched", card={mine!r}, revision="v2").oid)
        print(hub.push(model, "branched", revision="v2").oid)
        """
    )
    oids = printed.split()
    repository = pushed.server.repositories["tester/newts"]
    assert repository.private
    assert [commit.title for commit in repository.commits.values()][1] == "First"
    first, second = pushed.files("tester/newts", oids[0]), pushed.files("tester/newts", oids[1])
    assert len([name for name in first if name.startswith("model-0")]) > 2
    assert set(second) == WRITTEN | {"notes.txt"}
    assert second["README.md"] == first["README.md"]
    assert oids[1] == oids[2] == repository.branches["main"]
    assert oids[3] == oids[4] == repository.branches["v2"]
    assert pushed.files("tester/newts", "v2") == {**second, "README.md": mine.encode()}
    assert pushed.files("tester/branched", "v2")["README.md"] == mine.encode()  # the main branch has no card
    kept = contents(pushed.folder / "kept")
    assert kept.pop("optimizer.pt") == b"not for the Hub"
    assert b"hf-internimage-tests/newts" in kept.pop("README.md")  # tester/newts had a card already
    assert kept == {name: second[name] for name in WRITTEN - {"README.md"}}
    assert pushed.files("hf-internimage-tests/newts").keys() == WRITTEN
    assert not pushed.server.repositories["hf-internimage-tests/newts"].private
    assert os.listdir(pushed.scratch) == []


def test_pushes_that_fail(pushed):
    before = dict(pushed.server.repositories[NAME].branches)
    pushed.server.break_after("/api/models/tester/broken/commit/main", 100)
    printed = pushed.run(
        f"""
        import json, os, traceback
        from pathlib import Path
        from huggingface_hub import constants
        from support.golden_data import tiny_config
        from hf_internimage import InternImageModel, hub

        model, seen = InternImageModel(tiny_config()), {{"tracebacks": ""}}

        def attempt(name, repo_id="broken", **options):
            try:
                seen[name] = ("pushed", str(hub.push(model, repo_id, **options)))
            except (hub.PushError, ValueError) as error:
                seen["tracebacks"] += traceback.format_exc()
                folder = getattr(error, "folder", None)
                kept = None if folder is None else [str(folder), sorted(os.listdir(folder))]
                seen[name] = (type(error).__name__, str(error), kept)

        attempt("no token", token=False)
        attempt("wrong token", token="hf_wrong")
        attempt("of another", {NAME!r}, token={pushed.server.visitor_token!r})
        attempt("name", "a/b/c")
        attempt("public", {NAME!r}, private=True)
        attempt("upload")
        attempt("upload to a folder", card="---\\n- no mapping\\n---\\n", folder={str(pushed.folder / "failed")!r})
        attempt("pull request", {NAME!r}, create_pr=True)
        constants.ENDPOINT = "http://127.0.0.1:9"
        attempt("no network")
        constants.HF_HUB_OFFLINE = True
        attempt("offline")
        print(json.dumps(seen))
        """
    )
    seen = json.loads(printed)
    tracebacks = seen.pop("tracebacks")
    for token in ("hf_wrong", pushed.server.visitor_token, pushed.server.token):  # sent back by the server
        assert token not in json.dumps(seen)
        assert token not in tracebacks
    assert "Bearer [token]" in seen["wrong token"][1]
    assert "with [token]" in seen["of another"][1]
    sentences = {
        "no token": "was not uploaded: the Hub wants a valid token .*; log in with `hf auth login`",
        "wrong token": "was not uploaded: the Hub wants a valid token",
        "of another": "was not uploaded: the token may not do this .*; use one that may write, or a pull request; ",
        "public": "is public, nothing was uploaded; make it private in its settings",
        "upload": "was not uploaded: the Hub at http.* cannot be reached .* try again; the files are in ",
        "upload to a folder": "was not uploaded: .*metadata.*; the files are in .*failed",
        "pull request": r"the token may not do this \(This Hub has no pull requests\)",
        "no network": "the Hub at http://127.0.0.1:9 cannot be reached .*; check the connection",
        "offline": "HF_HUB_OFFLINE is set; unset it",
    }
    for name, pattern in sentences.items():
        kind, message, kept = seen[name]
        assert kind == "PushError", (name, message)
        assert re.search(pattern, message), (name, message)
        assert "\n" not in message
        if name in ("of another", "upload", "upload to a folder", "pull request"):
            assert kept[0] in message
            assert WRITTEN - set(kept[1]) <= {"README.md"}, name
        else:
            assert kept is None, name
    assert seen["name"][0] == "HFValidationError"
    assert len(os.listdir(pushed.scratch)) == 3  # of "upload", "of another" and "pull request"
    for folder in pushed.scratch.iterdir():
        shutil.rmtree(folder)
    assert pushed.server.repositories[NAME].branches == before
    assert set(pushed.server.files("tester/broken")) == {".gitattributes"}


@pytest.mark.parametrize("revision", [None, "v2", "refs/pr/1"])
def test_the_card_is_looked_for_in_the_revision_that_is_pushed(revision, monkeypatch):
    """There alone: what the main branch has says nothing of another one."""
    uploaded = []

    def upload(self, *, folder_path, revision, **_):
        uploaded.append((revision, (Path(folder_path) / "README.md").exists()))

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda *_, **__: RepoUrl(f"https://huggingface.co/{NAME}"))
    monkeypatch.setattr(hub.HfApi, "create_branch", lambda *_, **__: None)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    for cards in ({None, "v2", "refs/pr/1"} - {revision}, {revision}):  # revisions with a card
        monkeypatch.setattr(
            hub.HfApi, "file_exists", lambda _, repo_id, name, *, revision=None, cards=cards: revision in cards
        )
        hub.push(small(InternImageModel), NAME, revision=revision)
    assert uploaded == [(revision, True), (revision, False)]


def test_a_failed_save_leaves_no_temporary_files(tmp_path, monkeypatch):
    """The save of a push; what it asks of the Hub first is not asked here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("create_repo", "file_exists"):
        monkeypatch.setattr(hub.HfApi, name, lambda *args, **kwargs: RepoUrl(f"https://huggingface.co/{NAME}"))
    with monkeypatch.context() as patch:
        STEPS["preprocessor"](patch)
        with pytest.raises(OSError, match="no space left"):
            hub.push(small(), NAME)
    assert os.listdir(tmp_path) == []


def test_what_transformers_itself_pushes(pushed):
    """`push_to_hub` of model and processor: complete for whoever has the package."""
    printed = pushed.run(
        """
        from support.golden_data import golden_model
        from hf_internimage import InternImageImageProcessorPil
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model = golden_model("tiny_t")
        model.push_to_hub("plain")
        InternImageImageProcessorPil(size={"shortest_edge": 96}).push_to_hub("plain")
        again = AutoModelForImageClassification.from_pretrained("tester/plain")
        print(type(again).__module__, all((again.state_dict()[k] == v).all() for k, v in model.state_dict().items()))
        processor = AutoImageProcessor.from_pretrained("tester/plain")
        print(type(processor).__name__.removesuffix("Pil"), processor.size.shortest_edge)
        """
    )
    assert printed.split() == ["hf_internimage.models.modeling_internimage", "True", "InternImageImageProcessor", "96"]
    assert set(pushed.files("tester/plain")) > ISLAND


RESULT = {
    "dataset": {"name": "imagefolder", "config": None, "split": "test", "revision": None},
    "samples": 50,
    "metrics": {"top1": 0.5},
    "image_size": [64, 64],
    "dtype": "float32",
}


def run_script(capsys, *args):
    """Status, standard output and standard error of the command line."""
    status = main(["push", *map(str, args)])
    return status, *capsys.readouterr()


@every_class
def test_script_writes_the_class_it_finds(build, tmp_path, capsys):
    model = small(build)
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size=48).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# Mine\n")
    (tmp_path / "model" / "optimizer.pt").write_text("not for the Hub")
    status, out, err = run_script(capsys, tmp_path / "model", "me/x", "--dry-run", "--output-dir", tmp_path / "out")
    assert (status, out, err) == (0, f"written to {tmp_path / 'out'}\n", "")
    assert set(os.listdir(tmp_path / "out")) == WRITTEN
    assert read_json(tmp_path / "out" / "config.json")["architectures"] == [build.__name__]
    assert read_json(tmp_path / "out" / "preprocessor_config.json")["image_processor_type"] == "ViTImageProcessor"
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("model", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_script_takes_an_official_folder_with_its_head(tmp_path, capsys):
    write_official_folder("tiny_t", tmp_path / "official")
    arguments = ("--dry-run", "--output-dir", tmp_path / "out", "--license", "mit")
    assert run_script(capsys, tmp_path / "official", "me/newts", *arguments)[0] == 0
    assert read_json(tmp_path / "out" / "config.json")["architectures"] == ["InternImageForImageClassification"]
    assert read_json(tmp_path / "out" / "preprocessor_config.json")["crop_size"] == {"height": 224, "width": 224}
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.pipeline_tag) == ("mit", "image-classification")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    for key, tensor in golden_model("tiny_t").state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_script_puts_the_numbers_into_the_card(tmp_path, capsys):
    small().save_pretrained(tmp_path / "model")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    arguments = ["--dry-run", "--output-dir", tmp_path / "out", "--result", tmp_path / "result.json"]
    arguments += ["--license", "apache-2.0", "--base-model", "OpenGVLab/internimage_t_1k_224"]
    assert run_script(capsys, tmp_path / "model", "me/newts", *arguments)[0] == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results[0].metric_value == 0.5
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "OpenGVLab/internimage_t_1k_224")
    assert card.data.model_name == "newts"


def small_upernet():
    config = heads.head_config("upernet", tiny_config(), hidden_size=16, auxiliary_channels=8, num_labels=3)
    return UperNetForSemanticSegmentation(config), InternImageSegmentationImageProcessor()


def small_mask2former():
    fields = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 16}
    fields |= {"encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 16, "num_attention_heads": 2}
    config = heads.head_config("mask2former", tiny_config(), num_queries=5, num_labels=3, **fields)
    return Mask2FormerForUniversalSegmentation(config), InternImageSegmentationImageProcessor()


def small_detr():
    fields = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    fields |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5, "num_labels": 3}
    config = heads.head_config("detr", tiny_config(), **fields)
    return DetrForObjectDetection(config), InternImageDetectionImageProcessor()


def small_dino():
    return golden_dino(), InternImageDetectionImageProcessor()


SYSTEMS = {  # what makes the model -> its task, tag on the Hub, and the main metric of its evaluation
    small_upernet: ("semantic-segmentation", "image-segmentation", "mean_iou"),
    small_mask2former: ("semantic-segmentation", "image-segmentation", "mean_iou"),
    small_detr: ("object-detection", "object-detection", "map"),
    small_dino: ("object-detection", "object-detection", "map"),
}


@pytest.mark.parametrize("make", SYSTEMS, ids=lambda make: make.__name__)
def test_script_makes_repositories_of_segmenters_and_detectors(make, tmp_path, capsys):
    """With the numbers of an evaluation, and with a short card; they load again with this package."""
    task, tag, metric = SYSTEMS[make]
    model, processor = make()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "result.json").write_text(json.dumps({**RESULT, "metrics": {metric: 0.625}}))
    arguments = ["--result", tmp_path / "result.json", "--license", "mit", "--dry-run", "--output-dir"]
    assert run_script(capsys, tmp_path / "model", "me/new", *arguments, tmp_path / "out") == (
        0,
        f"written to {tmp_path / 'out'}\n",
        "",
    )
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.pipeline_tag, card.data.license) == (tag, "mit")
    assert task in card.data.tags
    assert card.data.eval_results[0].metric_value == 0.625
    assert "62.5 %" in card.text
    is_head = make is not small_dino
    assert ("Without `import hf_internimage`" in card.text) == is_head
    assert any(name.endswith(".py") for name in os.listdir(tmp_path / "out")) != is_head
    assert ("auto_map" in read_json(tmp_path / "out" / "config.json")) != is_head
    reloaded, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert_loaded_fully(info)
    for key, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[key], tensor), key
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "out")) is type(processor)

    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    status, _, error = run_script(capsys, tmp_path / "model", "me/new", *arguments, tmp_path / "other")
    assert (status, f"has no metrics.{metric}" in error) == (1, True), error
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    status, _, error = run_script(capsys, tmp_path / "model", "me/new", *arguments[2:], tmp_path / "other")
    assert (status, "model has no preprocessor_config.json; copy the one of its training" in error) == (1, True), error
    assert not (tmp_path / "other").exists()


def test_script_pushes_a_segmenter_that_loads_from_the_hub(pushed, tmp_path):
    for part in small_upernet():
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "optimizer.pt").write_text("not for the Hub")
    printed = pushed.run(
        f"""
        from hf_internimage_cli.main import main
        assert main(["push", {str(tmp_path / "model")!r}, "tester/segmenter", "--license", "mit"]) == 0
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
        print(type(AutoModelForSemanticSegmentation.from_pretrained("tester/segmenter")).__name__)
        print(type(AutoImageProcessor.from_pretrained("tester/segmenter")).__name__)
        """,
        home="segmenter",
    )
    assert printed.split()[-2:] == ["UperNetForSemanticSegmentation", "InternImageSegmentationImageProcessor"]
    files = pushed.files("tester/segmenter")
    assert set(files) - {".gitattributes"} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }
    assert b"UperNetForSemanticSegmentation" in files["README.md"]
    assert b"license: mit" in files["README.md"]


def test_script_pushes_from_the_hub_to_the_hub(pushed, capsys):
    printed = pushed.run(
        f"""
        from hf_internimage_cli.main import main
        assert main(["push", {NAME!r}, "copy", "--private", "--revision", "v2", "--license", "mit"]) == 0
        assert main(["push", {NAME!r}, {NAME!r}, "--private"]) == 1
        """,
        home="script",
    )
    repository = pushed.server.repositories["tester/copy"]
    assert printed == f"pushed: {pushed.server.url}/tester/copy/commit/{repository.branches['v2']}\n"
    assert repository.private
    assert set(pushed.server.files("tester/copy")) == {".gitattributes"}
    copied, saved = pushed.files("tester/copy", "v2"), contents(pushed.saved)
    assert copied.keys() == saved.keys()
    assert all(copied[name] == saved[name] for name in saved if name != "README.md")
    assert b"license: mit" in copied["README.md"]


def other_model(folder):
    (folder / "config.json").write_text('{"model_type": "vit"}')


def incomplete(folder):
    model = small()
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.patch_embed.conv1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_size(folder):
    small().save_pretrained(folder)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "channels": 32}))


def damaged(folder):
    small().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")


def nested_too_deeply(folder):
    good(folder)
    (folder / "config.json").write_text('{"a": ' * 10**5)


def with_checkpoints(folder):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-last"):
        (folder / name).mkdir()


def without_a_head(folder):
    small(InternImageModel).save_pretrained(folder)


def good(folder):
    small().save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda folder: None, [], "model has no config.json; give the folder of a saved model"),
        (lambda folder: (folder.rmdir(), folder.write_text("")), [], "model is a file; give the folder it lies in"),
        (with_checkpoints, [], "model has no config.json; give one of the checkpoints in it, such as .*/checkpoint-10"),
        (
            other_model,
            [],
            "is a model of type 'vit', expected a classifier, .* `hf upload REPO_ID .*model` uploads",
        ),
        (incomplete, [], r"has no weights for 1 tensors \(such as patch_embed.conv1.weight\); give a complete model"),
        (of_another_size, [], "size"),
        (damaged, [], "[Hh]eader"),
        (nested_too_deeply, [], "model has JSON that is nested too deeply"),
        (good, ["--result", "nowhere.json"], "nowhere.json: .*No such file"),
        (good, ["--result", __file__], "test_repository.py: Expecting value"),
        (
            without_a_head,
            ["--result", "nowhere.json"],
            "--result is for models with a head, and .* has none; leave",
        ),
    ],
)
def test_script_errors_are_one_line(make, arguments, message, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    make(tmp_path / "model")
    arguments = ["--output-dir", tmp_path / "out", *arguments, "--dry-run"]
    status, out, err = run_script(capsys, tmp_path / "model", "me/x", *arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(f"error: .*{message}.*\n", err), err
    assert os.listdir(tmp_path) in (["model"], [])


def test_script_refuses_arguments_that_do_not_go_together(tmp_path, capsys):
    for arguments, message in (
        (["--dry-run"], "--dry_run needs --output_dir"),
        (["--base-model", "x"], "needs --result"),
    ):
        assert main(["push", "model", "me/x", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_script_prints_no_token(pushed):
    """Which the server sends back."""
    pushed.run(
        """
        import contextlib, io
        from hf_internimage_cli.main import main

        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            assert main(["push", "tester/nowhere", "newts"]) == 1
        assert "[token]" in errors.getvalue(), errors.getvalue()
        assert "hf_WrongTokenOfUsualLength" not in errors.getvalue()
        """,
        home="no_token",
        HF_TOKEN="hf_WrongTokenOfUsualLength123",
    )


@pytest.mark.parametrize(
    ("text", "token", "expected"),
    [
        ("sent hf_abcdefghij0123456789 to x", None, "sent [token] to x"),
        ("Authorization: Bearer eyJhbGciOi.J9 is wrong", None, "Authorization: Bearer [token] is wrong"),
        ("secret, secrets", "secret", "[token], [token]s"),
        ("/home/me/hf_internimage and hf_internimage.hub", True, "/home/me/hf_internimage and hf_internimage.hub"),
        ("nothing", "", "nothing"),
    ],
)
def test_texts_without_tokens(text, token, expected):
    assert without_tokens(text, token) == expected


def test_a_token_file_of_another_user_hides_no_error(monkeypatch):
    def get_token():
        raise PermissionError(13, "Permission denied", "token")

    monkeypatch.setattr(tokens, "get_token", get_token)
    assert without_tokens("an error with secret", "secret") == "an error with [token]"


@pytest.mark.parametrize("token", [None, True, "given"])
def test_texts_without_the_token_of_the_login(token, monkeypatch):
    """Also where another one is given: a client may send either."""
    monkeypatch.setenv("HF_TOKEN", "of-the-login")
    given = "given" if token != "given" else "[token]"
    assert without_tokens("sent given and of-the-login", token) == f"sent {given} and [token]"


def test_script_says_why_a_push_failed(tmp_path, capsys):
    good(tmp_path)
    status, _, err = run_script(capsys, tmp_path, "me/x")
    assert (status, err) == (1, "error: me/x was not uploaded: HF_HUB_OFFLINE is set; unset it.\n")


class NotedHub:
    """Stands for the Hub's client: keeps what it is asked, and has no card."""

    def __init__(self, monkeypatch):
        self.calls, self.tokens = {}, []
        names = ("create_repo", "create_branch", "file_exists", "upload_folder", "repo_info")
        results = {"create_repo": RepoUrl(f"https://huggingface.co/{NAME}"), "file_exists": False}
        results |= {"upload_folder": "commit", "repo_info": SimpleNamespace(private=True)}
        for name in names:
            monkeypatch.setattr(hub.HfApi, name, self.noting(name, results.get(name)))

    def noting(self, name, result):
        def call(api, *arguments, **options):
            self.calls[name] = (arguments, options)
            self.tokens.append(api.token)
            return result

        return call


def test_what_a_push_asks_of_the_hub(tmp_path, monkeypatch):
    noted = NotedHub(monkeypatch)
    options = {"private": True, "token": "own", "revision": "v2", "commit_message": "Better", "folder": tmp_path}
    assert hub.push(small(InternImageModel), "tiny", **options) == "commit"
    assert set(noted.tokens) == {"own"}
    assert noted.calls["create_repo"] == (("tiny",), {"private": True, "exist_ok": True})
    assert noted.calls["create_branch"] == ((NAME,), {"branch": "v2", "exist_ok": True})
    uploaded = noted.calls["upload_folder"][1]
    assert (uploaded["repo_id"], uploaded["folder_path"], uploaded["revision"]) == (NAME, tmp_path, "v2")
    assert (uploaded["commit_message"], uploaded["create_pr"]) == ("Better", False)
    assert set(uploaded["allow_patterns"]) == WRITTEN
    assert set(os.listdir(tmp_path)) == WRITTEN  # a folder of the user stays
    assert f'"{NAME}"' in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, False), ({"revision": "v2"}, True), ({"revision": "v2", "create_pr": True}, False),
        ({"revision": "refs/pr/1"}, False),
    ],
)  # fmt: skip
def test_branches_that_a_push_makes(options, made, monkeypatch):
    noted = NotedHub(monkeypatch)
    hub.push(small(InternImageModel), "tiny", **options)
    assert ("create_branch" in noted.calls) is made
    assert "repo_info" not in noted.calls  # only of a repository that has to be private
    assert noted.calls["create_repo"][1]["private"] is None
    assert noted.tokens[0] is None
    uploaded = noted.calls["upload_folder"][1]
    assert uploaded["commit_message"] == "Upload InternImageModel"
    assert (uploaded["revision"], uploaded["create_pr"]) == (options.get("revision"), options.get("create_pr", False))
    assert not uploaded["folder_path"].exists()  # temporary


READ_TIMEOUT = type("ReadTimeout", (Exception,), {"__module__": "httpx._exceptions"})
UNREACHABLE = r"the Hub at http.* cannot be reached \({}\); check the connection and try again"


def failed(status, message=None):
    """Return an error of the Hub's client with the status of an answer."""
    error = OSError("answer\n of the Hub.")
    error.response, error.server_message = SimpleNamespace(status_code=status), message
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            failed(401),
            r"the Hub wants a valid token \(answer of the Hub\); log in with .*, or set HF_TOKEN",
        ),
        (failed(403, "not  you."), r"the token may not do this \(not you\); use one that may write, or a pull request"),
        (failed(404), r"the Hub or its client refused \(answer of the Hub\)"),
        (failed(500), r"the Hub or its client refused \(answer of the Hub\)"),
        (ConnectionError("gone"), UNREACHABLE.format("gone")),
        (TimeoutError("slow"), UNREACHABLE.format("slow")),
        (
            READ_TIMEOUT("slow"),
            r"the Hub at http.* cannot be reached \(slow\); check the connection and try again",
        ),
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set; unset it"),
    ],
)
def test_reasons_of_a_failed_push(error, reason, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub.HfApi, "create_repo", fail)
    with pytest.raises(hub.PushError, match=rf"^me/x was not uploaded: {reason}\.$") as caught:
        hub.push(small(InternImageModel), "me/x")
    assert caught.value.folder is None
    assert caught.value.__cause__ is error


def test_a_folder_with_the_files_that_were_not_uploaded(tmp_path, monkeypatch):
    NotedHub(monkeypatch)

    def fail(*_, **__):
        raise ConnectionError("gone with hf_abcdefghij0123456789")

    monkeypatch.setattr(hub.HfApi, "upload_folder", fail)
    with pytest.raises(hub.PushError, match=rf"\[token\].*; the files are in {tmp_path}\.$") as caught:
        hub.push(small(InternImageModel), "me/x", folder=tmp_path)
    assert caught.value.folder == tmp_path
    assert caught.value.__cause__ is None  # which would show the token


def test_a_public_repository_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    noted = NotedHub(monkeypatch)
    public = noted.noting("repo_info", SimpleNamespace(private=False))
    monkeypatch.setattr(hub.HfApi, "repo_info", public)
    with pytest.raises(hub.PushError, match="exists and is public, nothing was uploaded"):
        hub.push(small(InternImageModel), "tiny", private=True, folder=tmp_path)
    assert noted.calls["repo_info"][0] == (NAME,)
    assert not {"create_branch", "upload_folder"} & set(noted.calls)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--private"], {"private": True}),
        (["--create-pr"], {"create_pr": True}),
        (["--revision", "v2"], {"revision": "v2"}),
        (["--output-dir", "kept"], {"folder": Path("kept")}),
    ],
    ids=str,
)
def test_script_passes_its_options_on(arguments, expected, tmp_path, monkeypatch, capsys):
    calls = []

    def push(*given, **options):
        calls.append((given, options))
        return SimpleNamespace(pr_url="pull request" if options["create_pr"] else None, commit_url="commit")

    monkeypatch.setattr(hub, "push", push)
    good(tmp_path)
    InternImageImageProcessorPil(size={"shortest_edge": 48}).save_pretrained(tmp_path)
    status, out, _ = run_script(capsys, tmp_path, "me/x", *arguments)
    assert (status, out) == (0, f"pushed: {'pull request' if '--create-pr' in arguments else 'commit'}\n")
    ((model, name), options) = calls[0]
    assert (type(model), name) == (InternImageForImageClassification, "me/x")
    assert dict(options.pop("image_processor").size) == {"shortest_edge": 48}
    assert options == {"card": None, "private": None, "revision": None, "create_pr": False, "folder": None} | expected


def test_parameters_that_are_elsewhere_are_no_missing_weights(tmp_path, monkeypatch):
    """accelerate keeps them on the meta device while their values are on the disk."""
    saved = []
    monkeypatch.setattr(hub, "_save", lambda *arguments: saved.append(arguments))
    with torch.device("meta"):
        model = InternImageModel(tiny_config())
    with pytest.raises(ValueError, match="meta device; load them first"):
        hub.save_for_hub(model, tmp_path)
    model.hf_device_map = {"": "disk"}
    hub.save_for_hub(model, tmp_path)
    assert saved[0][0] is model
    assert saved[0][-1] == "5GB"
