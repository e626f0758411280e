# SPDX-License-Identifier: MIT
"""Train, fine-tune or evaluate semantic segmentation: see hf_internimage.training.segmentation.main.

python scripts/run_semantic_segmentation.py scripts/recipes/segmentation/upernet_t.yaml --train_dir train ...
python scripts/run_semantic_segmentation.py --help
"""

import sys
from pathlib import Path

# Python puts a script's folder first on the path, where scripts/evaluate.py would be found instead of the package.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

try:
    from hf_internimage.training.segmentation.main import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name or error} is missing: pip install "hf-internimage[train]"')
except KeyboardInterrupt:
    sys.exit("interrupted.")

if __name__ == "__main__":
    sys.exit(main())
