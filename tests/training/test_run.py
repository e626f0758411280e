# SPDX-License-Identifier: MIT
"""What the steps of a training script are given, with steps that only note it."""

from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from hf_internimage.training import run
from hf_internimage.training.images import ImageReader

DATA_ARGUMENTS = SimpleNamespace(bad_images="stop")


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Run the steps of a task; return name of a step -> its arguments, in the order of the calls."""

    def run_steps(do_train, model, left_out=None):
        calls = {}

        def step(name, result):
            def call(*arguments, **options):
                calls[name] = (arguments, options)
                return result

            return call

        data = SimpleNamespace(
            train="rows", validation="rows", test="rows", label_names=["a"], reader=ImageReader(left_out=left_out or {})
        )
        trainer = SimpleNamespace(train_and_save=step("train", None), is_world_process_zero=lambda: False)
        model_to_train = SimpleNamespace(config=None)
        results = {"load_data": data, "build_model": model_to_train, "build_processor": "processor"}
        results |= {"build_trainer": trainer}
        results |= {"evaluate_and_report": "evaluation", "publish": None, "apply_data_settings": None}
        training = TrainingArguments(
            output_dir=str(tmp_path / "out"), use_cpu=True, do_train=do_train, do_eval=True, report_to="none", seed=5
        )
        arguments = SimpleNamespace(
            model=model, data=DATA_ARGUMENTS, run=run.RunArguments(license="mit"), training=training
        )
        monkeypatch.setattr(run, "run_record", lambda arguments, data, config: {"classes": data.label_names})
        task = run.Task(**{name: step(name, result) for name, result in results.items()})
        run.run_training(arguments, task)
        return calls

    return run_steps


def test_steps_of_a_training(called, tmp_path):
    backbone = SimpleNamespace(model_name_or_path=None, model_revision="main", base_model="me/backbone")
    calls = called(True, backbone)
    assert list(calls) == [
        "load_data", "apply_data_settings", "build_model", "build_processor", "build_trainer", "train",
        "evaluate_and_report", "publish",
    ]  # fmt: skip
    assert calls["load_data"][0] == (DATA_ARGUMENTS, 5, ["train", "validation"], None)
    evaluated, options = calls["evaluate_and_report"]
    assert (evaluated[2:], options) == (("validation", DATA_ARGUMENTS), {"model_name": str(tmp_path / "out")})
    # The card names what the training started from, which may be a backbone.
    assert calls["publish"][0][1] == "evaluation"
    assert calls["publish"][1] == {"base_model": "me/backbone", "license": "mit", "notes": []}


def test_the_card_names_images_that_were_left_out(called):
    backbone = SimpleNamespace(model_name_or_path=None, model_revision="main", base_model=None)
    (note,) = called(True, backbone, {"train": ["far/a.png: is empty"]})["publish"][1]["notes"]
    assert note.endswith("left out: 1 (`a.png`).")


def test_steps_of_an_evaluation(called, monkeypatch):
    monkeypatch.setattr(run, "checkpoint_labels", lambda arguments: ["a"])
    model = SimpleNamespace(model_name_or_path="me/model", model_revision="main", base_model="me/model")
    calls = called(False, model)
    assert not {"train", "publish"} & set(calls)
    assert calls["load_data"][0] == (DATA_ARGUMENTS, 5, ["validation"], ["a"])
    assert calls["evaluate_and_report"][1] == {"model_name": "me/model"}
