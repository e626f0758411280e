# SPDX-License-Identifier: MIT
"""The documentation: its Python blocks run, each alone, on tiny models; its commands, links and messages are right."""

import importlib.util
import re
import shutil
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.documentation import PAGES, commands, languages, python_blocks, read, split_commands
from support.golden_data import tiny_config
from support.golden_detectors import golden_dino
from support.golden_segmenters import golden_segmenter
from support.paths import BENCHMARKS, DOCS, ROOT
from support.rcnn_tools import tiny_config as rcnn_config
from support.rcnn_tools import why_no_torchvision

from hf_internimage import (
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageSegmentationImageProcessor,
    hub,
)
from hf_internimage.training.example_data import scenes
from hf_internimage_cli.main import COMMANDS, build_parser, main
from hf_internimage_cli.names import TASKS
from hf_internimage_cli.settings import setting_names

# Programs that are not ours; their options are not checked.
OTHER_PROGRAMS = {".venvScriptsactivate", "curl", "docker", "export", "g++", "hf", "ln", "mkdir", "py", "trtexec"}
OTHER_PROGRAMS |= {"uvicorn"}
# Options of docker, torchrun, accelerate, tensorboard, tritonserver and xcode-select in sentences.
OTHER_OPTIONS = {
    "--install",
    "--cpu",
    "--max-restarts",
    "--logdir",
    "--machine_rank",
    "--main_process_ip",
    "--nproc-per-node",
    "--num_machines",
}
OTHER_OPTIONS |= {"--model-repository", "--num_processes", "--shm-size", "--user"}
LAUNCHERS = {"accelerate", "python", "torchrun"}
# Names that stand for a checkpoint with the tiny model; both kinds load alike, since they are folders here.
CLASSIFIERS = ["out", "internimage-t", "internimage_t_1k_224", "OpenGVLab/internimage_t_1k_224"]


def picture(folder, name, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 75, 3), np.uint8)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with what the pages take for granted: checkpoints under their names, and pictures."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    classifier = InternImageForImageClassification(tiny_config(num_labels=3, image_size=32))
    processor = InternImageImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for name in CLASSIFIERS:
        classifier.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    hub.save_for_hub(classifier, folder / "me" / "my-internimage", image_processor=processor)
    size = {"shortest_edge": 64, "longest_edge": 256}
    golden_segmenter("upernet_tiny").save_pretrained(folder / "upernet-t")
    InternImageSegmentationImageProcessor(size=size).save_pretrained(folder / "upernet-t")
    golden_dino().save_pretrained(folder / "dino-t")
    InternImageDetectionImageProcessor(size=size).save_pretrained(folder / "dino-t")
    if why_no_torchvision() is None:
        from hf_internimage.models.mask_rcnn import InternImageMaskRCNNForInstanceSegmentation

        InternImageMaskRCNNForInstanceSegmentation(rcnn_config()).save_pretrained(folder / "mask-rcnn-t")
        InternImageDetectionImageProcessor(size=size).save_pretrained(folder / "mask-rcnn-t")
    for name in ("cat.jpg", "street.jpg", "new_photos/1.jpg", "new_photos/2.png"):
        picture(folder, name)
    scenes.main(f"{folder / 'scenes'} --source shapes --train 16 --validation 2 --size 64".split())
    for split, name in (("train", "00000"), ("val", "00001")):
        picture(folder, f"VOC2012/JPEGImages/{name}.jpg")
        picture(folder, f"VOC2012/SegmentationClass/{name}.png")
        lists = folder / "VOC2012" / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text(f"{name}\n")
    for label in ("daisy", "rose", "tulip"):
        for index in range(4):
            picture(folder, f"photos/{label}/{index}.jpg", seed=index)
            picture(folder, f"other_photos/{label}/{index}.jpg", seed=index + 4)
    return folder


@pytest.fixture
def folder(examples, monkeypatch):
    """The working directory of the examples."""
    monkeypatch.chdir(examples)
    return examples


def check_segmentation(names):
    assert names["labels"].shape == (50, 75)
    assert names["labels"].unique().numel() > 1


def check_detection(names):
    detections = names["detections"]
    assert {key: value.shape[1:] for key, value in detections.items()} == {"scores": (), "labels": (), "boxes": (4,)}
    assert torch.all(detections["scores"] >= 0.3)


def check_detector(names):
    assert names["model"].config.num_labels == 3


def check_feature_maps(names):
    assert [tuple(each.shape[2:]) for each in names["features"]] == [(56, 56), (28, 28), (14, 14), (7, 7)]


def check_head(names):
    assert names["logits"].shape == (1, 19, 128, 128)


def check_steps_of_a_head(names):
    assert names["prefix"].endswith("backbone.model.")
    assert type(names["detector"]) is transformers.RTDetrForObjectDetection


