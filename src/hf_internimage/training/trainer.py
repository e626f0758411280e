# SPDX-License-Identifier: MIT
"""Trainer of transformers with the parts that all recipes share: rates by layer, averaged weights, checkpoints."""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..atomic_write import atomic_update
from ..hub.repository import PushError, is_weights
from ..hub.tokens import without_tokens
from ..tensors import writing
from .batch_sizes import explain_batch_norm, refuse_single_images
from .divergence import DivergenceCallback
from .ema import WeightAverage
from .json_files import finite, write_json
from .streams import TrainingStream

logger = logging.get_logger(__name__)
RECORD_NAME = "run.json"  # see `run_record`
_GATHER_WEIGHTS = "zero_optimization.stage3_gather_16bit_weights_on_model_save"  # of DeepSpeed's configuration
_PROCESS_COUNT_NAME = "processes.json"  # holds the number of processes that wrote a checkpoint
# One of them is in each checkpoint, however little of it was written.
CHECKPOINT_FILES = (_PROCESS_COUNT_NAME, TRAINER_STATE_NAME, RECORD_NAME)


@dataclass
class RecipeArguments:
    """Training arguments that the original's recipes for all tasks add to those of transformers."""

    total_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images a step, on all devices together; sets gradient_accumulation_steps to reach it."},
    )
    learning_rate_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Batch size for which the learning rates are given (512 in the original): all are scaled by the "
            "real total over this one."
        },
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each block to the one before it."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Keep an exponential moving average of the weights; evaluate and publish the averages. 0 is off."
        },
    )
    ema_warmup: bool = field(
        default=True,
        metadata={
            "help": "Let ema_decay grow with the steps, at most (1 + step) / (10 + step), so that the averages of a "
            "short training do not hold its first weights. The authors' recipes have no warm-up."
        },
    )

    def __post_init__(self) -> None:
        for name in ("total_train_batch_size", "learning_rate_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, expected 0 (off) or a number below 1.")


