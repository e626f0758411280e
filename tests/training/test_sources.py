# SPDX-License-Identifier: MIT
"""What the data of all tasks share: held-out and chosen rows, files of class names, columns of images."""

import glob

import fsspec
import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Value
from datasets import Image as ImageFeature

from hf_internimage.image_files import IMAGE_ENDINGS
from hf_internimage.training import sources
from hf_internimage.training.sources import SourceArguments

COUNT = 23
LABELS = np.arange(COUNT) % 4


def held_out(seed=3, share=0.3, labels_of=None, splits=("train", "validation")):
    datasets = {"train": Dataset.from_dict({"row": list(range(COUNT))})}
    arguments = SourceArguments(dataset_name="data", train_val_split=share)
    sources.hold_out_validation(datasets, splits, arguments, seed, labels_of)
    return {split: dataset["row"][:] for split, dataset in datasets.items()}


def test_held_out_rows_depend_on_the_seed_alone():
    order = np.random.default_rng(3).permutation(COUNT)
    assert held_out() == {"train": sorted(order[7:].tolist()), "validation": sorted(order[:7].tolist())}
    assert held_out() == held_out() != held_out(seed=4)
    assert held_out(splits=["train"]) == held_out(share=0) == {"train": list(range(COUNT))}


def test_the_same_share_of_each_label_is_held_out():
    generator = np.random.default_rng(3)
    parts = [generator.permutation(np.flatnonzero(label == LABELS))[:2] for label in range(4)]
    rows = held_out(labels_of=lambda train: LABELS)
    assert rows["validation"] == sorted(np.concatenate(parts).tolist())
    assert sorted(rows["train"] + rows["validation"]) == list(range(COUNT))
    most = held_out(share=0.99, labels_of=lambda train: LABELS)
    assert sorted(LABELS[most["train"]].tolist()) == [0, 1, 2, 3]  # one of each label is left to train on


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_part_may_be_empty(share):
    with pytest.raises(ValueError, match=f"train_val_split={share} of 23 images is none, or leaves none to train on"):
        held_out(share=share)


def test_each_split_has_a_number_of_samples_of_its_own():
    datasets = {split: Dataset.from_dict({"row": list(range(COUNT))}) for split in ("train", "validation", "test")}
    arguments = SourceArguments(dataset_name="data", max_train_samples=3, max_eval_samples=7)
    chosen = sources.choose_samples(datasets, arguments, seed=3)
    order = np.random.default_rng(3).permutation(COUNT)
    for split, count in (("train", 3), ("validation", 7), ("test", 7)):
        assert chosen[split]["row"][:] == sorted(order[:count].tolist())
    assert sources.choose_samples(datasets, SourceArguments(dataset_name="data"), seed=3) == datasets
    one = sources.choose_samples(datasets, SourceArguments(dataset_name="data", max_train_samples=1), seed=3)
    assert (len(one["train"]), len(one["test"])) == (1, COUNT)


def test_repeated_class_names_are_allowed_if_asked_for(tmp_path):
    (tmp_path / "names.txt").write_text("crane\n owl \n\ncrane\n")
    assert sources.read_label_names(tmp_path / "names.txt", unique=False) == ["crane", "owl", "crane"]
    with pytest.raises(ValueError, match="names crane twice"):
        sources.read_label_names(tmp_path / "names.txt")


def test_label_names_of_a_model():
    for model_names in (None, ["a", "b"], ["LABEL_0", "LABEL_1"]):
        sources.check_label_names(model_names, ["a", "b"], "the data's 2", "advice")
    for model_names in (["b", "a"], ["a", "b", "c"], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        with pytest.raises(ValueError, match=r"classes \(.*\) are not the data's 2 \(a, b\.\.\.\).*: advice\."):
            sources.check_label_names(model_names, ["a", "b"], "the data's 2", "advice")


def test_columns_of_images():
    features = Features({"number": Value("int64"), "mask": ImageFeature(), "photo": ImageFeature()})
    assert sources.image_columns(features) == ["mask", "photo"]
    assert sources.find_image_column(features, "number") == "number"
    assert sources.find_image_column(features, None, usual_names=["image", "photo"]) == "photo"
    with pytest.raises(ValueError, match=r"Columns \['mask', 'photo'\] hold images; set image_column_name"):
        sources.find_image_column(features, None)
    with pytest.raises(ValueError, match="'number' is none of images; set label_column_name"):
        sources.find_image_column(features, "number", "label_column_name", ["mask"])


# ---- Named datasets ----


def names_of(**splits):
    arguments = SourceArguments(dataset_name="me/data", **splits)
    arguments.test_split_name = None
    return arguments


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "training"]),
        ("validation", ["validation", "valid", "val", "dev"]),
        ("test", ["test", "testing"]),
    ],
)
def test_usual_names_of_splits(split, names):
    for index, name in enumerate(names):
        others = [other for other in ("train", "dev", "test", "extra") if other not in names]
        assert names_of().name_of_split(split, [*others, *names[index:][::-1]]) == name  # the first of them
    assert names_of().name_of_split(split, ["extra"]) is None


