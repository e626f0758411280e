# SPDX-License-Identifier: MIT
"""Limits and sources of images, and what a reader knows of the image processor."""

import io
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_internimage.training.images import (
    BadImageError,
    ImageReader,
    RowTransform,
    check_images,
    decode_image,
    name_of,
    read_bytes,
)
from hf_internimage.training.json_files import finite, json_text


def encoded(size, kind, **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (15360, (160, 96)), (15359, (80, 48)), (3840, (80, 48)), (3839, (40, 24)), (960, (40, 24)), (959, (20, 12)),
        (240, (20, 12)), (239, None),
    ],
)  # fmt: skip
def test_a_jpeg_is_reduced_as_little_as_its_limit_allows(limit, size):
    data = encoded((160, 96), "JPEG")
    if size is None:
        with pytest.raises(BadImageError, match=r"^an image without a .*: is too large \(160x96 pixels; .* 239 "):
            decode_image(data, limit)
    else:
        assert decode_image(data, limit).size == size


def test_the_limit_itself_is_not_too_large():
    data = encoded((10, 6), "PNG")
    assert decode_image(data, 60).size == (10, 6)
    with pytest.raises(BadImageError, match=r"10x6 pixels; the limit is 59 pixels\): make it smaller"):
        decode_image(data, 59)


@pytest.mark.parametrize(("limit", "pillows"), [(1999, 1000), (2000, 1000), (2001, 1001), (4000, 2000)])
def test_pillows_own_limit_is_raised_only_as_far_as_needed(limit, pillows, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    decode_image(encoded((10, 6), "PNG"), limit)
    assert pillows == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # no limit
    decode_image(encoded((10, 6), "PNG"), limit)
    assert Image.MAX_IMAGE_PIXELS is None


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
    assert record.message.startswith("3.png: is of 16 bits or transparent.")


def test_where_bytes_come_from(tmp_path):
    (tmp_path / "a.png").write_bytes(b"of the disk")
    with fsspec.open("memory://far/a.png", "wb") as file:
        file.write(b"of the network")
    assert read_bytes({"bytes": b"", "path": str(tmp_path / "a.png")}) == b""
    assert read_bytes({"path": str(tmp_path / "a.png")}) == b"of the disk"
    assert read_bytes({"bytes": None, "path": "memory://far/a.png"}) == b"of the network"
    with pytest.raises(BadImageError, match=r"^an image without a file name: has neither bytes nor a path; remove"):
        read_bytes({"bytes": None, "path": None})
    with pytest.raises(BadImageError, match=r"absent: cannot be read \(No such file or directory\); restore or remove"):
        read_bytes({"bytes": None, "path": str(tmp_path / "absent")})


def test_names_of_images(tmp_path):
    assert name_of({"path": "a.png", "bytes": b""}) == name_of("a.png") == "a.png"
    assert name_of(tmp_path) == str(tmp_path)
    for image in ({"path": None}, {}, b"", Image.new("RGB", (1, 1))):
        assert name_of(image) == "an image without a file name"


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
