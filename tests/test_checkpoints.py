# SPDX-License-Identifier: MIT
"""Table of published segmentation and detection checkpoints, and the synthetic files made from it."""

import json

import pytest
from support import synthetic_checkpoints as synthetic
from support.golden_heads import HEADS, backbone_fields, document
from support.loading import run_python

from hf_internimage import InternImageConfig
from hf_internimage.checkpoints import classifiers, systems
from hf_internimage.checkpoints.systems import (
    OBJECT_DETECTION,
    SEMANTIC_SEGMENTATION,
    SYSTEM_CHECKPOINTS,
    find_checkpoint,
)
from hf_internimage.conversion.systems import SYSTEMS, find_system

NAMES = [row.name for row in SYSTEM_CHECKPOINTS]
SEGMENTATION = [row for row in SYSTEM_CHECKPOINTS if row.task == SEMANTIC_SEGMENTATION]
SETTINGS = {
    config: setting
    for setting in json.loads((HEADS / "preprocess_seg.json").read_text())["all_test_settings"]
    for config in setting["configs"]
}


def test_the_tables_alone_load_no_torch():
    """Run the files by themselves: the package around them loads torch."""
    printed = run_python(
        f"""
        import runpy, sys
        tables = [runpy.run_path(path) for path in {[systems.__file__, classifiers.__file__]}]
        print(len(tables[0]["SYSTEM_CHECKPOINTS"]), len(tables[1]["CHECKPOINTS"]))
        print(sorted({{"torch", "transformers", "numpy"}} & set(sys.modules)))
        """,
        fork=False,
    )
    assert printed == f"{len(SYSTEM_CHECKPOINTS)} {len(classifiers.CHECKPOINTS)}\n[]\n"


def test_names_are_unique_and_found():
    assert len(set(NAMES)) == len(NAMES)
    for row in SYSTEM_CHECKPOINTS:
        for name in (row.name, f"{row.name}.pth", f"/some/where/{row.name}.pth", *row.configs):
            assert find_checkpoint(name) is row
    for name in ("", "x.pth", "upernet_internimage_t", "upernet_internimage_t_512_160k_ade20k_finetuned"):
        assert find_checkpoint(name) is None


@pytest.mark.parametrize("row", SEGMENTATION, ids=lambda row: row.name)
def test_segmentation_is_tested_as_the_configurations_say(row):
    for config in row.configs:
        setting = SETTINGS[config]
        assert [row.longest_edge, row.shortest_edge] == setting["img_scale"]
        assert row.size_divisor == setting["size_divisor"]
        assert row.mode == setting["mode"]
        assert setting["crop_size"] == (row.crop_size and [row.crop_size] * 2)
        assert setting["stride"] == (row.stride and [row.stride] * 2)
        if setting["img_ratios"]:
            assert row.scale_ratios == pytest.approx(setting["img_ratios"], rel=1e-15)
            assert row.flip == setting["flip"]
    assert bool(row.scale_ratios) == any(SETTINGS[config]["img_ratios"] for config in row.configs)


def test_every_configuration_with_a_file_has_a_row():
    configs = {config for row in SEGMENTATION for config in row.configs}
    assert SETTINGS.keys() - configs == {"ade20k/upernet_internimage_g_896_160k_ade20k"}


def test_systems_are_known():
    known = {system.name: system.task for system in SYSTEMS}
    for row in SYSTEM_CHECKPOINTS:
        assert row.task == known.get(row.system, SEMANTIC_SEGMENTATION)
    assert {row.system for row in SYSTEM_CHECKPOINTS} - known.keys() == {"segformer"}
    assert known.keys() - {row.system for row in SYSTEM_CHECKPOINTS} == {
        system.name for system in SYSTEMS if system.task == "image-classification"
    }


