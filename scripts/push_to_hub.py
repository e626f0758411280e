# SPDX-License-Identifier: MIT
"""Push an InternImage model to the Hugging Face Hub, as a repository that works with and without hf-internimage.

python scripts/push_to_hub.py outputs/checkpoint-500 my-internimage --private
python scripts/push_to_hub.py outputs my-internimage --result result.json --license mit
python scripts/push_to_hub.py outputs my-internimage --dry-run --output-dir repository
"""

import sys

from hf_internimage.hub.main import main

if __name__ == "__main__":
    sys.exit(main())
