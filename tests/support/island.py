# SPDX-License-Identifier: MIT
"""The files that travel to the Hub."""

from pathlib import Path

import hf_internimage

PACKAGE = Path(hf_internimage.__file__).parent


ISLAND = {
    "configuration_internimage.py",
    "dcnv3_reference.py",
    "layers_internimage.py",
    "modeling_internimage.py",
}


# what detectors, composite backbones and their image processors take along, besides
DETECTOR_ISLAND = ISLAND | {
    "configuration_cb_internimage.py",
    "configuration_internimage_dino.py",
    "image_processing_internimage_detection.py",
    "loss_internimage_dino.py",
    "modeling_cb_internimage.py",
    "modeling_internimage_dino.py",
    "resizing.py",
}
