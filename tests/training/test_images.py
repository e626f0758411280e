# SPDX-License-Identifier: MIT
"""What a reader of images knows of the image processor."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_internimage.image_files import BadImageError
from hf_internimage.training.images import ImageReader, RowTransform, check_images
from hf_internimage.training.json_files import finite, json_text


def encoded(size, kind, **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("fields", "short_side"),
    [
        ({"size": {"shortest_edge": 40}, "do_resize": True}, 40),
        ({"size": {"shortest_edge": 40}, "do_resize": False}, None),
        ({"size": {"shortest_edge": 40}}, None),
        ({"size": {"shortest_edge": 40, "longest_edge": 80}, "do_resize": True}, None),
        ({"size": {"shortest_edge": 40, "longest_edge": None}, "do_resize": True}, 40),
        ({"size": {"shortest_edge": 40, "max_height": 80, "max_width": 80}, "do_resize": True}, None),
        ({"size": {"height": 40, "width": 40}, "do_resize": True}, None),
        ({"size": None, "do_resize": True}, None),
        ({}, None),
    ],
)
def test_a_reader_limits_what_the_processor_does_not(fields, short_side):
    reader = ImageReader(max_pixels=99, left_out={"train": ["a"]})
    own = reader.for_processor(SimpleNamespace(**fields))
    assert (own.short_side, own.max_pixels) == (short_side, 99)
    assert own.read_otherwise is reader.read_otherwise
    assert own.left_out is reader.left_out


def test_each_image_of_other_pixels_is_flagged_and_the_first_is_told(caplog):
    reader = ImageReader()
    for side in (3, 4, 4, 5):
        buffer = io.BytesIO()
        Image.new("RGBA", (side, side)).save(buffer, "PNG")
        reader.read({"bytes": buffer.getvalue(), "path": f"{side}.png"})
    reader.read({"bytes": encoded((4, 4), "PNG"), "path": "usual.png"})
    assert int(reader.read_otherwise.sum()) == 3
    (record,) = caplog.records
    assert record.message.startswith("3.png has 16 bits or transparency")
    assert len(record.message) < 130


class Rows(RowTransform):
    def one(self, row, *key):
        return {"sum": row["a"] + row["b"], "key": key}

    def read(self, row):
        if row["a"] % 2:
            raise BadImageError(f"row {row['a']}:  is\nodd")


def test_rows_of_a_batch_are_examples():
    assert Rows(None)({"a": [1, 2], "b": [10, 20]}) == {"sum": [11, 22], "key": [(), ()]}


@pytest.mark.parametrize("workers", [1, 8])
def test_bad_rows_are_numbered_in_their_order(workers):
    found = list(check_images(Dataset.from_dict({"a": list(range(300))}), Rows(None).read, workers))
    assert found == [(row, f"row {row}: is odd") for row in range(1, 300, 2)]


def test_json_of_numbers_that_are_not_finite():
    value = {"a": (float("nan"), [float("inf"), 1.5]), "b": {"c": -float("inf")}, "d": "nan", "e": 3}
    expected = {"a": [None, [None, 1.5]], "b": {"c": None}, "d": "nan", "e": 3}
    assert finite(value) == expected
    assert json_text({"a": float("nan")}) == '{\n  "a": null\n}\n'
    assert finite(np.float64("nan")) is None
