# SPDX-License-Identifier: MIT
"""Model cards: those in model_cards/ are what the table gives, all are valid, and the code in them runs."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from support.golden_data import load_module, tiny_config
from support.loading import run_python
from support.loopback_hub import LoopbackHub
from support.paths import ROOT, SCRIPTS

from hf_internimage import (
    FlashInternImageConfig,
    FlashInternImageModel,
    InternImageConfig,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageModel,
    heads,
)
from hf_internimage.checkpoints.classifiers import CHECKPOINTS, SOURCE
from hf_internimage.hub import card_files, cards
from hf_internimage.hub.card_blocks import REPORTED, released_name
from hf_internimage.hub.cards import evaluated_card, official_card
from hf_internimage.hub.evaluation_blocks import class_table
from hf_internimage.hub.repository import short_card
from hf_internimage.hub.system_cards import published_system_card
from hf_internimage.hub.trained_cards import trained_card

BY_NAME = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}
RESULT = {
    "model": "somewhere/model",
    "dataset": {"name": "beans", "config": None, "split": "test", "revision": "abc123"},
    "samples": 128,
    "metrics": {"top1": 0.9296875, "top5": 0.984375, "loss": 0.2512},
    "image_size": [64, 96],
    "batch_size": 8,
    "dtype": "float32",
    "backend": "cpu",
    "device": "AMD EPYC",
    "images_per_second": 12.3456,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "hf_internimage": "0.1.0"},
    "date": "2026-11-21T12:00:00+00:00",
}
METADATA = {
    "base_model",
    "base_model_relation",
    "datasets",
    "library_name",
    "license",
    "metrics",
    "model-index",
    "pipeline_tag",
    "tags",
}


@pytest.fixture
def tiny(tmp_path):
    """A folder with a tiny classifier of 1000 classes and its processor, and a picture beside it."""
    config = InternImageConfig(
        channels=8, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], num_labels=1000, image_size=32, drop_path_rate=0.0
    )
    folder = tmp_path / "tiny"
    InternImageForImageClassification(config).save_pretrained(folder)
    InternImageImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    Image.new("RGB", (48, 40), "orange").save(tmp_path / "cat.jpg")
    return folder


def changed(path, value):
    """The evaluation's result with one field replaced, or left out where the value is None."""
    result = copy.deepcopy(RESULT)
    *parents, last = path.split(".")
    inner = result
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return result


def check(text, task="image-classification"):
    """Check that the Hub takes a card: known metadata, and a text without holes. Return the metadata."""
    assert text.startswith("---\n")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\r" not in text
    _, block, body = text.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert set(metadata) <= METADATA
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == task
    assert len(set(metadata["tags"])) == len(metadata["tags"])
    for name in [*metadata.get("datasets", []), *([metadata["base_model"]] if "base_model" in metadata else [])]:
        validate_repo_id(name)
    assert ("base_model" in metadata) == ("base_model_relation" in metadata)

    card = ModelCard(text)  # raises for a model-index it cannot read
    assert str(card) == text
    if "model-index" in metadata:
        name, results = model_index_to_eval_results(metadata["model-index"])
        assert eval_results_to_model_index(name, results) == metadata["model-index"]
        assert all(isinstance(result, EvalResult) for result in results)
        assert [result.metric_type for result in results] == [result.metric_type for result in card.data.eval_results]

    prose = re.sub(r"```.*?```", "(code)", body, flags=re.DOTALL)
    for hole in ("None", "{{", "}}", "{%", "nan", "Undefined"):
        assert hole not in prose, hole
    sections = re.split(r"^#+ .+$", prose, flags=re.MULTILINE)
    assert sections[0].strip() == ""
    assert len(sections) > 5
    assert all(section.strip() for section in sections[1:])
    assert body.count("```") % 2 == 0
    for link in re.findall(r"\]\((.*?)\)", body):
        assert re.fullmatch(r"https://[\w.-]+/[\w./#-]*", link), link
    for table in re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
    for code in python_blocks(text):
        compile(code, "card", "exec")
    return metadata


def write_cards(arguments):
    """The exit status of scripts/make_model_cards.py, run in this process."""
    return card_files.main(arguments, checkout=ROOT)


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_folder_is_what_the_table_gives():
    """Byte for byte, and nothing else is in it. If this fails: python scripts/make_model_cards.py"""
    folder = ROOT / "model_cards"
    names = [*BY_NAME, *(checkpoint.name for checkpoint in card_files.system_checkpoints())]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["README.md", *(f"{name}.md" for name in names)])
    for name, text in card_files.card_texts(ROOT).items():
        assert (folder / name).read_bytes() == text.encode(), name
    assert write_cards(["--check"]) == 0