def accumulation_steps(total: int, per_device: int, devices: int) -> int:
    """Return the number of batches to accumulate so that a step takes `total` images.

    Raises:
        ValueError: if no number of batches gives this total.
    """
    if total % (per_device * devices):
        raise ValueError(
            f"total_train_batch_size={total} is no multiple of {per_device} images on each of {devices} devices: "
            f"choose a per_device_train_batch_size that divides {total / devices:g}."
        )
    return total // (per_device * devices)


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None; unfinished ones of killed processes are ignored.

    Trainer writes `trainer_state.json` last; beside it, every process has its file of random states.
    """
    complete: list[tuple[int, Path]] = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            process_count = json.loads((folder / _PROCESS_COUNT_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        names = ["rng_state.pth"] if process_count == 1 else [f"rng_state_{rank}.pth" for rank in range(process_count)]
        if step.isdigit() and all((folder / name).is_file() for name in names):
            complete.append((int(step), folder))
    return max(complete)[1] if complete else None


def find_best_checkpoint(checkpoint: Path) -> None:
    """Let the state of a checkpoint name the best one beside it, where another working directory or a move lost it.

    If it is gone, the best is one of those still to come.
    """
    path = checkpoint / TRAINER_STATE_NAME
    state = json.loads(path.read_text(encoding="utf-8"))
    name = state.get("best_model_checkpoint")
    if name is None or Path(name).is_dir():
        return
    best = checkpoint.parent / Path(name).name
    if best.is_dir():
        state["best_model_checkpoint"] = str(best)
    else:
        logger.warning(f"The best checkpoint, {name}, is gone: the best from now on is kept.")
        state.update(best_model_checkpoint=None, best_metric=None, best_global_step=None)
    write_json(state, path)


def check_checkpoint(folder: Path, *, sharded: bool) -> None:
    """Raise ValueError, naming the file, if a checkpoint is damaged, or lacks the states of optimizer and schedule.

    Without these, Trainer would begin with new ones. Archives are compared with their checksums.

    Args:
        folder: the checkpoint.
        sharded: whether FSDP or DeepSpeed wrote it, under names of their own.
    """
    advice = "choose another checkpoint with --resume_from_checkpoint, or start anew with --overwrite_output_dir"
    for name in () if sharded else (OPTIMIZER_NAME, SCHEDULER_NAME):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, so that the training cannot go on from there: {advice}.")
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path) as archive:
                    is_whole = archive.testzip() is None
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    is_whole = True
            else:
                continue
        except (zipfile.BadZipFile, SafetensorError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{path} is damaged: {advice}.")


class RecipeTrainer(Trainer):
    """Train by a recipe of the original: learning rates by layer, averaged weights, checkpoints that are complete.

    `dataloader_drop_last` is for training only. With `ema_decay`, evaluation and prediction use the averaged weights,
    checkpoints hold both kinds of weights, and the model holds the averages when `train` returns. The loss is the mean
    over a batch, and with gradient accumulation the mean over its batches. Works with DDP, FSDP2, and DeepSpeed
    (averages up to ZeRO-2).

    Args:
        recipe: see `RecipeArguments`.
        All other arguments are those of Trainer.

    A training whose loss, gradient or weights are not finite stops: `train` raises FloatingPointError.

    Raises:
        ValueError: for `ema_decay` with ZeRO-3.
    """

    model: Any  # None only between construction and the first use

    def __init__(self, *args: Any, recipe: RecipeArguments, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.model_accepts_loss_kwargs = False  # losses are means over a batch, also where `forward` takes any keyword
        self.average: WeightAverage | None = None
        self.learning_rate_factor = 1.0
        self.record: dict[str, Any] | None = None
        if recipe.learning_rate_batch_size:
            total = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            self.learning_rate_factor = total / recipe.learning_rate_batch_size
        self.divergence = DivergenceCallback(self)
        self.add_callback(self.divergence)
        self.length = _LengthCallback()
        self.add_callback(self.length)
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            if recipe.ema_decay:
                raise ValueError("ema_decay does not work with DeepSpeed's ZeRO-3: use FSDP2, or ZeRO-2 at most.")
            if not plugin.hf_ds_config.is_true(_GATHER_WEIGHTS):
                raise ValueError(f"DeepSpeed's ZeRO-3 needs {_GATHER_WEIGHTS}: true, or no finished model is written.")
        if recipe.ema_decay:
            self.add_callback(_AverageCallback(self))

    # ---- Data ----

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # of any transport
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).name
            reason = without_tokens(str(error).strip().split("\n")[0] or type(error).__name__, self.args.hub_token)
            raise PushError(
                f"{name} cannot be made on the Hub: {reason}. Leave out --push_to_hub, or try again."
            ) from None

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, TrainingStream):
            return self.train_dataset.loader(self.args, self._train_batch_size, self.data_collator)
        return super().get_train_dataloader()

    @contextlib.contextmanager
    def _all_images(self) -> Iterator[None]:
        """Keep the last batch, also with `dataloader_drop_last`, which Trainer means for evaluation, too."""
        kept, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = kept

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self._all_images():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self._all_images():
            return super().get_test_dataloader(*args, **kwargs)

    # ---- Optimizer and schedule ----

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups with their rates; `learning_rate` is already scaled to the batch size."""
        raise NotImplementedError

    def recipe_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
        """Return the recipe's schedule over `steps` steps, or None to use a schedule of transformers."""
        raise NotImplementedError

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            learning_rate = self.args.learning_rate * self.learning_rate_factor
            groups = self.parameter_groups(self.model if model is None else model, learning_rate)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options["lr"] = learning_rate
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None:
            optimizer = optimizer or cast(torch.optim.Optimizer, self.optimizer)
            self.lr_scheduler: Any = self.recipe_schedule(optimizer, num_training_steps)
            self._created_lr_scheduler = self.lr_scheduler is not None
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            with explain_batch_norm():
                loss = super().training_step(model, inputs, *args, **kwargs)
        except (ValueError, RuntimeError) as error:
            self.divergence.explain(error, inputs)
            raise
        self.divergence.watch(loss)
        return loss

    # ---- Averaged weights ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.average = None
        result = super().train(*args, **kwargs)
        if self.average is not None:
            self.average.apply()
            self.average = None
        return result

    def start_average(self) -> WeightAverage:
        """Return the averages; begin them with the weights as they are now if there are none yet."""
        if self.average is None:
            self.average = WeightAverage(self.model, self.recipe.ema_decay, warmup=self.recipe.ema_warmup)
        return self.average

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Put the averages, if any, into the model for this context, with the same buffers in all processes."""
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            self._broadcast_buffers()
            yield

    def _broadcast_buffers(self) -> None:
        """Copy the first process's batch norm statistics to all; each process gathers them from its own images."""
        if self.args.world_size > 1 and dist.is_initialized():
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.broadcast(buffer, 0)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.evaluation_weights():
            metrics = super().evaluate(*args, **kwargs)
        self.divergence.refuse_evaluation(metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self.evaluation_weights():
            output = super().predict(*args, **kwargs)
        self.divergence.refuse_evaluation(output.metrics)
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if self.args.should_save:
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # of an earlier run: this one is not complete yet
            (folder / _PROCESS_COUNT_NAME).write_text(f"{self.args.world_size}\n", encoding="utf-8")
        if self.record is not None and self.args.should_save:
            write_json(self.record, folder / RECORD_NAME)
        if self.average is not None:
            with writing(folder):
                self.average.save(folder, main=self.args.should_save)
        self._keep_finite()
        with writing(folder), _own_names(self.model):
            super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.unexpected_keys:
            raise ValueError(
                "The checkpoint has weights that the model has no place for, such as "
                f"{load_result.unexpected_keys[0]}: choose another checkpoint with --resume_from_checkpoint, or start "
                "anew with --overwrite_output_dir."
            )
        super()._issue_warnings_after_load(load_result)

    def _keep_finite(self) -> None:
        """Take numbers that JSON does not have out of the state, before it is written."""
        self.state.log_history = finite(self.state.log_history)
        self.state.best_metric = finite(self.state.best_metric)

    def save_state(self) -> None:
        self._keep_finite()
        super().save_state()

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        super().save_metrics(split, finite(metrics), combined)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.recipe.ema_decay:
            self.start_average().load(Path(checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None and self.state.best_model_checkpoint is not None:
            self.average.load(Path(self.state.best_model_checkpoint))

    def train_and_save(self, checkpoint: Path | None) -> None:
        """Train, from `checkpoint` on unless it is None; write model, metrics and state to the output folder.

        All processes have to call this. An older model there stays until the new one is complete.

        Raises:
            ValueError: before the training, if batch norm cannot take its last batch.
            FloatingPointError: if the training has diverged; nothing is written then.
        """
        refuse_single_images(self)
        if checkpoint is not None:
            check_checkpoint(checkpoint, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
            logger.warning(f"Resuming from {checkpoint}.")
            with self.args.main_process_first(local=False, desc="reading the checkpoint"):
                if self.is_world_process_zero():
                    find_best_checkpoint(checkpoint)
        result = self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.divergence.refuse(self.state.global_step, weights=True)
        output = Path(str(self.args.output_dir))
        output.mkdir(parents=True, exist_ok=True)
        alone = self.args.should_save and not self.is_deepspeed_enabled  # whose processes may write a file each
        with writing(output), atomic_update(output, is_weights) if alone else contextlib.nullcontext(output) as folder:
            self.save_full_model(folder)
        if self.state.global_step > self.length.first_step:
            self.save_metrics("train", result.metrics)
        if self.record is not None and self.args.should_save:
            write_json(self.record, output / RECORD_NAME)
        self.save_state()

    def save_full_model(self, folder: str | Path) -> None:
        """Write the model with its configuration and image processor, for `from_pretrained`.

        All processes have to call this. A model sharded by FSDP2 is gathered on the first process's CPU and written as
        an object of its original class.
        """
        if not self.is_fsdp_enabled:
            super().save_model(str(folder), _internal_call=True)
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state_dict = get_model_state_dict(self.model, options=options)
        if self.args.should_save:
            sharded: Any = self.model
            original_class: Any = next(base for base in type(sharded).__mro__ if not issubclass(base, FSDPModule))
            with torch.device("meta"):
                full_model = original_class(sharded.config)
            full_model.save_pretrained(folder, state_dict=state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            torch.save(self.args, Path(folder) / TRAINING_ARGS_NAME)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled or _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        self.save_full_model(str(output_dir or self.args.output_dir))
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


@contextlib.contextmanager
def _own_names(model: Any) -> Iterator[None]:
    """Let a model save its weights under its own names: Trainer loads checkpoints without those of older releases."""
    if not isinstance(model, PreTrainedModel):
        yield
        return
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


class EpochCallback(TrainerCallback):
    """Set a shared tensor to the number of the epoch, counted from 0, before its images are read."""

    def __init__(self, epoch: torch.Tensor) -> None:
        self.epoch = epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch.fill_(int(state.epoch or 0))


class _LengthCallback(TrainerCallback):
    """Refuse to go on from a checkpoint with more steps than the training has, and say so if none is left."""

    first_step = 0  # the number of steps when the training began or went on

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first_step = state.global_step
        if state.global_step > state.max_steps:
            raise ValueError(
                f"The checkpoint has {state.global_step} steps, and the training ends after {state.max_steps}: set "
                "num_train_epochs or max_steps to more, or start anew with --overwrite_output_dir."
            )
        if 0 < state.global_step == state.max_steps:
            logger.warning(
                f"The training is finished, with {state.max_steps} steps: nothing is trained. More --num_train_epochs "
                "or --max_steps go on, --overwrite_output_dir starts anew."
            )


class _AverageCallback(TrainerCallback):
    """Update the averages after each optimizer step."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        average = self.trainer.start_average()
        memory = round(1 / (1 - average.decay))
        if not average.warmup and state.max_steps < memory:
            logger.warning(
                f"The averages of ema_decay={average.decay} reach over {memory:,} steps, and the training has "
                f"{state.max_steps:,}: they will hold its first weights. Set ema_warmup, or a smaller ema_decay."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.average is not None and not self.trainer.divergence.step_was_skipped:
            self.trainer.average.update(state.global_step)


__all__ = [
    "EpochCallback",
    "RecipeArguments",
    "RecipeTrainer",
    "accumulation_steps",
    "check_checkpoint",
    "last_complete_checkpoint",
]
