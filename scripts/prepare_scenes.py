# SPDX-License-Identifier: MIT
"""Compose small scenes with known masks and boxes, to try segmentation and detection. See --help."""

import sys

try:
    from hf_internimage.training.example_data.scenes import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name or error} is missing: pip install "hf-internimage[train]"')

if __name__ == "__main__":
    sys.exit(main())