@pytest.mark.parametrize("name", BY_NAME)
def test_official_card(name):
    checkpoint, text = BY_NAME[name], str(official_card(BY_NAME[name]))
    metadata, side = check(text), checkpoint.image_size
    assert metadata["license"] == "mit"
    assert metadata.get("base_model") == (checkpoint.base and f"OpenGVLab/{checkpoint.base}")
    assert ("ILSVRC/imagenet-1k" in metadata["datasets"]) == (checkpoint.num_labels == 1000)
    for part in (
        f"[{checkpoint.repo_id}](https://huggingface.co/{checkpoint.repo_id})",
        f"{released_name(checkpoint.size, checkpoint.model_type)}: ",
        f"{checkpoint.parameters:,} (",
        f"{checkpoint.macs / 1e9:.1f} G for one image of {side}x{side}, counted by us",
        f"scores of {checkpoint.num_labels} classes",
        *checkpoint.data,
        f'model="{checkpoint.repo_id}"',
    ):
        assert part in text, part
    assert ("multiples of 32" in text) == (checkpoint.size in ("h", "g"))
    assert ("uncurated" in text) == (checkpoint.size in ("h", "g"))
    assert ("imagenet_1k_labels" in text) == (checkpoint.num_labels == 1000)
    assert ("no accuracy for this head" in text) == (checkpoint.top1 is None)
    if checkpoint.reported_gflops:
        assert f'the authors report {checkpoint.reported_gflops} G "FLOPs"' in text


MEASURED = {
    "name": "another",
    "height": 512,
    "width": 704,
    "seconds": 8.123,
    "peak_memory_mib": 1280.0,
    "threads": 2,
    "device": "a processor",
    "dtype": "float32",
}


@pytest.mark.parametrize("checkpoint", card_files.system_checkpoints(), ids=lambda checkpoint: checkpoint.name)
def test_card_of_segmentation_or_detection(checkpoint):
    text = str(published_system_card(checkpoint, MEASURED))
    task = "image-segmentation" if checkpoint.task == "semantic-segmentation" else "object-detection"
    metadata = check(text, task)
    values = [result.metric_value for result in ModelCard(text).data.eval_results or []]
    assert values == [pytest.approx(score.value / 100) for score in checkpoint.scores]
    assert f"{checkpoint.parameters:,} (" in text
    assert f"hf-internimage convert {checkpoint.name}.pth {checkpoint.name}\n" in text
    assert "8.12 s and 1.25 GiB for one input of 512 x 704 in float32 on a processor, 2 threads" in text
    assert "measured on `another`" in text
    for score in checkpoint.scores:
        assert f"| {score.metric} | {score.value:g} % | {score.views} |" in text
    assert ("The authors report no result" in text) == (not checkpoint.scores)
    assert (f"crop_size={checkpoint.crop_size}" in text) == (checkpoint.mode == "slide")
    assert ("we know of no public file" in text) == (not checkpoint.released)
    assert ("hf-internimage[torchvision]" in text) == ("rcnn" in checkpoint.system)
    assert metadata["license"] == checkpoint.licence
    assert "Time and memory" not in str(published_system_card(checkpoint))


SYSTEM_METRICS = {
    "semantic-segmentation": {"mean_iou": 0.12345, "overall_accuracy": 1.0},
    "object-detection": {"map": 0.12345, "map_small": 0.0, "mar_1": 1.0, "loss": 1.0},
    "image-classification": {"mean_average_precision": 0.12345, "f1": 0.0},
}


