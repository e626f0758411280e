# SPDX-License-Identifier: MIT
"""Helpers of the tests of the training scripts."""

from types import SimpleNamespace


def only_labels(names, multi_label=False):
    """Return a stand-in for loaded data with the labels alone, enough to build a model."""
    return SimpleNamespace(label_names=list(names), multi_label=multi_label)


def as_arguments(settings):
    """Return settings as arguments of a script, without those that are None."""
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]