def test_names_of_splits_that_are_given():
    given = names_of(train_split_name="extra")
    assert given.name_of_split("train", ["train", "extra"]) == "extra"
    with pytest.raises(ValueError, match=r"me/data has no split 'extra'; set train_split_name to one of \['a', 'b'\]"):
        given.name_of_split("train", ["b", "a"])


def test_a_dataset_is_asked_for_as_the_arguments_say(monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return {"train": "rows", "dev": "other rows"}

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    arguments = names_of(dataset_config_name="small", dataset_revision="v2", data_cache_dir="cache")
    assert arguments.load_split("train") == ("train", "rows")
    assert arguments.load_split("validation") == ("dev", "other rows")
    assert arguments.load_split("test") is None
    assert calls[0] == (("me/data", "small"), {"revision": "v2", "cache_dir": "cache"})


# ---- Splits ----


def read(present, splits, divide=False, share=0.15):
    rows = {split: Dataset.from_dict({"row": list(range(count))}) for split, count in present.items()}
    asked = []

    def read_one(split):
        asked.append(split)
        return rows.get(split)

    arguments = SourceArguments(dataset_name="data", train_val_split=share)
    result = sources.read_splits(arguments, splits, read_one, divide_training_data=divide)
    assert all(result[split] is rows[split] for split in result)
    return list(result), asked


def test_splits_that_are_read():
    both = {"train": 2, "validation": 3}
    assert read(both, ["train", "validation", "test"])[0] == ["train", "validation"]
    assert read(both, ["validation"], divide=True) == (["validation"], ["validation"])
    assert read({"train": 2}, ["validation"], divide=True) == (["train"], ["validation", "train"])
    assert read({"train": 2}, ["train", "validation"], divide=True)[1] == ["train", "validation"]  # once
    for options in ({"divide": False}, {"divide": True, "share": 0}):
        with pytest.raises(ValueError, match="There are no data for validation; check dataset_name or the folders"):
            read({"train": 2}, ["validation"], **options)
    with pytest.raises(ValueError, match="There are no data for test;"):
        read({"train": 2}, ["test"], divide=True)
    with pytest.raises(ValueError, match="There are no training data: set train_dir"):
        read({"validation": 2}, ["train", "validation"])
    with pytest.raises(ValueError, match="Split 'validation' holds no images"):
        read({"train": 1, "validation": 0}, ["train", "validation"])


def test_streams_are_not_divided_but_cut():
    stream = Dataset.from_dict({"row": list(range(9))}).to_iterable_dataset()
    with pytest.raises(ValueError, match="A stream cannot be divided into training and validation data"):
        sources.hold_out_validation({"train": stream}, ["train", "validation"], SourceArguments(train_dir="a"), 0)
    whole = {"train": stream, "validation": stream}
    sources.hold_out_validation(whole, ["train", "validation"], SourceArguments(train_dir="a"), 0)
    arguments = SourceArguments(train_dir="a", max_train_samples=4)
    chosen = sources.choose_samples(whole, arguments, seed=3)
    assert [row["row"] for row in chosen["train"]] == [0, 1, 2, 3]
    assert len(list(chosen["validation"])) == 9


@pytest.mark.parametrize(("count", "expected"), [(None, 5), (3, 3), (9, 5)])
def test_a_stream_that_is_kept(count, expected, tmp_path):
    path = f"memory://stream{count}/a.png"  # of a file on the disk, its path is kept
    with fsspec.open(path, "wb") as file:
        file.write(b"content")
    image = {"image": {"bytes": None, "path": path}}
    rows = [{"row": 0, "image": None}, *({"row": row, **image} for row in range(1, 5))]
    features = Features({"row": Value("int64"), "image": ImageFeature()})
    stream = IterableDataset.from_generator(lambda: iter(rows), features=features)
    kept = sources.keep_stream(stream, count, f"key{count}", str(tmp_path / "cache"))
    assert kept["row"][:] == list(range(expected))
    assert kept[0]["image"] is None
    assert kept[1]["image"] == {"bytes": b"content", "path": path}
    fsspec.filesystem("memory").rm(f"/stream{count}/a.png")
    again = sources.keep_stream(stream, count, f"key{count}", str(tmp_path / "cache"))
    assert again[2]["image"]["bytes"] == b"content"  # from the cache


# ---- Folders ----


def write_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


ENDINGS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)


