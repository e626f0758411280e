# SPDX-License-Identifier: MIT
"""Image processors: the official preprocessor's numbers."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.golden_data import GOLDEN, MANIFESTS, manifest
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import is_torchvision_available

from hf_internimage import (
    InternImageConfig,
    InternImageDetectionImageProcessor,
    InternImageImageProcessor,
    InternImageImageProcessorPil,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.models.rgb_images import check_normalisation, check_size

DOCUMENT = json.loads((GOLDEN / "preprocess.json").read_text())
TENSORS = load_file(GOLDEN / "preprocess.safetensors")


def picture(name):
    return Image.fromarray(TENSORS[f"{name}/image"].numpy())


def processor_for(target, build=InternImageImageProcessorPil):
    return build(size={"shortest_edge": target}, crop_size={"height": target, "width": target})


@pytest.mark.parametrize("name", DOCUMENT["cases"])
def test_pil_matches_the_official_preprocessor_exactly(name):
    case = DOCUMENT["cases"][name]
    got = processor_for(case["target"])(picture(name), return_tensors="pt").pixel_values
    expected = TENSORS.get(f"{name}/clip_pil", TENSORS[f"{name}/upstream"])
    assert got.shape == (1, 3, case["target"], case["target"])
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-6)
    if case["max_abs_diff_clip_pil_vs_upstream"] == 0:  # elsewhere upstream crops one pixel later
        torch.testing.assert_close(got[0], TENSORS[f"{name}/upstream"], rtol=0, atol=1e-6)


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
@pytest.mark.parametrize("name", DOCUMENT["cases"])
def test_torchvision_matches_its_own_numbers(name):
    case = DOCUMENT["cases"][name]
    got = processor_for(case["target"], InternImageImageProcessor)(picture(name), return_tensors="pt").pixel_values
    torch.testing.assert_close(got[0], TENSORS[f"{name}/clip_torchvision"], rtol=0, atol=1e-5)


def test_there_is_no_256_step():
    """A 224-pixel image goes through untouched but for the normalisation."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    got = InternImageImageProcessorPil()(Image.fromarray(pixels), return_tensors="np").pixel_values[0]
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MANIFESTS)
def test_old_preprocessor_files_load(name, tmp_path):
    official = manifest(name)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(official["preprocessor_config"]))
    (tmp_path / "config.json").write_text(json.dumps(official["config"]))
    size = official["preprocessor_config"]["size"]
    image = picture("tall")
    expected = processor_for(size)(image, return_tensors="pt").pixel_values
    for processor in (
        AutoImageProcessor.from_pretrained(tmp_path),
        InternImageImageProcessorPil.from_pretrained(tmp_path),
    ):
        got = processor(image, return_tensors="pt").pixel_values
        assert got.shape[-1] == size
        # AutoImageProcessor takes torchvision where there is one, whose resize differs by up to two grey levels
        atol = 1e-6 if processor.backend == "pil" else 2.01 / 255 / 0.224
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def test_found_by_name_and_by_configuration_class(tmp_path):
    InternImageConfig().save_pretrained(tmp_path)
    InternImageImageProcessorPil(size={"shortest_edge": 96}, crop_size=96).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "InternImageImageProcessor"
    by_name = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(by_name).__name__.removesuffix("Pil") == "InternImageImageProcessor"
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend="pil")) is InternImageImageProcessorPil
    del saved["image_processor_type"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    by_config = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(by_config) is type(by_name)
    assert by_config.size.shortest_edge == by_name.size.shortest_edge == 96
    assert AutoConfig.from_pretrained(tmp_path).model_type == "internimage"


def test_takes_what_image_processors_take():
    processor = processor_for(32)
    gray = picture("gray")
    assert gray.mode == "L"
    array = np.array(picture("tall"))
    mixed = processor([gray, picture("tall"), array, torch.from_numpy(array).permute(2, 0, 1)], return_tensors="pt")
    assert mixed.pixel_values.shape == (4, 3, 32, 32)
    assert mixed.pixel_values.dtype == torch.float32
    torch.testing.assert_close(mixed.pixel_values[1], mixed.pixel_values[2])
    torch.testing.assert_close(mixed.pixel_values[1], mixed.pixel_values[3])
    assert processor(picture("tall").convert("RGBA"), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


def test_both_classes_have_the_same_settings():
    """The numbers of the torchvision class are tested where torchvision is; its settings everywhere."""
    names = {name for name in vars(InternImageImageProcessorPil) if not name.startswith("_")}
    assert {"resample", "image_mean", "image_std", "size", "crop_size", "default_to_square", "do_center_crop"} <= names
    assert names == {name for name in vars(InternImageImageProcessor) if not name.startswith("_")}
    for name in names:
        assert getattr(InternImageImageProcessor, name) == getattr(InternImageImageProcessorPil, name), name


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
@pytest.mark.parametrize("size", [(57, 83), (83, 57), (40, 40), (24, 31)])
def test_torchvision_differs_from_pillow_by_two_grey_levels(size):
    picture = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 90).convert("RGB")
    got, expected = (
        processor_for(32, build)(picture, return_tensors="pt").pixel_values
        for build in (InternImageImageProcessor, InternImageImageProcessorPil)
    )
    levels = (got - expected).abs() * torch.tensor(InternImageImageProcessorPil.image_std)[:, None, None] * 255
    assert levels.max() < 2.01
    assert (levels > 0.5).float().mean() < 0.02


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
def test_torchvisions_class_is_loaded_where_torchvision_is(tmp_path):
    InternImageImageProcessorPil().save_pretrained(tmp_path)
    for options in ({}, {"backend": "torchvision"}):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, **options)
        assert type(loaded).__name__ == "InternImageImageProcessor"


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_the_torchvision_class_says_what_it_needs():
    with pytest.raises(ImportError, match="requires the Torchvision library"):
        InternImageImageProcessor()