def test_scores():
    for row in SYSTEM_CHECKPOINTS:
        assert bool(row.scores) == (row.dataset != "Mapillary Vistas"), row.name
        assert all(40 < score.value < 100 for score in row.scores)
        assert {score.views for score in row.scores} <= {"single-scale", "multi-scale"}
        keys = [(score.metric, score.views, score.split) for score in row.scores]
        assert len(set(keys)) == len(keys)
    best = {row.name: row.scores[0].value for row in SYSTEM_CHECKPOINTS if row.scores}
    assert best["upernet_internimage_h_896_160k_ade20k"] == 59.9
    assert best["mask2former_internimage_h_896_80k_cocostuff2ade20k"] == 62.6
    assert best["dino_4scale_cbinternimage_h_objects365_coco"] == 64.5


def test_only_detectors_have_a_number_of_detections():
    for row in SYSTEM_CHECKPOINTS:
        assert (row.max_detections is None) == (row.task == SEMANTIC_SEGMENTATION)
        assert row.url.endswith(f"{row.name}.pth" if row.released else ".py")
    assert [row.name for row in SYSTEM_CHECKPOINTS if not row.released] == [
        "dino_4scale_internimage_h_objects365_coco_ss",
        "dino_4scale_internimage_g_objects365_coco_ss",
    ]


ONE_OF_EACH_SHAPE = {(row.system, row.size, row.num_labels): row for row in SYSTEM_CHECKPOINTS}.values()


@pytest.mark.parametrize("row", ONE_OF_EACH_SHAPE, ids=lambda row: row.name)
def test_parameters_and_system_of_every_file(row):
    shapes = synthetic.released_shapes(row)
    assert synthetic.count_parameters(shapes) == row.parameters
    if row.system == "segformer":
        with pytest.raises(ValueError, match=r"SegFormer head .* cannot be converted"):
            find_system(shapes)
    else:
        assert find_system([f"module.{name}" for name in shapes]).name == row.system


def test_files_of_one_shape_have_as_many_parameters():
    """The shapes of only one row of each system, size and number of classes are counted above."""
    counts = {(row.system, row.size, row.num_labels): row.parameters for row in ONE_OF_EACH_SHAPE}
    for row in SYSTEM_CHECKPOINTS:
        assert row.parameters == counts[row.system, row.size, row.num_labels], row.name


# What the authors' model zoo says, in millions.
REPORTED = {
    "segformer": {"l": 220, "xl": 330},
    "mask_rcnn": {"t": 49, "s": 69, "b": 115},
    "cascade_rcnn": {"l": 277, "xl": 387},
    "dino": {"t": 49, "l": 241},
    "cb_dino": {"h": 2180},
}


@pytest.mark.parametrize(("system", "size"), [(system, size) for system in REPORTED for size in REPORTED[system]])
def test_parameters_are_those_reported(system, size):
    for row in SYSTEM_CHECKPOINTS:
        if (row.system, row.size) == (system, size):
            digits = 1e7 if REPORTED[system][size] > 1000 else 1e6
            assert round(row.parameters / digits) == REPORTED[system][size] * 1e6 / digits


def tiny_backbone(name):
    return InternImageConfig(**backbone_fields(document(name)["config"]["backbone"]))


def tiny_shapes(name):
    config = tiny_backbone(name)
    if name == "upernet_tiny":
        return synthetic.upernet(config, 9, 32, 24)
    if name == "mask2former_tiny":
        return synthetic.mask2former(config, 7, 64, 4, 96, 80, 10, encoder=2, decoder=3)
    if name == "dino_tiny":
        return synthetic.dino(config, 5, 64, heads=4, hidden=96, queries=20, layers=2)
    if name == "maskrcnn_tiny":
        return synthetic.mask_rcnn(config, 6, 32, 48)
    return {**synthetic.composite(config), **synthetic.channel_mapper("neck.0.", config.hidden_sizes[1:], 64)}


@pytest.mark.parametrize("name", sorted(path.stem for path in HEADS.glob("*_tiny.json")))
def test_names_written_down_are_the_originals(name):
    assert tiny_shapes(name) == {key: tuple(shape) for key, shape in document(name)["keys"].items()}


def test_object_detection_pads_to_32():
    assert {row.size_divisor for row in SYSTEM_CHECKPOINTS if row.task == OBJECT_DETECTION} == {32}
