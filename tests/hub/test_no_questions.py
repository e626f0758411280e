# SPDX-License-Identifier: MIT
"""With the package imported, transformers never asks whether to run the code of a repository of this package."""

import builtins
import contextlib
import os

import pytest
from PIL import Image
from support.golden_data import tiny_config
from support.golden_detectors import tiny_composite_config, tiny_dino
from support.golden_segmenters import golden_segmenter
from support.rcnn_tools import tiny_config as tiny_rcnn_config
from support.rcnn_tools import why_no_torchvision
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline
from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from hf_internimage import (
    CBInternImageBackbone,
    InternImageBackbone,
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageModel,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.hub import save_for_hub

IMAGE = Image.new("RGB", (80, 64), (200, 30, 30))
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def classifier_processor():
    return InternImageImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def detection_processor():
    return InternImageDetectionImageProcessor(size=SIZE)


def mask_rcnn():
    if reason := why_no_torchvision():
        pytest.skip(reason)
    from hf_internimage.models.mask_rcnn import InternImageMaskRCNNForInstanceSegmentation

    return InternImageMaskRCNNForInstanceSegmentation(tiny_rcnn_config())


# Name -> model, image processor, tasks of pipelines.
KINDS = {
    "classifier": (
        lambda: InternImageForImageClassification(tiny_config()),
        classifier_processor,
        ["image-classification", "image-feature-extraction"],
    ),
    "model": (lambda: InternImageModel(tiny_config()), classifier_processor, ["image-feature-extraction"]),
    "backbone": (lambda: InternImageBackbone(tiny_config()), classifier_processor, ["image-feature-extraction"]),
    "composite backbone": (lambda: CBInternImageBackbone(tiny_composite_config()), detection_processor, []),
    "DINO": (tiny_dino, detection_processor, ["object-detection"]),
    "CB-DINO": (lambda: tiny_dino(tiny_composite_config()), detection_processor, ["object-detection"]),
    "Mask R-CNN": (mask_rcnn, detection_processor, ["object-detection"]),
    "UperNet": (
        lambda: golden_segmenter("upernet_tiny"),
        lambda: InternImageSegmentationImageProcessor(size=SIZE),
        ["image-segmentation"],
    ),
    "Mask2Former": (
        lambda: golden_segmenter("mask2former_tiny"),
        lambda: InternImageSegmentationImageProcessor(size=SIZE),
        ["image-segmentation"],
    ),
}
FOR_THE_HUB = ("classifier", "model", "backbone", "composite backbone", "DINO", "CB-DINO")
LOADERS = (AutoConfig, AutoImageProcessor, AutoProcessor, AutoFeatureExtractor, AutoTokenizer, AutoVideoProcessor)


@pytest.fixture
def questions(monkeypatch):
    """What was asked; nobody answers."""
    asked = []

    def ask(prompt=""):
        asked.append(prompt)
        raise EOFError

    monkeypatch.setattr(builtins, "input", ask)
    with open(os.devnull, encoding="utf-8") as closed:
        pass
    monkeypatch.setattr("sys.stdin", closed)
    return asked


@pytest.mark.parametrize(
    ("kind", "for_the_hub"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in FOR_THE_HUB)],
    ids=lambda value: {True: "for the Hub", False: "plain"}.get(value, value),
)
def test_nothing_is_asked(kind, for_the_hub, questions, tmp_path):
    build, build_processor, tasks = KINDS[kind]
    model, processor = build(), build_processor()
    if for_the_hub:
        save_for_hub(model, tmp_path, image_processor=processor)
    else:
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    for task in tasks:
        pipe = pipeline(task, model=str(tmp_path))
        pipe(IMAGE)
        pipe(IMAGE)
        assert type(pipe.image_processor).__module__.startswith(("hf_internimage.", "transformers.")), task
    for loader in LOADERS:
        with contextlib.suppress(ValueError, OSError, ImportError, KeyError):  # such as: there is no tokenizer
            loader.from_pretrained(str(tmp_path))
    assert questions == []


def test_there_is_no_video_processor_and_no_code_of_the_repository_is_run(tmp_path):
    """transformers makes up the name of a video processor in the code of the image processor."""
    save_for_hub(tiny_dino(), tmp_path, image_processor=detection_processor())
    (tmp_path / "image_processing_internimage_detection.py").write_text("raise RuntimeError('was run')\n")
    for trust in (None, True):
        with pytest.raises(ValueError, match="InternImage has no video processor; give its image processor single"):
            AutoVideoProcessor.from_pretrained(str(tmp_path), trust_remote_code=trust)
    assert pipeline("object-detection", model=str(tmp_path), trust_remote_code=True)(IMAGE, threshold=1.1) == []
