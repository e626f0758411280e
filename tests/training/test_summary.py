# SPDX-License-Identifier: MIT
"""What a training says on the terminal: the summaries, a line for each log, and nothing else."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import transformers
from support.golden_data import tiny_config
from support.tiny_tasks import TASKS, arguments
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_internimage import InternImageForImageClassification
from hf_internimage.ops.registry import Backend, Call, Registry
from hf_internimage.training import summary
from hf_internimage.training.classification.data import ClassificationDataArguments
from hf_internimage.training.command_line import UsageError
from hf_internimage.training.metric_words import in_words, metric_name
from hf_internimage.training.summary import TrainingProgress, files_in

NUMBER = r"[\d.e+-]+"
METRICS = {
    "classification": f"accuracy {NUMBER} %",
    "segmentation": f"mean IoU {NUMBER} %, mean accuracy {NUMBER} %, overall accuracy {NUMBER} %",
    "detection": rf"mAP {NUMBER} %(, mAP (50|75) {NUMBER} %)*, recall 100 {NUMBER} %",
}
MODELS = {
    "classification": "InternImageForImageClassification",
    "segmentation": "UperNetForSemanticSegmentation",
    "detection": "InternImageDinoForObjectDetection",
}


def run_in_terminal(task, folder, **changes):
    """Run a task's script as a user would, with the defaults that are visible; return all lines that it writes."""
    code = f"import sys; from hf_internimage.training.{task}.main import main; sys.exit(main())"
    visible = {"logging_steps": None, "disable_tqdm": None, "ema_decay": None, "dataloader_num_workers": 64}
    command = [sys.executable, "-c", code, *arguments(TASKS[task], **{**visible, **changes})]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def expected_lines(task, weights, classes, output):
    """Return a pattern for each line of a training of two epochs, each of them logged and evaluated at its end."""
    metrics = METRICS[task]
    steps = r"\d of \d"
    epochs = [
        pattern
        for epoch in (1, 2)
        for pattern in (
            f"step {steps}, epoch {epoch}: training loss {NUMBER}, learning rate {NUMBER}",
            f"step {steps}, epoch {epoch}: validation loss {NUMBER}, {metrics}",
        )
    ]
    images = "validation" if task == "classification" else "validation/images"
    push = f"hf-internimage push {output} YOUR_NAME/{output}"
    return [
        rf"Model    {MODELS[task]}, {NUMBER} M parameters", f"Weights  {weights}", f"Classes  {classes}",
        r"Images   train: \d+, validation: \d", r"Device   cpu \(\d+ threads?\), float32", r"DCNv3    backend cpu",
        "Batch    4 images a step", r"Length   2 epochs, \d steps", f"Output   {output}",
        *epochs, rf"trained in {NUMBER} s, {NUMBER} images/s",
        rf"Best        {metrics.split(' %')[0]} % at step \d",
        rf"Validation  (loss {NUMBER}, )?{metrics} \(\d images, {NUMBER} images/s\)",
        f"Written to {output}:",
        r"  model and image processor   config\.json, model\.safetensors, preprocessor_config\.json",
        r"  model card                  README\.md",
        r"  measurements                eval_evaluation\.json(, eval_predictions\.csv)?",
        r"  pictures                    eval_classes\.png,.* training\.png",
        r"  checkpoints, to go on from  checkpoint-\d, checkpoint-\d",
        "Next:", f"  hf-internimage evaluate {output} --validation_dir validation",
        f"  hf-internimage predict {output} {images}", f"  {push}",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_line_of_a_training_is_known(task, tmp_path):
    """A new model, then what it has learnt as the start of a training for other classes."""
    TASKS[task].write(tmp_path)
    lines = run_in_terminal(task, tmp_path)
    names = {"classification": "3: blue, green, red", "segmentation": "3: .+", "detection": "2: square, disc"}[task]
    expected = expected_lines(task, "random", names, "out")
    assert len(lines) == len(expected), "\n".join(lines)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    entries = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    # Fewer steps than the 20 of logging_steps, and nevertheless a loss of the training beside each of the validation.
    assert [entry["step"] for entry in entries if "loss" in entry] == [
        entry["step"] for entry in entries if "eval_loss" in entry
    ]
    if task == "classification":
        for split in ("train", "validation"):
            (tmp_path / split / "red").rename(tmp_path / split / "scarlet")
            for file in (tmp_path / split / "blue").iterdir():
                file.unlink()
            (tmp_path / split / "blue").rmdir()
        lines = run_in_terminal(task, tmp_path, model_name_or_path="out", config_overrides=None, output_dir="new")
        expected = expected_lines(task, "pretrained, out; reinitialised: head", "2: green, scarlet", "new")
        assert len(lines) == len(expected), "\n".join(lines)
        for line, pattern in zip(lines, expected, strict=True):
            assert re.fullmatch(pattern, line), (line, pattern)


# ---- The callback ----


def progress_of(tmp_path, rows=(("Output", "out"),), curves=list, **settings):
    """Return a function that calls events of a `TrainingProgress`, and the state, as Trainer would."""
    training = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)
    progress, state, control = TrainingProgress(list(rows), curves), TrainerState(), TrainerControl()
    state.max_steps, state.num_train_epochs, state.is_world_process_zero = 100, 5, True

    def call(event, **options):
        control.should_log = False
        getattr(progress, f"on_{event}")(training, state, control, **options)
        return control.should_log

    return call, state, control


