# SPDX-License-Identifier: MIT
"""Whose class names a converted model gets."""

from pathlib import Path

import pytest
from support.golden_data import tiny_config

from hf_internimage.conversion.build import set_labels

NAMED = {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("labels", "own", "fallback", "names", "origin"),
    [
        (["c", "d"], NAMED, ["e", "f"], ["c", "d"], "names of labels.txt"),
        (None, NAMED, ["e", "f"], ["a", "b"], "names of the configuration"),
        (None, {0: "LABEL_0", 1: "b"}, ["e", "f"], ["LABEL_0", "b"], "names of the configuration"),
        (None, None, ["e", "f"], ["e", "f"], "fallback"),
        (None, None, ["e"], ["LABEL_0", "LABEL_1"], "no names"),
    ],
)
def test_names_of_the_user_then_the_configuration_then_the_file(labels, own, fallback, names, origin):
    config = tiny_config(num_labels=2)
    if own is not None:
        config = tiny_config(num_labels=2, id2label=own, label2id={name: index for index, name in own.items()})
    assert set_labels(config, labels, Path("labels.txt"), fallback, "fallback") == origin
    assert [config.id2label[index] for index in range(2)] == names
    assert config.label2id == {name: index for index, name in enumerate(names)}
