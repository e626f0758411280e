# SPDX-License-Identifier: MIT
"""Every Python block of the documentation of segmentation and detection runs as written, on tiny models."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.golden_detectors import golden_dino
from support.golden_segmenters import golden_segmenter
from support.paths import DOCS

from hf_internimage import InternImageDetectionImageProcessor, InternImageSegmentationImageProcessor


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


def run_blocks(name):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
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


def test_links_lead_somewhere():
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md", *(DOCS.parent / "model_cards").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