# What blocks leave behind; of the others it is enough that they run.
RESULTS = {
    ("segmentation.md", 0): check_segmentation,
    ("detection.md", 1): check_detection,
    ("detection.md", 2): check_detector,
    ("quickstart.md", 1): check_feature_maps,
    ("heads.md", 0): check_head,
    ("heads.md", 2): check_steps_of_a_head,
}


@pytest.mark.parametrize(
    ("page", "number", "text"), [pytest.param(*block, id=f"{block[0]}-{block[1]}") for block in python_blocks()]
)
def test_python_block_runs_alone(folder, page, number, text):
    if "mask_rcnn" in text and (reason := why_no_torchvision()):
        pytest.skip(reason)
    if "peft" in text:
        pytest.importorskip("peft", reason="peft is not installed")
    if "torchao" in text:
        pytest.importorskip("torchao", reason="torchao is not installed")
    names = {"__name__": "__main__"}
    exec(compile(text, f"{page}, block {number}", "exec"), names)
    RESULTS.get((page, number), lambda names: None)(names)


def test_every_checked_block_is_there():
    assert RESULTS.keys() <= {block[:2] for block in python_blocks()}


def test_adapters(tmp_path, monkeypatch):
    """The saved adapter predicts what was trained; without the head's batch norm it would not."""
    pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    InternImageForImageClassification(tiny_config(num_labels=10)).save_pretrained(tmp_path / "internimage-t")
    monkeypatch.chdir(tmp_path)
    (block,) = (text for page, _, text in python_blocks() if page == "training.md" and "peft" in text)
    making, saving = block.split("# train it as any model, then\n")
    differences = []
    for text in (making, making.replace(', modules_to_save=["conv_head", "head"]', "")):
        names = {}
        exec(compile(text, "training.md", "exec"), names)
        model, pixels = names["model"].train(), torch.randn(4, 3, 64, 64)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for _ in range(5):
            model(pixel_values=pixels, labels=torch.arange(4)).loss.backward()
            optimizer.step()
        exec(compile(saving, "training.md", "exec"), names)
        with torch.no_grad():
            logits = [each.eval()(pixel_values=pixels).logits for each in (model, names["loaded"])]
        differences.append((logits[0] - logits[1]).abs().max().item())
    assert differences[0] < 1e-5
    assert differences[1] > 0.01


# ---- Commands ----


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_right(page, folder, monkeypatch):
    for words in commands(page):
        check_command(words, monkeypatch)


def check_command(words, monkeypatch):
    program, *arguments = words
    if program == "hf-internimage":
        check_own(arguments, monkeypatch)
    elif program in LAUNCHERS:
        check_python(arguments, monkeypatch)
    elif program == "pip":
        check_pip(arguments)
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    else:
        assert program in OTHER_PROGRAMS, words
        if "hf-internimage" in arguments and arguments[0] == "run" and "--entrypoint" not in arguments:
            check_own(arguments[arguments.index("hf-internimage") + 1 :], monkeypatch)


def check_own(arguments, monkeypatch):
    """Read a command line of ours; a training's as far as the task itself reads it, without running it."""
    make_missing(arguments)
    if arguments[0] != "train":
        build_parser().parse_args(arguments)  # exits if an argument is wrong
        return
    calls = []
    monkeypatch.setattr(import_module(f"hf_internimage.training.{arguments[1]}.main"), "run", calls.append)
    assert main([*arguments, "--use_cpu", "true"]) == 0, arguments  # some recipes compute in bfloat16, on GPUs
    assert len(calls) == 1


def make_missing(arguments):
    """Make the folders and files of data that a command names."""
    for name, value in pairwise(arguments):
        path = (ROOT / "nowhere") if value.startswith("--") else Path(value)
        if name.startswith("--") and name.endswith("_dir") and name != "--output_dir":
            path.mkdir(parents=True, exist_ok=True)
        elif name.endswith(("_annotations", "_file", "--result")) or value.endswith(".pth"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def check_python(arguments, monkeypatch):
    """Check what a launcher or Python runs: a command of ours, another module, or a script of the repository."""
    for name, value in pairwise(arguments):
        assert name != "--config_file" or (ROOT / value).is_file(), value
    if "-m" in arguments:
        module, *rest = arguments[arguments.index("-m") + 1 :]
        if module == "hf_internimage":
            check_own(rest, monkeypatch)
        else:
            assert importlib.util.find_spec(module), module
        return
    position = next(index for index, argument in enumerate(arguments) if argument.endswith(".py"))
    script = ROOT / arguments[position]
    sources = [script, *BENCHMARKS.rglob("*.py"), *(ROOT / "src").rglob("example_data/*.py")]
    known = "".join(source.read_text(encoding="utf-8") for source in sources)
    for argument in arguments[position + 1 :]:
        assert not argument.startswith("--") or f'"{argument}"' in known, arguments


def extras():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    return set(re.findall(r"^([a-z-]+) = \[", project.split("\n[tool")[0], re.MULTILINE))


def check_pip(arguments):
    for requirement in arguments:
        if match := re.fullmatch(r"(?:\.|hf-internimage)\[(.*)\]", requirement):
            assert set(match[1].split(",")) <= extras(), requirement


# What makes the quickstart's commands small; `push` would need a network.
SMALL = {
    "train": "--num_train_epochs 1 --dataloader_num_workers 0 --use_cpu true --disable_tqdm true".split(),
    "push": ["--dry-run", "--output-dir", "repository"],
}


@pytest.mark.slow
def test_quickstart_runs(folder):
    """Its commands run in their order: train, predict, evaluate, push."""
    own = [arguments for program, *arguments in commands("quickstart.md") if program == "hf-internimage"]
    assert [arguments[0] for arguments in own] == ["train", "predict", "evaluate", "push"]
    shutil.rmtree("out")
    for arguments in own:
        assert main([*arguments, *SMALL.get(arguments[0], [])]) == 0, arguments
    assert {"model.safetensors", "preprocessor_config.json", "README.md"} <= {
        path.name for path in Path("out").iterdir()
    }
    assert "my-model" in Path("repository", "README.md").read_text(encoding="utf-8")
    assert any(Path("predictions").iterdir())


def test_every_extra_has_its_row():
    section = read("how-to/install.md").split("## Which extra does what")[1].split("\n## ")[0]
    cells = "".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))
    assert extras() <= set(re.findall(r"`([a-z-]+)`", cells))


