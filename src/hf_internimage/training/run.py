# SPDX-License-Identifier: MIT
"""Run a training script: the steps from the data to the published model, which are the same for every task."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from datasets import IterableDataset
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..hub.loading import loading
from ..models import auto
from ..plain_text import show
from .bad_images import FILE_NAME, add_left_out_of_stream, card_notes, image_facts, without_bad_images
from .command_line import UsageError
from .images import Augmented
from .interrupt import saving_on_interrupt
from .plots import draw_training
from .run_record import RemoveEarlierRunCallback, refuse_other_run, run_record
from .sampling_log import SamplingCallback
from .streams import TrainingStream
from .summary import TrainingProgress, end_summary, follow, quiet_terminal, start_rows, table
from .trainer import EpochCallback, RecipeTrainer, last_complete_checkpoint

logger = logging.get_logger(__name__)


class ModelArguments(Protocol):
    """The arguments of a model that all tasks have."""

    model_name_or_path: str | None
    model_revision: str
    trust_remote_code: bool

    @property
    def base_model(self) -> str | None:
        """The folder or repository that a training starts from; None for new weights."""


@dataclass
class RunArguments:
    """Settings of a run that all tasks have."""

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew; the checkpoints of an earlier training are deleted after the first step."},
    )
    ignore_data_changes: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint with other examples than it was trained on, of the same classes."},
    )
    save_on_interrupt: bool = field(
        default=False, metadata={"help": "On Ctrl-C, finish the step and save a checkpoint before stopping."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for the model's card."})


@dataclass(frozen=True)
class Task:
    """The steps of a script that differ from task to task.

    `arguments` are the task's ScriptArguments, with `model`, `data`, `augmentation`, `recipe`, `run` and `training`;
    `data` is what `load_data` returns, with `train`, `validation`, perhaps `test`, and `label_names`.

    Attributes:
        load_data: (arguments.data, seed, splits, label_names of a model or None) -> data.
        build_model: (arguments.model, data) -> model.
        build_processor: (arguments, model) -> image processor.
        build_trainer: (arguments, data, model, processor) -> trainer, see `trainer_with_data`.
        evaluate_and_report: (trainer, data, split, arguments.data, model_name=, **evaluate_options) -> evaluation.
        publish: (trainer, evaluation or None, base_model=, license=, notes=).
        apply_data_settings: (arguments, data): adapt the settings to the data, refuse those that do not fit.
        evaluate_options: arguments -> further options of `evaluate_and_report`.
        curves: Trainer's log -> the part of it to show and to draw.
    """

    load_data: Callable[..., Any]
    build_model: Callable[..., Any]
    build_processor: Callable[..., Any]
    build_trainer: Callable[..., RecipeTrainer]
    evaluate_and_report: Callable[..., dict[str, Any]]
    publish: Callable[..., None]
    apply_data_settings: Callable[..., None] = lambda arguments, data: None
    evaluate_options: Callable[..., dict[str, Any]] = lambda arguments: {}
    curves: Callable[[list[dict[str, float]]], list[dict[str, float]]] = list


@quiet_terminal()
def run_training(arguments: Any, task: Task) -> None:
    """Read the data, train, evaluate and publish, as far as the arguments ask for it.

    Args:
        arguments: the ScriptArguments of the task.
        task: its steps.

    Raises:
        UsageError, ValueError, OSError: in one sentence, for arguments, data or a checkpoint that cannot be used.
    """
    training: TrainingArguments = arguments.training
    refuse_output_folder(Path(str(training.output_dir)))
    set_seed(training.seed)
    training.dataloader_num_workers = min(training.dataloader_num_workers, usable_cpus())
    overwrite = arguments.run.overwrite_output_dir
    checkpoint = find_checkpoint(training, overwrite) if training.do_train else None
    refuse_missing_model(arguments.model)
    label_names = None if training.do_train else checkpoint_labels(arguments.model)
    with training.main_process_first(desc="reading the data"):
        data = task.load_data(arguments.data, training.seed, required_splits(training), label_names)
    if not training.do_train and label_names is None:
        raise UsageError("Without training there has to be a checkpoint: set model_name_or_path, or do_train.")
    refuse_missing_splits(training, data)
    task.apply_data_settings(arguments, data)
    if training.do_train and data.validation is None:
        keep_last_model(training)
    with loading(arguments.model.base_model):
        model = task.build_model(arguments.model, data)
        processor = task.build_processor(arguments, model)
    output = Path(str(training.output_dir))
    data = without_bad_images(data, arguments.data.bad_images, processor, output)
    trainer = task.build_trainer(arguments, data, model, processor)
    rows = start_rows(arguments, data, trainer)
    follow(trainer, TrainingProgress(rows, task.curves))

    if training.do_train:
        trainer.record = run_record(arguments, data, model.config)
        trainer.add_callback(SamplingCallback(trainer))
        if overwrite:
            trainer.add_callback(RemoveEarlierRunCallback(trainer))
        else:
            refuse_other_run(trainer.record, checkpoint or output, arguments.run.ignore_data_changes)
        with saving_on_interrupt(trainer) if arguments.run.save_on_interrupt else nullcontext():
            trainer.train_and_save(checkpoint)
        if isinstance(data.train, IterableDataset):
            add_left_out_of_stream(data.reader, output)
    elif trainer.is_world_process_zero():
        show(table(rows))
    own_name = training.hub_model_id or str(training.output_dir)
    options = {
        "model_name": own_name if training.do_train else arguments.model.model_name_or_path,
        **task.evaluate_options(arguments),
    }
    splits = ["validation"] if training.do_eval and data.validation is not None else []
    splits += ["test"] if training.do_predict else []
    evaluations = {split: task.evaluate_and_report(trainer, data, split, arguments.data, **options) for split in splits}
    if training.do_train:
        if trainer.is_world_process_zero():
            curves = task.curves(trainer.state.log_history)
            draw_training(curves, output / "training.png")
        notes = card_notes(image_facts(data.reader))
        base_model, license = arguments.model.base_model, arguments.run.license
        evaluation = evaluations.get("validation")
        task.publish(trainer, evaluation, base_model=base_model, license=license, notes=notes)
    if trainer.is_world_process_zero():
        show(end_summary(arguments, trainer, evaluations, task.curves))


def find_checkpoint(training: TrainingArguments, overwrite: bool = False) -> Path | None:
    """Return the checkpoint to go on from: the one named, or the last complete one of the output folder.

    With `overwrite` there is none.

    Raises:
        UsageError: if it is not there, or if a new training would overwrite an earlier one.
    """
    name = training.resume_from_checkpoint
    if overwrite and name not in (None, False, "false", "False"):
        raise UsageError(
            f"resume_from_checkpoint={name} goes on, overwrite_output_dir starts anew: leave out one of them."
        )
    if overwrite:
        return None
    last = last_complete_checkpoint(str(training.output_dir))
    if last is None and training.save_only_model and any(Path(str(training.output_dir)).glob("checkpoint-*/model*")):
        raise UsageError(
            f"{training.output_dir} has checkpoints of save_only_model, from which no training goes on: start anew "
            "with --overwrite_output_dir, or choose another output_dir."
        )
    if name in (None, True, "true", "True"):
        return last
    if name in (False, "false", "False"):
        if last is not None:
            raise UsageError(
                f"{last} is of an earlier training: go on from it, start anew with --overwrite_output_dir, or choose "
                "another output_dir."
            )
        return None
    if not Path(name, "trainer_state.json").is_file():
        raise UsageError(f"resume_from_checkpoint={name} holds no complete checkpoint: trainer_state.json is missing.")
    return Path(name)


def refuse_output_folder(folder: Path) -> None:
    """Raise UsageError, before the data are read, for a folder that cannot be made or written to."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"output_dir is {folder}, but {existing} is a file; name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"output_dir is {folder}, which cannot be written: no permission; name another folder.")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use; more workers than that make DataLoader slow."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_missing_model(arguments: ModelArguments) -> None:
    """Raise OSError, before the data are read, if the checkpoint or backbone to start from cannot be fetched."""
    if arguments.base_model is not None:
        with loading(arguments.base_model):
            auto.load_config(
                arguments.base_model,
                revision=arguments.model_revision,
                trust_remote_code=arguments.trust_remote_code,
            )


