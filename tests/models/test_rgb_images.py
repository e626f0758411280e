# SPDX-License-Identifier: MIT
"""One file is one image: the image processors and the training read the same pixels, whatever its mode."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_utils import load_image
from transformers.utils import is_torchvision_available

import hf_internimage
from hf_internimage.image_files import decode_image
from hf_internimage.models.rgb_images import WrongPixelsError, is_read_otherwise, to_rgb

HEIGHT, WIDTH = 24, 40
PROCESSORS = {
    "InternImageImageProcessorPil": {
        "size": {"shortest_edge": HEIGHT},
        "crop_size": {"height": HEIGHT, "width": WIDTH},
    },
    "InternImageImageProcessor": {"size": {"shortest_edge": HEIGHT}, "crop_size": {"height": HEIGHT, "width": WIDTH}},
    "InternImageSegmentationImageProcessor": {"do_resize": False},
    "InternImageDetectionImageProcessor": {"do_resize": False},
}


def noise(channels, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, (HEIGHT, WIDTH, channels), dtype=np.uint16).astype(dtype)


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


DEEP = noise(1, 65536, np.uint16)[..., 0]
COLOURS, ALPHA = noise(4)[..., :3], noise(4)[..., 3:]
GRAY = noise(1)[..., 0]
DEEP[-1, :2], GRAY[-1, :2] = (0, 65535), (0, 255)  # both ends of the range


def on_white(colours, alpha):
    share = alpha / 255
    return np.round(colours * share + 255 * (1 - share))


def with_transparent_colour():
    image = Image.fromarray(COLOURS).quantize(8)
    image.info["transparency"] = 3
    return image


# name: (image, its RGB by a plain formula)
IMAGES = {
    "I;16": (Image.frombytes("I;16", (WIDTH, HEIGHT), DEEP.astype("<u2").tobytes()), np.stack([DEEP // 256] * 3, -1)),
    "I;16L": (Image.frombytes("I;16L", (WIDTH, HEIGHT), DEEP.astype("<u2").tobytes()), np.stack([DEEP // 256] * 3, -1)),
    "I;16B": (Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes()), np.stack([DEEP // 256] * 3, -1)),
    "I": (Image.fromarray(DEEP.astype(np.int32)), np.stack([DEEP // 256] * 3, -1)),
    "I of 8 bits": (Image.fromarray(GRAY.astype(np.int32)), np.stack([GRAY] * 3, -1)),
    "F": (Image.fromarray((GRAY / 255).astype(np.float32)), np.stack([GRAY] * 3, -1)),
    "F to 255": (Image.fromarray(GRAY.astype(np.float32)), np.stack([GRAY] * 3, -1)),
    "RGBA": (Image.fromarray(np.concatenate([COLOURS, ALPHA], -1)), on_white(COLOURS, ALPHA)),
    "RGBa": (Image.fromarray(np.concatenate([COLOURS, ALPHA], -1)).convert("RGBa"), on_white(COLOURS, ALPHA)),
    "LA": (Image.fromarray(np.concatenate([GRAY[..., None], ALPHA], -1), "LA"), on_white(GRAY[..., None], ALPHA)),
    "La": (
        Image.fromarray(np.concatenate([GRAY[..., None], ALPHA], -1), "LA").convert("La"),
        on_white(GRAY[..., None], ALPHA),
    ),
    "P": (Image.fromarray(COLOURS).quantize(8), np.asarray(Image.fromarray(COLOURS).quantize(8).convert("RGB"))),
    "P, transparent": (
        with_transparent_colour(),
        np.where(
            np.asarray(with_transparent_colour())[..., None] == 3,
            255,
            np.asarray(Image.fromarray(COLOURS).quantize(8).convert("RGB")),
        ),
    ),
    "L": (Image.fromarray(GRAY), np.stack([GRAY] * 3, -1)),
    "RGB": (Image.fromarray(COLOURS), COLOURS),
}
ROUNDED = {"RGBA": 1, "LA": 1, "RGBa": 2, "La": 2}  # to 8 bits, of premultiplied colours twice
OTHERWISE = {"I;16", "I;16L", "I;16B", "I", "F", "RGBA", "RGBa", "LA", "La", "P, transparent"}


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_the_formula(name):
    image, expected = IMAGES[name]
    before = image.tobytes()
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (WIDTH, HEIGHT))
    assert np.abs(np.asarray(rgb).astype(int) - expected).max() <= ROUNDED.get(name, 0)
    assert image.tobytes() == before


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", IMAGES)
def test_processors_see_what_training_sees(name, processor):
    if processor == "InternImageImageProcessor" and not is_torchvision_available():
        pytest.skip("torchvision is not installed")
    image, _ = IMAGES[name]
    prepare = getattr(hf_internimage, processor)(**PROCESSORS[processor])
    for one in (image, [image, image]):
        processed = prepare(one, return_tensors="pt").pixel_values
        expected = prepare(decode_image(image), return_tensors="pt").pixel_values
        assert torch.equal(processed[-1], expected[0])


@pytest.mark.parametrize("name", ["sixteen.png", "gray16.tif", "clear.png", "palette.png", "clear.webp", "gray.png"])
def test_a_file_is_one_image(name, tmp_path):
    """Files as Pillow opens them; the gray one shows that 16 transparent bits are white as well."""
    path = tmp_path / name
    if name == "gray.png":
        Image.fromarray(DEEP).save(path, transparency=int(DEEP[0, 0]))
    elif name in ("sixteen.png", "gray16.tif"):
        Image.fromarray(DEEP).save(path)
    elif name == "palette.png":
        with_transparent_colour().save(path, transparency=3)
    else:
        Image.fromarray(np.concatenate([COLOURS, ALPHA], -1)).save(path, lossless=True)
    trained = decode_image(path)
    assert np.array_equal(np.asarray(to_rgb(Image.open(path))), np.asarray(trained))
    assert is_read_otherwise(Image.open(path), trained)
    assert not np.array_equal(np.asarray(load_image(str(path))), np.asarray(trained))
    if name == "gray.png":
        assert trained.getpixel((0, 0)) == (255, 255, 255)
        assert trained.getpixel((1, 0)) == (DEEP[0, 1] // 256,) * 3


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_pipelines_read_otherwise(name):
    image, _ = IMAGES[name]
    assert is_read_otherwise(image, to_rgb(image)) == (name in OTHERWISE)


def test_an_opaque_image_with_alpha_is_read_alike():
    image = Image.fromarray(np.concatenate([COLOURS, np.full_like(ALPHA, 255)], -1))
    assert not is_read_otherwise(image, to_rgb(image))


def test_saved_classifiers_see_transparency_as_training_does():
    """Their processor is transformers' CLIPImageProcessor, which knows transparency and not 16 bits."""
    prepare = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    image, _ = IMAGES["RGBA"]
    expected = prepare(decode_image(image), return_tensors="pt").pixel_values
    assert torch.equal(prepare(image, return_tensors="pt").pixel_values, expected)


