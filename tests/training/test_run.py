# SPDX-License-Identifier: MIT
"""What the steps of a training script are given, with steps that only note it."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_internimage.training import run
from hf_internimage.training.command_line import UsageError
from hf_internimage.training.images import ImageReader, RowTransform
from hf_internimage.training.run import find_checkpoint
from hf_internimage.training.streams import TrainingStream

DATA_ARGUMENTS = SimpleNamespace(bad_images="stop", shuffle_buffer=7)
NEW_MODEL = SimpleNamespace(model_name_or_path=None, model_revision="main", base_model=None)


def training_arguments(folder, **settings):
    return TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", **{"do_train": True, "do_eval": True, **settings}
    )


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Run the steps of a task; return name of a step -> its arguments, in the order of the calls."""

    def run_steps(do_train, model, left_out=None, options=None, main_process=False, splits=None, **settings):
        calls = {}

        def step(name, result):
            def call(*arguments, **options):
                calls[name] = (arguments, options)
                return result

            return call

        splits = {"train": "rows", "validation": "rows", "test": "rows"} | (splits or {})
        data = SimpleNamespace(**splits, label_names=["a"], reader=ImageReader(left_out=left_out or {}))
        trainer = SimpleNamespace(
            train_and_save=step("train", None),
            is_world_process_zero=lambda: main_process,
            add_callback=step("add_callback", None),
            state=SimpleNamespace(log_history=[{"loss": 1.0, "step": 1}, {"loss": 2.0, "step": 2}]),
        )
        model_to_train = SimpleNamespace(config=None)
        results = {"load_data": data, "build_model": model_to_train, "build_processor": "processor"}
        results |= {"build_trainer": trainer}
        results |= {"evaluate_and_report": "evaluation", "publish": None, "apply_data_settings": None}
        training = training_arguments(tmp_path / "out", do_train=do_train, **{"seed": 5, **settings})
        arguments = SimpleNamespace(
            model=model, data=DATA_ARGUMENTS, run=run.RunArguments(license="mit", **(options or {})), training=training
        )
        monkeypatch.setattr(run.auto, "load_config", step("load_config", None))
        monkeypatch.setattr(run, "start_rows", step("start_rows", [("Model", "a model")]))
        monkeypatch.setattr(run, "follow", step("follow", None))
        monkeypatch.setattr(run, "end_summary", step("end_summary", "the end"))
        monkeypatch.setattr(run, "run_record", lambda arguments, data, config: {"classes": data.label_names})
        monkeypatch.setattr(run, "refuse_other_run", step("refuse_other_run", None))
        monkeypatch.setattr(run, "draw_training", step("draw_training", None))
        monkeypatch.setattr(run, "add_left_out_of_stream", step("add_left_out_of_stream", None))
        monkeypatch.setattr(run, "saving_on_interrupt", lambda of: contextlib.nullcontext(step("save", None)(of)))
        task = run.Task(**{name: step(name, result) for name, result in results.items()}, curves=lambda log: log[1:])
        run.run_training(arguments, task)
        calls["trainer"], calls["arguments"] = trainer, arguments
        return calls

    return run_steps


def test_steps_of_a_training(called, tmp_path):
    source = {"model_revision": "main", "trust_remote_code": False}
    backbone = SimpleNamespace(model_name_or_path=None, base_model="me/backbone", **source)
    calls = called(True, backbone)
    trainer, arguments = calls.pop("trainer"), calls.pop("arguments")
    assert list(calls) == [
        "load_config", "load_data", "apply_data_settings", "build_model", "build_processor", "build_trainer",
        "start_rows", "follow", "add_callback", "refuse_other_run", "train", "evaluate_and_report", "publish",
    ]  # fmt: skip
    assert calls["load_config"] == (("me/backbone",), {"revision": "main", "trust_remote_code": False})
    assert calls["follow"][0][1].rows == [("Model", "a model")]
    assert torch.initial_seed() == 5  # set before the model is made
    assert calls["load_data"][0] == (DATA_ARGUMENTS, 5, ["train", "validation"], None)
    data = calls["apply_data_settings"][0][1]
    assert calls["build_model"][0] == (backbone, data)
    assert calls["build_processor"][0][0] is calls["build_trainer"][0][0] is arguments
    assert calls["build_trainer"][0][3] == "processor"
    assert trainer.record == {"classes": ["a"]}
    assert calls["refuse_other_run"][0] == (trainer.record, tmp_path / "out", False)
    assert calls["train"][0] == (None,)
    evaluated, options = calls["evaluate_and_report"]
    assert (evaluated[2:], options) == (("validation", DATA_ARGUMENTS), {"model_name": str(tmp_path / "out")})
    # The card names what the training started from, which may be a backbone.
    assert calls["publish"][0][1] == "evaluation"
    assert calls["publish"][1] == {"base_model": "me/backbone", "license": "mit", "notes": []}


