# SPDX-License-Identifier: MIT
"""The source files that a saved classifier, and a saved detector, take to the Hub."""

from pathlib import Path

from hf_internimage import models

MODELS_FOLDER = Path(models.__file__).parent
ISLAND = {
    "checked_configuration.py",
    "configuration_internimage.py",
    "dcnv3_reference.py",
    "layers_internimage.py",
    "loading_report.py",
    "modeling_internimage.py",
}
DETECTOR_ISLAND = ISLAND | {
    "configuration_cb_internimage.py",
    "configuration_flash_internimage.py",
    "configuration_internimage_dino.py",
    "dcnv4_layout.py",
    "image_processing_internimage_detection.py",
    "layers_flash_internimage.py",
    "loss_internimage_dino.py",
    "modeling_cb_internimage.py",
    "modeling_flash_internimage.py",
    "modeling_internimage_dino.py",
    "precision.py",
    "resizing.py",
    "rgb_images.py",
}
