# SPDX-License-Identifier: MIT
"""Upload a model to the Hugging Face Hub, from a checkout: the same as the command `hf-internimage push`.

python scripts/push_to_hub.py --help
"""

import sys

from hf_internimage_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
