# SPDX-License-Identifier: MIT
"""Load models of every class, and run code in a Python process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

from hf_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel

CLASSES = (InternImageModel, InternImageForImageClassification, InternImageBackbone)


every_class = pytest.mark.parametrize("build", CLASSES)


def assert_loaded_fully(info):
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


# Runs first in an interpreter that imitates the package's absence.
WITHOUT_THE_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_internimage":
            raise ModuleNotFoundError(f"No module named {name!r}", name="hf_internimage")

sys.meta_path.insert(0, Absent())
"""


def run_python(code, **environment):
    """The code in a new interpreter, offline; its standard output."""
    full = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=full,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