def test_processors_leave_images_alone_without_do_convert_rgb():
    image, _ = IMAGES["RGBA"]
    prepare = hf_internimage.InternImageDetectionImageProcessor(do_resize=False, do_normalize=False, do_rescale=False)
    kept = prepare(image, do_convert_rgb=False, return_tensors="np", input_data_format="channels_last").pixel_values
    assert kept.shape[1] == 4


@pytest.mark.parametrize("value", [-0.5, 255.5, np.nan, np.inf, -1, 65536], ids=str)
def test_refuses_pixels_without_a_meaning(value):
    image = Image.fromarray(np.full((2, 2), value, np.float32 if isinstance(value, float) else np.int32))
    with pytest.raises(WrongPixelsError, match="32-bit pixels from"):
        to_rgb(image)
    with pytest.raises(WrongPixelsError, match=r"no pixels \(0x3\)"):
        to_rgb(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize(
    ("mode", "pixel", "transparency", "expected"),
    [
        ("L", 0, 0, 255),  # the colour 0 can be the transparent one
        ("L", 7, 0, 7),
        ("I;16", 0, 0, 255),
        ("I;16", 65535, 0, 255),
        ("I;16", 256, 0, 1),
        ("I", 255, None, 255),
        ("I", 256, None, 1),
        ("I", 65535, None, 255),
        ("F", 1.0, None, 255),
        ("F", 0.5, None, 128),
        ("F", 2.0, None, 2),
        ("F", 255.0, None, 255),
        ("F", 0.0, None, 0),
    ],
)
def test_values_at_the_borders(mode, pixel, transparency, expected):
    kind = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.full((2, 3), pixel, kind))
    assert image.mode == mode
    if transparency is not None:
        image.info["transparency"] = transparency
    assert (np.asarray(to_rgb(image)) == expected).all()
