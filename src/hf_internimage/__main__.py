# SPDX-License-Identifier: MIT
"""Run `python -m hf_internimage`, the same as the command `hf-internimage`."""

import sys

from hf_internimage_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
