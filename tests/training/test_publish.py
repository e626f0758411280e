# SPDX-License-Identifier: MIT
"""What the arguments of a training say of its repository is what the Hub is asked for."""

from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from hf_internimage.training import publish


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