@pytest.mark.parametrize("has_code", [True, False])
@pytest.mark.parametrize("task", SYSTEM_METRICS)
def test_card_of_a_trained_model(task, has_code):
    """All tasks have the sections of a classifier's card: facts, accuracy, use, training, limits, licence, citation."""
    model = InternImageForImageClassification(InternImageConfig(channels=8, depths=[1], groups=[1], num_labels=7))
    evaluation = {**RESULT, "metrics": SYSTEM_METRICS[task]}
    options = {"base_model": "me/base", "license": "mit", "evaluation": evaluation, "training": {"Steps": "a|b"}}
    text = str(trained_card(model, "me/new", task=task, has_code=has_code, **options))
    pipeline = "image-segmentation" if task == "semantic-segmentation" else task
    metadata = check(text, pipeline)
    assert (metadata["license"], metadata["base_model"], metadata["datasets"]) == ("mit", "me/base", ["beans"])
    assert metadata["tags"][:2] == ["internimage", pipeline]
    assert task in metadata["tags"]
    (result,) = ModelCard(text).data.eval_results
    assert (result.metric_value, result.dataset_split) == (0.12345, "test")
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    assert titles == ["new", "Accuracy", "Use", "Training", "Limits", "Licence", "Citation"]
    for part in (
        f"| Model | `{type(model).__name__}` |", f"| Parameters | {model.num_parameters():,} |", "| Classes | 7 |",
        "| Images | 128 |", "| Input | RGB, resized to fit 64 x 96 pixels |", " | 12.3 % |\n", "| Steps | a\\|b |",
        "Measured on one data set only, beans: ", "It may share the limits", "fine-tuned from [me/base]", "`mit`",
    ):  # fmt: skip
        assert part in text, part
    assert ("Without `import hf_internimage`" in text) == (not has_code)
    assert ("trust_remote_code=True" in text) == (has_code and task != "semantic-segmentation")
    assert len(python_blocks(text)) == 1


def test_card_of_a_model_that_was_not_evaluated():
    model = InternImageForImageClassification(InternImageConfig(channels=8, depths=[1], groups=[1], num_labels=7))
    options = {"license": None, "base_model": None, "evaluation": None, "training": {}}
    text = str(trained_card(model, "new", task="object-detection", has_code=True, **options))
    metadata = check(text, "object-detection")
    assert metadata["tags"] == ["internimage", "object-detection", "dcnv3", "vision"]
    assert not {"license", "base_model", "model-index"} & set(metadata)
    assert "## Accuracy\n\nIt was not evaluated.\n" in text
    assert "import hf_internimage  # makes" not in text


def test_cards_of_a_flash_internimage():
    """Its own name, paper and operator: short cards with and without own code, and those of trained models."""
    config = FlashInternImageConfig(channels=16, depths=[1] * 4, groups=[1, 2, 4, 8], num_labels=3)
    trunk = FlashInternImageModel(config)
    segmenter = heads.from_backbone("upernet", trunk, hidden_size=16, auxiliary_channels=16)
    trained = {"has_code": False, "base_model": None, "license": None, "evaluation": None, "training": {}}
    for card in (
        short_card(trunk, "me/newts"),
        short_card(segmenter, "me/land"),
        trained_card(segmenter, "me/land", task="semantic-segmentation", **trained),
        evaluated_card({**RESULT, "model_type": "flash_internimage"}, model_id="me/newts"),
    ):
        assert card.data.tags[-2:] == ["dcnv4", "vision"]
        text = card.text.replace("makes the Auto classes and pipelines know InternImage", "")
        assert re.search(r"\bInternImage (is|model)|\[InternImage\]|2211.05778", text) is None
        assert "FlashInternImage" in text
        assert "https://arxiv.org/abs/2401.06197" in text
    assert "A [FlashInternImage](https://arxiv.org/abs/2401.06197) model" in str(short_card(trunk, "me/newts"))
    assert "An [InternImage](https://arxiv.org/abs/2211.05778) model" in str(
        short_card(InternImageModel(tiny_config()), "me/newts")
    )


def test_classes_on_a_card():
    rows = [{"class": "a|b", "images": 1234, "precision": 0.5, "recall": 0.25}]
    rows += [{"class": "dog", "images": 1, "precision": None, "recall": 0.0}]
    rows += [{"class": "ape", "images": 0, "precision": 0.0, "recall": None}]
    table = class_table({"per_class": rows})
    assert table.splitlines() == [
        "Each class:", "", "| Class | Images | Precision | Recall |", "| --- | --- | --- | --- |",
        "| a\\|b | 1,234 | 50.0 % | 25.0 % |", "| dog | 1 | - | 0.0 % |",
    ]  # fmt: skip
    assert class_table({"class_iou": {"cat": 0.5, "dog": None}}).endswith(
        "| Class | IoU |\n| --- | --- |\n| cat | 50.0 % |"
    )
    values = {f"class {index}": 1 - index / 1000 for index in range(1000)}
    lines = class_table({"map_per_class": values}).splitlines()
    assert lines[0] == "The 20 of 1,000 classes with the lowest values:"
    assert lines[4] == "| class 999 | 0.1 % |"
    assert len(lines) == 4 + 20
    assert class_table({"class_iou": {"cat": None}}) == class_table({}) == ""
    text = str(evaluated_card({**RESULT, "per_class": rows}, model_id="me/model"))
    check(text)
    assert table in text


