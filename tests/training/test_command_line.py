# SPDX-License-Identifier: MIT
"""What the training scripts say instead of a traceback."""

import json
import os
import re
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
from transformers.utils import logging

from hf_internimage import InternImageForImageClassification
from hf_internimage.conversion import convert as conversion
from hf_internimage.hub import PushError, save_for_hub
from hf_internimage.hub import upload as hub
from hf_internimage.image_files import BadImageError
from hf_internimage.training.classification import evaluate_checkpoint
from hf_internimage.training.classification import main as classification
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.command_line import UsageError, count_devices, json_object, run_script
from hf_internimage.training.detection import main as detection
from hf_internimage.training.interrupt import saving_on_interrupt
from hf_internimage.training.run import RunArguments
from hf_internimage.training.segmentation import main as segmentation
from hf_internimage.training.trainer import last_complete_checkpoint
from hf_internimage_cli.main import main


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
        (conversion, "prepare", ["convert", "a.pth", "b"]),
        (hub, "_load_model", ["push", "me/model", "name"]),
        (
            evaluate_checkpoint,
            "evaluate_model",
            ["evaluate", "me/model", "--task=classification", "--validation_dir=."],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_ctrl_c_is_one_line_in_the_other_commands(module, step, arguments, monkeypatch, tmp_path, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, step, stop)
    assert main(arguments) == 130
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
    model = ["me/model", "--task=classification"] if script == "evaluate.py" else ["--size=t", "--train_dir=."]
    arguments = [*model, "--validation_dir=."]
    code = f"""
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == {package!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.argv = ["script", *{arguments!r}]
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


# ---- Processes ----


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert classification.main([f"--train_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"]) == 1
    assert "2 processes were started, but each would train alone: add --use_cpu true" in capsys.readouterr().err


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


# ---- Errors of a run ----


def run_that_fails(folder, error, **settings):
    """Return what `run_script` returns for a run that raises an error, in a process with these settings."""
    training = SimpleNamespace(
        **{"output_dir": str(folder), "do_train": True, "world_size": 1, "process_index": 0, "log_level": "passive"}
        | {"hub_token": None, "get_process_log_level": lambda: logging.WARNING}
        | settings
    )

    def fail(arguments):
        raise error

    return run_script(lambda argv: SimpleNamespace(training=training, run=RunArguments()), fail, [])


@pytest.mark.parametrize(
    "text",
    [
        "Connection closed by peer", "read: Connection reset by peer", "[.../third_party/gloo/pair.cc:534] broke",
        "NCCL error", "Timed out waiting 1800 s", "wait timeout after 1800 s", "DistBackendError",
    ],
)  # fmt: skip
def test_a_process_that_loses_the_others_is_one_line(text, tmp_path, capsys):
    assert run_that_fails(tmp_path, RuntimeError(text), world_size=2, process_index=1) == 1
    expected = "error: process 1 lost the others: one was killed, or its machine is gone. There is no checkpoint yet: "
    assert capsys.readouterr().err == f"{expected}start again.\n"
    with pytest.raises(RuntimeError, match=re.escape(text)):  # a single process has no others
        run_that_fails(tmp_path, RuntimeError(text))
    with pytest.raises(RuntimeError, match="shape"):
        run_that_fails(tmp_path, RuntimeError("the shape is wrong"), world_size=2)


def test_an_interruption_is_told_once_and_only_a_training_goes_on(tmp_path, capsys):
    assert run_that_fails(tmp_path, KeyboardInterrupt(), world_size=2, process_index=1) == 130
    assert not capsys.readouterr().err
    assert run_that_fails(tmp_path, KeyboardInterrupt(), do_train=False) == 130
    assert capsys.readouterr().err == "interrupted. \n"

    def stop(argv):
        raise KeyboardInterrupt

    assert run_script(stop, None, []) == 130  # while the arguments are read
    assert capsys.readouterr().err == "interrupted. \n"


@pytest.mark.parametrize(
    "error",
    [UsageError("a"), PushError("a"), OSError("a"), ValueError("a"), FloatingPointError("a"), SafetensorError("a")],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_one_line_except_for_debugging(error, tmp_path, capsys):
    assert run_that_fails(tmp_path, error) == 1
    assert capsys.readouterr().err == "error: a\n"
    with pytest.raises(type(error)):
        run_that_fails(tmp_path, error, log_level="debug")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError(), "ValueError"),
        (ValueError("first\nsecond"), "first\nsecond"),
        (
            ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\npackage.BadImageError: a.png"),
            "a.png",
        ),
        (
            BadImageError("a.png: is empty; replace or remove the file."),
            "a.png: is empty; replace or remove the file, or leave out such images with --bad_images skip.",
        ),
        (
            BadImageError(
                "Caught BadImageError in DataLoader worker process 0.\nTraceback\npackage.BadImageError: a: b."
            ),
            "a: b, or leave out such images with --bad_images skip.",
        ),
    ],
)
def test_which_lines_of_an_error_are_shown(error, shown, tmp_path, capsys):
    assert run_that_fails(tmp_path, error) == 1
    assert capsys.readouterr().err == f"error: {shown}\n"


def test_the_log_level_of_the_arguments_is_set_before_the_run(tmp_path):
    training = SimpleNamespace(get_process_log_level=lambda: logging.ERROR)
    levels = []
    read = lambda argv: SimpleNamespace(training=training)  # noqa: E731
    assert run_script(read, lambda arguments: levels.append(logging.get_verbosity()), []) == 0
    assert levels == [logging.ERROR]


# ---- Settings ----


def settings_of(folder, *options, **files):
    """Read the classifier's arguments from files of settings and options, in this order."""
    paths = []
    for name, text in files.items():
        paths.append(str(folder / name.replace("_", ".")))
        (folder / name.replace("_", ".")).write_text(text)
    return classification.read_arguments([*paths, "--train_dir=images", "--use_cpu=true", *options])


def test_settings_of_files_and_options(tmp_path):
    text = "learning_rate: 1e-4\nseed: 3\ndo_eval: true\nconfig_overrides: {depths: [1, 1], with_cp: true}\n"
    first = settings_of(tmp_path, a_yaml=text)
    assert (first.training.learning_rate, first.training.seed) == (1e-4, 3)
    assert json.loads(first.model.config_overrides) == {"depths": [1, 1], "with_cp": True}
    assert (bool(first.training.do_train), first.training.do_eval) == (False, True)
    both = settings_of(tmp_path, "--seed=5", a_yml=text, b_json='{"learning_rate": 0.5, "seed": 4, "do_eval": false}')
    assert (both.training.learning_rate, both.training.seed) == (0.5, 5)
    assert (both.training.do_train, both.training.do_eval) == (True, True)  # as if none of them was given
    alone = settings_of(tmp_path, "--do_predict")
    assert not alone.training.do_train
    assert alone.training.do_predict


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"^[^\n]*a\.yaml cannot be read: while parsing[^\n]*$"),
        ("- a", r"a\.yaml holds no settings, expected lines"),
        ("", r"a\.yaml holds no settings, expected lines"),
        ("zeta: 1\nalpha: 2", r"a\.yaml has the unknown setting 'alpha'; --help_all lists all"),
        ("seed: many", "seed.*many|invalid int"),
    ],
)
def test_files_without_usable_settings(text, message, tmp_path, capsys):
    try:
        with pytest.raises(UsageError, match=message):
            settings_of(tmp_path, a_yaml=text)
    except SystemExit:  # argparse's own
        assert "invalid int value: 'many'" in capsys.readouterr().err


