# SPDX-License-Identifier: MIT
"""What a training writes to TensorBoard about its samples: of all tasks, and without changing the training."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support.tiny_tasks import TASKS, Classification, arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_internimage import visualize
from hf_internimage.image_files import decode_image


def written(output: Path) -> EventAccumulator:
    (folder,) = (output / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_training_shows_where_the_model_samples(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task.write(tmp_path)
    assert task.main(arguments(task, output_dir="quiet", num_train_epochs=2)) == 0
    assert task.main(arguments(task, output_dir="out", num_train_epochs=2, report_to="tensorboard")) == 0

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("quiet", "out"))
    assert all(np.array_equal(before[name], after[name]) for name in before), "the pictures changed the training"
    events = written(tmp_path / "out")
    assert {"receptive fields", "offsets"} <= set(events.Tags()["images"])
    steps = [event.step for event in events.Images("receptive fields")]
    assert len(steps) == 2
    for stage in (1, 2, 3, 4):
        movement = [event.value for event in events.Scalars(f"sampling_movement/stage_{stage}")]
        assert len(movement) == 2
        assert all(0 < value < 10 for value in movement)
        assert 0 < events.Scalars(f"receptive_field_radius/stage_{stage}")[1].value < 64


def test_the_numbers_are_those_of_the_evaluated_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Classification.write(tmp_path)
    settings = arguments(Classification, output_dir="out", num_train_epochs=1, report_to="tensorboard")
    assert Classification.main(settings) == 0
    model = AutoModelForImageClassification.from_pretrained("out")
    processor = AutoImageProcessor.from_pretrained("out")
    files = sorted((tmp_path / "validation").glob("*/*.png"))[:4]
    pixels = processor([decode_image(file) for file in files], return_tensors="pt")["pixel_values"]
    blocks = visualize.offset_statistics(model, pixels)
    events = written(tmp_path / "out")
    for block in blocks:
        for field in ("spread", "movement", "outside", "dead_taps"):
            (event,) = events.Scalars(f"sampling_{field}/stage_{block.stage}")
            assert event.value == pytest.approx(getattr(block, field), rel=1e-5, abs=1e-7)
    field = visualize.effective_receptive_field(model, pixels, stage=3, mixtures=1)
    (event,) = events.Scalars("receptive_field_radius/stage_3")
    assert event.value == pytest.approx(field.radius_of(0.5), rel=1e-5)
