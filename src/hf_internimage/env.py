# SPDX-License-Identifier: MIT
"""Print versions and available backends (`python -m hf_internimage.env`), for users and bug reports."""

import platform
import sys

import torch
import transformers

from . import __version__
from .ops import explain, native, nvrtc
from .ops.registry import BACKEND_VARIABLE, BackendError, environment


def describe() -> str:
    """Return the text that the command prints. What cannot be printed, in variables and paths, is escaped."""
    try:
        library = native.why_not() or native.describe()
    except BackendError as error:
        library = str(error)
    lines = [
        f"hf_internimage {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"{BACKEND_VARIABLE}: {environment() or 'not set'}",
        f"compiled CPU library: {library}",
        f"GPUs: {', '.join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or 'none'}",
        f"CUDA kernels: {nvrtc.why_not() or nvrtc.describe()}",
        *explain().splitlines(),
    ]
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


if __name__ == "__main__":
    sys.stdout.write(describe() + "\n")
