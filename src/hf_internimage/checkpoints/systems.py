# SPDX-License-Identifier: MIT
"""Table of the published segmentation and detection checkpoints, with their test settings.

This file imports the standard library alone.

Source of names, settings and scores: configurations and model zoos of OpenGVLab/InternImage@31c962d,
segmentation/configs and detection/configs. The scores are the authors'; they were not measured with this package.
Parameters were counted from names and shapes: `tests/test_checkpoints.py` counts them again.
"""

from dataclasses import dataclass

SOURCE = "https://github.com/OpenGVLab/InternImage"
FILES_REPOSITORY = "OpenGVLab/InternImage"  # on the Hub, with the files of all systems and classifiers

SEMANTIC_SEGMENTATION = "semantic-segmentation"
INSTANCE_SEGMENTATION = "instance-segmentation"
OBJECT_DETECTION = "object-detection"

_ADE20K = "ADE20K"
_CITYSCAPES = "Cityscapes"
_MAPILLARY = "Mapillary Vistas"
_COCO = "COCO"


@dataclass(frozen=True)
class Score:
    """One result that the authors report, in percent.

    Attributes:
        metric: "mIoU", "box AP", "mask AP" or "mAP".
        value: the result.
        views: "single-scale" for one version of each image, "multi-scale" for several (test-time augmentation).
        split: images it was measured on; "" for the dataset's usual validation images.
    """

    metric: str
    value: float
    views: str = "single-scale"
    split: str = ""


@dataclass(frozen=True)
class SystemCheckpoint:
    """One checkpoint for segmentation or detection that the authors of InternImage publish.

    Attributes:
        name: stem of the published file, or of the configuration if the model zoo names no file (`released`).
        task: one of the three task names of this module.
        system: name of the system in `hf_internimage.conversion.systems`; "segformer" cannot be converted.
        size: architecture of the backbone, as `InternImageConfig.from_size` takes it.
        dataset: data set of the last fine-tuning.
        num_labels: rows of the classifier. The UperNet and SegFormer heads of Cityscapes and Mapillary have 150, left
            over from ADE20K; only the first `real_labels` occur in the data.
        shortest_edge, longest_edge: limits in pixels. The test image keeps its aspect ratio and is as large as both
            limits allow.
        size_divisor: both sides of the network's input are multiples of it: segmentation resizes, detection pads. None
            for no such rule.
        configs: configurations, under segmentation/configs or detection/configs of the source.
        scores: reported results; empty if the authors report none for this file.
        parameters: number of parameters of the file, including those used in training only.
        crop_size, stride: side and step of a square sliding window, in pixels; None for the whole image at once.
        scale_ratios, flip: views of the multi-scale result, if a configuration states them.
        reduce_labels: True if the first label of the annotations is not a class; see `do_reduce_labels` of the image
            processors.
        real_labels: number of classes in the data, if it is not `num_labels`.
        max_detections: results per image in the authors' test.
        released: True if the model zoo names a file.
        licence: SPDX identifier in lower case, as the Hub writes it.
    """

    name: str
    task: str
    system: str
    size: str
    dataset: str
    num_labels: int
    shortest_edge: int
    longest_edge: int
    size_divisor: int | None
    configs: tuple[str, ...]
    scores: tuple[Score, ...]
    parameters: int
    crop_size: int | None = None
    stride: int | None = None
    scale_ratios: tuple[float, ...] = ()
    flip: bool = False
    reduce_labels: bool = False
    real_labels: int | None = None
    max_detections: int | None = None
    released: bool = True
    licence: str = "mit"

    @property
    def mode(self) -> str:
        """Return the way of testing: "slide" for sliding windows, "whole" for the whole image at once."""
        return "whole" if self.crop_size is None else "slide"

    @property
    def url(self) -> str:
        """Return the address of the file, or of its configuration if the model zoo names no file."""
        if self.released:
            return f"https://huggingface.co/{FILES_REPOSITORY}/resolve/main/{self.name}.pth"
        part = "segmentation" if self.task == SEMANTIC_SEGMENTATION else "detection"
        return f"{SOURCE}/blob/31c962d/{part}/configs/{self.configs[0]}.py"


def _miou(single: float, multi: float | None = None) -> tuple[Score, ...]:
    return (Score("mIoU", single), *(() if multi is None else (Score("mIoU", multi, "multi-scale"),)))


