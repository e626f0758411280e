# SPDX-License-Identifier: MIT
"""Say on the terminal what a training is about to do, how it goes, and what it has left behind."""

import contextlib
import logging
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from transformers.utils.logging import set_tqdm_hook

from ..hub.repository import has_code, is_head
from ..ops import BackendError
from ..ops.dcnv3 import DCNV3
from ..ops.registry import Call, environment
from ..plain_text import count_of, listed, show
from .command_line import UsageError
from .evaluation_results import compute_dtype, device_name, has_operator
from .metric_words import in_words
from .publish import model_id_of
from .sources import SPLITS

Rows = list[tuple[str, str]]
Curves = Callable[[list[dict[str, float]]], list[dict[str, float]]]
_TIMED_STEPS = 20
# The fields of the data's arguments that an evaluation needs.
_EVALUATED_DATA = (
    "dataset_name", "dataset_config_name", "dataset_revision", "validation_split_name", "validation_dir",
    "validation_annotations", "image_column_name", "label_column_name",
)  # fmt: skip
# What a training writes, in the order of the summary: patterns in the output folder, and what they are.
_FILES = (
    (("model*.safetensors", "config.json", "preprocessor_config.json"), "model and image processor"),
    (("README.md",), "model card"),
    (("*_evaluation.json", "*_predictions.csv"), "measurements"),
    (("training.png", "*_classes.png", "*_confusions.png", "*_mistakes.png", "overlays"), "pictures"),
    (("checkpoint-*",), "checkpoints, to go on from"),
    (("bad_images.txt",), "images that were left out"),
)