def test_endings_of_images(tmp_path, caplog):
    names = [f"a/{index}{ending}" for index, ending in enumerate((*ENDINGS, ".JPG"))]
    rows = sources.read_folder(write_files(tmp_path, *names, "b/1.png", "b/1.txt", "b/.hidden.png"), False, None)
    assert len(rows) == len(names) + 1
    assert set(ENDINGS) == IMAGE_ENDINGS
    assert (
        f"Left out 1 files in {tmp_path} that are no images by their names, such as {tmp_path}/b/1.txt" in caplog.text
    )
    assert rows.features["label"].names == ["a", "b"]
    assert rows["label"][:] == [0] * len(names) + [1]
    caplog.clear()
    (tmp_path / "b" / "1.txt").unlink()
    stream = sources.read_folder(str(tmp_path), True, None)
    assert not caplog.text
    assert stream.num_shards == len(rows)
    assert sorted(row["image"]["path"] for row in stream) == sorted(row["path"] for row in rows["image"])
    assert [row["label"] for row in stream] != rows["label"][:]  # mixed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/1.png", "VAL/1.png"], r"holds splits, not classes \(VAL, train\); set train_dir, validation_dir"),
        (["train/1.png", "owl/1.png", "1.png"], r"/1\.png: belongs to no class; put it into a folder named after"),
        (["a/1.txt"], "holds no images, Parquet files or .tar files; check the path"),
        (["a/1.png", "b/1.txt", "c/.1.png"], "/b, .*/c: holds no image; add images of that class or remove"),
        (["a/1.png", "a/1.parquet"], r"holds data of several kinds \(.*1\.parquet, .*1\.png\)"),
        (["a/1.tar", "a/1.parquet"], r"holds data of several kinds \(.*1\.parquet, .*1\.tar\)"),
        (["a/1.tar", "a/metadata.csv"], r"holds data of several kinds \(.*metadata\.csv, .*1\.tar\)"),
        (["a/1.tar", "a/metadata.jsonl"], r"holds data of several kinds \(.*metadata\.jsonl, .*1\.tar\)"),
        (["a/1.tar", "a/metadata.parquet"], r"holds data of several kinds \(.*metadata\.parquet, .*1\.tar\)"),
    ],
)
def test_folders_of_nothing_that_can_be_read(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sources.read_folder(write_files(tmp_path, *names), False, None)
    with pytest.raises(ValueError, match="absent: is not a folder; give one that holds images"):
        sources.read_folder(str(tmp_path / "absent"), False, None)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.parquet", "parquet"), ("a.tar", "webdataset"), ("metadata.csv", "imagefolder")]
)
@pytest.mark.parametrize("streaming", [True, False])
def test_files_that_datasets_reads(name, kind, streaming, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(sources, "load_dataset", lambda *arguments, **options: calls.append((arguments, options)))
    folder = tmp_path / "with [brackets]"
    write_files(folder, name, "notes.txt")
    sources.read_folder(str(folder), streaming, "cache")
    paths = [str(folder / name), str(folder / "notes.txt")] if kind == "imagefolder" else [str(folder / name)]
    files = {"train": [glob.escape(path) for path in paths]}
    options = {"data_files": files, "split": "train", "streaming": streaming, "cache_dir": "cache"}
    assert calls == [((kind,), options)]


# ---- Texts ----


def test_a_list_is_cut():
    assert [sources.listed(list("abcdefg")[:count]) for count in (1, 5, 6)] == [
        "a",
        "a, b, c, d, e",
        "a, b, c, d, e and 1 more",
    ]
    assert sources.listed([1, 2, 3], 2) == "1, 2 and 1 more"


def test_columns_that_are_not_clear():
    nothing, one = Features({"b": Value("int64"), "a": Value("string")}), Features({"photo": ImageFeature()})
    assert sources.find_image_column(one, None) == "photo"
    for features, name, names, message in (
        (None, None, (), "The stream does not say which columns it has; set streaming to False"),
        (nothing, None, (), r"No column holds images; set image_column_name to one of \['a', 'b'\]"),
        (nothing, "c", (), r"There is no column 'c'; set image_column_name to one of \['a', 'b'\]"),
        (one, None, ("image",), r"No column is recognised; set image_column_name to one of \['photo'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sources.find_image_column(features, name, usual_names=names)
    struct = {"bytes": Value("binary"), "path": Value("string")}
    assert sources.is_image(struct)
    assert not sources.is_image({**struct, "more": Value("string")})
    assert not sources.is_image(Value("binary"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "No data: set dataset_name, or train_dir and its like"),
        ({"dataset_name": "a", "validation_dir": "b"}, "dataset_name and validation_dir are both set; choose one"),
        ({"train_dir": "a", "bad_images": "drop"}, "bad_images is 'drop', expected stop, skip or list"),
    ],
)
def test_arguments_that_do_not_go_together(values, message):
    for choice in ("stop", "skip", "list"):
        assert SourceArguments(train_dir="a", bad_images=choice).bad_images == choice
    with pytest.raises(ValueError, match=message):
        SourceArguments(**values)
