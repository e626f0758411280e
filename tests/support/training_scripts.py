# SPDX-License-Identifier: MIT
"""What tests of the training scripts share."""

import sys
from types import SimpleNamespace

from support.golden_data import load_module
from support.paths import SCRIPTS


def load_script(name):
    """The script as a module; sys.path, off which it takes its folder, comes back."""
    before = list(sys.path)
    try:
        return load_module(SCRIPTS / name)
    finally:
        sys.path[:] = before


def only_labels(names, multi_label=False):
    """Stand-in for loaded data, of which building a model needs the labels alone."""
    return SimpleNamespace(label_names=list(names), multi_label=multi_label)


def as_arguments(settings):
    """Settings as arguments of a script; those that are None are left out."""
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]
