# SPDX-License-Identifier: MIT
"""Cards of published checkpoints quote the scores that `hf-internimage reproduce` measured."""

import copy
import json
import shutil

import pytest
from support.paths import ROOT

from hf_internimage.hub import card_files

CLASSIFIER, SEGMENTER = "internimage_t_1k_224", "upernet_internimage_t_512_160k_ade20k"
HASH = "ab" * 32


def result(name, metric, views, reported, measured, agrees=True):
    return {
        "model": name,
        "samples": 50_000,
        "dtype": "float32",
        "device": "NVIDIA H200",
        "date": "2030-01-02T03:04:05+00:00",
        "reproduction": {
            "file": {"path": "x.pth", "sha256": HASH, "expected_sha256": None},
            "metric": metric,
            "views": views,
            "reported": reported,
            "measured": measured,
            "tolerance": 0.1,
            "agrees": agrees,
        },
    }


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a measurement of one classifier, and two of a segmenter in one file."""
    source = ROOT / "benchmarks" / "results" / "systems_cpu.json"
    folder = tmp_path / "benchmarks" / "results" / "reproduction"
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder.parent / source.name)
    first = result(CLASSIFIER, "top-1", "single-scale", 83.5, 83.512)
    partly = copy.deepcopy(first)
    partly["reproduction"].update(agrees=None, measured=11.0)
    (folder / "t.json").write_text(json.dumps(first))
    (folder / "partly.json").write_text(json.dumps(partly))
    both = [
        result(SEGMENTER, "mIoU", "single-scale", 47.9, 47.95),
        result(SEGMENTER, "mIoU", "multi-scale", 48.1, 40.0, agrees=False),
    ]
    (folder / "all.json").write_text(json.dumps(both))
    return tmp_path


def test_measured_scores_are_quoted(checkout):
    before, after = card_files.card_texts(ROOT), card_files.card_texts(checkout)
    assert {name for name in before if before[name] != after[name]} == {f"{CLASSIFIER}.md", f"{SEGMENTER}.md"}
    card = after[f"{CLASSIFIER}.md"]
    accuracy = card.partition("## Accuracy")[2].partition("\n## ")[0]
    assert (
        f"Measured with hf_internimage by `hf-internimage reproduce`, of the file with the SHA-256 `{'ab' * 32}`"
        in card
    )
    assert "| top-1 | 83.51 % | 83.5 % | 0.1 | single-scale | 50,000 | float32 | NVIDIA H200 | 2030-01-02 |" in accuracy
    assert "11.00" not in card  # of some images only
    assert "We did not measure" in before[f"{CLASSIFIER}.md"]
    assert "We did not measure" not in card
    card = after[f"{SEGMENTER}.md"]
    assert "| mIoU | 47.95 % | 47.9 % | 0.1 | single-scale |" in card
    assert "| mIoU | 40.00 % | 48.1 % | 0.1 | multi-scale |" in card
    assert "measured no score" not in card