PROCESSORS = [
    InternImageImageProcessorPil,
    pytest.param(
        InternImageImageProcessor,
        marks=pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed"),
    ),
    InternImageSegmentationImageProcessor,
    InternImageDetectionImageProcessor,
]


def assert_refused(build, fields, message, folder):
    """Check that values are refused when they are set, given and read."""
    with pytest.raises(ValueError, match=message):
        build(**fields)
    with pytest.raises(ValueError, match=message):
        build()(np.zeros((32, 32, 3), dtype=np.uint8), **fields)
    build().save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(ValueError, match=message):
        build.from_pretrained(folder)


@pytest.mark.parametrize("build", PROCESSORS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_std": [0.2, 0.0, 0.2]}, r"image_std is .*0\.0.*, expected finite numbers above 0"),
        ({"image_std": 0.0}, "image_std is 0.0, expected finite numbers above 0"),
        ({"image_std": [0.2, math.nan, 0.2]}, "image_std is .*nan.*, expected finite numbers above 0"),
        ({"image_std": 1e300}, r"image_std is 1e\+300, expected finite numbers above 0"),
        ({"image_mean": [math.inf, 0.5, 0.5]}, "image_mean is .*inf.*, expected finite numbers"),
    ],
)
def test_normalisation_that_cannot_work(build, fields, message, tmp_path):
    assert_refused(build, fields, message, tmp_path)
    build(do_normalize=False, **fields)  # unused


def test_normalisation_that_is_no_number():
    for value in (10**400, "a", [0.1, None, 0.1]):
        with pytest.raises(ValueError, match=r"image_std is .*, expected finite numbers above 0"):
            InternImageImageProcessorPil(image_std=value)


@pytest.mark.parametrize("build", PROCESSORS)
@pytest.mark.parametrize(
    "fields",
    [
        {"size": []},
        {"size": {"shortest_edge": 10**30}},
        {"crop_size": [224]},
        {"crop_size": {"height": 224, "width": 0}},
    ],
    ids=str,
)
def test_sizes_that_cannot_work(build, fields, tmp_path):
    (name,) = fields
    assert_refused(build, fields, f"^{name} is .*, expected sides of 1 to 1000000 pixels", tmp_path)


@pytest.mark.parametrize("name", ["size", "crop_size", "pad_size"])
def test_borders_of_sizes(name):
    check_size(name, None)
    for value in (1, 1_000_000, (1, 1_000_000), {"shortest_edge": 1, "longest_edge": None}, {"max_pixels": 10**9}):
        check_size(name, value)
    for value in (0, 1_000_001, True, 2.0, (1, 0), [1, 2, 3], {"height": 1_000_001, "width": 1}):
        with pytest.raises(
            ValueError, match=f"^{name} is .*, expected sides of 1 to 1000000 pixels: an integer, a pair"
        ):
            check_size(name, value)
    for build in (InternImageSegmentationImageProcessor, InternImageDetectionImageProcessor):
        with pytest.raises(ValueError, match=f"^{name} is 0, expected sides"):
            build(**{name: 0})


def test_numbers_beyond_float32_are_refused():
    check_normalisation(3.4e38, 3.4e38)
    check_normalisation(None, None)
    for mean, std in ((3.41e38, 1.0), (0.5, 3.41e38)):
        with pytest.raises(ValueError, match=r"is 3.41e\+38, expected finite numbers"):
            check_normalisation(mean, std)


@pytest.mark.parametrize("build", PROCESSORS)
@pytest.mark.parametrize("factor", [math.nan, 1e300])
def test_factors_that_cannot_work(build, factor, tmp_path):
    assert_refused(build, {"rescale_factor": factor}, "^rescale_factor is .*, expected a finite number", tmp_path)