def checkpoint_labels(arguments: ModelArguments) -> list[str] | None:
    """Return the class names of the checkpoint in the order of their numbers; None without a checkpoint."""
    if arguments.model_name_or_path is None:
        return None
    config = auto.load_config(
        arguments.model_name_or_path, revision=arguments.model_revision, trust_remote_code=arguments.trust_remote_code
    )
    return [config.id2label[index] for index in sorted(config.id2label)]


def label_fields(label_names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a model's configuration that name its classes."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


def required_splits(training: TrainingArguments) -> list[str]:
    """Return the names of the splits that training, evaluation and prediction read."""
    required = {
        "train": training.do_train,
        "validation": training.do_train or training.do_eval,
        "test": training.do_predict,
    }
    return [split for split in required if required[split]]


def refuse_missing_splits(training: TrainingArguments, data: Any) -> None:
    """Raise UsageError if the data lack a split that cannot be left out: a training can do without validation only."""
    if training.do_eval and not training.do_train and data.validation is None:
        raise UsageError("There are no validation data: set validation_dir, or validation_split_name.")
    if training.do_predict and data.test is None:
        raise UsageError("There are no test data: set test_dir or test_split_name.")


def keep_last_model(training: TrainingArguments) -> None:
    """Train without evaluation and keep the last model, since there are no validation data."""
    if training.eval_strategy != "no" or training.do_eval:
        logger.warning("There are no validation data: the last model is kept, without evaluation.")
    training.eval_strategy = IntervalStrategy.NO
    training.load_best_model_at_end = False


def trainer_with_data(
    trainer_class: type[RecipeTrainer],
    arguments: Any,
    data: Any,
    model: Any,
    processor: Any,
    make_augmentation: Callable[[], Callable[..., Any]],
    *,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Build a trainer whose training data are augmented, and whose validation data only the image processor prepares.

    Args:
        trainer_class: of the task.
        arguments: the ScriptArguments of the task.
        data: of the task; a stream of training data needs `arguments.data.shuffle_buffer`.
        model, processor: the model to train, and the image processor for evaluation.
        make_augmentation: makes the augmentation (an example's parts and a list of seeds -> inputs of the model); it is
            called if there are training data.
        callbacks, options: of the trainer.
    """
    training, train, validation = arguments.training, data.train, data.validation
    if train is not None:
        augmented = Augmented(make_augmentation(), training.seed)
        callbacks = [EpochCallback(augmented.epoch), *callbacks]
        transform = data.training_transform(augmented)
        transform = replace(transform, reader=data.reader.for_processor(processor))
        if isinstance(train, IterableDataset):
            file = Path(str(training.output_dir), FILE_NAME) if arguments.data.bad_images == "skip" else None
            train = TrainingStream(
                train,
                transform,
                training.seed,
                arguments.data.shuffle_buffer,
                training.process_index,
                training.world_size,
                bad_images_file=file,
            )
        else:
            train = train.with_transform(transform)
    if validation is not None:
        validation = validation.with_transform(data.evaluation_transform(processor))
    return trainer_class(
        model=model,
        args=training,
        recipe=arguments.recipe,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=list(callbacks),
        **options,
    )


__all__ = [
    "RunArguments",
    "Task",
    "checkpoint_labels",
    "find_checkpoint",
    "keep_last_model",
    "label_fields",
    "refuse_missing_model",
    "refuse_missing_splits",
    "required_splits",
    "run_training",
    "trainer_with_data",
    "usable_cpus",
]
