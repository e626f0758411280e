# SPDX-License-Identifier: MIT
"""What the arguments of a training say of its repository is what the Hub is asked for."""

from types import SimpleNamespace

import pytest
import torch
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