def test_measurements_are_shared_by_equal_systems_only():
    by_name = {checkpoint.name: checkpoint for checkpoint in card_files.system_checkpoints()}
    rows = [{"name": "upernet_internimage_l_512x1024_160k_cityscapes"}]

    def measured(name):
        return card_files.measurement_of(by_name[name], rows)

    assert measured("upernet_internimage_l_512x1024_160k_cityscapes") is rows[0]
    assert measured("upernet_internimage_l_512x1024_80k_mapillary") is rows[0]
    assert measured("upernet_internimage_xl_512x1024_160k_cityscapes") is None
    assert measured("upernet_internimage_l_640_160k_ade20k") is None


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({}, True), ({"parameters": 1_009}, True), ({"parameters": 990}, False), ({"parameters": 1_011}, False),
        ({"system": "mask2former"}, False), ({"size": "s"}, False), ({"shortest_edge": 2}, False),
        ({"longest_edge": 2}, False), ({"size_divisor": 2}, False), ({"num_labels": 2}, True),
    ],
)  # fmt: skip
def test_systems_are_equal_by_their_architecture_and_input(change, shared, monkeypatch):
    own = replace(
        card_files.system_checkpoints()[0], name="own", system="upernet", size="t", shortest_edge=1, longest_edge=1,
        size_divisor=1, num_labels=1, parameters=1_000,
    )  # fmt: skip
    other = replace(own, name="other", **change)
    monkeypatch.setattr(card_files, "system_checkpoints", lambda: [own, other])
    rows = [{"name": "other"}]
    assert card_files.measurement_of(own, rows) is (rows[0] if shared else None)


@pytest.mark.parametrize("name", BY_NAME)
def test_reported_accuracy_says_whose_it_is(name):
    """Once in the metadata, with the source, and once in the text, with the same mark; nothing for the 22K heads."""
    checkpoint, card = BY_NAME[name], official_card(BY_NAME[name])
    assert REPORTED == "reported by the authors, not measured by us"
    if checkpoint.top1 is None:
        assert card.data.eval_results is None
        assert "model-index" not in str(card)
        assert REPORTED not in str(card)
        return
    (result,) = ModelCard(str(card)).data.eval_results
    assert result.metric_value == pytest.approx(checkpoint.top1 / 100)
    assert (result.metric_type, result.metric_name) == ("accuracy", f"Top-1 accuracy, {REPORTED}")
    assert (result.dataset_type, result.dataset_split) == ("ILSVRC/imagenet-1k", "validation")
    assert (result.source_name, result.source_url) == ("OpenGVLab/InternImage", SOURCE)
    assert not result.verified
    line = f"| {checkpoint.top1:.1f} % | [model zoo]({SOURCE}): {REPORTED} |"
    assert line in str(card)


def test_index():
    text = card_files.card_texts(ROOT)["README.md"]
    assert f"The accuracies are\n{REPORTED}." in text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (ROOT / "model_cards" / link).is_file(), link
    assert len(re.findall(r"^\| \[internimage", text, flags=re.MULTILINE)) == 11
    count = len(CHECKPOINTS) + len(card_files.system_checkpoints())
    assert len(re.findall(r"^\| \[", text, flags=re.MULTILINE)) == count


@pytest.mark.parametrize("name", ["internimage_t_1k_224", "internimage_h_jointto22k_384"])
def test_the_code_of_official_cards_runs(name, tiny, monkeypatch, capsys):
    """With a tiny model in place of the checkpoint."""
    monkeypatch.chdir(tiny.parent)
    blocks = python_blocks(str(official_card(BY_NAME[name])))
    assert len(blocks) == 3
    variables = {}
    for code in blocks:
        code = code.replace(BY_NAME[name].repo_id, str(tiny)).replace("384, 384", "96, 96")
        exec(compile(code, name, "exec"), variables)
    printed = capsys.readouterr().out
    assert ("LABEL_" in printed) == (name != "internimage_t_1k_224")
    assert len(variables["features"]) == 4
    assert variables["model"].num_labels == 10


