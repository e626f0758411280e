# SPDX-License-Identifier: MIT
"""Turn the files of Fashion-MNIST into data for scripts/run_image_classification.py. See --help."""

import sys

try:
    from hf_internimage.training.example_data.fashion_mnist import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name or error} is missing: pip install "hf-internimage[train]"')

if __name__ == "__main__":
    sys.exit(main())