def test_every_command_has_its_row():
    rows = re.findall(r"^\| `(\w+)", read("command_line.md"), re.MULTILINE)
    commands_there = {name for name in COMMANDS if importlib.util.find_spec(f"hf_internimage_cli.{name}")}
    assert commands_there <= set(rows) <= set(COMMANDS)


def test_options_in_the_text_exist():
    """Options within a sentence, such as `--bad_images skip`, are those of a program here, or known ones of another."""
    sources = [path for name in ("src", "scripts", "benchmarks", "kernels") for path in (ROOT / name).rglob("*.py")]
    known = set(re.findall(r'"(--[\w-]+)"', "".join(path.read_text(encoding="utf-8") for path in sources)))
    known |= {f"--{name}" for task in TASKS for name in setting_names(task)}
    for page in PAGES:
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", read(page)):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code):
                assert option in known | OTHER_OPTIONS, f"{page}: {option}"


def test_commands_are_split_as_a_shell_does():
    text = 'a "b c" \\\n    --d e  # comment\n\n# comment\nf "g\nh"\n'
    assert split_commands(text) == [["a", "b c", "--d", "e"], ["f", "g\nh"]]


# ---- Pages ----


def test_every_code_block_names_its_language():
    for page in PAGES:
        assert languages(page) <= {"bash", "powershell", "python", "text"}, page


def test_links_lead_somewhere():
    pages = [*PAGES.values(), *(ROOT / "model_cards").glob("*.md"), *ROOT.glob("*.md")]
    for path in pages:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", path.read_text(encoding="utf-8")):
            linked = path.parent / target if target else path
            assert linked.exists(), f"{path.name}: {target}"
            if anchor and linked.suffix == ".md":
                assert anchor[1:] in anchors(linked), f"{path.name}: {target}{anchor}"


def anchors(path):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_of_the_readme_can_be_made_absolute():
    """The command of RELEASING.md leaves no link that a package index could not follow."""
    command = re.search(r"sed [^\n]*s#(.*?)#(.*?)#g[^\n]*README\.md", (ROOT / "RELEASING.md").read_text())
    text = re.sub(*command.groups(), read("README.md"))
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) > 15
    assert all(link.startswith("https://") for link in links)


@pytest.mark.parametrize("address", ["https://example.org/a/b/", ""])
def test_links_of_the_site(address):
    """Links within docs/ stay, links to other files lead to the repository; without its address, their text is left."""
    path = DOCS / "site_hooks.py"
    spec = importlib.util.spec_from_file_location("site_hooks", path)
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/install.md"))
    text = "[a](../backends.md#x) [cards](../../model_cards/README.md#y) [site](https://example.org)"
    cards = f"[cards]({address}blob/main/model_cards/README.md#y)" if address else "cards"
    expected = f"[a](../backends.md#x) {cards} [site](https://example.org)"
    assert hooks.on_page_markdown(text, page=page, config=SimpleNamespace(repo_url=address)) == expected


def test_messages_are_those_of_the_package():
    """The messages that troubleshooting.md explains occur in the sources, apart from those of other packages."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # literals that Python joins
    others = (
        "KeyError", "Do you wish to run", "AutoImageProcessor requires", "couldn't connect", "outgoing traffic",
        "LABEL_", "An attempt has been made", "No ONNX function", "Cannot convert a MPS",
    )  # fmt: skip
    headings = re.findall(r"^### (.*)$", (DOCS / "how-to" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    assert len(messages) > 15
    for message in messages:
        if message.startswith(others):
            continue
        for part in message.removeprefix("BackendError: dcnv3: ").removeprefix("dcnv3 ").split("..."):
            assert part.strip(" :") in sources, message