def test_card_of_an_evaluation(tiny, monkeypatch):
    card = evaluated_card(
        RESULT,
        model_id="me/my-beans",
        base_model="OpenGVLab/internimage_t_1k_224",
        license="apache-2.0",
        training={"Epochs": 3, "Learning rate": 1e-4, "Odd | setting": "two\nlines"},
    )
    metadata = check(str(card))
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "OpenGVLab/internimage_t_1k_224"
    assert metadata["datasets"] == ["beans"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "my-beans"
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in results] == [
        ("accuracy", "Top-1 accuracy", 0.929688),
        ("accuracy", "Top-5 accuracy", 0.984375),
        ("loss", "Cross-entropy", 0.2512),
    ]
    assert {(r.dataset_type, r.dataset_name, r.dataset_split, r.dataset_revision) for r in results} == {
        ("beans", "beans", "test", "abc123")
    }
    assert not any(r.source_url or r.verified for r in results)
    text = str(card)
    for part in (
        "# my-beans\n",
        "fine-tuned from [OpenGVLab/internimage_t_1k_224](https://huggingface.co/OpenGVLab/internimage_t_1k_224)",
        "| Evaluated on | beans, test, abc123 |",
        "| Images | 128 |",
        "| Input | RGB, 64x96 |",
        "| Images per second | 12.35 |",
        "| Versions | torch 2.13.0, transformers 5.23.0, hf_internimage 0.1.0 |",
        "| Top-1 accuracy | 92.97 % | 87.18 to 96.26 % |",
        "| Cross-entropy | 0.2512 | - |",
        "| Odd \\| setting | two lines |",
        "## Licence\n\n`apache-2.0`\n",
    ):
        assert part in text, part
    assert REPORTED not in text

    monkeypatch.chdir(tiny.parent)
    for code in python_blocks(text):
        exec(compile(code.replace("me/my-beans", str(tiny)), "card", "exec"), {})


def test_card_of_the_least_that_an_evaluation_says():
    result = {name: RESULT[name] for name in ("samples", "image_size", "dtype")}
    result |= {"dataset": {"name": "beans", "split": "validation"}, "metrics": {"top1": 1}}
    metadata = check(str(evaluated_card(result, model_id="beans")))
    assert "license" not in metadata
    assert "base_model" not in metadata
    (result,) = model_index_to_eval_results(metadata["model-index"])[1]
    assert result.metric_value == 1
    text = str(evaluated_card(RESULT, model_id="beans"))
    assert "## Training" not in text
    assert "Not stated" in text


@pytest.mark.parametrize(
    ("model_type", "backbone"),
    [(None, "InternImageBackbone"), ("cb_internimage", "CBInternImageBackbone"), ("convnext", None)],
)
def test_the_backbone_is_of_the_model_type_in_the_result(model_type, backbone):
    """Older results without a `model_type` are InternImage's; models of other packages have no backbone of ours."""
    text = str(evaluated_card(RESULT | ({"model_type": model_type} if model_type else {}), model_id="me/model"))
    check(text)
    assert re.findall(r"from hf_internimage import (\w+)", text) == ([backbone] if backbone else [])
    assert ("As a backbone" in text) == (backbone is not None)


def test_released_names():
    assert [released_name(size) for size in ("t", "xl")] == ["InternImage-T", "InternImage-XL"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/someone/data/beans", "beans"),
        ("C:\\Users\\someone\\beans\\", "beans"),
        ("../beans", "beans"),
        ("imagefolder", "imagefolder"),
        (str(Path(__file__).parent), Path(__file__).parent.name),
        ("/", "local images"),
    ],
    ids=["posix", "windows", "relative", "no name", "this one", "root"],
)
def test_folders_are_not_given_away(name, shown):
    """Of data in a folder, a card shows the folder's name only, and names no data set of the Hub."""
    card = evaluated_card(changed("dataset.name", name), model_id="me/model")
    metadata = check(str(card))
    assert "datasets" not in metadata
    (dataset,) = {(r.dataset_type, r.dataset_name) for r in card.data.eval_results}
    assert dataset == ("imagefolder", shown)
    assert "someone" not in str(card)
    assert "somewhere" not in str(card)
    named = evaluated_card(changed("dataset.name", name), model_id="me/model", dataset="AI-Lab-Makerere/beans")
    assert check(str(named))["datasets"] == ["AI-Lab-Makerere/beans"]