def test_options_of_a_run(called, tmp_path):
    options = {"overwrite_output_dir": True, "save_on_interrupt": True}
    calls = called(True, NEW_MODEL, options=options, main_process=True, hub_model_id="me/model")
    assert "refuse_other_run" not in calls
    (callback,) = calls["add_callback"][0]
    assert isinstance(callback, run.RemoveEarlierRunCallback)
    assert calls["save"][0] == (calls["trainer"],)
    assert calls["evaluate_and_report"][1] == {"model_name": "me/model"}
    assert calls["draw_training"][0] == ([{"loss": 2.0, "step": 2}], tmp_path / "out" / "training.png")
    calls = called(True, NEW_MODEL, options={"ignore_data_changes": True})
    assert calls["refuse_other_run"][0][2] is True
    assert isinstance(calls["add_callback"][0][0], run.SamplingCallback)
    assert not {"save", "draw_training", "add_left_out_of_stream"} & set(calls)


def test_going_on_is_compared_with_the_checkpoint(called, tmp_path):
    checkpoint = tmp_path / "earlier"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    calls = called(True, NEW_MODEL, resume_from_checkpoint=str(checkpoint))
    assert calls["refuse_other_run"][0][1] == calls["train"][0][0] == checkpoint


def test_a_stream_tells_what_it_left_out(called, tmp_path):
    stream = Dataset.from_dict({"row": [1]}).to_iterable_dataset()
    calls = called(True, NEW_MODEL, splits={"train": stream})
    assert calls["add_left_out_of_stream"][0][1] == tmp_path / "out"


def test_the_card_names_images_that_were_left_out(called):
    (note,) = called(True, NEW_MODEL, {"train": ["far/a.png: is empty"]})["publish"][1]["notes"]
    assert note.endswith("left out: 1 (`a.png`).")


def test_steps_of_an_evaluation(called, monkeypatch, capsys):
    monkeypatch.setattr(run, "checkpoint_labels", lambda arguments: ["a"])
    source = {"model_revision": "main", "trust_remote_code": False}
    model = SimpleNamespace(model_name_or_path="me/model", base_model="me/model", **source)
    calls = called(False, model, main_process=True)
    assert capsys.readouterr().out == "Model  a model\nthe end\n"
    assert calls["end_summary"][0][2] == {"validation": "evaluation"}
    assert not {"train", "publish", "refuse_other_run"} & set(calls)
    assert calls["load_data"][0] == (DATA_ARGUMENTS, 5, ["validation"], ["a"])
    assert calls["evaluate_and_report"][1] == {"model_name": "me/model"}
    calls = called(False, model, do_predict=True, do_eval=False)
    assert calls["load_data"][0][2] == ["test"]
    assert calls["evaluate_and_report"][0][2:] == ("test", DATA_ARGUMENTS)


