# SPDX-License-Identifier: MIT
"""Which images are read, in which order, and as which pixels."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.prediction_models import cut_jpeg, picture, write_pictures, write_video

from hf_internimage.models.rgb_images import WrongPixelsError
from hf_internimage.prediction.sources import list_inputs, read_sources

RED = (200, 30, 40)


def levels(sources):
    return [source.image.getpixel((0, 0))[0] for source in sources]


def test_files_folders_patterns_and_images_come_in_the_order_given(tmp_path):
    first = write_pictures(tmp_path / "a" / "deeper", 2)
    second = write_pictures(tmp_path / "b", 2)
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / "b" / ".hidden.png").touch()
    image = picture()
    inputs = list_inputs([second[1], tmp_path / "a", str(tmp_path / "b" / "*.png"), image, np.asarray(image)])
    assert inputs[:5] == [second[1], *first, *second]
    assert inputs[5] is image
    assert len(inputs) == 7
    assert list_inputs(Path(second[0])) == [second[0]]
    assert list_inputs(str(tmp_path / "**" / "00.png")) == [first[0], second[0]]
    assert len(list_inputs(np.zeros((3, 4, 6, 3), np.uint8))) == 3
    assert len(list_inputs(np.zeros((4, 6, 3), np.uint8))) == 1


def test_patterns_name_each_image_once_and_broken_links_end_nothing(tmp_path):
    outer, inner = write_pictures(tmp_path / "images", 1) + write_pictures(tmp_path / "images" / "deeper" / "still", 1)
    broken = tmp_path / "images" / "broken.jpg"
    broken.symlink_to(tmp_path / "nothing")
    inputs = list_inputs(str(tmp_path / "images" / "**"))
    assert sorted(inputs) == sorted([outer, inner, str(broken)])
    sources = list(read_sources(inputs))
    assert [source.path for source in sources if source.image is None] == [str(broken)]


def test_pictures_of_earlier_predictions_are_no_inputs(tmp_path):
    photos = write_pictures(tmp_path / "a", 2)
    drawn = write_pictures(tmp_path / "predictions" / "boxes", 2)
    (tmp_path / "predictions" / "predictions.json").touch()
    assert list_inputs(tmp_path) == photos
    assert list_inputs(f"{tmp_path}/") == photos
    assert list_inputs(tmp_path / "predictions") == list_inputs(f"{tmp_path / 'predictions'}/") == drawn  # on request


def test_many_files_keep_their_order(tmp_path):
    for index in range(40):
        Image.new("RGB", (4 + index % 7, 4), (index, 0, 0)).save(tmp_path / f"{index:02d}.png")
    sources = list(read_sources(list_inputs(tmp_path)))
    assert levels(sources) == list(range(40))
    assert [Path(source.path).name for source in sources] == [f"{index:02d}.png" for index in range(40)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", r"gone\.png: there is no such file or folder"),
        ("*.jpg", r"\*\.jpg: matches no file; check the pattern"),
        ("empty", "empty: holds no image or video"),
    ],
)
def test_inputs_that_are_none_are_named(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    with pytest.raises(ValueError, match=message):
        list_inputs(str(tmp_path / name))


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="There are no images: give a file, a folder"):
        list_inputs([])
    with pytest.raises(TypeError, match="An image is given as int; give a path"):
        list_inputs([3])


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.new("RGB", (6, 4), RED), "PNG", exif=exif)


FILES = {
    "exif": (exif_rotated, (4, 6), RED),
    "alpha": (lambda: saved(Image.new("RGBA", (6, 4), (*RED, 0)), "PNG"), (6, 4), (255, 255, 255)),
    "grey": (lambda: saved(Image.new("L", (6, 4), 77), "PNG"), (6, 4), (77, 77, 77)),
    "cmyk": (lambda: saved(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "TIFF"), (6, 4), (255, 0, 0)),
    "sixteen bits": (lambda: saved(Image.fromarray(np.full((4, 6), 77 * 256, np.uint16)), "PNG"), (6, 4), (77, 77, 77)),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_any_mode_are_read_as_in_training(name, tmp_path):
    content, size, colour = FILES[name]
    (tmp_path / "a.img").write_bytes(content())
    for given in (str(tmp_path / "a.img"), Image.open(tmp_path / "a.img")):
        (source,) = read_sources(list_inputs(given))
        assert (source.image.mode, source.image.size) == ("RGB", size)
        assert source.image.getpixel((1, 1)) == colour
        assert source.path == str(tmp_path / "a.img")


ARRAYS = {
    "grey": np.full((4, 6), 77, np.uint8),
    "grey with a channel": np.full((4, 6, 1), 77, np.uint8),
    "RGB": np.full((4, 6, 3), 77, np.uint8),
    "opaque": np.concatenate([np.full((4, 6, 3), 77), np.full((4, 6, 1), 255)], 2).astype(np.uint8),
    "channels first": torch.full((3, 4, 6), 77, dtype=torch.uint8),
    "16 bits": np.full((4, 6, 3), 77 * 256 + 9, np.uint16),
    "floats to 1": np.full((4, 6, 3), 77 / 255, np.float32),
    "floats to 255": torch.full((1, 4, 6), 77.0),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_images(name):
    (source,) = read_sources(list_inputs([ARRAYS[name]]))
    assert (source.image.mode, source.image.size, source.path) == ("RGB", (6, 4), None)
    assert source.image.getpixel((2, 3)) == (77, 77, 77)


@pytest.mark.parametrize("array", [np.zeros((5, 6, 2)), np.zeros(6), np.zeros((0, 6, 3)), np.zeros((2, 3, 4, 6, 3))])
def test_arrays_of_other_shapes_are_refused(array):
    with pytest.raises(WrongPixelsError, match="An array of an image has the shape"):
        list(read_sources(list_inputs([array])))
    with pytest.raises(WrongPixelsError, match="from -1 to -1"):
        list(read_sources([np.full((4, 6, 3), -1.0)]))


def test_a_damaged_file_keeps_its_place(tmp_path):
    paths = write_pictures(tmp_path, 3)
    Path(paths[1]).write_bytes(cut_jpeg())
    sources = list(read_sources(paths))
    assert [source.image is None for source in sources] == [False, True, False]
    assert sources[1].path == paths[1]
    assert sources[1].problem.startswith(f"{paths[1]}: cannot be decoded (")
    with pytest.raises(ValueError, match="an image without a file name: "):
        list(read_sources([Image.open(io.BytesIO(cut_jpeg()))]))


def test_an_image_of_too_many_pixels_is_left_out(tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    (source,) = read_sources([path], max_pixels=48 * 40 - 1)
    assert "is too large (48x40 pixels; the limit is 1,919 pixels)" in source.problem


# ---- Videos ----


def test_every_so_many_frames_of_a_video(tmp_path):
    pytest.importorskip("av")
    video = str(write_video(tmp_path / "a.mkv", range(0, 70, 10)))
    sources = list(read_sources(list_inputs([tmp_path, picture()]), every=3))
    assert [(source.path, source.frame) for source in sources] == [(video, 0), (video, 3), (video, 6), (None, None)]
    assert levels(sources)[:3] == [0, 30, 60]
    assert sources[0].image.size == (48, 40)
    assert levels(read_sources([video])) == list(range(0, 70, 10))


def test_a_damaged_video_is_named(tmp_path):
    pytest.importorskip("av")
    video = write_video(tmp_path / "a.mkv", range(0, 100, 10))
    (tmp_path / "text.mp4").write_bytes(b"no video")
    (source,) = read_sources([str(tmp_path / "text.mp4")])
    assert source.image is None
    assert source.problem.startswith(f"{tmp_path / 'text.mp4'}: cannot be decoded (")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    sources = list(read_sources([str(video), picture()]))
    assert levels(sources[:-1]) == list(range(0, 10 * (len(sources) - 1), 10))  # those before the damage
    assert sources[-1].path is None


def test_without_pyav_a_video_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (path,) = write_pictures(tmp_path, 1)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(
        ImportError, match=r'a\.mp4: videos are read by PyAV, which .*: pip install "hf-internimage\[video\]"$'
    ):
        list_inputs(tmp_path)
    assert list_inputs(path) == [path]
