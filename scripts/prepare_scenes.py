# SPDX-License-Identifier: MIT
"""Compose small scenes with known masks and boxes, to try segmentation and detection. See --help."""

import sys

from hf_internimage.training.example_data.scenes import main

if __name__ == "__main__":
    sys.exit(main())