def test_without_validation_data_the_last_model_is_kept(called, caplog):
    calls = called(True, NEW_MODEL, splits={"validation": None}, do_predict=True, load_best_model_at_end=False)
    training = calls["arguments"].training
    assert (training.eval_strategy, training.load_best_model_at_end) == ("no", False)
    assert "There are no validation data: the last model is kept" in caplog.text
    assert calls["evaluate_and_report"][0][2] == "test"
    assert calls["publish"][0][1] is None  # what was measured on the test data is not the card's
    caplog.clear()
    called(True, NEW_MODEL, splits={"validation": None}, do_eval=False)
    assert not caplog.text
    training = training_arguments("out", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
    run.keep_last_model(training)
    assert (training.eval_strategy, training.load_best_model_at_end) == ("no", False)


def test_splits_that_are_needed_are_refused_if_they_are_missing(called, monkeypatch):
    with pytest.raises(UsageError, match="Without training there has to be a checkpoint"):
        called(False, NEW_MODEL)
    monkeypatch.setattr(run, "checkpoint_labels", lambda arguments: ["a"])
    with pytest.raises(UsageError, match="There are no validation data: set validation_dir"):
        called(False, NEW_MODEL, splits={"validation": None})
    called(False, NEW_MODEL, splits={"validation": None}, do_eval=False, do_predict=True)
    with pytest.raises(UsageError, match="There are no test data: set test_dir"):
        called(True, NEW_MODEL, splits={"test": None}, do_predict=True)


def checkpoint_in(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name, text in (("trainer_state.json", "{}"), ("processes.json", "1"), ("rng_state.pth", "")):
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("name", [None, True, "true", "True", False, "false", "False", "named"])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_which_checkpoint_a_training_goes_on_from(name, there, overwrite, tmp_path):
    last = checkpoint_in(tmp_path / "out", 10) if there else None
    named = checkpoint_in(tmp_path / "elsewhere", 3)
    training = training_arguments(tmp_path / "out")
    training.resume_from_checkpoint = str(named) if name == "named" else name
    goes_on, anew = name in (True, "true", "True"), name in (False, "false", "False")
    if overwrite and (goes_on or name == "named"):
        with pytest.raises(UsageError, match="overwrite_output_dir starts anew: leave out one of them"):
            find_checkpoint(training, overwrite)
    elif anew and there and not overwrite:
        with pytest.raises(UsageError, match="checkpoint-10 is of an earlier training"):
            find_checkpoint(training, overwrite)
    else:
        expected = None if overwrite or anew else named if name == "named" else last
        assert find_checkpoint(training, overwrite) == expected


def test_classes_of_a_checkpoint_are_in_the_order_of_their_numbers(monkeypatch):
    calls = []

    def load_config(*arguments, **options):
        calls.append((arguments, options))
        return SimpleNamespace(id2label={10: "k", 2: "c", 1: "b"})

    monkeypatch.setattr(run.auto, "load_config", load_config)
    model = SimpleNamespace(model_name_or_path="me/model", model_revision="v2", trust_remote_code=True)
    assert run.checkpoint_labels(model) == ["b", "c", "k"]
    assert calls == [(("me/model",), {"revision": "v2", "trust_remote_code": True})]
    assert run.checkpoint_labels(NEW_MODEL) is None


class Noted:
    """Stands for a trainer, and keeps its options."""

    def __init__(self, **options):
        self.options = options


def with_data(folder, train, validation, bad_images="stop"):
    processor = SimpleNamespace(size={"shortest_edge": 40}, do_resize=True)
    data = SimpleNamespace(
        train=train,
        validation=validation,
        reader=ImageReader(max_pixels=99),
        training_transform=lambda augmentation: RowTransform(augmentation),
        evaluation_transform=lambda of: RowTransform(lambda *parts: of is processor),
    )
    arguments = SimpleNamespace(
        training=training_arguments(folder, seed=5),
        data=SimpleNamespace(bad_images=bad_images, shuffle_buffer=7),
        recipe="recipe",
    )
    return run.trainer_with_data(
        Noted, arguments, data, "model", processor, lambda: lambda *parts: parts, callbacks=["own"], more=1
    ).options


def test_data_of_a_trainer(tmp_path):
    rows = Dataset.from_dict({"row": [1, 2]})
    options = with_data(tmp_path, rows, rows)
    assert (options["model"], options["recipe"], options["more"]) == ("model", "recipe", 1)
    transform = options["train_dataset"].format["format_kwargs"]["transform"]
    assert (transform.reader.max_pixels, transform.reader.short_side) == (99, 40)
    epochs, own = options["callbacks"]
    assert own == "own"
    epochs.on_epoch_begin(None, SimpleNamespace(epoch=3.0), None)
    assert transform.prepare("image", "labels", [8, 9]) == ("image", "labels", [5, 3, 8, 9])  # seed, epoch, key
    evaluated = options["eval_dataset"].format["format_kwargs"]["transform"]
    assert evaluated.prepare()
    options = with_data(tmp_path, None, None)
    assert (options["train_dataset"], options["eval_dataset"], options["callbacks"]) == (None, None, ["own"])


@pytest.mark.parametrize("bad_images", ["stop", "skip", "list"])
def test_a_stream_of_a_trainer(bad_images, tmp_path):
    stream = with_data(tmp_path, Dataset.from_dict({"row": [1]}).to_iterable_dataset(), None, bad_images)[
        "train_dataset"
    ]
    assert isinstance(stream, TrainingStream)
    assert (stream.seed, stream.buffer_size, stream.rank, stream.world_size) == (5, 7, 0, 1)
    assert stream.bad_images_file == (tmp_path / "bad_images.txt" if bad_images == "skip" else None)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    run.refuse_output_folder(tmp_path / "a" / "b")
    run.refuse_output_folder(Path("new"))
    (tmp_path / "notes.jpg").touch()
    with pytest.raises(UsageError, match=r"but .*notes\.jpg is a file; name another folder"):
        run.refuse_output_folder(tmp_path / "notes.jpg" / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"/out, which cannot be written: no permission"):
        run.refuse_output_folder(tmp_path / "out")