@contextlib.contextmanager
def quiet_terminal() -> Iterator[None]:
    """Keep bars out of files and pipes, let those of transformers go away, and leave out its notice on file times."""

    def bar(factory: Any, positional: Any, options: Any) -> Any:
        return factory(*positional, **{"leave": False, "disable": None, **options})

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("mtime may not be reliable")  # checkpoints have numbers

    checkpoints, hook = logging.getLogger("transformers.trainer_utils"), set_tqdm_hook(bar)
    checkpoints.addFilter(is_other)
    hides_bars_of_data = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hides_bars_of_data:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        checkpoints.removeFilter(is_other)
        set_tqdm_hook(hook)
        if hides_bars_of_data:
            datasets.enable_progress_bars()


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of a name and a value as lines with the values below each other."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def start_rows(arguments: Any, data: Any, trainer: Any) -> Rows:
    """Return what is known before the first step: the model, its weights, the data, the devices, the batch.

    Args:
        arguments: ScriptArguments of a task.
        data: of the task.
        trainer: with the model.

    Raises:
        UsageError: if the backend that HF_INTERNIMAGE_BACKEND demands cannot run.
    """
    training, model = trainer.args, trainer.model
    rows = [
        ("Model", f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters"),
        ("Weights", _weights(arguments.model, model)),
        ("Classes", f"{len(data.label_names)}: {listed(data.label_names)}"),
        ("Images", _images(data)),
        ("Device", f"{_devices(training)}, {compute_dtype(training)}"),
    ]
    if has_operator(model):
        rows.append(("DCNv3", f"backend {_backend(training)}"))
    if training.do_train:
        rows.append(("Batch", _batch(training)))
    return [*rows, ("Output", str(training.output_dir))]


def _weights(options: Any, model: Any) -> str:
    """Return where the weights are from, and which are new."""
    if options.base_model is None:
        return "random"
    if options.model_name_or_path is None:
        return f"pretrained backbone, {options.base_model}; the head is random"
    new = getattr(model, "new_modules", [])
    return f"pretrained, {options.model_name_or_path}" + (f"; reinitialised: {listed(new)}" if new else "")


def _images(data: Any) -> str:
    splits = {split: getattr(data, split, None) for split in SPLITS}
    return ", ".join(
        f"{split}: {'a stream' if isinstance(rows, datasets.IterableDataset) else format(len(rows), ',')}"
        for split, rows in splits.items()
        if rows is not None
    )


def _devices(training: Any) -> str:
    count = training.world_size * max(1, training.n_gpu)
    name = device_name(training.device)
    if training.device.type == "cpu":
        name += f" ({count_of(torch.get_num_threads(), 'thread')})"
    return name if count == 1 else f"{count} x {name}"


def _backend(training: Any) -> str:
    """Return the operator's backend, with the reasons against faster ones, which it then does not warn of again."""
    try:
        with warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            backend = DCNV3.choose(Call(training.device.type, compute_dtype(training)), environment())
    except (BackendError, ValueError) as error:
        raise UsageError(str(error)) from error
    texts = [str(reason.message).partition(": ")[2].rstrip(".") for reason in reasons]
    return ", ".join([backend.name, *(f"a slower one: {text}" for text in texts)])


def _batch(training: Any) -> str:
    devices, accumulated = training.world_size * max(1, training.n_gpu), training.gradient_accumulation_steps
    factors = [f"{training.per_device_train_batch_size} on each device"]
    factors += [f"{devices} devices"] if devices > 1 else []
    factors += [f"{accumulated} batches accumulated"] if accumulated > 1 else []
    total = training.per_device_train_batch_size * devices * accumulated
    return f"{total} images a step" + (f" = {' x '.join(factors)}" if factors[1:] else "")


class TrainingProgress(TrainerCallback):
    """Show the start of a training, each log as a line, after 20 steps the time that is left, and bars in a terminal.

    The training loss is logged at each evaluation, at the end of each epoch and at the end, too, so that its curve does
    not depend on `logging_steps`.

    Args:
        rows: of `start_rows`.
        curves: see `run.Task`.
    """

    def __init__(self, rows: Rows, curves: Curves) -> None:
        self.rows, self.curves = rows, curves
        self._training_bar: Any = None
        self._evaluation_bar: Any = None
        self._first_step = 0
        self._start: float | None = None  # when the first step was done
        self._has_evaluated = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step, self._start, self._has_evaluated = state.global_step, None, False
        if state.is_world_process_zero:
            show(table([*self.rows[:-1], ("Length", _length(state)), self.rows[-1]]))
            self._training_bar = _bar(args, "training", state.max_steps)
            self._training_bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._training_bar is not None:
            self._training_bar.update(state.global_step - self._training_bar.n)
        if args.logging_strategy != IntervalStrategy.NO:
            control.should_log |= control.should_evaluate or state.global_step >= state.max_steps
        steps = state.global_step - self._first_step
        if steps == 1:
            self._start = time.perf_counter()
        if steps == _TIMED_STEPS and self._start is not None and state.max_steps > state.global_step:
            seconds = (time.perf_counter() - self._start) / (steps - 1)
            left = duration(seconds * (state.max_steps - state.global_step))
            without = args.eval_strategy != IntervalStrategy.NO and not self._has_evaluated
            self._write(state, f"about {left} left{' and the evaluations' if without else ''}, {seconds:.2g} s a step")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= args.logging_strategy != IntervalStrategy.NO

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kw: Any) -> None:
        if state.is_world_process_zero:
            if self._evaluation_bar is None:
                self._evaluation_bar = _bar(args, "evaluation", len(eval_dataloader))
            self._evaluation_bar.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._has_evaluated = True
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
        self._evaluation_bar = None

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self.on_evaluate(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._training_bar is not None:
            self._training_bar.close()
        self._training_bar = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = logs or {}
        measured = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
        if measured:
            self._write(state, f"{_place(state)}: validation {_shown(measured, self.curves)}")
        elif "train_runtime" in entry:
            if state.global_step > self._first_step:
                speed = f"{entry['train_samples_per_second']:.3g} images/s"
                self._write(state, f"trained in {duration(entry['train_runtime'])}, {speed}")
        elif "loss" in entry:
            rate = f", learning rate {entry['learning_rate']:.2g}" if "learning_rate" in entry else ""
            self._write(state, f"{_place(state)}: training loss {entry['loss']:.4g}{rate}")

    def _write(self, state: Any, line: str) -> None:
        if state.is_world_process_zero:
            with tqdm.external_write_mode(file=sys.stdout):  # above the bars
                show(line)


def _bar(args: Any, name: str, total: int) -> Any:
    """Return a progress bar, which is not drawn into files and pipes, and goes away at its end."""
    return tqdm(desc=name, total=total, leave=False, dynamic_ncols=True, disable=args.disable_tqdm or None)


def _shown(metrics: Mapping[str, Any], curves: Curves) -> str:
    """Return the loss and those metrics in words that a task draws as curves."""
    (entry,) = curves([{f"eval_{name}": value for name, value in metrics.items()}])
    return in_words({name.removeprefix("eval_"): value for name, value in entry.items()})


def follow(trainer: Any, progress: TrainingProgress) -> None:
    """Let a trainer report by `progress` in place of transformers' own progress bar and dictionaries."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(progress)


def _place(state: Any) -> str:
    return f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.3g}"


def _length(state: Any) -> str:
    done = f", of which {state.global_step:,} are done" if state.global_step else ""
    epochs = "" if state.num_train_epochs > 1e6 else f"{count_of(state.num_train_epochs, 'epoch')}, "  # of a stream
    return f"{epochs}{count_of(state.max_steps, 'step')}{done}"


def duration(seconds: float) -> str:
    """Return a time in words, in seconds, minutes, hours or days."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def evaluation_row(split: str, evaluation: Mapping[str, Any], curves: Curves) -> tuple[str, str]:
    """Return what was measured on a split, an evaluation of `evaluation_results`, as a row."""
    speed = f"{evaluation['samples']:,} images, {evaluation['images_per_second']:.3g} images/s"
    return split.capitalize(), f"{_shown(evaluation['metrics'], curves)} ({speed})"


def best_row(trainer: Any) -> Rows:
    """Return by which value of which metric the model was selected, as a row; none if it is the last one."""
    state, name = trainer.state, trainer.args.metric_for_best_model
    if not trainer.args.load_best_model_at_end or state.best_metric is None:
        return []
    return [("Best", f"{in_words({name.removeprefix('eval_'): state.best_metric})} at step {state.best_global_step:,}")]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts checkpoint-8 before checkpoint-16."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def files_in(folder: Path) -> Rows:
    """Return what a training or an evaluation has written to its output folder, as rows."""
    rows = []
    for patterns, kind in _FILES:
        names = sorted((path.name for pattern in patterns for path in folder.glob(pattern)), key=_by_number)
        if names:
            rows.append((f"  {kind}", listed(names, 6)))
    return rows


def next_commands(arguments: Any, model: Any, output: Path) -> list[str]:
    """Return the commands that evaluate, use and share a model, which is in the output folder."""
    data, folder = arguments.data, shlex.quote(str(output))
    if data.validation_dir or data.dataset_name:
        chosen = {name: getattr(data, name, None) for name in _EVALUATED_DATA}
    else:  # a share of the training data
        chosen = {"validation_dir": "NEW_IMAGES"}
    options = " ".join(f"--{name} {shlex.quote(value)}" for name, value in chosen.items() if value)
    images = Path(data.validation_dir or "NEW_IMAGES")
    if (images / "images").is_dir():  # beside masks
        images /= "images"
    name = model_id_of(arguments.training, "model")
    name = name if "/" in name else f"YOUR_NAME/{name}"
    push = f"hf-internimage push {folder} {name}"
    if not has_code(model) and not is_head(type(model).__name__, model.config.to_dict()):
        push = f"hf upload {name} {folder} . --exclude 'checkpoint-*'"
    return [
        f"hf-internimage evaluate {folder} {options}",
        f"hf-internimage predict {folder} {shlex.quote(str(images))}",
        push,
    ]


def end_summary(
    arguments: Any, trainer: Any, evaluations: Mapping[str, Mapping[str, Any]], curves: Curves = list
) -> str:
    """Return what was measured, what was written where, and the commands to go on with.

    Args:
        arguments: ScriptArguments of a task.
        trainer: after the training.
        evaluations: name of a split -> its evaluation.
        curves: see `run.Task`.
    """
    output = Path(str(trainer.args.output_dir))
    rows = best_row(trainer) + [evaluation_row(split, result, curves) for split, result in evaluations.items()]
    lines = [table(rows)] if rows else []
    lines += [f"Written to {output}:", table(files_in(output))]
    if trainer.args.do_train:
        lines += ["Next:", *(f"  {command}" for command in next_commands(arguments, trainer.model, output))]
    return "\n".join(lines)


__all__ = ["TrainingProgress", "end_summary", "evaluation_row", "follow", "start_rows", "table"]
