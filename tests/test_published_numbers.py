# SPDX-License-Identifier: MIT
"""Numbers that tables and pages give, against numbers written here from the authors' model zoos.

Tables make the model cards, so that a wrong number would be in both: here is a second witness. Parameters and
multiply-accumulates have others: the golden manifests and counts (`test_complexity.py`, `test_checkpoints.py`).
Source: README.md, segmentation/README.md and detection/README.md of OpenGVLab/InternImage@31c962d.
"""

import re

import pytest
from support.paths import ROOT

from hf_internimage import InternImageConfig
from hf_internimage.checkpoints.classifiers import CHECKPOINTS
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS
from hf_internimage.complexity import count_macs

# Top-1 accuracy on ImageNet-1K in percent, "FLOPs" in G, side of the images.
CLASSIFIERS = {
    "internimage_t_1k_224": (83.5, 5, 224),
    "internimage_s_1k_224": (84.2, 8, 224),
    "internimage_b_1k_224": (84.9, 16, 224),
    "internimage_l_22k_384": (None, None, 384),
    "internimage_l_22kto1k_384": (87.7, 108, 384),
    "internimage_xl_22k_384": (None, None, 384),
    "internimage_xl_22kto1k_384": (88.0, 163, 384),
    "internimage_h_jointto22k_384": (None, None, 384),
    "internimage_h_22kto1k_640": (89.6, 1478, 640),
    "internimage_g_jointto22k_384": (None, None, 384),
    "internimage_g_22kto1k_512": (90.1, 2700, 512),
}
# mIoU, single-scale and multi-scale.
SEGMENTERS = {
    "upernet_internimage_t_512_160k_ade20k": (47.9, 48.1),
    "upernet_internimage_s_512_160k_ade20k": (50.1, 50.9),
    "upernet_internimage_b_512_160k_ade20k": (50.8, 51.3),
    "upernet_internimage_l_640_160k_ade20k": (53.9, 54.1),
    "upernet_internimage_xl_640_160k_ade20k": (55.0, 55.3),
    "upernet_internimage_h_896_160k_ade20k": (59.9, 60.3),
    "mask2former_internimage_h_896_80k_cocostuff2ade20k": (62.6, 62.9),
    "mask2former_internimage_h_896_80k_cocostuff164k": (52.6,),
    "mask2former_internimage_h_512_40k_cocostuff164k_to_10k": (59.2, 59.6),
    "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes": (86.37, 86.96),
    "mask2former_internimage_h_896x896_80k_mapillary": (),
    "mask2former_internimage_h_480_40k_pascal_context_59": (69.7, 70.3),
    "mask2former_internimage_h_480_40k_nyu": (67.1, 68.1),
    "upernet_internimage_t_512x1024_160k_cityscapes": (82.58, 83.40),
    "upernet_internimage_s_512x1024_160k_cityscapes": (82.74, 83.45),
    "upernet_internimage_b_512x1024_160k_cityscapes": (83.18, 83.97),
    "upernet_internimage_l_512x1024_160k_cityscapes": (83.68, 84.41),
    "upernet_internimage_xl_512x1024_160k_cityscapes": (83.62, 84.28),
    "upernet_internimage_l_512x1024_160k_mapillary2cityscapes": (85.94, 86.22),
    "upernet_internimage_xl_512x1024_160k_mapillary2cityscapes": (86.20, 86.42),
    "segformer_internimage_l_512x1024_160k_mapillary2cityscapes": (85.16, 85.67),
    "segformer_internimage_xl_512x1024_160k_mapillary2cityscapes": (85.41, 85.93),
    "upernet_internimage_l_512x1024_80k_mapillary": (),
    "upernet_internimage_xl_512x1024_80k_mapillary": (),
    "segformer_internimage_l_512x1024_80k_mapillary": (),
    "segformer_internimage_xl_512x1024_80k_mapillary": (),
}
# Average precision of boxes and masks on COCO val2017, with the 1x and with the 3x schedule.
RCNN = {
    "mask_rcnn_internimage_t_fpn": ((47.2, 42.5), (49.1, 43.7)),
    "mask_rcnn_internimage_s_fpn": ((47.8, 43.3), (49.7, 44.5)),
    "mask_rcnn_internimage_b_fpn": ((48.8, 44.0), (50.3, 44.8)),
    "cascade_internimage_l_fpn": ((54.9, 47.7), (56.1, 48.5)),
    "cascade_internimage_xl_fpn": ((55.3, 48.1), (56.2, 48.8)),
}
# Results, each with metric, views and split.
SINGLE, MULTI = "single-scale", "multi-scale"
DINO = {
    "dino_4scale_internimage_t_1x_coco": [("box AP", 53.9, SINGLE, "")],
    "dino_4scale_internimage_l_1x_coco_layer_wise_lr": [("box AP", 57.5, SINGLE, "")],
    "dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr": [("box AP", 57.6, SINGLE, "")],
    "dino_4scale_internimage_h_objects365_coco_ss": [("box AP", 63.4, SINGLE, "")],
    "dino_4scale_internimage_g_objects365_coco_ss": [("box AP", 64.2, SINGLE, "")],
    "dino_4scale_cbinternimage_h_objects365_coco": [
        ("box AP", 64.5, SINGLE, ""),
        ("box AP", 65.0, MULTI, "val"),
        ("box AP", 65.4, MULTI, "test-dev"),
    ],
    "dino_4scale_cbinternimage_h_objects365_lvis": [
        ("box AP", 65.8, SINGLE, "minival"),
        ("box AP", 62.3, SINGLE, "val"),
        ("box AP", 63.2, MULTI, "val"),
    ],
    "dino_4scale_cbinternimage_h_objects365_openimages": [("mAP", 74.1, SINGLE, "")],
    "dino_4scale_cbinternimage_h_objects365_voc0712": [
        ("mAP", 94.0, SINGLE, "VOC 2007"),
        ("mAP", 97.2, SINGLE, "VOC 2012"),
    ],
}
# Classes of the data, and results for each image in the authors' tests.
CLASSES = {
    "ADE20K": 150,
    "COCO-Stuff 164K": 171,
    "COCO-Stuff 10K": 171,
    "Cityscapes": 19,
    "Mapillary Vistas": 19,
    "Pascal Context 59": 59,
    "NYU Depth v2": 40,
    "COCO": 80,
    "LVIS": 1203,
    "OpenImages": 601,
    "Pascal VOC 2007 and 2012": 20,
}

