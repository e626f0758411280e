# SPDX-License-Identifier: MIT
"""Load models of every class, and run code in a Python process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch

from hf_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel
from support.forked_python import run_forked

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

# Runs first in an interpreter that imitates an installed version of the package without the names that this one has.
ANOTHER_VERSION = """
import sys, types

sys.modules["hf_internimage"] = package = types.ModuleType("hf_internimage")
package.__path__ = []
sys.modules["hf_internimage.ops"] = package.ops = types.ModuleType("hf_internimage.ops")
package.ops.__path__ = []
"""


def run_python(code, *, fork=True, **environment):
    """Run the code in a process of its own, offline, and return its standard output.

    A forked process has PyTorch imported; it takes half the time of a new interpreter.
    """
    code, full = textwrap.dedent(code), {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    if fork and hasattr(os, "fork"):
        with tempfile.TemporaryDirectory() as folder:
            status, output, errors = run_forked(code, full, Path(folder))
    else:
        command = [sys.executable, "-W", "error::UserWarning", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=full, check=False)
        status, output, errors = done.returncode, done.stdout, done.stderr
    assert status == 0, errors
    return output


def remote_logits(first, folder, pixels):
    """The logits of a saved classifier by the code beside its weights, in a process where `first` runs first."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "input.pt")
        torch.save(pixels, file)
        printed = run_python(
            first
            + textwrap.dedent(f"""
            import json
            import torch
            from transformers import AutoModelForImageClassification

            model = AutoModelForImageClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)
            assert "hf_internimage.models" not in sys.modules
            with torch.no_grad():
                print(json.dumps(model.eval()(torch.load({str(file)!r})).logits.tolist()))
            """),
            HF_MODULES_CACHE=str(Path(scratch, "modules")),
        )
    return torch.tensor(json.loads(printed))
