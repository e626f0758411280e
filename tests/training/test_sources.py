# SPDX-License-Identifier: MIT
"""What the data of all tasks share: held-out and chosen rows, files of class names, columns of images."""

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from hf_internimage.training import sources
from hf_internimage.training.sources import SourceArguments, list_files

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


@pytest.mark.parametrize("target", ["..", "."])
def test_links_that_never_end(target, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(target)
    with pytest.raises(ValueError, match="loop is a link to a folder around it, which never ends"):
        list_files(str(tmp_path))


def test_links_to_other_folders_are_followed(tmp_path):
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert list_files(str(tmp_path / "data")) == [str(tmp_path / "data" / "a" / "1.png")]
