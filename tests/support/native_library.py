# SPDX-License-Identifier: MIT
"""Read the native library's sources and find the compiler's sanitizers."""

import contextlib
import re
import subprocess
from pathlib import Path

import torch

_SPACE = "hf_internimage::"


@contextlib.contextmanager
def operators_run():
    """The names of the package's operators that run in this context, in order; known at its end."""
    names = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield names
    names += [event.name.removeprefix(_SPACE) for event in profile.events() if event.name.startswith(_SPACE)]


def declared(text, struct):
    """The fields of a C structure: (type, name) each."""
    body = re.search(rf"struct {struct} {{(.*?)}};", text, re.DOTALL).group(1)
    lines = re.findall(r"(\w+) ([^;]+);", re.sub(r"//[^\n]*", "", body))
    return [(kind, name.strip()) for kind, names in lines for name in names.split(",")]


def sanitizer_preload(compiler):
    """LD_PRELOAD for a library with the address sanitizer; None if the compiler has none.

    The C++ library comes with it: the sanitizer looks there for what throws exceptions, and PyTorch throws.
    """
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        found = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(found.stdout.strip())
        if not path.is_absolute() or not path.exists():
            return None
        paths.append(str(path.resolve()))
    return " ".join(paths)