def test_the_time_that_is_left_is_told_after_twenty_steps(tmp_path, monkeypatch, capsys):
    call, state, _ = progress_of(tmp_path, eval_strategy="epoch")
    state.global_step = 10  # goes on from there
    call("train_begin")
    assert capsys.readouterr().out == "Length  5 epochs, 100 steps, of which 10 are done\nOutput  out\n"
    clock = iter([100.0, 100.0 + 19 * 30])
    monkeypatch.setattr(summary.time, "perf_counter", lambda: next(clock))
    for step in range(11, 41):
        state.global_step = step
        call("step_end")
    assert capsys.readouterr().out == "about 35 min left and the evaluations, 30 s a step\n"


def test_a_training_that_ends_by_then_has_no_time_left(tmp_path, capsys):
    call, state, _ = progress_of(tmp_path)
    state.max_steps = 20
    call("train_begin")
    capsys.readouterr()
    for step in range(1, 21):
        state.global_step = step
        call("step_end")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("strategy", "logs"), [("steps", True), ("epoch", True), ("no", False)])
def test_the_training_loss_is_logged_with_each_evaluation(strategy, logs, tmp_path):
    call, state, control = progress_of(tmp_path, logging_strategy=strategy, logging_steps=1000)
    call("train_begin")
    state.global_step = 3
    assert not call("step_end")
    control.should_evaluate = True
    assert call("step_end") is logs
    control.should_evaluate = False
    assert call("epoch_end") is logs
    state.global_step = state.max_steps
    assert call("step_end") is logs


def test_logs_are_lines(tmp_path, capsys):
    def hide(log):
        return [{name: value for name, value in entry.items() if name != "eval_hidden"} for entry in log]

    call, state, _ = progress_of(tmp_path, curves=hide)
    call("train_begin")
    capsys.readouterr()
    state.global_step, state.epoch = 1234, 1.25
    trained = {"loss": 0.123456, "grad_norm": 5.0, "learning_rate": 1e-4, "epoch": 1}
    evaluated = {"eval_loss": 2.0, "eval_mean_iou": 0.5, "eval_hidden": 1.0, "eval_runtime": 3.0}
    for logs, line in (
        (trained, "training loss 0.1235, learning rate 0.0001"),
        (evaluated, "validation loss 2, mean IoU 50.0 %"),
    ):
        call("log", logs=logs)
        assert capsys.readouterr().out == f"step 1,234 of 100, epoch 1.25: {line}\n"
    call("log", logs={"train_runtime": 90.0, "train_samples_per_second": 12.345})
    assert capsys.readouterr().out == "trained in 1.5 min, 12.3 images/s\n"
    call("log", logs={"other": 1})
    state.is_world_process_zero = False
    call("log", logs={"loss": 1.0})
    assert not capsys.readouterr().out


# ---- Rows ----


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"base_model": None, "model_name_or_path": None}, "random"),
        ({"base_model": "b", "model_name_or_path": None}, "pretrained backbone, b; the head is random"),
        ({"base_model": "m", "model_name_or_path": "m"}, "pretrained, m; reinitialised: head"),
    ],
)
def test_weights(names, expected):
    assert summary._weights(SimpleNamespace(**names), SimpleNamespace(new_modules=["head"])) == expected