def test_a_folder_that_could_be_a_repository(tmp_path, monkeypatch):
    (tmp_path / "images" / "beans").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "datasets" not in check(str(evaluated_card(changed("dataset.name", "images/beans"), model_id="m")))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("metrics", None, r"The result of the evaluation has no metrics\.top1; evaluate the model again"),
        ("metrics.top1", None, r"has no metrics\.top1"),
        (
            "metrics.top1",
            92.97,
            r"metrics\.top1 of the evaluation's result is 92\.97, expected a number of at least 0 an",
        ),
        ("metrics.top1", float("nan"), r"metrics\.top1 of the evaluation's result is nan"),
        ("metrics.top1", True, r"metrics\.top1 of the evaluation's result is True"),
        ("metrics.top5", "0.9", r"metrics\.top5 of the evaluation's result is '0\.9'"),
        ("metrics.loss", float("inf"), r"metrics\.loss of the evaluation's result is inf, expected a number\."),
        ("samples", 0, r"samples of the evaluation's result is 0, expected a number of at least 1\."),
        ("image_size", 64, r"image_size of the evaluation's result is 64, expected \[height, width\] in pixels"),
        ("image_size", [64], r"image_size of the evaluation's result is \[64\]"),
        ("dataset.name", None, r"has no dataset\.name"),
        ("dataset.split", None, r"has no dataset\.split"),
        ("dtype", None, "has no dtype"),
    ],
)
def test_results_that_cannot_be(path, value, message):
    with pytest.raises(ValueError, match=message):
        evaluated_card(changed(path, value), model_id="me/model")


@pytest.mark.parametrize("field", ["model_id", "base_model", "dataset"])
@pytest.mark.parametrize("value", ["/data/model", "a/b/c", "", "a b"])
def test_names_that_are_no_repository(field, value):
    with pytest.raises(ValueError, match=f"{field} is '{value}', expected the name of a repository on the Hub"):
        evaluated_card(RESULT, **{"model_id": "me/model", field: value})


def test_values_are_no_template(tmp_path):
    """Values of an evaluation are shown unchanged, and never run as a template."""
    text = str(evaluated_card(changed("device", "{{ 7 * 7 }} {% raw %}"), model_id="me/model"))
    assert "| Device | {{ 7 * 7 }} {% raw %} |" in text


def test_script_calls_the_package():
    assert load_module(SCRIPTS / "make_model_cards.py").main is card_files.main


def test_script(tmp_path, capsys):
    folder = tmp_path / "cards"
    assert write_cards(["--folder", str(folder)]) == 0
    count = len(card_files.card_texts(ROOT))
    assert f"{count - 1} cards, {count} files changed" in capsys.readouterr().out
    assert write_cards(["--folder", str(folder), "--check"]) == 0
    (folder / "internimage_t_1k_224.md").write_text("mine")
    (folder / "stranger.md").write_text("")
    assert write_cards(["--folder", str(folder), "--check"]) == 1
    assert "Not up to date: internimage_t_1k_224.md, stranger.md; run python" in capsys.readouterr().err


def test_script_for_an_evaluation(tmp_path, capsys):
    source, target = tmp_path / "result.json", tmp_path / "new" / "README.md"
    source.write_text(json.dumps(RESULT))
    command = ["--evaluation", str(source), "--model-id", "me/model", "--license", "mit"]
    assert write_cards(command) == 0
    printed = capsys.readouterr().out
    assert check(printed)["license"] == "mit"
    assert write_cards([*command, "--output", str(target)]) == 0
    assert target.read_bytes() == printed.encode()
    source.write_text("{}")
    assert write_cards(command) == 1
    assert "The result of the evaluation has no image_size" in capsys.readouterr().err
    source.write_text("{")
    assert write_cards(command) == 1
    for arguments, message in (
        (["--evaluation", str(source)], "--evaluation needs --model-id"),
        (["--model-id", "me/model"], "--model-id is for the card of one model: give its --evaluation"),
    ):
        with pytest.raises(SystemExit, match="2"):
            write_cards(arguments)
        assert message in capsys.readouterr().err


