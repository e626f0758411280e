# SPDX-License-Identifier: MIT
"""Trainings that are killed, changed and started again: refused in one line, or the bits of one without a break."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from support.forked_python import run_forked
from support.tiny_tasks import TASKS, arguments

from hf_internimage.training.trainer import RecipeTrainer, last_complete_checkpoint

from .files import fail_at_change

_LARGER = '{"channels": 32, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'
_SETTINGS = {"learning_rate": 2e-3, "layer_decay": 0.9, "seed": 3, "ema_decay": 0.6, "max_grad_norm": 0.5}
_WEIGHTS = "model.safetensors"
_FOLDER = tempfile.TemporaryDirectory()  # of the trainings that checks begin with


def train(task, options, step=None, change=None):
    """Run a task's script in this process, which ends in the middle of a step, or at a change of a file."""
    torch.set_num_threads(1)
    Figure.savefig = lambda figure, path, **options: Path(path).write_bytes(b"")  # drawing takes longer than training
    if step is not None:
        training_step = RecipeTrainer.training_step

        def die(trainer, *args, **kwargs):
            if trainer.state.global_step + 1 == step:
                os._exit(9)
            return training_step(trainer, *args, **kwargs)

        RecipeTrainer.training_step = die
    if change is not None:
        fail_at_change(change, "killed")
    return TASKS[task].main(options)


def _train(task, folder, cwd=None, options=(), step=None, change=None, **changes):
    """Run a task's script in a process of its own, in a folder with its data. Returns exit status and error lines."""
    options = [*arguments(TASKS[task], **changes), *options]
    code = f"import sys\nfrom fuzz.resuming import train\nsys.exit(train({task!r}, {options!r}, {step}, {change}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as output:
        status, _, errors = run_forked(code, environment, Path(output), "fuzz.resuming", "evaluate", cwd=cwd or folder)
    return status, errors


@functools.cache
def _data(task):
    folder = Path(_FOLDER.name, task)
    folder.mkdir()
    TASKS[task].write(folder)
    return folder


def _begun(task, step=None, change=None):
    """A folder with the data of a task and a training that was killed, or is finished."""
    return _kept_beginning(task, step, change)


@functools.cache
def _kept_beginning(task, step, change):
    folder = Path(_FOLDER.name, f"{task} {step} {change}")
    shutil.copytree(_data(task), folder)
    status, errors = _train(task, folder, step=step, change=change)
    assert status in ((0,) if step is change is None else (0, 9)), errors
    return folder


def _steps(folder):
    return json.loads((folder / "out" / "trainer_state.json").read_text())["global_step"]


def _draw_beginning(draw, task):
    """A folder like one of a few that are made once: each of them takes as long as a check."""
    last = _steps(_begun(task))
    return draw.choice(
        (
            lambda: _begun(task),
            lambda: _begun(task, step=draw.choice((1, last // 2, last // 2 + 1, last))),
            lambda: _begun(task, change=draw.randrange(0, 160, 8)),
        )
    )()


def _remove_class(folder):
    for split in ("train", "validation"):
        shutil.rmtree(folder / split / "red")


def _draw_change(draw, task):
    """Something that belongs to a training: what to do to its folder, other options, and a part of the refusal."""
    kind = TASKS[task]
    name, value = draw.choice(list({**_SETTINGS, **kind.changed}.items()))
    changes = [
        (kind.rename_class, {}, "other classes (gone: "),
        (kind.add_examples, {}, "other data (train examples is "),
        (lambda folder: None, {"config_overrides": _LARGER}, "channels is 32, there 16"),
        (lambda folder: None, {name: value}, f"other settings ({name} is {value}, there "),
        (lambda folder: None, {"per_device_train_batch_size": 2}, "images a step is 2, there 4"),
    ]
    if task == "classification":
        changes.append((_remove_class, {}, "other classes (gone: red"))
    return draw.choice(changes)


def _draw_task(draw):
    return draw.choice(("classification", "classification", *TASKS))


def changed_trainings_are_refused(draw):
    """With a checkpoint or a finished model; without one, all steps are trained."""
    task = _draw_task(draw)
    change, options, refusal = _draw_change(draw, task)
    last = _steps(_begun(task))
    beginning = _begun(task, step=draw.choice((None, None, last, last, last, 1)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "copy")
        shutil.copytree(beginning, folder, symlinks=True)
        change(folder)
        belongs = last_complete_checkpoint(folder / "out") is not None
        before = _files(folder / "out")
        status, errors = _train(task, folder, **options)
        if not belongs:
            assert status == 0, errors
            assert _steps(folder) > 0
            return
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 1, f"exit status {status}, expected a refusal with {refusal!r}: {errors}"
        assert len(lines) == 1, errors
        assert refusal in lines[0], f"expected {refusal!r}: {lines[0]}"
        assert "Traceback" not in errors, errors
        assert _files(folder / "out") == before, "a refused training changed the folder"


def killed_trainings_go_on_exactly(draw):
    """With the same command, perhaps from elsewhere, perhaps killed again."""
    task = _draw_task(draw)
    expected = _begun(task)
    beginning = _draw_beginning(draw, task)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "copy")
        shutil.copytree(beginning, folder, symlinks=True)
        if draw.random() < 0.25:
            _train(task, folder, **draw.choice(({"step": _steps(expected)}, {"change": draw.randrange(160)})))
        free = draw.choice(({}, {"logging_steps": 3}, {"save_total_limit": 5}, {"per_device_eval_batch_size": 1}))
        cwd = folder
        if draw.random() < 0.5:
            cwd = folder.parent
            places = ("train_dir", "validation_dir", "output_dir", "label_names_file", "data_cache_dir")
            settings = {"train_dir": "train", "validation_dir": "validation", "output_dir": "out", **TASKS[task].own}
            free = {**free, **{place: f"copy/{settings[place]}" for place in places if place in settings}}
        status, errors = _train(task, folder, cwd, **free)
        assert status == 0, errors
        assert _steps(folder) == _steps(expected) > 0
        assert (folder / "out" / _WEIGHTS).read_bytes() == (expected / "out" / _WEIGHTS).read_bytes(), "other bits"
        assert not list(folder.rglob("*.unfinished")), "leftovers"
        best, expected_best = _best(folder), _best(expected)
        assert best.name == expected_best.name, f"the best checkpoint is {best}, expected {expected_best.name}"
        assert (cwd / best).is_dir(), f"the best checkpoint, {best}, is not there"


def _best(folder):
    return Path(json.loads((folder / "out" / "trainer_state.json").read_text())["best_model_checkpoint"])


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


CHECKS = (changed_trainings_are_refused, killed_trainings_go_on_exactly)
