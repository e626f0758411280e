# SPDX-License-Identifier: MIT
"""Classification data: images of all kinds, labels of all kinds, folders, files, streams, errors."""

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature
from datasets import config as datasets_config
from datasets.utils import logging as datasets_logging
from PIL import Image
from sklearn.datasets import load_digits
from support.paths import TESTS
from support.stream_reading import Recorder, key_as_pixels
from transformers import HfArgumentParser, TrainingArguments

from hf_internimage import InternImageImageProcessorPil
from hf_internimage.image_files import decode_image
from hf_internimage.training import sources
from hf_internimage.training.classification import data as data_module
from hf_internimage.training.classification.data import ClassificationDataArguments, load_data
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.images import check_images, target_size
from hf_internimage.training.run import trainer_with_data
from hf_internimage.training.streams import TrainingStream

NAMES = ["ant", "bee", "cat"]
COUNT = 24


@pytest.fixture(scope="module", autouse=True)
def _datasets(tmp_path_factory):
    """Leave nothing in the user's cache, and do not sleep after each pass over Parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        patch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets_logging.disable_progress_bar()
        yield
        datasets_logging.enable_progress_bar()


@pytest.fixture
def warnings(monkeypatch):
    """Collect the warnings that are logged."""
    messages = []
    for module in (data_module, sources):
        monkeypatch.setattr(module.logger, "warning", messages.append)
    return messages


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def digit(index):
    scans = load_digits().images
    return encoded(Image.fromarray((scans[index] * 15).astype(np.uint8)))


@pytest.fixture(scope="module")
def digits():
    """Return encoded images, all different, and the label of each."""
    images = [digit(index) for index in range(COUNT)]
    assert len(set(images)) == COUNT
    return images, [index % 3 for index in range(COUNT)]


def write_classes(folder, images, labels, names=NAMES):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        (folder / names[label] / f"{index}.png").write_bytes(image)


def write_metadata(folder, images, labels):
    folder.mkdir()
    lines = [json.dumps({"file_name": f"{index}.png", "label": NAMES[label]}) for index, label in enumerate(labels)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for index, image in enumerate(images):
        (folder / f"{index}.png").write_bytes(image)


def write_shards(folder, images, labels, shards=4):
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as file:
            for index in range(shard, len(images), shards):
                for ending, content in (("png", images[index]), ("cls", str(labels[index]).encode())):
                    entry = tarfile.TarInfo(f"{index:04}.{ending}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))


def dataset(images, labels, feature):
    columns = {"image": [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)], "label": labels}
    return Dataset.from_dict(columns, features=Features({"image": ImageFeature(), "label": feature}))


def write_parquet(folder, images, labels, feature=None, shards=1):
    folder.mkdir()
    whole = dataset(images, labels, feature or ClassLabel(names=NAMES))
    for shard in range(shards):
        whole.shard(shards, shard).to_parquet(folder / f"{shard}.parquet")


def load(folder, **options):
    return load_data(ClassificationDataArguments(train_dir=str(folder), **{"train_val_split": 0, **options}))


def pairs(split, data):
    """Return (CRC-32 of the image, label) of every example, as the transform makes them."""
    transform = data.training_transform(lambda image, key: torch.tensor(key[0]))
    return sorted((int(row["pixel_values"]), row["labels"]) for row in map(transform.one, split))


# ---- Decoding ----

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def solid(mode, colour, size=(6, 4)):
    return Image.new(mode, size, colour)


def gray16(value, mode="I;16"):
    return Image.fromarray(np.full((4, 6), value, "<u2")) if mode == "I;16" else None


def transparent_palette():
    image = solid("P", 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 1)
    return encoded(image, transparency=0)


def animation():
    return encoded(solid("RGB", RED), "GIF", save_all=True, append_images=[solid("RGB", GREEN)])


IMAGES = {
    "bilevel": (encoded(solid("1", 1)), WHITE),
    "gray": (encoded(solid("L", 77)), (77, 77, 77)),
    "gray with alpha": (encoded(solid("LA", (0, 128))), (127, 127, 127)),
    "palette": (encoded(solid("RGB", RED).quantize(4)), RED),
    "palette, transparent": (transparent_palette(), WHITE),
    "alpha hides red": (encoded(solid("RGBA", (*RED, 0))), WHITE),
    "alpha shows red": (encoded(solid("RGBA", (*RED, 255))), RED),
    "transparent colour": (encoded(solid("RGB", RED), transparency=RED), WHITE),
    "CMYK": (encoded(solid("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    "CMYK JPEG": (encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
    "16-bit PNG": (encoded(gray16(77 * 256 + 200)), (77, 77, 77)),
    "16-bit TIFF": (encoded(gray16(255 * 256), "TIFF"), WHITE),
    "32-bit integers of 16 bits": (encoded(Image.fromarray(np.full((4, 6), 77 * 256, np.int32)), "TIFF"), (77, 77, 77)),
    "32-bit integers of 8 bits": (encoded(Image.fromarray(np.full((4, 6), 77, np.int32)), "TIFF"), (77, 77, 77)),
    "floats to 1": (encoded(Image.fromarray(np.full((4, 6), 0.2, np.float32)), "TIFF"), (51, 51, 51)),
    "floats to 255": (encoded(Image.fromarray(np.full((4, 6), 77.0, np.float32)), "TIFF"), (77, 77, 77)),
    "animation": (animation(), RED),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_is_rgb(name):
    content, colour = IMAGES[name]
    image = decode_image({"bytes": content, "path": "x"})
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(image)[2:, 2:].astype(int) - colour).max() <= 1


def test_orientation_is_applied():
    picture = solid("RGB", RED, (6, 4))
    picture.putpixel((0, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the file is the right of the picture
    image = decode_image(encoded(picture, "PNG", exif=exif))
    assert image.size == (4, 6)
    assert image.getpixel((3, 0)) == GREEN


def test_size_of_a_processors_images_is_height_and_width():
    fields = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 64}}
    assert target_size(InternImageImageProcessorPil(**fields)) == (32, 64)
    assert target_size(InternImageImageProcessorPil(**fields, do_center_crop=False)) == (40, 40)
    fixed = InternImageImageProcessorPil(size={"height": 24, "width": 48}, do_center_crop=False)
    assert target_size(fixed) == (24, 48)


def test_takes_paths_bytes_and_images(tmp_path):
    content = encoded(solid("RGB", RED))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for image in (path, str(path), content, {"bytes": None, "path": str(path)}, Image.open(path)):
        assert decode_image(image).getpixel((0, 0)) == RED


JPEG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
UNREADABLE = {
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    "truncated PNG": (encoded(solid("RGB", RED, (600, 400)))[:200], "cannot be decoded"),
    "text": (b"not an image", r"cannot be decoded \(no known format\)"),
    "empty": (b"", "is empty"),
    "negative floats": (encoded(Image.fromarray(np.full((4, 6), -1.0, np.float32)), "TIFF"), "from -1 to -1"),
    "not a number": (encoded(Image.fromarray(np.full((4, 6), np.nan, np.float32)), "TIFF"), "32-bit pixels"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_image_names_its_file(name, tmp_path):
    content, reason = UNREADABLE[name]
    path = tmp_path / "bad one.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad one\.png: .*{reason}"):
        decode_image(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: cannot be read"):
        decode_image(tmp_path / "gone.png")


@pytest.mark.parametrize("pillow_refuses", [False, True])
def test_giant_images(pillow_refuses, monkeypatch, tmp_path):
    """A JPEG is decoded at a reduced size, others are refused, even if Pillow would refuse them first."""
    if pillow_refuses:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    options = {"max_pixels": 2000}
    big = solid("RGB", RED, (100, 60))  # 6000 pixels
    jpeg = decode_image(encoded(big, "JPEG", quality=100), **options)
    assert jpeg.size == (50, 30)
    assert np.abs(np.asarray(jpeg).astype(int) - RED).max() <= 2
    path = tmp_path / "big.png"
    big.save(path)
    with pytest.raises(ValueError, match=r"big\.png: is too large \(.*6000|100x60.*max_image_pixels"):
        decode_image(path, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which a higher limit changes
    with pytest.warns(Image.DecompressionBombWarning) if pillow_refuses else _nothing():
        assert decode_image(path, max_pixels=6000).size == (100, 60)


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


# ---- Sources ----

WRITERS = {"folder": write_classes, "metadata": write_metadata, "shards": write_shards, "parquet": write_parquet}


@pytest.mark.parametrize("streaming", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_source_gives_the_same(kind, streaming, digits, tmp_path):
    images, labels = digits
    WRITERS[kind](tmp_path / "data [1]", images, labels)  # brackets mean something in patterns
    options = {"streaming": streaming}
    if streaming and kind == "shards":
        options["num_classes"] = 3
    if streaming and kind == "metadata":
        options["label_names_file"] = str(tmp_path / "names.txt")
        (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    data = load(tmp_path / "data [1]", **options)
    assert isinstance(data.train, IterableDataset if streaming else Dataset)
    assert data.label_names == (["0", "1", "2"] if kind == "shards" else NAMES)
    assert pairs(data.train, data) == sorted((zlib.crc32(image), label) for image, label in zip(*digits, strict=True))


FEATURES = {
    "names": (ClassLabel(names=NAMES), [0, 1, 2, 0], NAMES),
    "names without an image": (ClassLabel(names=[*NAMES, "dog"]), [0, 1, 2, 0], [*NAMES, "dog"]),
    "numbers": (Value("int32"), [0, 1, 2, 0], ["0", "1", "2"]),
    "text": (Value("string"), ["bee", "cat", "ant", "bee"], NAMES),
    "large text": (Value("large_string"), ["bee", "cat", "ant", "bee"], NAMES),
    "truth": (Value("bool"), [False, True, True, False], ["False", "True"]),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_every_kind_of_label(kind, digits, tmp_path, warnings):
    feature, values, names = FEATURES[kind]
    write_parquet(tmp_path / "a", digits[0][:4], values, feature)
    data = load(tmp_path / "a")
    assert data.label_names == names
    assert not data.multi_label
    expected = [NAMES.index(value) if isinstance(value, str) else int(value) for value in values]
    assert data.train["label"] == expected
    assert warnings == (["There is no training image of dog."] if "without" in kind else [])


@pytest.mark.parametrize("kind", ["names", "numbers", "text"])
def test_names_from_a_file(kind, digits, tmp_path):
    feature, values, _ = FEATURES[kind]
    write_parquet(tmp_path / "a", digits[0][:4], values, feature)
    (tmp_path / "names.txt").write_text("cat\n\nbee\nant\n" if kind == "text" else "Ameise\nBiene\nKatze\n")
    data = load(tmp_path / "a", label_names_file=str(tmp_path / "names.txt"))
    assert data.label_names == (["cat", "bee", "ant"] if kind == "text" else ["Ameise", "Biene", "Katze"])
    assert data.train["label"] == ([1, 0, 2, 1] if kind == "text" else values)


def test_splits_are_matched_by_name(digits, tmp_path):
    """The same classes in another order, and without the first one."""
    images, labels = digits
    write_parquet(tmp_path / "train", images, labels)
    write_parquet(tmp_path / "other", images[:2], [0, 1], ClassLabel(names=["cat", "bee"]))
    write_classes(tmp_path / "folder", images[:2], [2, 1])
    write_parquet(tmp_path / "text", images[:2], ["cat", "bee"], Value("string"))
    for name in ("other", "folder", "text"):
        data = load(tmp_path / "train", validation_dir=str(tmp_path / name))
        assert sorted(data.validation["label"]) == [1, 2]
        crc = {zlib.crc32(image): label for image, label in zip(images[:2], [2, 1], strict=True)}
        assert dict(pairs(data.validation, data)) == crc


def test_named_dataset_and_its_splits(digits, tmp_path):
    images, labels = digits
    parts = {"train": range(12), "val": range(12, 18), "test": range(18, 24)}
    feature = ClassLabel(names=NAMES)
    (tmp_path / "repository").mkdir()
    for name, rows in parts.items():
        part = dataset([images[row] for row in rows], [labels[row] for row in rows], feature)
        part.to_parquet(tmp_path / "repository" / f"{name}.parquet")
    (tmp_path / "repository" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in parts)
        + "---\n"
    )
    data = load_data(ClassificationDataArguments(dataset_name=str(tmp_path / "repository")))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 6, 6]
    swapped = ClassificationDataArguments(dataset_name=str(tmp_path / "repository"), validation_split_name="test")
    assert pairs(load_data(swapped).validation, data) == pairs(data.test, data)
    with pytest.raises(ValueError, match=r"no split 'dev'; set validation_split_name to one of \['test', 'train'"):
        load_data(ClassificationDataArguments(dataset_name=str(tmp_path / "repository"), validation_split_name="dev"))

    streamed = ClassificationDataArguments(dataset_name=str(tmp_path / "repository"), streaming=True)
    kept = load_data(streamed)
    assert isinstance(kept.train, IterableDataset)
    assert pairs(kept.train, kept) == pairs(data.train, data)
    assert pairs(kept.validation, kept) == pairs(data.validation, data)
    with pytest.MonkeyPatch.context() as patch:  # what was kept is not read again
        patch.setattr(sources, "read_bytes", lambda image: 1 / 0)
        assert pairs(load_data(streamed).validation, kept) == pairs(data.validation, data)


def test_other_files_are_named_and_left_out(digits, tmp_path, warnings):
    write_classes(tmp_path / "a", *digits)
    (tmp_path / "a" / "ant" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / ".ipynb_checkpoints").mkdir()
    data = load(tmp_path / "a")
    assert len(data.train) == COUNT
    assert data.label_names == NAMES
    assert len(warnings) == 1
    assert "Thumbs.db" in warnings[0]


def test_classes_may_have_folders_inside(digits, tmp_path):
    write_classes(tmp_path / "a", *digits)
    (tmp_path / "a" / "ant" / "red").mkdir()
    (tmp_path / "a" / "ant" / "0.png").rename(tmp_path / "a" / "ant" / "red" / "0.PNG")
    data = load(tmp_path / "a")
    assert data.label_names == NAMES
    assert len(data.train) == COUNT


# ---- Several labels ----

MANY = {
    "numbers": (List(Value("int64")), [[0, 2], [], [1]], ["0", "1", "2"]),
    "names": (List(ClassLabel(names=NAMES)), [[0, 2], [], [1]], NAMES),
    "text": (List(Value("string")), [["ant", "cat"], [], ["bee"]], NAMES),
}


@pytest.mark.parametrize("kind", MANY)
def test_several_labels(kind, digits, tmp_path):
    feature, values, names = MANY[kind]
    write_parquet(tmp_path / "a", digits[0][:3], values, feature)
    data = load(tmp_path / "a", train_val_split=0)
    assert data.multi_label
    assert data.label_names == names
    assert data.train["label"] == [[0, 2], [], [1]]
    rows = data.train.with_transform(data.training_transform(lambda image, key: torch.zeros(1)))[:]["labels"]
    assert torch.stack(rows).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert data.class_counts().tolist() == [1, 1, 1]


def test_zeros_and_ones_are_no_list_of_labels(digits, tmp_path):
    write_parquet(tmp_path / "a", digits[0][:3], [[0, 1], [1, 0], [1, 0, 1]], List(Value("int64")))
    with pytest.raises(ValueError, match=r"2\.png: has a label twice in \[1, 0, 1\] .*not vectors of zeros and ones"):
        load(tmp_path / "a")


# ---- Errors ----


def broken(kind, folder, digits, validation):
    """Write data with an error of this kind; return the options to load them with."""
    images, labels = digits
    if kind == "empty class":
        write_classes(folder, images, labels)
        (folder / "dog").mkdir()
    elif kind == "image without a class":
        write_classes(folder, images, labels)
        (folder / "loose.png").write_bytes(images[0])
    elif kind == "splits as classes":
        write_classes(folder, images[:2], [0, 1], ["train", "val"])
    elif kind == "two kinds":
        write_classes(folder, images, labels)
        dataset(images, labels, ClassLabel(names=NAMES)).to_parquet(folder / "x.parquet")
    elif kind == "nothing":
        folder.mkdir()
    elif kind == "missing label":
        write_parquet(folder, images[:3], [0, None, 1])
    elif kind == "empty label":
        write_parquet(folder, images[:3], ["ant", "", "bee"], Value("string"))
    elif kind == "negative label":
        write_parquet(folder, images[:3], [0, -1, 1], Value("int64"))
    elif kind == "label too large":
        write_parquet(folder, images[:3], [0, 5, 1], Value("int64"))
        return {"num_classes": 3}
    elif kind == "numbers of something else":
        write_parquet(folder, images[:3], [10**9, 5, 1], Value("int64"))
    elif kind == "unknown class in validation":
        write_classes(folder, images, labels)
        write_parquet(validation, images[:2], [0, 1], ClassLabel(names=["ant", "dog"]))
        return {"validation_dir": str(validation)}
    elif kind == "other labels in validation":
        write_parquet(folder, images[:3], [0, 1, 2], Value("int64"))
        write_parquet(validation, images[:2], ["ant", "dog"], Value("string"))
        return {"validation_dir": str(validation)}
    elif kind == "no labels in validation":
        write_parquet(folder, images[:3], [0, 1, 2])
        validation.mkdir()
        dataset(images[:2], [0, 1], Value("int64")).rename_column("label", "zzz").to_parquet(validation / "x.parquet")
        return {"validation_dir": str(validation)}
    elif kind in ("wrong column", "wrong image column", "label is no label", "image is no image"):
        write_parquet(folder, images[:3], [0, 1, 2])
        column = "image_column_name" if "image" in kind else "label_column_name"
        return {column: {"label is no label": "image", "image is no image": "label"}.get(kind, "klass")}
    elif kind == "no column of images":
        folder.mkdir()
        Dataset.from_dict({"x": [1], "label": [0]}).to_parquet(folder / "x.parquet")
    elif kind == "two columns of images":
        folder.mkdir()
        whole = dataset(images, labels, ClassLabel(names=NAMES))
        whole.map(lambda row: {**row, "mask": row["image"]}).to_parquet(folder / "x.parquet")
    elif kind == "no column of labels":
        folder.mkdir()
        dataset(images, labels, Value("int64")).rename_column("label", "zzz").to_parquet(folder / "x.parquet")
    elif kind == "one class":
        write_classes(folder, images[:2], [0, 0])
    elif kind == "not several labels":
        write_classes(folder, images, labels)
        return {"multi_label": True}
    elif kind == "stream without names":
        write_shards(folder, images, labels)
        return {"streaming": True}
    elif kind == "stream divided":
        write_parquet(folder, images, labels)
        return {"streaming": True, "train_val_split": 0.1}
    elif kind == "too few names":
        write_classes(folder, images, labels)
        (folder.parent / "names.txt").write_text("ant\n")
        return {"label_names_file": str(folder.parent / "names.txt")}
    return {}


ERRORS = {
    "empty class": r"dog: holds no image",
    "image without a class": r"loose\.png: belongs to no class",
    "splits as classes": r"holds splits, not classes \(train, val\)",
    "two kinds": r"holds data of several kinds \(.*x\.parquet, .*0\.png\)",
    "nothing": r"data: holds no images",
    "no folder": r"data: is not a folder",
    "missing label": r"1\.png: has no label",
    "empty label": r"1\.png: has no label",
    "negative label": r"1\.png: has the label -1",
    "label too large": r"1\.png: has the label 5, which is none of the 3 classes",
    "numbers of something else": r"largest label of column 'label' is 1000000000",
    "unknown class in validation": r"1\.png: has the label 'dog', which the training data lack",
    "other labels in validation": r"'label' of split 'validation' holds Value\('string'\)",
    "no labels in validation": r"Split 'validation' has no column 'label', only \['image', 'zzz'\]",
    "wrong column": r"no column 'klass'; set label_column_name to one of \['image', 'label'\]",
    "wrong image column": r"no column 'klass'; set image_column_name to one of \['image', 'label'\]",
    "label is no label": r"Column 'image' holds Image.*; labels are strings, .*, so set label_column_name",
    "image is no image": r"Column 'label' holds ClassLabel.*set image_column_name",
    "no column of images": r"No column holds images; set image_column_name to one of \['label', 'x'\]",
    "two columns of images": r"\['image', 'mask'\] hold images",
    "no column of labels": r"set label_column_name to one of \['image', 'zzz'\]",
    "one class": r"fewer than two classes \(ant\)",
    "not several labels": r"multi_label is True, but column 'label' holds one label an image",
    "stream without names": r"set label_names_file, or num_classes",
    "stream divided": r"A stream cannot be divided",
    "too few names": r"has 1 names for the 3 classes",
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_name_the_problem(kind, digits, tmp_path):
    options = broken(kind, tmp_path / "data", digits, tmp_path / "validation")
    with pytest.raises(ValueError, match=ERRORS[kind]):
        load(tmp_path / "data", **options)


def test_a_stream_reports_a_wrong_label_when_it_is_read(digits, tmp_path):
    write_parquet(tmp_path / "a", digits[0][:3], [0, None, 1])
    data = load(tmp_path / "a", streaming=True)
    with pytest.raises(ValueError, match=r"1\.png: has no label"):
        list(data.train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "No data"),
        ({"dataset_name": "a", "train_dir": "b"}, "both set"),
        ({"train_dir": "a", "train_val_split": 1.0}, "train_val_split is 1.0"),
        ({"train_dir": "a", "max_train_samples": 0}, "max_train_samples is 0"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ClassificationDataArguments(**options)


def test_arguments_are_options_of_a_command():
    line = ["--train_dir", "a", "--streaming", "--max_eval_samples", "7", "--multi_label", "true"]
    (arguments,) = HfArgumentParser(ClassificationDataArguments).parse_args_into_dataclasses(line)
    assert arguments == ClassificationDataArguments(train_dir="a", streaming=True, max_eval_samples=7, multi_label=True)


def test_training_needs_training_data(digits, tmp_path):
    write_classes(tmp_path / "a", *digits)
    arguments = ClassificationDataArguments(validation_dir=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="no training data: set train_dir"):
        load_data(arguments)
    data = load_data(arguments, splits=["validation"])
    assert data.train is None
    assert len(data.validation) == COUNT
    assert data.label_names == NAMES


def test_test_data_without_labels_are_left_out(digits, tmp_path, warnings):
    write_parquet(tmp_path / "a", *digits)
    write_parquet(tmp_path / "b", digits[0][:2], [-1, -1])
    data = load(tmp_path / "a", test_dir=str(tmp_path / "b"))
    assert data.test is None
    assert "have no labels" in warnings[0]
    with pytest.raises(ValueError, match="has the label -1"):
        load_data(ClassificationDataArguments(test_dir=str(tmp_path / "b")), splits=["test"])


# ---- Parts of the data ----


def test_held_out_share_is_of_each_class(digits, tmp_path):
    images, _ = digits
    labels = [0] * 12 + [1] * 11 + [2]
    write_classes(tmp_path / "a", images, labels)
    loaded = [load(tmp_path / "a", train_val_split=0.25) for _ in range(2)]
    first, again = loaded
    other = load_data(ClassificationDataArguments(train_dir=str(tmp_path / "a"), train_val_split=0.25), seed=1)
    assert np.bincount(first.validation["label"]).tolist() == [3, 3]  # the only image of a class is trained on
    assert first.class_counts().tolist() == [9, 8, 1]
    assert sorted(pairs(first.train, first) + pairs(first.validation, first)) == sorted(
        (zlib.crc32(image), label) for image, label in zip(images, labels, strict=True)
    )
    assert pairs(first.validation, first) == pairs(again.validation, again) != pairs(other.validation, other)
    most = load(tmp_path / "a", train_val_split=0.75)
    assert most.class_counts().tolist() == [3, 3, 1]
    with pytest.raises(ValueError, match=r"train_val_split=0\.01 of 24 images is none"):
        load(tmp_path / "a", train_val_split=0.01)


def test_fewer_samples(digits, tmp_path):
    write_classes(tmp_path / "a", *digits)
    options = {"validation_dir": str(tmp_path / "a"), "max_train_samples": 8, "max_eval_samples": 30}
    data = load(tmp_path / "a", **options)
    assert (len(data.train), len(data.validation)) == (8, COUNT)
    assert len(set(data.train["label"])) > 1  # not the first ones, which are of one class
    streamed = load(tmp_path / "a", **options, streaming=True)
    assert len(list(streamed.train)) == 8


def test_class_weights_make_classes_count_alike(digits, tmp_path):
    images, _ = digits
    labels = [0] * 12 + [1] * 8 + [2] * 4
    write_parquet(tmp_path / "a", images, labels)
    data = load(tmp_path / "a")
    weights = data.class_weights()
    assert weights.dtype == torch.float32
    counts = torch.tensor([12.0, 8.0, 4.0])
    torch.testing.assert_close(weights * counts, torch.full((3,), 8.0))
    write_parquet(tmp_path / "b", images[:20], labels[:20])
    with pytest.raises(ValueError, match="No training image of cat"):
        load(tmp_path / "b").class_weights()
    with pytest.raises(ValueError, match="are a stream"):
        load(tmp_path / "b", streaming=True).class_weights()


# ---- Transforms ----


def test_transform_gives_pixels_labels_and_a_key(digits, tmp_path):
    images, labels = digits
    write_parquet(tmp_path / "a", images, labels)
    data = load(tmp_path / "a")
    seen = []

    def prepare(image, key):
        seen.append((image.mode, image.size, key))
        return torch.full((3, 2, 2), float(len(seen)))

    rows = data.train.with_transform(data.training_transform(prepare))[4:6]
    assert seen == [("RGB", (8, 8), [zlib.crc32(images[row])]) for row in (4, 5)]
    assert torch.equal(torch.stack(rows["pixel_values"])[:, 0, 0, 0], torch.tensor([1.0, 2.0]))
    assert rows["labels"] == labels[4:6]


def test_evaluation_transform_is_the_processor(digits, tmp_path):
    write_parquet(tmp_path / "a", *digits)
    data = load(tmp_path / "a")
    processor = InternImageImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    split = data.train.with_transform(data.evaluation_transform(processor))
    loader = torch.utils.data.DataLoader(split, batch_size=5, num_workers=1)
    (batch, *_) = loader
    expected = processor([decode_image(image) for image in digits[0][:5]], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == digits[1][:5]


def test_unreadable_image_is_named_while_training(digits, tmp_path):
    write_classes(tmp_path / "a", *digits)
    bad = tmp_path / "a" / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = load(tmp_path / "a")
    split = data.train.with_transform(data.training_transform(lambda image, key: torch.zeros(1)))
    with pytest.raises(ValueError, match=r"bee/1\.png: cannot be decoded"):
        split[:]


@pytest.mark.parametrize("streaming", [False, True])
def test_check_lists_every_bad_image(streaming, digits, tmp_path):
    images = list(digits[0])
    images[3], images[20] = b"", images[20][:60]
    write_parquet(tmp_path / "a", images, digits[1])
    data = load(tmp_path / "a", streaming=streaming)
    errors = list(check_images(data.train, data.training_transform(lambda image, key: image).read))
    assert [row for row, _ in errors] == [3, 20]
    assert errors[0][1].startswith("3.png: is empty")
    assert errors[1][1].startswith("20.png: cannot be decoded")


# ---- Streams ----


def test_stream_resumes_where_it_was(digits, tmp_path):
    """Resuming works also in the middle of a later pass, with gradients accumulated over the end of a pass."""
    write_parquet(tmp_path / "a", *digits, shards=3)

    def train(name, **arguments):
        data = load(tmp_path / "a", streaming=True)
        model = Recorder()
        trainer = ClassificationTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path / name),
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                per_device_train_batch_size=5,
                gradient_accumulation_steps=2,
                max_steps=6,
                save_steps=4,
            ),
            train_dataset=TrainingStream(data.train, data.training_transform(key_as_pixels), 0, 8),
            recipe=ClassificationRecipe(),
        )
        trainer.train(**arguments)
        return model.seen

    whole = train("whole")
    assert len(whole) == 60
    for number in (0, 1):
        keys = [key for key, pass_number in whole if pass_number == number]
        assert sorted(keys) == sorted(map(zlib.crc32, digits[0]))
    assert [key for key, _ in whole[:COUNT]] != [key for key, _ in whole[COUNT : 2 * COUNT]]
    assert train("again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4")) == whole[40:]


@pytest.mark.parametrize("buffer", [1, 4, 1000])
def test_a_stream_keeps_as_many_images_as_shuffle_buffer_says(buffer, digits, tmp_path):
    write_parquet(tmp_path / "a", *digits, shards=1)
    data = load(tmp_path / "a", streaming=True)
    training = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1)
    options = ClassificationDataArguments(train_dir=str(tmp_path / "a"), streaming=True, shuffle_buffer=buffer)
    stream = trainer_with_data(
        SimpleNamespace,
        SimpleNamespace(training=training, data=options, recipe=None),
        data,
        model=None,
        processor=None,
        make_augmentation=lambda: lambda image, key: torch.tensor(key[2]),  # after the seed and the epoch
    ).train_dataset
    place_of = {zlib.crc32(image): place for place, image in enumerate(digits[0])}
    places = [place_of[int(example["pixel_values"])] for example in itertools.islice(stream, COUNT)]
    assert sorted(places) == list(range(COUNT))
    lead = max(place - turn for turn, place in enumerate(places))
    assert lead <= buffer - 1
    assert (lead == 0) == (buffer == 1)
    assert (lead > 4) == (buffer == 1000)


@pytest.mark.parametrize(("workers", "used"), [(0, 0), (1, 1), (8, 1)])
def test_a_stream_has_no_more_workers_than_shards(workers, used, digits, tmp_path):
    """Others would have nothing to read, and PyTorch and datasets warn of them."""
    write_parquet(tmp_path / "a", *digits, shards=1)
    data = load(tmp_path / "a", streaming=True)
    stream = TrainingStream(data.train, data.training_transform(key_as_pixels), 0)
    training = TrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", dataloader_num_workers=workers
    )
    assert stream.loader(training, 4, None).num_workers == used


@pytest.fixture(scope="module")
def two_processes(digits, tmp_path_factory):
    """Run trainings on streams in two processes with two workers each."""
    folder = tmp_path_factory.mktemp("streams")
    images = [*digits[0], *(digit(index) for index in range(COUNT, 80))]
    labels = [index % 10 for index in range(80)]
    names = ClassLabel(names=list("0123456789"))
    write_shards(folder / "shards", images, labels, shards=5)
    write_parquet(folder / "uneven", images[:50], labels[:50], names, shards=5)
    write_parquet(folder / "one file", images[:30], labels[:30], names)
    cases = {
        "shards": {"folder": str(folder / "shards"), "steps": 4, "workers": 2},  # within the first pass
        "uneven": {"folder": str(folder / "uneven"), "steps": 22, "workers": 2},
        "accumulated": {"folder": str(folder / "uneven"), "steps": 11, "workers": 0, "accumulation": 2},
        "one file": {"folder": str(folder / "one file"), "steps": 10, "workers": 1},
    }
    for name in cases:
        (folder / "results" / name).mkdir(parents=True)
    (folder / "results" / "settings.json").write_text(json.dumps(cases))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(TESTS / "support" / "stream_reading.py"), str(folder / "results" / "settings.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "results", images


def first_pass(results, name):
    """Return for each process the keys of the images in its first pass."""
    seen = [json.loads((results / name / f"seen-{rank}.json").read_text()) for rank in range(2)]
    return [[key for key, number in rows if number == 0] for rows in seen]


@pytest.mark.parametrize(("name", "count"), [("uneven", 50), ("accumulated", 50), ("one file", 30)])
@pytest.mark.slow
def test_processes_and_workers_share_each_pass(name, count, two_processes):
    results, images = two_processes
    mine, other = first_pass(results, name)
    assert sorted(mine + other) == sorted(map(zlib.crc32, images[:count]))
    assert len(mine) >= 10
    assert len(other) >= 10


@pytest.mark.slow
def test_each_shard_is_read_by_one_worker_of_one_process(two_processes):
    results, _ = two_processes
    mine, other = first_pass(results, "shards")
    assert (len(mine), len(other)) == (16, 16)
    assert not set(mine) & set(other)
    lines = [line for rank in range(2) for line in (results / "shards" / f"opened-{rank}.txt").read_text().splitlines()]
    readers = dict(line.split()[::-1] for line in lines)
    assert sorted(readers) == [f"{shard}.tar" for shard in range(5)]
    assert len(set(lines)) == 5
    assert len(set(readers.values())) == 4