# Data sets whose maps number the classes from 1, with 0 for none: `reduce_zero_label` in the configurations of mmseg.
FROM_ONE = {"ADE20K", "COCO-Stuff 10K", "Pascal Context 59", "NYU Depth v2"}
# The published classifier that each one was fine-tuned from.
BASES = {
    "internimage_l_22kto1k_384": "internimage_l_22k_384",
    "internimage_xl_22kto1k_384": "internimage_xl_22k_384",
    "internimage_h_22kto1k_640": "internimage_h_jointto22k_384",
    "internimage_g_22kto1k_512": "internimage_g_jointto22k_384",
}


def expected_scores():
    """Name of a checkpoint -> its results, each with metric, value, views and split."""
    scores = dict(DINO)
    for name, values in SEGMENTERS.items():
        scores[name] = [("mIoU", value, views, "") for value, views in zip(values, (SINGLE, MULTI), strict=False)]
    for name, schedules in RCNN.items():
        for schedule, values in zip(("1x", "3x"), schedules, strict=True):
            kinds = zip(("box AP", "mask AP"), values, strict=True)
            scores[f"{name}_{schedule}_coco"] = [(kind, value, SINGLE, "") for kind, value in kinds]
    return scores


def rows(page, start):
    """The cells of the lines of a page that begin like this."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(start)
    ]


def test_scores_of_systems():
    table = {
        row.name: [(score.metric, score.value, score.views, score.split) for score in row.scores]
        for row in SYSTEM_CHECKPOINTS
    }
    assert table == expected_scores()


def test_classes_and_detections_of_systems():
    for row in SYSTEM_CHECKPOINTS:
        assert (row.real_labels or row.num_labels) == CLASSES[row.dataset], row.name
        if row.real_labels is not None:
            assert row.num_labels == 150, row.name
        if row.max_detections is not None:
            few = "rcnn" in row.system or row.size == "t"
            assert row.max_detections == (100 if few else 300), row.name


def test_labels_and_images_of_systems():
    """The sizes of segmentation's images are in the golden data, see `test_checkpoints.py`."""
    for row in SYSTEM_CHECKPOINTS:
        assert row.reduce_labels == (row.dataset in FROM_ONE), row.name
        if row.max_detections is not None:
            edges = (1000, 2000) if row.size in ("h", "g") else (800, 1333)
            assert (row.shortest_edge, row.longest_edge, row.size_divisor) == (*edges, 32), row.name
            assert (row.crop_size, row.stride, row.scale_ratios, row.flip) == (None, None, (), False), row.name