def test_the_hubs_validation(tmp_path):
    """`ModelCard.validate()` over HTTP, against the tests' own Hub; with a card it must refuse."""
    own = tmp_path / "own.md"
    own.write_text(str(evaluated_card(RESULT, model_id="me/model")))
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = run_python(
            f"""
            from pathlib import Path
            from huggingface_hub import ModelCard

            cards = [*sorted(Path({str(ROOT / "model_cards")!r}).glob("internimage*.md")), Path({str(own)!r})]
            for path in cards:
                ModelCard.load(path).validate()
            try:
                ModelCard("---\\nlicense: [mit\\n---\\n", ignore_metadata_errors=True).validate()
            except Exception as error:
                print(len(cards), type(error).__name__)
            """,
            **hub.environment(tmp_path / "home"),
        )
        assert printed.startswith("12 ")
        assert [(method, path, status) for method, path, status in hub.log] == [
            ("POST", "/api/validate-yaml", 200)
        ] * 12


@pytest.mark.parametrize("stages", [3, 4])
def test_the_code_for_a_backbone_runs_for_any_number_of_stages(stages, tmp_path):
    config = tiny_config(depths=[1] * stages, groups=[1, 2, 4, 8][:stages])
    InternImageForImageClassification(config).save_pretrained(tmp_path)
    text = cards._backbone_use("internimage", tmp_path.as_posix(), 64, 64)
    names = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    assert [features.shape[-1] for features in names["features"]] == [16, 8, 4, 2][:stages]


def test_every_fact_of_an_evaluation_is_on_its_card():
    result = changed("dataset.config", "small")
    options = {"base_model": "me/base", "license": None, "training": {"Epochs": 3}}
    card = evaluated_card(result, model_id="me/model", **options)
    for part in (
        "| Evaluated on | beans, small, test, abc123 |", "| Computed in | float32 |", "| Device | AMD EPYC |",
        "| Operator's backend | cpu |", "| Batch size | 8 |", "| Date | 2026-11-21T12:00:00+00:00 |", "| Epochs | 3 |",
        "| Top-5 accuracy | 98.44 % | 94.48 to 99.57 % |", "## Licence\n\nNot stated by whoever made this model.\n",
        "Measured on one data set only, beans: ", "It may share the limits of the checkpoint it was fine-tuned from.",
    ):  # fmt: skip
        assert part in str(card), part
    assert card.data.base_model_relation == "finetune"
    assert [result.dataset_config for result in card.data.eval_results] == ["small"] * 3
    assert [result.metric_args for result in card.data.eval_results] == [None, {"k": 5}, None]
    alone = str(evaluated_card(RESULT, model_id="me/model"))
    assert "fine-tuned from" not in alone.partition("To fine-tune")[0]
    assert "## Training" not in alone


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_ends_of_a_share(value):
    text = str(evaluated_card(changed("metrics.top1", value), model_id="me/model"))
    low, high = {0: ("0.00", "2.91"), 1: ("97.09", "100.00"), 0.5: ("41.47", "58.53")}[value]
    assert f"| Top-1 accuracy | {100 * value:.2f} % | {low} to {high} % |" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metrics.top1", -1e-9), ("metrics.top1", 1 + 1e-9), ("metrics.top5", -1e-9), ("metrics.top5", 1 + 1e-9),
        ("samples", 0.5), ("images_per_second", -1), ("image_size", [64, 0]), ("image_size", [64, 64, 3]),
        ("image_size", [64, 32.0]), ("image_size", "64"),
    ],
)  # fmt: skip
def test_numbers_beyond_their_ends(path, value):
    with pytest.raises(ValueError, match=re.escape(f"{path} of the evaluation's result is {value!r}, expected ")):
        evaluated_card(changed(path, value), model_id="me/model")


def test_script_passes_its_options_on(tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    command = ["--evaluation", str(tmp_path / "result.json"), "--model-id", "me/model"]
    assert write_cards([*command, "--base-model", "me/base", "--dataset", "me/beans"]) == 0
    data = ModelCard(capsys.readouterr().out).data
    assert (data.license, data.base_model, data.datasets) == (None, "me/base", ["me/beans"])


def test_script_tells_how_many_files_it_changed(tmp_path, capsys):
    arguments = ["--folder", str(tmp_path / "cards")]
    assert write_cards(["--check", *arguments]) == 1
    assert not (tmp_path / "cards").exists()
    capsys.readouterr()
    assert write_cards(arguments) == 0
    assert ", 0 files changed" not in capsys.readouterr().out
    (tmp_path / "cards" / "README.md").unlink()
    assert write_cards(arguments) == 0
    assert ", 1 files changed, in " in capsys.readouterr().out
