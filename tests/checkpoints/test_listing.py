# SPDX-License-Identifier: MIT
"""The list of published models: every row of the tables, filters, and what may be imported for it."""

import re
from dataclasses import asdict

import pytest
from support.loading import run_python

import hf_internimage
from hf_internimage.checkpoints.classifiers import CHECKPOINTS, FLASH_CHECKPOINTS
from hf_internimage.checkpoints.listing import NO_CONVERSION, NO_FILE, SIZE_NAMES
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS
from hf_internimage.models.configuration_internimage import SIZES


def names(**filters):
    return [model.name for model in hf_internimage.list_models(**filters)]


def test_every_published_model_is_listed_once():
    rows = [*CHECKPOINTS, *FLASH_CHECKPOINTS, *SYSTEM_CHECKPOINTS]
    assert names() == [row.name for row in rows]
    assert len(set(names())) == len(rows)
    assert tuple(SIZES) == SIZE_NAMES


def test_a_classifier():
    (model,) = [model for model in hf_internimage.list_models() if model.name == "internimage_l_22kto1k_384"]
    assert asdict(model) == {
        "name": "internimage_l_22kto1k_384",
        "source": "OpenGVLab/internimage_l_22kto1k_384",
        "task": "image-classification",
        "system": "classification",
        "size": "l",
        "data": ("ImageNet-22K", "ImageNet-1K"),
        "image_size": (384, 384),
        "parameters": 223_334_810,
        "scores": ({"metric": "top-1", "value": 87.7, "views": "single-scale", "split": ""},),
        "licence": "mit",
        "note": "",
    }


def test_a_classifier_of_flash_internimage():
    (model,) = [model for model in hf_internimage.list_models() if model.name == "flash_intern_image_t_1k_224"]
    assert model.source == "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth"
    assert (model.task, model.system, model.size) == ("image-classification", "flash_classification", "t")
    assert [score.value for score in model.scores] == [83.6]


def test_a_segmenter_and_what_cannot_be_loaded():
    models = {model.name: model for model in hf_internimage.list_models()}
    model = models["upernet_internimage_t_512_160k_ade20k"]
    assert model.source.endswith("/OpenGVLab/InternImage/resolve/main/upernet_internimage_t_512_160k_ade20k.pth")
    assert (model.task, model.image_size, model.data) == ("semantic-segmentation", (512, 2048), ("ADE20K",))
    assert [score.value for score in model.scores] == [47.9, 48.1]
    assert models["internimage_l_22k_384"].scores == ()  # unknown stays unknown
    notes = {name: model.note for name, model in models.items() if model.note}
    assert {name for name, note in notes.items() if note == NO_CONVERSION} == {
        row.name for row in SYSTEM_CHECKPOINTS if row.system == "segformer"
    }
    assert {name for name, note in notes.items() if note == NO_FILE} == {
        row.name for row in SYSTEM_CHECKPOINTS if not row.released
    }


def test_filters():
    classifiers = [row.name for row in (*CHECKPOINTS, *FLASH_CHECKPOINTS)]
    assert names(task="classification") == names(task="image-classification") == classifiers
    boxes_and_masks = set(names(task="instance-segmentation"))
    assert boxes_and_masks == set(names(task="segmentation")) & set(names(task="detection"))
    assert {name.split("_")[0] for name in boxes_and_masks} == {"mask", "cascade"}
    assert names(task="classification", size="H") == ["internimage_h_jointto22k_384", "internimage_h_22kto1k_640"]
    for filters, message in (
        ({"task": "depth"}, "task is 'depth', expected one of classification, segmentation, detection, image-"),
        ({"size": "xxl"}, "size is 'xxl', expected one of t, s, b, l, xl, h, g."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            hf_internimage.list_models(**filters)


def test_the_tables_need_the_standard_library_alone():
    printed = run_python(
        """
        import sys, types
        from pathlib import Path
        from importlib.util import find_spec
        package = types.ModuleType("hf_internimage")
        package.__path__ = [str(Path(find_spec("hf_internimage").origin).parent)]
        sys.modules["hf_internimage"] = package
        from hf_internimage.checkpoints import list_models
        print(len(list_models()), sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
        """,
        fork=False,
    )
    assert printed == f"{len(names())} []\n"
