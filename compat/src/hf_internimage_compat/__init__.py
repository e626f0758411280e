# SPDX-License-Identifier: MIT
"""The modules `DCNv3` and `DCNv4` for repositories that need the compiled extensions, in the folder EXTENSIONS."""

from pathlib import Path

__version__ = "0.1.0"

EXTENSIONS = Path(__file__).resolve().parent / "extensions"
