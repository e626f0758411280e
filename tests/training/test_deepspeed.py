# SPDX-License-Identifier: MIT
"""DeepSpeed's ZeRO-1, 2 and 3 in two processes on CPUs, by the command line (`make check-deepspeed`)."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_tasks import TASKS, arguments

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make check-deepspeed")

STAGES = (1, 2, 3)
CONFIGURATION = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


def configuration(folder, stage, gather=True):
    """Write DeepSpeed's settings; return the file."""
    file = folder / f"zero_{stage}.json"
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gather}
    file.write_text(json.dumps({**CONFIGURATION, "zero_optimization": zero}))
    return str(file)


def run(task_name, task, folder, **settings):
    """Train in two processes in `folder`, where the data are; return the status, the output and the losses."""
    values = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "ema_decay": 0.0,
        "logging_steps": 1,
        "learning_rate": 1e-4,
        **settings,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hf_internimage", "train"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, task_name, *arguments(task, **values)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, [float(loss) for loss in re.findall(r"training loss ([\d.e-]+)", done.stdout)]


@pytest.fixture(scope="module", params=TASKS, ids=str)
def plain(request, tmp_path_factory):
    """A training by DDP of a saved model with random weights: name of the task, task, folder, losses."""
    folder, task = tmp_path_factory.mktemp(request.param), TASKS[request.param]
    task.write(folder)
    status, output, _ = run(request.param, task, folder, output_dir="start", max_steps=1, learning_rate=0.0)
    assert status == 0, output[-3000:]
    status, output, losses = run(request.param, task, folder, output_dir="ddp", **start(task))
    assert status == 0, output[-3000:]
    return request.param, task, folder, losses


def start(task):
    """Return the settings that begin with the saved model."""
    fields = {"config_overrides", "head_overrides", "head"}
    return {"model_name_or_path": "start", **dict.fromkeys(fields & {*task.own, "config_overrides"})}


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_weights_are_those_of_ddp(plain, stage):
    name, task, folder, expected = plain
    settings = {**start(task), "deepspeed": configuration(folder, stage), "output_dir": f"zero_{stage}"}
    status, output, losses = run(name, task, folder, **settings)
    assert status == 0, output[-3000:]
    assert len(losses) == len(expected) >= 4
    assert losses == pytest.approx(expected, rel=2e-3)
    got, whole = (load_file(folder / which / "model.safetensors") for which in (f"zero_{stage}", "ddp"))
    assert {key: value.shape for key, value in got.items()} == {key: value.shape for key, value in whole.items()}
    moved = load_file(folder / "start" / "model.safetensors")
    distance = sum((got[key] - whole[key]).double().norm() ** 2 for key in got if got[key].is_floating_point())
    length = sum((moved[key] - whole[key]).double().norm() ** 2 for key in got if got[key].is_floating_point())
    assert distance**0.5 < 0.01 * length**0.5


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_goes_on(tmp_path, stage):
    task = TASKS["classification"]
    task.write(tmp_path)
    zero = configuration(tmp_path, stage)
    status, output, whole = run("classification", task, tmp_path, deepspeed=zero, output_dir="whole")
    assert status == 0, output[-3000:]
    (tmp_path / "part").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "part" / "checkpoint-3")
    status, output, rest = run("classification", task, tmp_path, deepspeed=zero, output_dir="part")
    assert status == 0, output[-3000:]
    assert rest == whole[3:]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_averages_work_up_to_zero_2(tmp_path):
    task = TASKS["classification"]
    task.write(tmp_path)
    finished = {}
    for stage, settings in {0: {}, 2: {"deepspeed": configuration(tmp_path, 2)}}.items():
        name = f"average_{stage}"
        status, output, _ = run("classification", task, tmp_path, output_dir=name, ema_decay=0.5, **settings)
        assert status == 0, output[-3000:]
        finished[stage] = load_file(tmp_path / name / "model.safetensors")
    for name, tensor in finished[0].items():
        torch.testing.assert_close(finished[2][name], tensor, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize(
    ("settings", "gather", "words"),
    [
        ({"ema_decay": 0.5}, True, "ema_decay does not work with DeepSpeed's ZeRO-3"),
        ({}, False, "stage3_gather_16bit_weights_on_model_save: true"),
    ],
)
def test_what_zero_3_cannot_is_refused_before_the_training(tmp_path, settings, gather, words):
    task = TASKS["classification"]
    task.write(tmp_path)
    zero = configuration(tmp_path, 3, gather)
    status, output, losses = run("classification", task, tmp_path, deepspeed=zero, **settings)
    assert status != 0
    assert words in output
    assert not losses
