# SPDX-License-Identifier: MIT
"""Helpers of the tests of the training scripts."""

import sys
from types import SimpleNamespace

from support.golden_data import load_module
from support.paths import SCRIPTS


def load_script(name):
    """Return the script as a module, with sys.path as before: the script takes its folder off it."""
    before = list(sys.path)
    try:
        return load_module(SCRIPTS / name)
    finally:
        sys.path[:] = before


def only_labels(names, multi_label=False):
    """Return a stand-in for loaded data with the labels alone, enough to build a model."""
    return SimpleNamespace(label_names=list(names), multi_label=multi_label)


def as_arguments(settings):
    """Return settings as arguments of a script, without those that are None."""
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]
