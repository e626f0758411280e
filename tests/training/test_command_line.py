# SPDX-License-Identifier: MIT
"""What the training scripts say instead of a traceback."""

import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support.golden_data import tiny_config
from support.paths import SCRIPTS
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from hf_internimage import InternImageForImageClassification
from hf_internimage.conversion import main as conversion
from hf_internimage.hub import main as hub
from hf_internimage.hub import save_for_hub
from hf_internimage.training.classification import evaluate_checkpoint
from hf_internimage.training.classification import main as classification
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.command_line import run_script
from hf_internimage.training.detection import main as detection
from hf_internimage.training.interrupt import saving_on_interrupt
from hf_internimage.training.run import RunArguments
from hf_internimage.training.segmentation import main as segmentation
from hf_internimage.training.trainer import last_complete_checkpoint


class Noise(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 2}


def trainer(folder, callbacks=(), **arguments):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=4,
        **{"max_steps": 4, "save_strategy": "no", **arguments},
    )  # fmt: skip
    network = InternImageForImageClassification(tiny_config(num_labels=2, channels=32))
    recipe = ClassificationRecipe(ema_decay=0.5)
    return ClassificationTrainer(
        model=network, args=arguments, recipe=recipe, train_dataset=Noise(), callbacks=list(callbacks)
    )


# ---- Ctrl-C ----


def interrupted_run(folder, checkpoint=None, **run):
    """Return the arguments of a run, and a function in its place that Ctrl-C stops."""
    training = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", do_train=True)
    arguments = SimpleNamespace(training=training, run=RunArguments(**run))

    def stop(arguments):
        raise KeyboardInterrupt

    return lambda argv: arguments, stop


def test_ctrl_c_names_what_goes_on(tmp_path, capsys):
    assert run_script(*interrupted_run(tmp_path), []) == 130
    assert capsys.readouterr().err == "interrupted. There is no checkpoint yet: start again.\n"
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    assert run_script(*interrupted_run(tmp_path), []) == 130
    message = f"interrupted. The same command goes on from {tmp_path / 'checkpoint-4'}.\n"
    assert capsys.readouterr().err == message
    assert run_script(*interrupted_run(tmp_path, overwrite_output_dir=True), []) == 130
    expected = message.replace("command", "command without --overwrite_output_dir")
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("module", "step", "arguments"),
    [
        (conversion, "prepare", ["a.pth", "b"]),
        (hub, "_load_model", ["model", "name"]),
        (evaluate_checkpoint, "evaluate_model", ["--model=model", "--validation_dir=images"]),
    ],
    ids=["convert_checkpoint", "push_to_hub", "evaluate"],
)
def test_ctrl_c_is_one_line_in_the_other_scripts(module, step, arguments, monkeypatch, tmp_path, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, step, stop)
    assert module.main(arguments) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error
    assert len(error.splitlines()) == 1


class InterruptAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves_a_checkpoint_if_asked_to(workers, tmp_path, capsys):
    """After the step, and the checkpoint goes on to the same bits."""
    straight = trainer(tmp_path / "straight", dataloader_num_workers=workers)
    straight.train()
    run = trainer(tmp_path / "stopped", [InterruptAt(3)], dataloader_num_workers=workers)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), saving_on_interrupt(run):
        run.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert "Saving a checkpoint after this step." in capsys.readouterr().err
    checkpoint = last_complete_checkpoint(tmp_path / "stopped")
    assert checkpoint == tmp_path / "stopped" / "checkpoint-3"
    resumed = trainer(tmp_path / "stopped", dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_ctrl_c_after_the_last_step_is_not_lost(tmp_path):
    run = trainer(tmp_path)

    def train_and_be_stopped():
        with saving_on_interrupt(run):
            run.train()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_and_be_stopped()


def test_ctrl_c_twice_stops_at_once(tmp_path):
    class Twice(InterruptAt):
        def on_step_begin(self, *args, **kwargs):
            super().on_step_begin(*args, **kwargs)
            super().on_step_begin(*args, **kwargs)

    run = trainer(tmp_path, [Twice(3)])
    with pytest.raises(KeyboardInterrupt), saving_on_interrupt(run):
        run.train()
    assert last_complete_checkpoint(tmp_path) is None


# ---- Missing packages ----


@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        ("run_image_classification.py", "datasets", "train"),
        ("run_semantic_segmentation.py", "matplotlib", "train"),
        ("run_object_detection.py", "faster_coco_eval", "train"),
        ("evaluate.py", "accelerate", "train"),
        ("prepare_scenes.py", "datasets", "train"),
        ("demo.py", "sklearn", "demo"),
    ],
)
@pytest.mark.slow
def test_a_missing_package_is_named_with_what_installs_it(script, package, extra, tmp_path):
    code = f"""
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == {package!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.argv = ["script", "--train_dir=absent", "--use_cpu=true"]
runpy.run_path({str(SCRIPTS / script)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f'error: {package} is missing: pip install "hf-internimage[{extra}]"'
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), "scipy is missing: "),
        (ImportError("Using `Trainer`\nrequires `accelerate`."), "Using `Trainer` requires `accelerate`.: "),
        (RuntimeError("TensorBoardCallback requires tensorboard to be installed."), "requires tensorboard to be inst"),
    ],
)
def test_packages_that_are_missing_later(error, message, tmp_path, capsys):
    read, _ = interrupted_run(tmp_path)

    def fail(arguments):
        raise error

    assert run_script(read, fail, []) == 1
    text = capsys.readouterr().err
    assert message in text
    assert text.endswith('pip install "hf-internimage[train]"\n')
    assert len(text.splitlines()) == 1


# ---- A full disk ----


@pytest.fixture
def small_disk():
    """Let no file grow beyond 100 kB, which source files do not reach and weights do."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_oserror_everywhere(small_disk, tmp_path):
    with pytest.raises(SafetensorError):
        save_file({"a": torch.zeros(100_000)}, tmp_path / "a.safetensors")
    network = InternImageForImageClassification(tiny_config(num_labels=2, channels=32))
    with pytest.raises(OSError, match=r"model cannot be written: .*too large"):
        save_for_hub(network, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(OSError, match=r"checkpoint-2 cannot be written: .*too large"):
        trainer(tmp_path / "run", save_strategy="steps", save_steps=2).train()
    with pytest.raises(OSError, match=r"final cannot be written: .*too large"):
        trainer(tmp_path / "final", max_steps=1).train_and_save(None)
    assert last_complete_checkpoint(tmp_path / "run") is None


def test_a_disk_that_is_full_for_the_optimizer_is_an_oserror(small_disk, tmp_path, monkeypatch):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.recipe.ema_decay = 0.0
    monkeypatch.setattr(run, "save_model", lambda *args, **kwargs: None)
    monkeypatch.setattr(run, "start_average", lambda: SimpleNamespace(decay=0.5, warmup=True))
    with pytest.raises(OSError, match=r"checkpoint-2 cannot be written \(is the disk full\?\)"):
        run.train()


def test_weights_that_are_cut_off_are_one_line(tmp_path, capsys):
    read, _ = interrupted_run(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 100)
    assert run_script(read, lambda arguments: load_file(tmp_path / "a.safetensors"), []) == 1
    assert capsys.readouterr().err.startswith("error: Error while deserializing")


# ---- Sizes ----


@pytest.mark.parametrize("task", [classification, segmentation, detection], ids=lambda task: task.__name__)
def test_a_wrong_size_is_refused_before_data_are_read(task, tmp_path, capsys):
    arguments = ["--train_dir=absent", "--size=q", f"--output_dir={tmp_path}", "--use_cpu=true"]
    assert task.main(arguments) == 1
    assert capsys.readouterr().err == "error: size is 'q', expected one of t, s, b, l, xl, h, g.\n"


# ---- Tokens ----


def test_a_token_that_a_server_sends_back_is_not_shown(tmp_path, capsys):
    token = "a token of no usual form"
    training = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", hub_token=token)

    def run(arguments):
        raise OSError(f"401: sent Bearer hf_abcdefghijklmnop0123 and {arguments.training.hub_token}")

    assert run_script(lambda argv: SimpleNamespace(training=training, run=RunArguments()), run, []) == 1
    assert capsys.readouterr().err == "error: 401: sent Bearer [token] and [token]\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--per_device_train_batch_size=0", "per_device_train_batch_size is 0, expected at least 1"),
        ("--per_device_eval_batch_size=-1", "per_device_eval_batch_size is -1, expected at least 1"),
        ("--gradient_accumulation_steps=0", "gradient_accumulation_steps is 0, expected at least 1"),
        ("--num_train_epochs=0", "num_train_epochs is 0, expected more than 0"),
    ],
)
def test_numbers_that_train_nothing(option, message, tmp_path, capsys):
    arguments = [f"--train_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}", "--use_cpu=true", option]
    assert classification.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_missing_logger_keeps_its_own_command(tmp_path, capsys):
    def fail(arguments):
        raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")

    assert run_script(interrupted_run(tmp_path)[0], fail, []) == 1
    assert capsys.readouterr().err == "error: WandbCallback requires wandb to be installed. Run `pip install wandb`.\n"