def test_classifiers():
    table = {row.name: (row.top1, row.reported_gflops, row.image_size) for row in CHECKPOINTS}
    assert table == CLASSIFIERS
    for row in CHECKPOINTS:
        assert row.num_labels == (21841 if row.top1 is None else 1000)
        assert row.base == BASES.get(row.name)


def test_index_of_the_cards():
    for name, (top1, _, side) in CLASSIFIERS.items():
        ((*_, macs, image_size, _, accuracy),) = rows("model_cards/README.md", f"| [{name}]")
        assert (image_size, accuracy) == (str(side), "-" if top1 is None else str(top1))
        assert macs.endswith(" G")
    for name, scores in expected_scores().items():
        if not name.startswith("segformer"):
            ((_, _, _, _, shown, _, _),) = rows("model_cards/README.md", f"| [{name}]")
            assert shown == (", ".join(f"{kind} {value:g}" for kind, value, _, _ in scores) or "-")


def test_sizes_in_their_page():
    table = rows("docs/models.md", "| T | `internimage_") + [
        row for size in ("S", "B", "L", "XL", "H", "G") for row in rows("docs/models.md", f"| {size} | `internimage_")
    ]
    assert len(table) == 7
    for _, names, _, side, accuracy in table:
        for name in re.findall(r"`(\w+)`", names):
            assert name in CLASSIFIERS
        name = re.findall(r"`(\w+)`", names)[0]  # of the classifier with 1000 classes
        assert (float(accuracy), int(side)) == (CLASSIFIERS[name][0], CLASSIFIERS[name][2])


def test_scores_of_mask_rcnn_in_its_page():
    for name, ((box, mask), (longer_box, longer_mask)) in RCNN.items():
        (row,) = [
            row for size in ("T", "S", "B", "L", "XL") for row in rows("docs/rcnn.md", f"| {size} |") if name in row[5]
        ]
        assert row[2:4] == [f"{box} / {longer_box}", f"{mask} / {longer_mask}"]


@pytest.mark.parametrize("column", range(7))
def test_multiply_accumulates_in_the_page_of_scales(column):
    ((_, *sizes),) = rows("docs/scale.md", "| | T, 224")
    ((_, *counted),) = rows("docs/scale.md", "| Counted, G |")
    ((_, *operator),) = rows("docs/scale.md", "| Counted, operator alone, G")
    ((_, *reported),) = rows("docs/scale.md", "| Reported, G |")
    size, side = sizes[column].split(", ")
    macs = count_macs(InternImageConfig.from_size(size), int(side))
    assert float(counted[column]) == pytest.approx(macs.total / 1e9, abs=0.051)
    assert float(operator[column]) == pytest.approx(macs.dcnv3 / 1e9, abs=0.0051)
    names = [name for name, (top1, _, _) in CLASSIFIERS.items() if top1 and name.split("_")[1] == size.lower()]
    assert [int(reported[column])] == [CLASSIFIERS[name][1] for name in names]