@pytest.mark.parametrize(
    ("gpus", "processes", "accumulated", "expected"),
    [
        (0, 1, 1, "8 images a step"), (0, 1, 4, "32 images a step = 8 on each device x 4 batches accumulated"),
        (1, 2, 4, "64 images a step = 8 on each device x 2 devices x 4 batches accumulated"),
        (2, 1, 1, "16 images a step = 8 on each device x 2 devices"),
    ],
)  # fmt: skip
def test_batches(gpus, processes, accumulated, expected):
    training = SimpleNamespace(
        n_gpu=gpus, world_size=processes, gradient_accumulation_steps=accumulated, per_device_train_batch_size=8
    )
    assert summary._batch(training) == expected


def test_a_slower_backend_is_a_part_of_the_summary(tmp_path, monkeypatch):
    training = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert summary._backend(training) == "cpu"
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "cuda")
    with pytest.raises(UsageError, match="backend 'cuda' cannot run this call: needs tensors on cuda"):
        summary._backend(training)
    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND")
    registry = Registry("dcnv3", [Backend("fast", "fast"), Backend("torch", "hf_internimage.ops.backends.dcnv3_torch")])
    monkeypatch.setattr(Backend, "why_not", lambda self, call: "is not built." if self.name == "fast" else None)
    monkeypatch.setattr(summary, "DCNV3", registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert summary._backend(training) == "torch, a slower one: 'fast' is not built"
        registry.choose(Call("cpu", "bfloat16"), None)  # the same reason again


@pytest.mark.parametrize(
    ("data", "evaluate", "predict"),
    [
        ({"validation_dir": "my images"}, "--validation_dir 'my images'", "'my images'"),
        (
            {"dataset_name": "me/data", "validation_split_name": "dev", "image_column_name": "photo"},
            "--dataset_name me/data --validation_split_name dev --image_column_name photo", "NEW_IMAGES",
        ),
        ({"train_dir": "images"}, "--validation_dir NEW_IMAGES", "NEW_IMAGES"),
    ],
)  # fmt: skip
def test_commands_can_be_copied(data, evaluate, predict, tmp_path):
    training = TrainingArguments(output_dir="my out", use_cpu=True, report_to="none", hub_model_id="me/model")
    arguments = SimpleNamespace(data=ClassificationDataArguments(**data), training=training)
    model = InternImageForImageClassification(tiny_config())
    assert summary.next_commands(arguments, model, Path("my out")) == [
        f"hf-internimage evaluate 'my out' {evaluate}",
        f"hf-internimage predict 'my out' {predict}",
        "hf-internimage push 'my out' me/model",
    ]
    fields = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    other = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**fields))
    push = summary.next_commands(arguments, other, Path("my out"))[-1]
    assert push == "hf upload me/model 'my out' . --exclude 'checkpoint-*'"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12, "12 s"), (89, "89 s"), (90, "1.5 min"), (800, "13 min"), (7200, "2.0 h"), (2e5, "2.3 days")],
)
def test_durations(seconds, text):
    assert summary.duration(seconds) == text


def test_metrics_are_in_percent():
    assert in_words({"loss": 0.5, "map_50": 0.123456, "mar_100": 1.0, "runtime": 3.0, "name": "x"}) == (
        "loss 0.5, mAP 50 12.3 %, recall 100 100.0 %"
    )
    assert [metric_name(name) for name in ("top1", "top5_accuracy", "f1")] == ["accuracy", "top-5 accuracy", "F1"]


def test_bars_stay_out_of_files(capsys):
    """Of transformers, which leave a line each for every checkpoint, and of datasets."""
    datasets.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()
    try:
        with summary.quiet_terminal():
            assert datasets.are_progress_bars_disabled()
            list(transformers.utils.logging.tqdm(range(3), desc="Writing model shards"))
        assert not datasets.are_progress_bars_disabled()
        assert not capsys.readouterr().err
        list(transformers.utils.logging.tqdm(range(3), desc="Writing model shards"))
        assert "Writing model shards: 100%" in capsys.readouterr().err
    finally:
        transformers.utils.logging.disable_progress_bar()


def test_checkpoints_are_listed_by_their_numbers(tmp_path):
    for step in (16, 8, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert dict(files_in(tmp_path))["  checkpoints, to go on from"] == "checkpoint-8, checkpoint-16, checkpoint-100"
