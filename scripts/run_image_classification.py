# SPDX-License-Identifier: MIT
"""Train or fine-tune an image classifier by InternImage's recipe: see hf_internimage.training.classification.main.

python scripts/run_image_classification.py scripts/recipes/finetune.yaml --train_dir images --output_dir out
python scripts/run_image_classification.py --help
"""

import sys
from pathlib import Path

# Python puts a script's folder first on the path, where scripts/evaluate.py would be found instead of the package.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

try:
    from hf_internimage.training.classification.main import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name or error} is missing: pip install "hf-internimage[train]"')
except KeyboardInterrupt:
    sys.exit("interrupted.")

if __name__ == "__main__":
    sys.exit(main())
