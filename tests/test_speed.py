# SPDX-License-Identifier: MIT
"""Speed of models: what is run, with which backend, on images of which size; not how fast it is."""

import pytest
import torch
import transformers
from support.golden_data import tiny_config, write_official_folder
from transformers import ConvNextConfig, ConvNextForImageClassification

from hf_internimage import InternImageForImageClassification
from hf_internimage.heads import head_config
from hf_internimage.ops import BackendError
from hf_internimage.ops.registry import environment
from hf_internimage.speed import load_model, measure_speed, random_model

SECONDS = 0.01


def tiny():
    return InternImageForImageClassification(tiny_config(image_size=[32, 48]))


def calls_of(model):
    """Record (shape, dtype, demanded backend, training, gradients) of each call."""
    calls = []

    def record(module, arguments, options):
        pixels = options["pixel_values"]
        grad = torch.is_grad_enabled()
        calls.append((tuple(pixels.shape), pixels.dtype, environment(), module.training, grad))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return calls


def test_settings_reach_the_model(monkeypatch):
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    model = tiny()
    calls = calls_of(model)
    rows = list(measure_speed(model, batch_sizes=(1, 3), dtype="bfloat16", device="cpu", seconds=SECONDS))
    assert [(row.batch_size, row.image_size, row.dtype) for row in rows] == [
        (1, (32, 48), "bfloat16"),
        (3, (32, 48), "bfloat16"),
    ]
    assert {call[0] for call in calls} == {(1, 3, 32, 48), (3, 3, 32, 48)}
    assert {call[1:] for call in calls} == {(torch.bfloat16, "torch", False, False)}
    for row in rows:
        assert (row.backend, row.device, row.compiled, row.peak_memory_mib) == ("torch", "cpu", False, None)
        assert row.threads == torch.get_num_threads()
        assert row.images_per_second == pytest.approx(1e3 * row.batch_size / row.milliseconds)
        assert 0 < row.milliseconds < 1e5
        assert row.spread >= 0


def test_backends_take_turns(monkeypatch):
    """Each demanded one in its calls, and afterwards the environment is as before."""
    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND", raising=False)
    model = tiny()
    calls = calls_of(model)
    rows = list(measure_speed(model, device="cpu", backends=("torch", None), image_size=(64, 32), seconds=SECONDS))
    assert len(rows) == 2
    assert rows[0].backend == "torch"
    assert {call[0] for call in calls} == {(1, 3, 64, 32)}
    turns = [call[2] for call in calls][-10:]
    assert turns == ["torch", None] * 5
    assert environment() is None


def test_backends_that_cannot_run_are_an_error():
    with pytest.raises(BackendError, match="cuda"):
        list(measure_speed(tiny(), device="cpu", backends=("cuda",), seconds=SECONDS))


def test_unknown_devices_are_an_error():
    with pytest.raises(ValueError, match="device is cuda:77, which PyTorch does not find here; leave it out"):
        list(measure_speed(tiny(), device="cuda:77"))


@pytest.mark.slow
def test_compiled():
    (row,) = measure_speed(tiny(), device="cpu", compile_model=True, seconds=SECONDS)
    assert row.compiled


def test_random_models_have_offsets():
    """A new model's are all 0: it would read neighbouring pixels only."""
    model = random_model("t")
    weights = model.model.levels[0].blocks[0].dcn.offset.weight
    assert weights.std().item() == pytest.approx(weights.shape[1] ** -0.5, rel=0.1)


def test_models_of_every_kind(tmp_path):
    classifier = load_model(str(write_official_folder("tiny_t", tmp_path / "official")))
    assert type(classifier) is InternImageForImageClassification
    config = head_config("upernet", tiny_config(), hidden_size=16, auxiliary_channels=8)
    transformers.UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "upernet")
    model = load_model(str(tmp_path / "upernet"))
    assert type(model) is transformers.UperNetForSemanticSegmentation
    (row,) = measure_speed(model, device="cpu", seconds=SECONDS)
    assert row.image_size == (512, 512)
    assert row.backend is not None
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
    ConvNextForImageClassification(config).save_pretrained(tmp_path / "convnext")
    (row,) = measure_speed(load_model(str(tmp_path / "convnext")), device="cpu", seconds=SECONDS)
    assert (row.backend, row.image_size) == (None, (32, 32))
    with pytest.raises(ValueError, match="absent"):
        load_model(str(tmp_path / "absent"))
