# SPDX-License-Identifier: MIT
"""Image classifiers of FlashInternImage. All but the layers around the operator have the names of InternImage's.

Source: names in OpenGVLab/DCNv4@4b848f7, classification/models/flash_intern_image.py.
"""

from collections.abc import Collection

from ..models.configuration_flash_internimage import FlashInternImageConfig
from ..models.modeling_flash_internimage import FlashInternImageForImageClassification
from ..tensors import Shapes
from .backbone import is_flash
from .classification import convert, count_labels, guess_size
from .classification import matches as is_classifier


def matches(names: Collection[str]) -> bool:
    """Return True for names of a FlashInternImage classifier, in any of the three layouts."""
    return is_flash(names) and is_classifier(names)


def guess_config(shapes: Shapes) -> FlashInternImageConfig:
    """Return the configuration of the released size of these tensors, in Hub layout, with as many labels as their head.

    Only channels, depths and the head are read; `check_tensors` compares everything else.

    Raises:
        ValueError: as `guess_size` and `count_labels`, and for a size that InternImage alone has.
    """
    config = FlashInternImageConfig.from_size(guess_size(shapes), num_labels=count_labels(shapes))
    assert isinstance(config, FlashInternImageConfig)
    return config


def build_model(config: FlashInternImageConfig) -> FlashInternImageForImageClassification:
    """Build the classifier of a configuration."""
    return FlashInternImageForImageClassification(config)


__all__ = ["build_model", "convert", "guess_config", "matches"]
