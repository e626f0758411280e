# SPDX-License-Identifier: MIT
"""The Python blocks of the documentation run as written, on tiny models."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.golden_data import tiny_config
from support.golden_detectors import golden_dino
from support.golden_segmenters import golden_segmenter
from support.paths import DOCS

from hf_internimage import (
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageSegmentationImageProcessor,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory that the examples take for granted: two converted checkpoints and a picture."""
    golden_segmenter("upernet_tiny").save_pretrained(tmp_path / "upernet-t")
    size = {"shortest_edge": 64, "longest_edge": 256}
    InternImageSegmentationImageProcessor(size=size).save_pretrained(tmp_path / "upernet-t")
    golden_dino().save_pretrained(tmp_path / "dino-t")
    InternImageDetectionImageProcessor(size=size).save_pretrained(tmp_path / "dino-t")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_blocks(name, section=""):
    text = (DOCS / name).read_text(encoding="utf-8")
    text = text[text.index(f"# {section}") :].split("\n## ")[0] if section else text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    return blocks


def run_blocks(name):
    names = {}
    for block in python_blocks(name):
        exec(compile(block, name, "exec"), names)
    return names


def test_segmentation(folder):
    names = run_blocks("segmentation.md")
    assert names["labels"].shape == (50, 75)
    assert names["labels"].unique().numel() > 1


def test_detection(folder):
    names = run_blocks("detection.md")
    detections = names["detections"]
    assert {key: value.shape[1:] for key, value in detections.items()} == {"scores": (), "labels": (), "boxes": (4,)}
    assert names["model"].config.num_labels == 3
    assert torch.all(detections["scores"] >= 0.3)


def test_adapters(tmp_path, monkeypatch):
    """The saved adapter predicts what was trained; without the head's batch norm it would not."""
    pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    InternImageForImageClassification(tiny_config(num_labels=10)).save_pretrained(tmp_path / "internimage-t")
    monkeypatch.chdir(tmp_path)
    making, saving = python_blocks("training.md", "Adapters (LoRA)")
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


def test_links_lead_somewhere():
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md", *(DOCS.parent / "model_cards").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
