# SPDX-License-Identifier: MIT
"""Published scores measured on synthetic files and data: the whole way, from the file to the comparison."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.conversion_tools import original
from support.detection_scenes import scene
from support.rcnn_tools import why_no_torchvision
from support.synthetic_checkpoints import released_shapes, state_dict

from hf_internimage import InternImageConfig, InternImageForImageClassification
from hf_internimage.checkpoints.systems import find_checkpoint
from hf_internimage.hub.cards import evaluated_card
from hf_internimage.reproduction import Settings, find_protocol, reproduce
from hf_internimage.reproduction.command import reproduce_all, reproduce_one
from hf_internimage.reproduction.protocols import MULTI_SCALE
from hf_internimage_cli.main import main

pytestmark = pytest.mark.slow

CLASSIFIER = "internimage_t_1k_224"
DINO, MASK_RCNN = "dino_4scale_internimage_t_1x_coco", "mask_rcnn_internimage_t_fpn_1x_coco"
UPERNET, STREETS = "upernet_internimage_t_512_160k_ade20k", "upernet_internimage_t_512x1024_160k_cityscapes"
CHOSEN, OTHER = 7, 12  # the class that the synthetic segmenters always see, and another one
LIMIT = 8
LIMITED_ROWS = np.sort(np.random.default_rng(0).permutation(1000)[:LIMIT])  # of ImageNet, as they are chosen
SETTINGS = Settings(cpu=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with files like the authors', whose models see one and the same class everywhere."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = InternImageForImageClassification(InternImageConfig.from_size("t"))
    with torch.no_grad():
        model.head.bias[LIMITED_ROWS[3]] = 1e3
    weights = original({f"model.{name.removeprefix('model.')}": value for name, value in model.state_dict().items()})
    torch.save({"model": weights}, folder / f"{CLASSIFIER}.pth")
    for name in (UPERNET, STREETS, DINO, MASK_RCNN):
        row = find_checkpoint(name)
        weights = state_dict(released_shapes(row))
        for key in weights:
            if key.endswith("running_var"):
                weights[key].fill_(1)
        if "decode_head.conv_seg.bias" in weights:
            weights["decode_head.conv_seg.bias"][CHOSEN] = 1e3
        classes = tuple(f"class {index}" for index in range(row.real_labels or row.num_labels))
        torch.save({"meta": {"CLASSES": classes}, "state_dict": weights}, folder / f"{name}.pth")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with all four data sets, each with very few images."""
    folder = tmp_path_factory.mktemp("data")
    for index in range(1000):
        (folder / "imagenet" / "val" / f"n{index:08d}").mkdir(parents=True)
        Image.new("RGB", (24, 20), (index % 256, 0, 0)).save(folder / f"imagenet/val/n{index:08d}/a.JPEG")
    write_maps(folder / "ade20k", "images/validation/{}.jpg", "annotations/validation/{}.png", (32, 32), first=1)
    write_maps(
        folder / "cityscapes",
        "leftImg8bit/val/town/{}_leftImg8bit.png",
        "gtFine/val/town/{}_gtFine_labelTrainIds.png",
        (128, 8),
        first=0,
    )
    (folder / "coco" / "val2017").mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": index + 1, "name": f"class {index}"} for index in range(80)]
    image, boxes = scene(0, width=120, height=24)
    image.save(folder / "coco" / "val2017" / "a.jpg")
    content["images"].append({"id": 5, "file_name": "a.jpg", "width": 120, "height": 24})
    for label, box in enumerate(boxes):
        entry = {"id": label, "image_id": 5, "category_id": label + 1, "bbox": box, "area": 144, "iscrowd": 0}
        content["annotations"].append(entry)
    (folder / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def write_maps(folder, image_name, map_name, size, first):
    """Write two images with maps: the left half of CHOSEN, the right one of OTHER, the first row of no class."""
    width, height = size
    labels = np.full((height, width), first + CHOSEN, np.uint8)
    labels[:, width // 2 :] = first + OTHER
    labels[0] = 0 if first else 255
    for index in range(2):
        image, mask = (folder / name.format(f"{index:02d}") for name in (image_name, map_name))
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, 60 + index).convert("RGB").save(image)
        Image.fromarray(labels).save(mask)


def test_classifier(files, data):
    """One class for every image, which is right for one of them."""
    protocol = find_protocol(CLASSIFIER)
    lines = []
    settings = Settings(cpu=True, limit=LIMIT, batch_size=4)
    result = reproduce(protocol, data, files / f"{CLASSIFIER}.pth", settings=settings, report=lines.append)
    assert result["metrics"]["top1"] == 1 / LIMIT
    assert (result["model"], result["samples"], result["image_size"]) == (CLASSIFIER, LIMIT, [224, 224])
    facts = result["reproduction"]
    assert (facts["metric"], facts["reported"], facts["tolerance"]) == ("top-1", 83.5, 0.1)
    assert facts["measured"] == pytest.approx(100 * result["metrics"]["top1"])
    assert facts["agrees"] is None  # of some images only
    assert len(facts["file"]["sha256"]) == 64
    assert any("not compared: no hash is known" in line for line in lines)
    assert any("InternImage-T, 1000 classes (ImageNet-1K names), 224x224 pixels" in line for line in lines)
    card = evaluated_card(result, model_id=CLASSIFIER)
    assert f"| Images | {LIMIT} |" in str(card)


@pytest.mark.parametrize(("name", "classes"), [(UPERNET, 150), (STREETS, 19)])
def test_segmenter(name, classes, files, data):
    """Half of the pixels of CHOSEN, the rest of OTHER: IoU of a half and of 0."""
    lines = []
    result = reproduce(find_protocol(name), data, files / f"{name}.pth", settings=SETTINGS, report=lines.append)
    assert result["metrics"]["mean_iou"] == pytest.approx(0.25)
    assert result["samples"] == 2
    assert len(result["class_iou"]) == classes
    facts = result["reproduction"]
    assert facts["measured"] == 25.0
    assert (facts["agrees"], facts["views"], facts["scale_ratios"]) == (False, "single-scale", [1.0])
    assert any(f"UperNet with InternImage-T, {classes} classes" in line for line in lines)


def test_multi_scale(files, data):
    protocol = find_protocol(UPERNET, MULTI_SCALE)
    protocol = replace(protocol, scale_ratios=(0.25, 0.5))  # smaller ones than the authors'
    result = reproduce(protocol, data, files / f"{UPERNET}.pth", settings=Settings(cpu=True, limit=1))
    assert result["inference"]["tta_ratios"] == [0.25, 0.5]
    assert result["inference"]["tta_flip"] is True
    assert (result["samples"], result["reproduction"]["reported"]) == (1, 48.1)
    assert result["metrics"]["mean_iou"] == pytest.approx(0.25)


@pytest.mark.parametrize(("name", "reported"), [(DINO, 53.9), (MASK_RCNN, 47.2)])
def test_detector(name, reported, files, data):
    if name == MASK_RCNN and (reason := why_no_torchvision()):
        pytest.skip(reason)
    result = reproduce(find_protocol(name), data, files / f"{name}.pth", settings=SETTINGS)
    assert result["samples"] == 1
    assert result["image_size"] == [800, 1333]
    assert set(result["map_per_class"]) == {"class 0", "class 1"}
    facts = result["reproduction"]
    assert (facts["metric"], facts["reported"]) == ("box AP", reported)
    assert facts["measured"] == pytest.approx(100 * result["metrics"]["map"], abs=1e-3)


def test_command_on_a_converted_folder(files, data, tmp_path, capsys):
    """A folder that was converted before is evaluated as it is; the exit status tells that the score differs."""
    folder, output = tmp_path / "upernet-t", tmp_path / "result.json"
    assert main(["convert", str(files / f"{UPERNET}.pth"), str(folder)]) == 0
    capsys.readouterr()
    arguments = ["--data", data / "ade20k", "--file", folder, "--output", output, "--cpu"]
    assert main(["reproduce", UPERNET, *map(str, arguments)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == "name score views images reported measured difference tolerance result".split()
    assert printed[-1].split() == [
        UPERNET,
        "mIoU,",
        "%",
        "single-scale",
        "2",
        "47.9",
        "25.00",
        "-22.90",
        "0.2",
        "differs",
    ]
    facts = json.loads(output.read_text())["reproduction"]
    assert (facts["file"], facts["measured"]) == (None, 25.0)


def test_all(files, data, tmp_path):
    """What has a file and data is measured, one failure does not stop the others, and the table says all of it."""
    folder, output, lines = tmp_path / "files", tmp_path / "all.json", []
    folder.mkdir()
    (folder / f"{UPERNET}.pth").symlink_to(files / f"{UPERNET}.pth")
    (folder / f"{CLASSIFIER}.pth").write_bytes(b"damaged")
    settings = Settings(cpu=True, limit=1)
    status = reproduce_all(data, folder, multi_scale=False, output=output, settings=settings, report=lines.append)
    assert status == 1
    assert [result["model"] for result in json.loads(output.read_text())] == [UPERNET]
    (failure,) = (line for line in lines if line.startswith("  failed: "))
    assert f"{CLASSIFIER}.pth" in failure
    rows = {line.split()[0]: line for line in lines[-1].splitlines() if line}
    assert rows[CLASSIFIER].endswith("failed")
    assert rows[UPERNET].endswith("some images only")
    missing = lines[-2]
    assert f"looked for in {folder}" in missing
    assert {line.split()[0]: line for line in missing.splitlines() if line}[DINO].endswith("no file")
    assert reproduce_all(tmp_path, files, multi_scale=True, output=None, settings=settings, report=lines.append) == 1
    assert f"{tmp_path}: holds no validation data of COCO" in lines[-1]


def test_all_good_is_status_0(files, data, monkeypatch):
    """The same code with the tolerance of a wide score."""
    monkeypatch.setitem(reproduce_one.__globals__, "find_protocol", wide_protocol)
    options = {"multi_scale": False, "sha256": None, "output": None, "settings": SETTINGS, "report": lambda text: None}
    assert reproduce_one(UPERNET, data, files / f"{UPERNET}.pth", **options) == 0


def wide_protocol(name, views):
    protocol = find_protocol(name, views)
    return SimpleNamespace(**{**vars(protocol), "name": name, "tolerance": 23.0})


@pytest.mark.skipif(why_no_torchvision() is None, reason="torchvision is there")
def test_mask_rcnn_without_torchvision_names_the_extra(files, data, capsys):
    file = files / f"{MASK_RCNN}.pth"
    assert main(["reproduce", MASK_RCNN, "--data", str(data), "--file", str(file)]) == 1
    assert 'pip install "hf-internimage[torchvision]"' in capsys.readouterr().err
