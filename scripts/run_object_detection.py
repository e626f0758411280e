# SPDX-License-Identifier: MIT
"""Train a detector from a checkout: the same as the command `hf-internimage train detection`.

python scripts/run_object_detection.py --help
"""

import sys
from pathlib import Path

# Python puts a script's folder first on the path, where scripts/evaluate.py would be found instead of the package.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from hf_internimage_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "detection", *sys.argv[1:]]))
