# SPDX-License-Identifier: MIT
"""Convert a checkpoint of the original release, from a checkout: the same as the command `hf-internimage convert`.

python scripts/convert_checkpoint.py --help
"""

import sys

from hf_internimage_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
