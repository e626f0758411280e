# SPDX-License-Identifier: MIT
"""Drawn fields and values: each ends in a model that works, or in one line that names what is wrong."""

import dataclasses
import json
import math
import tempfile
import time
import traceback
from pathlib import Path

import torch
from support.golden_data import tiny_config

import hf_internimage
from hf_internimage import (
    InternImageConfig,
    InternImageDinoConfig,
    InternImageDinoForObjectDetection,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageMaskRCNNConfig,
)
from hf_internimage.models.configuration_internimage_mask_rcnn import STAGES

VALUES = (0, 1, -1, 2, 2**31, 10**9, 10**30, 0.5, -0.5, 1.5, math.nan, math.inf, True, None, "GELU", "3", "", [], [1])
VALUES += (
    [1, 1, 1, 1],
    [2, 2, 4, 4],
    [10**9, 1, 1, 1],
    [1] * 40,
    10**400,
    1e300,
    [0, 1],
    {},
    {"0": "a"},
    {0: "a", 1: "b"},
    [[1]],
    "a\nb",
    "\udcff",
    b"x",
    1 + 1j,
)
FIELDS = [
    field.name
    for field in dataclasses.fields(InternImageConfig)
    if field.init and field.name in InternImageConfig.__annotations__ and not field.name.startswith("_")
]
SMALL_DINO = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
SMALL_DINO |= {"num_queries": 5, "num_labels": 3}
_MOST_SECONDS = 5.0
_MOST_NUMBERS = 2**20  # a model larger than this is valid, but no use here


def _one_line(error):
    assert "\n" not in str(error), f"more than one line: {error}"
    assert len(str(error)) < 1000, f"too long: {str(error)[:1000]}"


def _misspelt(draw, name):
    """The name with one letter gone, doubled, changed or two of them exchanged."""
    place = draw.randrange(len(name) - 1)
    before, letter, after = name[:place], name[place], name[place + 1 :]
    return draw.choice(
        (before + after, before + 2 * letter + after, before + "x" + after, before + after[0] + letter + after[1:])
    )


def misspelt_fields_are_named(draw):
    name = draw.choice(FIELDS)
    wrong = _misspelt(draw, name)
    if wrong in FIELDS or wrong in dir(InternImageConfig) or wrong == name:
        return
    for make in (lambda: InternImageConfig(**{wrong: 3}), lambda: InternImageConfig.from_size("t", **{wrong: 3})):
        try:
            make()
        except (ValueError, TypeError) as error:
            _one_line(error)
            assert wrong in str(error), error
        else:
            raise AssertionError(f"{wrong} for {name} was taken")


def values_work_or_are_named(draw):
    fields = {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.choice((1, 1, 2)))}
    start = time.monotonic()
    try:
        config = tiny_config(**fields)
        with torch.device("meta"):
            model = InternImageForImageClassification(config)
    except (ValueError, TypeError) as error:
        assert time.monotonic() - start < _MOST_SECONDS, "slow"
        _one_line(error)
        return
    assert time.monotonic() - start < _MOST_SECONDS, "slow"
    _assert_saved_exactly(config)
    if sum(parameter.numel() for parameter in model.parameters()) > _MOST_NUMBERS:
        return
    images = torch.zeros(2, config.num_channels, 64, 64)
    logits = InternImageForImageClassification(config).eval()(images).logits
    assert logits.shape[0] == 2


def system_values_work_or_are_named(draw):
    """The same of a detector's configuration; no model is computed."""
    build, least = draw.choice(((InternImageDinoConfig, SMALL_DINO), (InternImageMaskRCNNConfig, {})))
    names = [name for name in build.__annotations__ if name in build.__dataclass_fields__]
    values = VALUES if draw.random() < 0.8 else (0.0, 1.0, 10.0, [[0.1] * 4], [0.5], ["0.5"], [[1, 1, 1, "1"]])
    fields = {draw.choice([*names, "num_labels"]): draw.choice(values) for _ in range(draw.choice((1, 1, 2)))}
    start = time.monotonic()
    try:
        config = build(**{**least, "backbone_config": tiny_config(out_features=STAGES), **fields})
        if build is InternImageDinoConfig:
            with torch.device("meta"):
                InternImageDinoForObjectDetection(config)
    except (ValueError, TypeError) as error:
        _one_line(error)
        return
    finally:
        assert time.monotonic() - start < _MOST_SECONDS, "slow"
    _assert_saved_exactly(config)


def _assert_saved_exactly(config):
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        json.loads((Path(folder) / "config.json").read_text(), parse_constant=_no_constant)
        again = type(config).from_pretrained(folder)
    assert again.to_dict() == config.to_dict()


def _no_constant(name):
    raise AssertionError(f"JSON with {name}")


def files_load_or_are_named(draw):
    """A config.json or preprocessor_config.json in which something was changed."""
    with tempfile.TemporaryDirectory() as folder:
        processor = draw.random() < 0.4
        whole = InternImageImageProcessorPil() if processor else tiny_config()
        whole.save_pretrained(folder)
        path = Path(folder) / ("preprocessor_config.json" if processor else "config.json")
        content = json.loads(path.read_text())
        key = draw.choice([*content, *(() if processor else ("auto_map", "id2label", "label2id", "num_labels"))])
        value = draw.choice([value for value in VALUES if not isinstance(value, (bytes, complex, dict))])
        if processor and draw.random() < 0.5:  # settings of this kind pass transformers' own checks
            key = draw.choice(("image_mean", "image_std", "rescale_factor", "size", "crop_size"))
            value = draw.choice(
                (0.0, math.nan, math.inf, -1.0, 1e300, [0.5, 0.0, 0.5], [0.5, math.nan, 0.5], 5, [5, 5])
            )
        content[key] = draw.choice((value, value, [content.get(key)], {"a": content.get(key)}, {"a": "b"}))
        path.write_text(json.dumps(content))
        start = time.monotonic()
        try:
            if processor:
                loaded = InternImageImageProcessorPil.from_pretrained(folder)
                pixels = loaded(torch.zeros(3, 40, 50).numpy(), return_tensors="pt").pixel_values
                assert pixels.isfinite().all(), f"{key}={content[key]!r} makes pixels that are not finite"
            else:
                config = InternImageConfig.from_pretrained(folder)
                with torch.device("meta"):
                    InternImageForImageClassification(config)
        except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
            # transformers' own reading comes first, and has other errors with longer texts
            assert str(error)
            if Path(hf_internimage.__file__).parent in _last_file(error).parents:
                assert isinstance(error, ValueError), repr(error)
                _one_line(error)
        assert time.monotonic() - start < _MOST_SECONDS, f"slow: {key}={content[key]!r}"


def _last_file(error):
    """Return the file of the line that raised an error."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename)


CHECKS = (
    misspelt_fields_are_named,
    values_work_or_are_named,
    system_values_work_or_are_named,
    files_load_or_are_named,
)
