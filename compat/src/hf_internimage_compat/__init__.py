# SPDX-License-Identifier: MIT
"""The module `DCNv3` for repositories that need InternImage's compiled extension, in the folder EXTENSIONS."""

from pathlib import Path

__version__ = "0.1.0"

EXTENSIONS = Path(__file__).resolve().parent / "extensions"
