# SPDX-License-Identifier: MIT
"""Read the native library's sources and find the compiler's sanitizers."""

import re
import subprocess
from pathlib import Path


def declared(text, struct):
    """The fields of a C structure: (type, name) each."""
    body = re.search(rf"struct {struct} {{(.*?)}};", text, re.DOTALL).group(1)
    lines = re.findall(r"(\w+) ([^;]+);", re.sub(r"//[^\n]*", "", body))
    return [(kind, name.strip()) for kind, names in lines for name in names.split(",")]


def sanitizer_library(compiler, name):
    """The shared library of a sanitizer, which must be loaded before all others; None if the compiler has none."""
    found = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None
