# SPDX-License-Identifier: MIT
"""Turn the files of Fashion-MNIST into data for scripts/run_image_classification.py. See --help."""

import sys

from hf_internimage.training.example_data.fashion_mnist import main

if __name__ == "__main__":
    sys.exit(main())
