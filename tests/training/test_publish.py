# SPDX-License-Identifier: MIT
"""What the arguments of a training say of its repository is what the Hub is asked for."""

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import Trainer, TrainingArguments

from hf_internimage.hub import PushError
from hf_internimage.training import publish
from hf_internimage.training.trainer import RecipeArguments, RecipeTrainer


def trainer(folder, **arguments):
    return SimpleNamespace(
        args=TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **arguments),
        model="model",
        processing_class="processor",
        is_fsdp_enabled=False,
        is_deepspeed_enabled=False,
        is_world_process_zero=lambda: True,
    )


@pytest.mark.parametrize("private", [True, None])
def test_a_push_is_as_the_arguments_say(private, tmp_path, monkeypatch, caplog):
    calls = []

    def push(*arguments, **options):
        calls.append((arguments, options))
        return SimpleNamespace(repo_url="address")

    monkeypatch.setattr(publish.hub, "push", push)
    arguments = {"hub_private_repo": private, "hub_token": "token", "hub_revision": "v2", "push_to_hub": True}
    publish.write_repository(trainer(tmp_path, **arguments), None, "me/model", lambda model: f"card of {model}")
    expected = {"image_processor": "processor", "card": "card of model", "folder": tmp_path}
    expected |= {"private": private, "token": "token", "revision": "v2"}
    assert calls == [(("model", "me/model"), expected)]
    assert "Pushed to address." in caplog.text


def test_names_of_repositories(tmp_path):
    for folder, arguments, expected in (
        ("my model!", {}, "my-model"),
        ("modèle", {}, "mod-le"),
        ("run--2..1", {}, "run-2.1"),
        ("o p ü=1", {}, "o-p-1"),
        ("--", {}, "default"),
        ("model", {"hub_model_id": "me/other"}, "me/other"),
    ):
        assert publish.model_id_of(trainer(tmp_path / folder, **arguments).args, "default") == expected
    assert publish.base_repository(None) is publish.base_repository(str(tmp_path)) is None
    assert publish.base_repository("me/base") == "me/base"


def test_a_hub_that_cannot_be_reached_is_one_line_before_the_training(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ConnectionResetError("no way to the server\nsecond line")

    monkeypatch.setattr(Trainer, "init_hf_repo", refuse)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", push_to_hub=True, hub_model_id="me/model"
    )
    with pytest.raises(PushError, match=r"^me/model cannot be made on the Hub: no way to the server\. Leave out"):
        RecipeTrainer(model=torch.nn.Linear(1, 1), args=arguments, recipe=RecipeArguments())


def test_a_folder_that_is_not_pushed_is_saved_by_the_first_process(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(publish.hub, "save_for_hub", lambda *arguments, **options: calls.append((arguments, options)))
    of = trainer(tmp_path)
    publish.write_repository(of, None, "me/model", lambda model: f"card of {model}")
    assert calls == [(("model", tmp_path), {"image_processor": "processor", "card": "card of model"})]
    of.is_world_process_zero = lambda: False
    publish.write_repository(of, None, "me/model", None)
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_a_model_in_parts_is_loaded_whole(way, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(publish.hub, "save_for_hub", lambda *arguments, **options: calls.append((arguments, options)))
    of = trainer(tmp_path)
    setattr(of, way, True)
    auto_class = SimpleNamespace(from_pretrained=lambda folder: f"whole model of {folder.name}")
    publish.write_repository(of, auto_class, "me/model", lambda model: f"card of {model}")
    whole = f"whole model of {tmp_path.name}"
    assert (calls[0][0][0], calls[0][1]["card"]) == (whole, f"card of {whole}")


@pytest.mark.parametrize("main_process", [True, False])
@pytest.mark.parametrize("push", [True, False])
def test_all_processes_push_and_the_first_writes_the_card(main_process, push, tmp_path):
    pushed = []
    of = trainer(tmp_path, push_to_hub=push)
    of.is_world_process_zero = lambda: main_process
    of.push_to_hub = lambda: pushed.append(1)
    publish.publish_by_trainer(of, ModelCard("---\nlicense: mit\n---\n# A model\n"), ["One note.", "Another."])
    assert pushed == [1] * push
    text = (
        "---\nlicense: mit\n---\n# A model\n\n## Images of the training and the evaluation\n\n- One note.\n- Another.\n"
    )
    assert [path.read_text() for path in tmp_path.iterdir()] == [text] * main_process


def test_a_card_without_notes_stays():
    card = ModelCard("---\nlicense: mit\n---\n# A model\n")
    publish.add_notes(card, [])
    assert str(card) == "---\nlicense: mit\n---\n# A model\n"


@pytest.mark.parametrize("on", [True, False])
def test_facts_of_a_training(on, tmp_path):
    options = {"weight_decay": 0.05, "label_smoothing_factor": 0.1, "optim": "adamw_torch_fused", "seed": 7}
    options |= {"per_device_train_batch_size": 4, "learning_rate": 0.5, "lr_scheduler_type": "cosine"}
    options["gradient_accumulation_steps"] = 3
    of = trainer(tmp_path, **(options if on else {"optim": "sgd"}))
    of.recipe = RecipeArguments(**({"layer_decay": 0.9, "ema_decay": 0.5} if on else {}))
    of.state = SimpleNamespace(epoch=2.5 if on else None, global_step=10)
    of.learning_rate_factor = 2.0
    if on:
        expected = {"Epochs": "2.5", "Steps": 10, "Batch size": 12, "Optimizer": "adamw_torch_fused"}
        expected |= {"Learning rate": "1", "Schedule": "cosine", "Layer decay": 0.9, "Weight decay": 0.05}
        expected |= {"Label smoothing": 0.1, "Mixup, CutMix": "0, 1", "Averaged weights": 0.5, "Seed": 7}
    else:
        expected = {"Steps": 10, "Batch size": 8, "Optimizer": "sgd", "Learning rate": "0.0001", "Schedule": "linear"}
        expected |= {"Seed": 42}
    assert publish.training_facts(of, **{"Mixup, CutMix": "0, 1" if on else None}) == expected


def test_a_token_in_the_answer_of_a_hub_is_not_shown(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ConnectionResetError("no way with my own token")

    monkeypatch.setattr(Trainer, "init_hf_repo", refuse)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", push_to_hub=True, hub_token="my own token"
    )
    with pytest.raises(PushError, match=r"^out cannot be made on the Hub: no way with \[token\]\. Leave out"):
        RecipeTrainer(model=torch.nn.Linear(1, 1), args=arguments, recipe=RecipeArguments())