def _upernet_ade20k(
    size: str, edge: int, scores: tuple[Score, ...], parameters: int, longest_edge: int
) -> SystemCheckpoint:
    name = f"upernet_internimage_{size}_{edge}_160k_ade20k"
    return SystemCheckpoint(
        name,
        SEMANTIC_SEGMENTATION,
        "upernet",
        size,
        _ADE20K,
        150,
        edge,
        longest_edge,
        32,
        (f"ade20k/{name}",),
        scores,
        parameters,
        reduce_labels=True,
    )


def _street(
    system: str, size: str, name: str, dataset: str, scores: tuple[Score, ...], parameters: int
) -> SystemCheckpoint:
    """Return a row for a UperNet or SegFormer of street scenes (Cityscapes, Mapillary), all tested in one way."""
    folder = "cityscapes" if dataset == _CITYSCAPES else "mapillary"
    return SystemCheckpoint(
        name,
        SEMANTIC_SEGMENTATION,
        system,
        size,
        dataset,
        150,
        1024,
        2048,
        None,
        (f"{folder}/{name}",),
        scores,
        parameters,
        real_labels=19,
    )


def _rcnn(system: str, size: str, schedule: str, box: float, mask: float, parameters: int) -> SystemCheckpoint:
    stem = "mask_rcnn" if system == "mask_rcnn" else "cascade"
    name = f"{stem}_internimage_{size}_fpn_{schedule}_coco"
    return SystemCheckpoint(
        name,
        INSTANCE_SEGMENTATION,
        system,
        size,
        _COCO,
        80,
        800,
        1333,
        32,
        (f"coco/{name}",),
        (Score("box AP", box), Score("mask AP", mask)),
        parameters,
        max_detections=100,
    )


def _dino(
    system: str,
    size: str,
    name: str,
    dataset: str,
    num_labels: int,
    edges: tuple[int, int],
    configs: tuple[str, ...],
    scores: tuple[Score, ...],
    parameters: int,
    max_detections: int = 300,
    released: bool = True,
) -> SystemCheckpoint:
    return SystemCheckpoint(
        name,
        OBJECT_DETECTION,
        system,
        size,
        dataset,
        num_labels,
        *edges,
        32,
        configs,
        scores,
        parameters,
        max_detections=max_detections,
        released=released,
    )


def _mask2former(
    name: str,
    dataset: str,
    num_labels: int,
    edges: tuple[int, int],
    configs: tuple[str, ...],
    scores: tuple[Score, ...],
    parameters: int,
    crop_size: int | None = None,
    reduce_labels: bool = False,
    scale_ratios: tuple[float, ...] = (),
) -> SystemCheckpoint:
    return SystemCheckpoint(
        name,
        SEMANTIC_SEGMENTATION,
        "mask2former",
        "h",
        dataset,
        num_labels,
        *edges,
        32,
        configs,
        scores,
        parameters,
        crop_size=crop_size,
        stride=None if crop_size is None else 512,
        scale_ratios=scale_ratios,
        flip=bool(scale_ratios),
        reduce_labels=reduce_labels,
    )


_UPERNET_L, _UPERNET_XL, _MASK2FORMER_COCO_STUFF = 255_600_606, 367_733_000, 1_313_517_660
_STREETS = (1024, 2048)

