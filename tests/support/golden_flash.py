# SPDX-License-Identifier: MIT
"""The numbers of DCNv4 and FlashInternImage (tests/golden/flash) as tensors."""

import json
import sys
from functools import cache

from safetensors.torch import load_file

from support.golden_data import fill, load_module
from support.paths import GOLDEN

FLASH = GOLDEN / "flash"


@cache
def fill_flash():
    """The module that makes weights and inputs from names."""
    sys.modules.setdefault("fill", fill())
    return load_module(FLASH / "fill_flash.py")


@cache
def load(name):
    """Description and tensors of `name`.json and `name`.safetensors."""
    return json.loads((FLASH / f"{name}.json").read_text()), load_file(FLASH / f"{name}.safetensors")
