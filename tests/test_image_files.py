# SPDX-License-Identifier: MIT
"""Files of images: their limits of size, where their bytes come from, their names, and folders of them."""

import io

import fsspec
import pytest
from PIL import Image

from hf_internimage.image_files import BadImageError, decode_image, list_files, name_of, read_bytes


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


@pytest.mark.parametrize("target", ["..", "."])
def test_links_that_never_end(target, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(target)
    with pytest.raises(ValueError, match="loop is a link to a folder around it, which never ends"):
        list_files(str(tmp_path))


def test_links_between_folders_beside_each_other_never_end(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    with pytest.raises(ValueError, match="is a link to a folder around it, which never ends"):
        list_files(str(tmp_path))
    (tmp_path / "b" / "link").unlink()
    assert len(list_files(str(tmp_path))) == 3


def test_names_that_cannot_be_written_down_are_refused(tmp_path):
    path = str(tmp_path / "caf\udce9.png")
    try:
        open(path, "w").close()
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(ValueError, match=r"caf\\udce9.png' is a name that is not UTF-8; rename the file"):
        list_files(str(tmp_path))


def test_links_to_other_folders_are_followed(tmp_path):
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert list_files(str(tmp_path / "data")) == [str(tmp_path / "data" / "a" / "1.png")]