# What a file says of the model, what the options say, and what is left.
CHOICES = {
    "type after checkpoint": (
        {"model_name_or_path": "me/model", "model_revision": "v1", "config_overrides": {"depths": [1]}},
        ["--model_type=convnext"],
        {"model_name_or_path": None, "model_revision": "main", "config_overrides": None, "model_type": "convnext"},
    ),
    "size after checkpoint": (
        {"model_name_or_path": "me/model"},
        ["--size=s"],
        {"model_name_or_path": None, "size": "s"},
    ),
    "checkpoint after size": (
        {"model_type": "convnext", "size": "t", "image_size": 96},
        ["--model_name_or_path=me/model"],
        {"model_name_or_path": "me/model", "model_type": "internimage", "size": None, "image_size": 96},
    ),
    "size after overrides": (
        {"config_overrides": {"depths": [1]}},
        ["--size=s"],
        {"size": "s", "config_overrides": None},
    ),
    "overrides after size": (
        {"size": "s"},
        ['--config_overrides={"a": 1}'],
        {"size": "s", "config_overrides": '{"a": 1}'},
    ),
    "both after checkpoint": (
        {"model_name_or_path": "me/model"},
        ["--model_type=internimage", "--size=b"],
        {"model_name_or_path": None, "model_type": "internimage", "size": "b"},
    ),
    "nothing": ({"model_name_or_path": "me/model"}, ["--seed=1"], {"model_name_or_path": "me/model", "size": None}),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_later_choice_of_a_model_replaces_the_earlier_one(case, tmp_path):
    settings, options, expected = CHOICES[case]
    model = settings_of(tmp_path, *options, a_yaml=json.dumps(settings)).model
    assert {name: getattr(model, name) for name in expected} == expected
    options = json.dumps(dict(option[2:].split("=") for option in options if "{" not in option) | {"seed": 2})
    if case != "overrides after size":  # by a second file, too
        model = settings_of(tmp_path, a_yaml=json.dumps(settings), b_json=options).model
        assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize("task", [segmentation, detection], ids=["segmentation", "detection"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size=s"], ("HEAD", None, "s", None, None, "{}")),
        (["--backbone=me/other"], ("HEAD", "me/other", None, None, None, "{}")),
        (["--model_name_or_path=me/model"], ("DEFAULT", None, None, "me/model", None, None)),
        (["--head=OTHER"], ("OTHER", "me/backbone", None, None, '{"layer_scale": 1.0}', None)),
        (["--drop_path_rate=0.5"], ("HEAD", "me/backbone", None, None, '{"layer_scale": 1.0}', "{}")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_choices_of_heads_and_backbones(task, options, expected, tmp_path):
    default, head, other = {
        segmentation: ("upernet", "mask2former", "upernet"),
        detection: ("dino", "detr", "rt_detr"),
    }[task]
    names = {"DEFAULT": default, "HEAD": head, "OTHER": other}
    text = f"head: {head}\nbackbone: me/backbone\nconfig_overrides: {{layer_scale: 1.0}}\nhead_overrides: {{}}\n"
    (tmp_path / "a.yaml").write_text(text)
    options = [options[0].replace("OTHER", other), "--train_dir=images", "--use_cpu=true"]
    model = task.read_arguments([str(tmp_path / "a.yaml"), *options]).model
    found = (
        model.head,
        model.backbone,
        model.size,
        model.model_name_or_path,
        model.config_overrides,
        model.head_overrides,
    )
    assert found == (names[expected[0]], *expected[1:])


def test_places_of_files_of_settings(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.yaml cannot be read: No such file"):
        classification.read_arguments([str(tmp_path / "absent.yaml")])
    for ending in (".yaml", ".yml", ".json"):
        with pytest.raises(UsageError, match=rf"The settings file b\{ending} comes after an option"):
            classification.read_arguments(["--use_cpu=true", "--train_dir=images", f"b{ending}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "fields is no JSON: "), ("[1]", r"fields is \[1\], expected a JSON object"), ("[" * 10**5, "is no JSON")],
)
def test_objects_on_the_command_line(text, message):
    assert json_object("fields", None) == json_object("fields", "") == json_object("fields", "{}") == {}
    assert json_object("fields", '{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(UsageError, match=message):
        json_object("fields", text)


@pytest.mark.parametrize(
    ("world", "gpus", "expected"), [("3", 8, (3, 3)), ("1", 8, (1, 1)), (None, 8, (1, 8)), (None, 0, (1, 1))]
)
def test_devices(world, gpus, expected, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert (count_devices(use_cpu=True), count_devices(use_cpu=False)) == expected


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (["--num_train_epochs=0", "--max_steps=2"], False),
        (["--num_train_epochs=0", "--do_train=false"], False),
        (["--num_train_epochs=0.5"], False),
        (["--num_train_epochs=-1", "--max_steps=0"], True),
        (
            ["--per_device_train_batch_size=1", "--per_device_eval_batch_size=1", "--gradient_accumulation_steps=1"],
            False,
        ),
    ],
)
def test_lengths_that_train_something(options, refused, tmp_path):
    if refused:
        with pytest.raises(UsageError, match=r"num_train_epochs is .*, expected more than 0"):
            settings_of(tmp_path, *options)
    else:
        settings_of(tmp_path, *options)
