# SPDX-License-Identifier: MIT
"""Images that cannot be used: left out, listed, or an error, in every task, in the results and in the card."""

import io
import json
import os
import struct
import subprocess
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from support.detection_scenes import coco
from support.paths import SCRIPTS
from support.segmentation_scenes import write_all
from support.training_scripts import as_arguments
from transformers import CLIPImageProcessorPil, RTDetrImageProcessorPil

from hf_internimage import (
    InternImageConfig,
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.image_files import BadImageError
from hf_internimage.training import bad_images, images
from hf_internimage.training.bad_images import card_notes, without_bad_images
from hf_internimage.training.classification import evaluate_checkpoint
from hf_internimage.training.classification import main as classification
from hf_internimage.training.classification.data import ClassificationDataArguments, load_data
from hf_internimage.training.detection import main as detection
from hf_internimage.training.images import ImageReader, check_images
from hf_internimage.training.segmentation import main as segmentation
from hf_internimage.training.streams import TrainingStream

SMALL = '{"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'
DINO = {
    "d_model": 32, "num_feature_levels": 3, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 12,
    "num_denoising": 4,
}  # fmt: skip
COMMON = {
    "use_cpu": True, "disable_tqdm": True, "report_to": "none", "num_train_epochs": 1, "config_overrides": SMALL,
    "per_device_train_batch_size": 2,
}  # fmt: skip


def strip_png(width, height=1):
    """Return a gray PNG of so many black pixels, without making an image of them first."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(width)) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def write_classes(folder, count=4, side=32):
    generator = np.random.default_rng(len(str(folder)))
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two classes with damaged images in both splits: three of eight to train on, one of eight to validate with."""
    train, validation = write_classes(tmp_path / "train"), write_classes(tmp_path / "validation")
    (train / "a" / "0.png").write_bytes(b"")
    (train / "b" / "1.png").write_bytes((train / "b" / "0.png").read_bytes()[:60])
    (train / "b" / "3.png").write_bytes(strip_png(60_000))
    (validation / "a" / "2.png").write_bytes(b"no image")
    return tmp_path


TRAIN_BAD = ["a/0.png: is empty", "b/1.png: cannot be decoded", "b/3.png: is too large (13440000x224 pixels after"]


def settings(folders, output, **changes):
    values = {
        **COMMON, "train_dir": folders / "train", "validation_dir": folders / "validation", "output_dir": output,
        "per_device_eval_batch_size": 2, "image_size": 224, **changes,
    }  # fmt: skip
    return as_arguments(values)


def lines(output):
    return (output / "bad_images.txt").read_text().splitlines()


# ---- One reader ----


PROCESSORS = {
    "classification": (InternImageImageProcessorPil(size={"shortest_edge": 224}), True),
    "CLIP's": (CLIPImageProcessorPil(size={"shortest_edge": 224}), True),
    "without resizing": (InternImageImageProcessorPil(do_resize=False), False),
    "fixed sides": (RTDetrImageProcessorPil(size={"height": 640, "width": 640}), False),
    "segmentation": (InternImageSegmentationImageProcessor(), False),
    "detection": (InternImageDetectionImageProcessor(), False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_strip_is_refused_where_its_resize_would_need_too_much(name):
    """254 bytes that the classifier's processor resizes to 13,440,000 x 224 pixels; other tasks limit the long side."""
    processor, refused = PROCESSORS[name]
    strip = {"bytes": strip_png(60_000), "path": "strip.png"}
    assert len(strip["bytes"]) < 300
    reader = ImageReader().for_processor(processor)
    if refused:
        with pytest.raises(BadImageError, match=r"strip\.png: is too large \(13440000x224 pixels after resizing;"):
            reader.read(strip)
    else:
        assert reader.read(strip)[0].size == (60_000, 1)


def test_the_limit_of_a_resize_is_that_of_an_image():
    reader = ImageReader(max_pixels=6400).for_processor(InternImageImageProcessorPil(size={"shortest_edge": 40}))
    for width, height in ((8, 2), (2, 8), (160, 40)):
        assert reader.read({"bytes": strip_png(width, height), "path": None})[0].size == (width, height)  # 160 x 40
    with pytest.raises(BadImageError, match=r"164x40 pixels after resizing; the limit is 6,400"):
        reader.read({"bytes": strip_png(41, 10), "path": None})


def test_only_faults_of_images_are_bad_images(tmp_path):
    data = load_data(ClassificationDataArguments(train_dir=str(write_classes(tmp_path / "a"))))

    def read(row):
        raise ValueError("a fault of the annotations")

    with pytest.raises(ValueError, match="a fault of the annotations"):
        list(check_images(data.train, read))


# ---- Whole runs ----


def test_stop_names_the_first(folders, capsys):
    assert classification.main(settings(folders, folders / "out", dataloader_num_workers=0)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert any(text in error for text in TRAIN_BAD)


def test_list_names_all_and_trains_nothing(folders, capsys):
    output = folders / "out"
    assert classification.main(settings(folders, output, bad_images="list")) == 1
    error = capsys.readouterr().err
    assert "error: 4 images cannot be used:" in error
    assert not (output / "checkpoint-1").exists()
    assert not (output / "model.safetensors").exists()
    assert len(lines(output)) == 4
    for text, line in zip([*TRAIN_BAD, "a/2.png: cannot be decoded"], lines(output), strict=True):
        assert text in line
        assert line in error
    assert [line.partition(": ")[0] for line in lines(output)] == ["train"] * 3 + ["validation"]


def test_the_old_option_still_lists(folders, caplog):
    output = folders / "out"
    assert classification.main([*settings(folders, output), "--check_data"]) == 1
    assert "--check_data is deprecated: use --bad_images list." in caplog.text
    assert len(lines(output)) == 4


def test_skip_leaves_them_out_and_says_so(folders, capsys):
    output = folders / "out"
    assert classification.main(settings(folders, output, bad_images="skip")) == 0
    assert len(lines(output)) == 4
    result = json.loads((output / "eval_evaluation.json").read_text())
    left_out = result["left_out_images"]
    assert {split: part["count"] for split, part in left_out.items()} == {"train": 3, "validation": 1}
    assert all(text in line for text, line in zip(TRAIN_BAD, left_out["train"]["images"], strict=True))
    assert result["samples"] == 7
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 3  # five images in twos
    card = (output / "README.md").read_text()
    assert "Images of train that could not be used and were left out: 3 (`0.png`, `1.png`, `3.png`)." in card
    assert "Images of validation that could not be used and were left out: 1 (`2.png`)." in card
    assert str(folders) not in card
    assert ModelCard.load(output / "README.md").data.model_name == "out"
    # Mended data: the next run has nothing to say.
    for file in ("train/a/0.png", "train/b/1.png", "train/b/3.png", "validation/a/2.png"):
        (folders / file).write_bytes((folders / "train" / "a" / "1.png").read_bytes())
    again = folders / "again"
    assert classification.main(settings(folders, again, bad_images="list")) == 0
    assert not (again / "bad_images.txt").exists()
    assert "left_out_images" not in json.loads((again / "eval_evaluation.json").read_text())
    assert "left out" not in (again / "README.md").read_text()


def test_skip_leaves_no_list_of_an_earlier_run(folders):
    output = folders / "out"
    assert classification.main(settings(folders, output, bad_images="list")) == 1
    (folders / "train" / "a" / "0.png").write_bytes((folders / "train" / "a" / "1.png").read_bytes())
    assert classification.main(settings(folders, output, bad_images="skip")) == 0
    assert len(lines(output)) == 3


@pytest.mark.parametrize("choice", ["stop", "skip", "list"])
def test_the_list_of_an_earlier_run_goes_whatever_is_chosen(choice, tmp_path):
    arguments = ClassificationDataArguments(train_dir=str(write_classes(tmp_path / "train", 2)), train_val_split=0.5)
    data, old = load_data(arguments), tmp_path / "bad_images.txt"
    old.write_text("train: 0.png: is empty\n")
    without_bad_images(data, choice, InternImageImageProcessorPil(), tmp_path)
    assert not old.exists()


def test_a_split_without_a_usable_image(folders, capsys):
    for file in (folders / "validation").glob("*/*.png"):
        file.write_bytes(b"")
    assert classification.main(settings(folders, folders / "out", bad_images="skip")) == 1
    assert "None of the 8 images of validation can be used; the first: " in capsys.readouterr().err


def test_evaluation_leaves_out_and_lists(folders, capsys):
    config = InternImageConfig(**json.loads(SMALL), id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    InternImageForImageClassification(config).save_pretrained(folders / "model")
    InternImageImageProcessorPil().save_pretrained(folders / "model")
    arguments = ["--model", str(folders / "model"), "--validation_dir", str(folders / "validation"), "--device", "cpu"]
    assert evaluate_checkpoint.main([*arguments, "--bad_images", "list"]) == 1
    assert "1 images cannot be used" in capsys.readouterr().err
    assert evaluate_checkpoint.main(arguments) == 1
    assert "a/2.png: cannot be decoded" in capsys.readouterr().err
    output = folders / "result.json"
    assert evaluate_checkpoint.main([*arguments, "--bad_images", "skip", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert (result["samples"], result["left_out_images"]["validation"]["count"]) == (7, 1)


def test_unknown_choice():
    with pytest.raises(ValueError, match="bad_images is 'ignore', expected stop, skip or list"):
        ClassificationDataArguments(train_dir="x", bad_images="ignore")


def segmentation_settings(folder, output, **changes):
    values = {
        **COMMON, "train_dir": folder / "train", "validation_dir": folder / "validation", "output_dir": output,
        "label_names_file": folder / "names.txt", "head_overrides": '{"hidden_size": 32, "auxiliary_channels": 16}',
        "shortest_edge": 32, "crop_size": 32, "color_distortion": False, "overlays": 1, **changes,
    }  # fmt: skip
    return as_arguments(values)


def test_segmentation(tmp_path, capsys):
    """Bad are images and maps that cannot be read, or that do not fit; an unknown class is a fault of the data."""
    write_all(tmp_path)
    train = tmp_path / "train"
    (train / "images" / "01.png").write_bytes(b"")
    (train / "masks" / "03.png").write_bytes(b"no map")
    Image.new("L", (5, 5)).save(train / "masks" / "04.png")
    (tmp_path / "validation" / "images" / "101.png").write_bytes(b"")
    output = tmp_path / "out"
    assert segmentation.main(segmentation_settings(tmp_path, output, bad_images="list")) == 1
    assert "4 images cannot be used" in capsys.readouterr().err
    assert segmentation.main(segmentation_settings(tmp_path, output, bad_images="skip")) == 0
    assert [line.split(": ")[1].rpartition("/")[2] for line in lines(output)] == [
        "01.png",
        "03.png",
        "04.png",
        "101.png",
    ]
    result = json.loads((output / "eval_evaluation.json").read_text())
    assert (result["samples"], result["left_out_images"]["train"]["count"]) == (2, 3)
    assert "left out: 3 (`01.png`, `03.png`, `04.png`)" in (output / "README.md").read_text()
    Image.new("L", (48, 40), 7).save(train / "masks" / "05.png")
    assert segmentation.main(segmentation_settings(tmp_path, tmp_path / "other", bad_images="skip")) == 1
    assert "05.png: holds class 7" in capsys.readouterr().err


def test_detection(tmp_path, capsys):
    """Bad are images that cannot be read, and those of another size than annotated."""
    coco(tmp_path / "train", 6)
    coco(tmp_path / "validation", 3)
    (tmp_path / "train" / "images" / "01.png").write_bytes(b"")
    Image.new("RGB", (20, 20)).save(tmp_path / "train" / "images" / "02.png")
    (tmp_path / "validation" / "images" / "00.png").unlink()
    values = {
        **COMMON, "train_dir": tmp_path / "train", "validation_dir": tmp_path / "validation", "shortest_edge": 40,
        "head_overrides": json.dumps(DINO), "output_dir": tmp_path / "out", "overlays": 1,
    }  # fmt: skip
    assert detection.main(as_arguments({**values, "bad_images": "list"})) == 1
    assert "3 images cannot be used" in capsys.readouterr().err
    assert detection.main(as_arguments({**values, "bad_images": "skip"})) == 0
    result = json.loads((tmp_path / "out" / "eval_evaluation.json").read_text())
    assert result["samples"] == 2
    assert {split: part["count"] for split, part in result["left_out_images"].items()} == {"train": 2, "validation": 1}
    assert "left out: 2 (`01.png`, `02.png`)" in (tmp_path / "out" / "README.md").read_text()


# ---- Streams ----


STREAM = {
    "streaming": True, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps",
    "save_steps": 6, "num_train_epochs": None,
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_leaves_them_out(workers, folders):
    """Six batches of two are more than two passes; a bad image is written down once."""
    output = folders / "out"
    arguments = settings(folders, output, bad_images="skip", dataloader_num_workers=workers, **STREAM)
    assert classification.main(arguments) == 0
    result = json.loads((output / "eval_evaluation.json").read_text())
    left_out = result["left_out_images"]
    assert {split: part["count"] for split, part in left_out.items()} == {"train": 3, "validation": 1}
    assert all(text in line for text, line in zip(TRAIN_BAD, left_out["train"]["images"], strict=True))
    assert "left out: 3 (`0.png`, `1.png`, `3.png`)" in (output / "README.md").read_text()
    assert len(lines(output)) == len(set(lines(output))) == 4


def test_a_stream_is_listed_and_stops(folders, capsys):
    assert classification.main(settings(folders, folders / "out", bad_images="list", **STREAM)) == 1
    assert "error: 4 images cannot be used:" in capsys.readouterr().err
    assert classification.main(settings(folders, folders / "out", **STREAM)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert any(text in error for text in TRAIN_BAD)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, STREAM], ids=["kept", "streamed"])
def test_two_processes_leave_out_the_same(more, folders):
    """Each checks its share; all train on the same rest, and the evaluation counts each image once."""
    output = folders / "out"
    arguments = settings(
        folders, output, bad_images="skip", dataloader_drop_last=True, per_device_eval_batch_size=4, **more
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = SCRIPTS / "run_image_classification.py"
    result = subprocess.run([*command, script, *arguments], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    evaluation = json.loads((output / "eval_evaluation.json").read_text())
    assert (evaluation["samples"], evaluation["processes"]) == (7, 2)
    left_out = evaluation["left_out_images"]
    assert {split: part["count"] for split, part in left_out.items()} == {"train": 3, "validation": 1}
    assert all(text in line for text, line in zip(TRAIN_BAD, left_out["train"]["images"], strict=True))
    assert len((output / "eval_predictions.csv").read_text().splitlines()) == 1 + 7
    assert sorted(lines(output)) == sorted(set(lines(output)))


def test_a_stream_of_bad_images_ends(tmp_path):
    for file in write_classes(tmp_path / "train").glob("*/*.png"):
        file.write_bytes(b"")
    data = load_data(ClassificationDataArguments(train_dir=str(tmp_path / "train"), streaming=True, train_val_split=0))
    transform = data.training_transform(lambda image, key: torch.zeros(1))
    stream = TrainingStream(data.train, transform, 0, bad_images_file=tmp_path / "bad_images.txt")
    with pytest.raises(ValueError, match="None of the 8 images of the training data"):
        next(iter(stream))
    assert len(lines(tmp_path)) == 8


# ---- Images that pipelines read otherwise ----


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_other_pixels_are_told_once_and_counted(workers, tmp_path, monkeypatch):
    folder = write_classes(tmp_path / "train")
    deep = np.random.default_rng(0).integers(0, 65536, (32, 32), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "a" / "1.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(folder / "b" / "2.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(folder / "b" / "3.png")  # nothing shows through
    write_classes(tmp_path / "validation")
    output = tmp_path / "out"
    log = tmp_path / "log.txt"

    def note(message):  # in any process
        with open(log, "a") as file:
            file.write(f"{message}\n")

    monkeypatch.setattr(images.logger, "warning", note)
    arguments = settings(tmp_path, output, num_train_epochs=3, dataloader_num_workers=workers, image_size=32)
    assert classification.main(arguments) == 0
    messages = log.read_text().splitlines()
    assert len(messages) <= max(1, workers)  # workers may come upon the first one at the same time
    for message in messages:
        assert any(f"{name} has 16 bits or transparency" in message for name in ("a/1.png", "b/2.png"))
        assert "rgb_images.to_rgb(image)" in message
    assert json.loads((output / "eval_evaluation.json").read_text())["images_read_otherwise"] == 2
    card = (output / "README.md").read_text()
    assert "Images of 16 bits or with transparency among the data: 2." in card
    assert "from hf_internimage.models.rgb_images import to_rgb" in card


def test_notes_without_anything_to_say():
    assert card_notes({}) == []


def test_rows_without_an_image(tmp_path):
    """A list of all of them, in the order of the rows, whatever the number of rows in a batch."""
    data = load_data(ClassificationDataArguments(train_dir=str(write_classes(tmp_path / "a"))))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    rows = [{"image": None if row % 100 == 7 else {"bytes": buffer.getvalue(), "path": None}} for row in range(600)]
    data.train = type(data.train).from_list([{**row, "label": 0} for row in rows], features=data.train.features)
    kept = without_bad_images(data, "skip", InternImageImageProcessorPil(), None)
    assert len(kept.train) == 594
    assert len(kept.reader.left_out["train"]) == 6
    assert kept.class_counts().tolist() == [594, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rows_of_all_processes_are_left_out_in_all(rank, tmp_path, monkeypatch):
    """Each process checks every second row; what the others found comes with what it found itself."""
    data = load_data(ClassificationDataArguments(train_dir=str(write_classes(tmp_path / "a")), train_val_split=0))
    rows = [{"image": {"bytes": b"", "path": f"{row}.png"}, "label": 0} for row in range(7)]
    good = (tmp_path / "a" / "a" / "0.png").read_bytes()
    for row in (0, 3, 6):
        rows[row]["image"]["bytes"] = good
    data.train = type(data.train).from_list(rows, features=data.train.features)
    state = types.SimpleNamespace(
        process_index=rank, num_processes=2, is_local_main_process=rank == 0, wait_for_everyone=lambda: None
    )
    of_others = [(row, f"{row}.png: of the other") for row in (1, 2, 4, 5) if row % 2 != rank]
    monkeypatch.setattr(bad_images, "PartialState", lambda: state)
    monkeypatch.setattr(bad_images, "gather_object", lambda own: [*own, *of_others])
    (tmp_path / "bad_images.txt").write_text("of an earlier run")
    without_bad_images(data, "stop", InternImageImageProcessorPil(), tmp_path)
    assert (tmp_path / "bad_images.txt").exists() is (rank == 1)  # removed by one process of a machine
    kept = without_bad_images(data, "skip", InternImageImageProcessorPil(), tmp_path / "new" / "out")
    assert [row["image"]["path"] for row in kept.train] == ["0.png", "3.png", "6.png"]  # in their order
    errors = kept.reader.left_out["train"]
    assert [error.partition(":")[0] for error in errors] == ["1.png", "2.png", "4.png", "5.png"]
    assert (tmp_path / "new" / "out" / "bad_images.txt").exists() is (rank == 0)
    with pytest.raises(ValueError, match=r"^4 images cannot be used:\ntrain: 1\.png: .*\ntrain: 2\.png: "):
        without_bad_images(data, "list", InternImageImageProcessorPil(), None)


def test_images_that_a_stream_left_out_are_those_of_all_processes(tmp_path, monkeypatch):
    (tmp_path / "bad_images.txt").write_text("train: b.png: is empty\ntrain: a.png: is: empty\n")
    monkeypatch.setattr(bad_images, "gather_object", lambda own: [*own, *own, "validation: c.png: is empty"])
    reader = ImageReader(left_out={"train": ["b.png: is empty"]})
    bad_images.add_left_out_of_stream(reader, tmp_path)
    assert reader.left_out == {"train": ["b.png: is empty", "a.png: is: empty"], "validation": ["c.png: is empty"]}
    other = ImageReader()
    bad_images.add_left_out_of_stream(other, tmp_path / "absent")
    assert other.left_out == {"validation": ["c.png: is empty"]}


def test_facts_and_notes_of_images(monkeypatch):
    reader = ImageReader(left_out={"train": [f"far/{name}.png: is empty" for name in "abcdef"]})
    reader.read_otherwise[[3, 8]] = 1
    monkeypatch.setattr(bad_images, "gather_object", lambda own: [*own, 8, 9])  # of another process
    facts = bad_images.image_facts(reader)
    assert facts["images_read_otherwise"] == 3
    assert facts["left_out_images"]["train"] == {"count": 6, "images": reader.left_out["train"]}
    left_out, otherwise = card_notes(facts)
    names = ", ".join(f"`{name}.png`" for name in "abcde")
    assert left_out == f"Images of train that could not be used and were left out: 6 ({names} and 1 more)."
    assert otherwise.startswith("Images of 16 bits or with transparency among the data: 3. ")
    monkeypatch.setattr(bad_images, "gather_object", lambda own: own)
    assert bad_images.image_facts(ImageReader()) == {}
