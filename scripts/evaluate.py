# SPDX-License-Identifier: MIT
"""Measure a model on a data set, from a checkout: the same as the command `hf-internimage evaluate`.

python scripts/evaluate.py --help
"""

import sys
from pathlib import Path

# Python puts a script's folder first on the path, where this file would be found instead of the package `evaluate`.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from hf_internimage_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