SYSTEM_CHECKPOINTS = (
    _upernet_ade20k("t", 512, _miou(47.9, 48.1), 59_077_148, 2048),
    _upernet_ade20k("s", 512, _miou(50.1, 50.9), 79_866_956, 2048),
    _upernet_ade20k("b", 512, _miou(50.8, 51.3), 128_387_852, 2048),
    _upernet_ade20k("l", 640, _miou(53.9, 54.1), _UPERNET_L, 2560),
    _upernet_ade20k("xl", 640, _miou(55.0, 55.3), _UPERNET_XL, 2560),
    _upernet_ade20k("h", 896, _miou(59.9, 60.3), 1_120_338_396, 3584),
    _mask2former(
        "mask2former_internimage_h_896_80k_cocostuff2ade20k",
        _ADE20K,
        150,
        (896, 3584),
        (
            "ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss",
            "ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ms",
        ),
        _miou(62.6, 62.9),
        1_313_496_135,
        reduce_labels=True,
        scale_ratios=(768 / 896, 832 / 896, 1.0, 960 / 896, 1024 / 896),
    ),
    _mask2former(
        "mask2former_internimage_h_896_80k_cocostuff164k",
        "COCO-Stuff 164K",
        171,
        (896, 3584),
        ("coco_stuff164k/mask2former_internimage_h_896_80k_cocostuff164k",),
        _miou(52.6),
        _MASK2FORMER_COCO_STUFF,
    ),
    _mask2former(
        "mask2former_internimage_h_512_40k_cocostuff164k_to_10k",
        "COCO-Stuff 10K",
        171,
        (512, 2048),
        ("coco_stuff10k/mask2former_internimage_h_512_40k_cocostuff164k_to_10k",),
        _miou(59.2, 59.6),
        _MASK2FORMER_COCO_STUFF,
        reduce_labels=True,
    ),
    _mask2former(
        "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",
        _CITYSCAPES,
        19,
        _STREETS,
        ("cityscapes/mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",),
        _miou(86.37, 86.96),
        1_093_867_908,
        crop_size=1024,
    ),
    _mask2former(
        "mask2former_internimage_h_896x896_80k_mapillary",
        _MAPILLARY,
        19,
        _STREETS,
        ("mapillary/mask2former_internimage_h_896x896_80k_mapillary",),
        (),
        1_093_867_908,
        crop_size=896,
    ),
    _mask2former(
        "mask2former_internimage_h_480_40k_pascal_context_59",
        "Pascal Context 59",
        59,
        (520, 4096),
        ("pascal_context/mask2former_internimage_h_480_40k_pascal_context_59",),
        _miou(69.7, 70.3),
        1_093_878_188,
        reduce_labels=True,
    ),
    _mask2former(
        "mask2former_internimage_h_480_40k_nyu",
        "NYU Depth v2",
        40,
        (480, 640),
        ("nyu_depth_v2/mask2former_internimage_h_480_40k_nyu",),
        _miou(67.1, 68.1),
        1_093_873_305,
        reduce_labels=True,
    ),
    *(
        _street(
            "upernet",
            size,
            f"upernet_internimage_{size}_512x1024_160k_cityscapes",
            _CITYSCAPES,
            _miou(single, multi),
            parameters,
        )
        for size, single, multi, parameters in (
            ("t", 82.58, 83.40, 59_077_148),
            ("s", 82.74, 83.45, 79_866_956),
            ("b", 83.18, 83.97, 128_387_852),
            ("l", 83.68, 84.41, _UPERNET_L),
            ("xl", 83.62, 84.28, _UPERNET_XL),
        )
    ),
    *(
        _street(
            system,
            size,
            f"{system}_internimage_{size}_512x1024_160k_mapillary2cityscapes",
            _CITYSCAPES,
            _miou(single, multi),
            parameters,
        )
        for system, size, single, multi, parameters in (
            ("upernet", "l", 85.94, 86.22, _UPERNET_L),
            ("upernet", "xl", 86.20, 86.42, _UPERNET_XL),
            ("segformer", "l", 85.16, 85.67, 219_870_024),
            ("segformer", "xl", 85.41, 85.93, 330_011_762),
        )
    ),
    *(
        _street(system, size, f"{system}_internimage_{size}_512x1024_80k_mapillary", _MAPILLARY, (), parameters)
        for system, size, parameters in (
            ("upernet", "l", _UPERNET_L),
            ("upernet", "xl", _UPERNET_XL),
            ("segformer", "l", 219_870_024),
            ("segformer", "xl", 330_011_762),
        )
    ),
    _rcnn("mask_rcnn", "t", "1x", 47.2, 42.5, 48_920_544),
    _rcnn("mask_rcnn", "t", "3x", 49.1, 43.7, 48_920_544),
    _rcnn("mask_rcnn", "s", "1x", 47.8, 43.3, 68_715_024),
    _rcnn("mask_rcnn", "s", "3x", 49.7, 44.5, 68_715_024),
    _rcnn("mask_rcnn", "b", "1x", 48.8, 44.0, 115_245_264),
    _rcnn("mask_rcnn", "b", "3x", 50.3, 44.8, 115_245_264),
    _rcnn("cascade_rcnn", "l", "1x", 54.9, 47.7, 277_307_236),
    _rcnn("cascade_rcnn", "l", "3x", 56.1, 48.5, 277_307_236),
    _rcnn("cascade_rcnn", "xl", "1x", 55.3, 48.1, 387_448_974),
    _rcnn("cascade_rcnn", "xl", "3x", 56.2, 48.8, 387_448_974),
    _dino(
        "dino",
        "t",
        "dino_4scale_internimage_t_1x_coco",
        _COCO,
        80,
        (800, 1333),
        ("coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr",),
        (Score("box AP", 53.9),),
        48_736_828,
        max_detections=100,
    ),
    _dino(
        "dino",
        "l",
        "dino_4scale_internimage_l_1x_coco_layer_wise_lr",
        _COCO,
        80,
        (800, 1333),
        ("coco/dino_4scale_internimage_l_1x_coco_layer_wise_lr",),
        (Score("box AP", 57.5),),
        241_033_214,
    ),
    _dino(
        "dino",
        "l",
        "dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr",
        _COCO,
        80,
        (800, 1333),
        ("coco/dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr",),
        (Score("box AP", 57.6),),
        241_033_214,
    ),
    _dino(
        "dino",
        "h",
        "dino_4scale_internimage_h_objects365_coco_ss",
        _COCO,
        80,
        (1000, 2000),
        ("coco/dino_4scale_internimage_h_objects365_coco_ss",),
        (Score("box AP", 63.4),),
        1_098_725_884,
        released=False,
    ),
    _dino(
        "dino",
        "g",
        "dino_4scale_internimage_g_objects365_coco_ss",
        _COCO,
        80,
        (1000, 2000),
        ("coco/dino_4scale_internimage_g_objects365_coco_ss",),
        (Score("box AP", 64.2),),
        3_082_611_660,
        released=False,
    ),
    _dino(
        "cb_dino",
        "h",
        "dino_4scale_cbinternimage_h_objects365_coco",
        _COCO,
        80,
        (1000, 2000),
        ("coco/dino_4scale_cbinternimage_h_objects365_coco_ss",),
        (
            Score("box AP", 64.5),
            Score("box AP", 65.0, "multi-scale", "val"),
            Score("box AP", 65.4, "multi-scale", "test-dev"),
        ),
        2_178_558_124,
    ),
    _dino(
        "cb_dino",
        "h",
        "dino_4scale_cbinternimage_h_objects365_lvis",
        "LVIS",
        1203,
        (1000, 2000),
        (
            "lvis/dino_4scale_cbinternimage_h_objects365_lvis_minival_ss",
            "lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ss",
        ),
        (
            Score("box AP", 65.8, split="minival"),
            Score("box AP", 62.3, split="val"),
            Score("box AP", 63.2, "multi-scale", "val"),
        ),
        2_180_865_889,
    ),
    _dino(
        "cb_dino",
        "h",
        "dino_4scale_cbinternimage_h_objects365_openimages",
        "OpenImages",
        601,
        (1000, 2000),
        ("openimages/dino_4scale_cbinternimage_h_objects365_openimages_ss",),
        (Score("mAP", 74.1),),
        2_179_628_779,
    ),
    _dino(
        "cb_dino",
        "h",
        "dino_4scale_cbinternimage_h_objects365_voc0712",
        "Pascal VOC 2007 and 2012",
        20,
        (1000, 2000),
        (
            "voc/dino_4scale_cbinternimage_h_objects365_voc07",
            "voc/dino_4scale_cbinternimage_h_objects365_voc12",
        ),
        (Score("mAP", 94.0, split="VOC 2007"), Score("mAP", 97.2, split="VOC 2012")),
        2_178_434_824,
    ),
)


def find_checkpoint(name: str) -> SystemCheckpoint | None:
    """Return the checkpoint with this name, file name or name of a configuration; None if there is none.

    Folders before the name and the endings .pth and .py are ignored.
    """
    stem = name.rpartition("/")[2].removesuffix(".pth").removesuffix(".py")
    for checkpoint in SYSTEM_CHECKPOINTS:
        if stem in (checkpoint.name, *(config.rpartition("/")[2] for config in checkpoint.configs)):
            return checkpoint
    return None


__all__ = [
    "FILES_REPOSITORY",
    "INSTANCE_SEGMENTATION",
    "OBJECT_DETECTION",
    "SEMANTIC_SEGMENTATION",
    "SOURCE",
    "SYSTEM_CHECKPOINTS",
    "Score",
    "SystemCheckpoint",
    "find_checkpoint",
]
