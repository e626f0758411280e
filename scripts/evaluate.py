# SPDX-License-Identifier: MIT
"""Measure an image classifier on a data set: see hf_internimage.training.classification.evaluate_checkpoint.

python scripts/evaluate.py --model out --validation_dir images/validation --output result.json
python scripts/evaluate.py --help
"""

import sys
from pathlib import Path

# Python puts a script's folder first on the path, where this file would be found instead of the package `evaluate`.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

try:
    from hf_internimage.training.classification.evaluate_checkpoint import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name or error} is missing: pip install "hf-internimage[train]"')
except KeyboardInterrupt:
    sys.exit("interrupted.")

if __name__ == "__main__":
    sys.exit(main())
