# SPDX-License-Identifier: MIT
"""Refuse training batches that batch norm cannot take before the training, or explain them when they come."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import TrainingArguments

_ONE_VALUE = "Expected more than 1 value per channel"  # how PyTorch's message begins


def smallest_batch(images: int, training: TrainingArguments) -> int:
    """Return the number of images in the smallest batch that any device trains on.

    Several processes fill their last batches up with images from the beginning, unless `even_batches` is off. A process
    with several GPUs divides its batches.

    Raises:
        ValueError: if there are fewer images than a batch of all processes and `dataloader_drop_last` leaves them out.
    """
    batch, processes = training.train_batch_size, training.world_size
    if training.dataloader_drop_last and images < batch * processes:
        raise ValueError(
            f"There are {images} training images for batches of {batch * processes}, and dataloader_drop_last leaves "
            "out a smaller one: make per_device_train_batch_size smaller."
        )
    rounds = -(-images // (batch * processes))  # of an epoch
    ends_before = 0 < training.max_steps * training.gradient_accumulation_steps < rounds
    config: Any = training.accelerator_config
    filled_up = processes > 1 and config.even_batches
    last = images % batch
    if not last or training.dataloader_drop_last or ends_before or filled_up:
        last = batch
    part = -(-last // max(1, training.n_gpu))
    return last % part or part


def refuse_single_images(trainer: Any) -> None:
    """Raise ValueError if a training batch will have one image and the model's batch norm cannot take it.

    The model is tried with one image, without a trace in its state or in the random numbers. Streams are not looked
    into: they have full batches only, and their errors are explained by `explain_batch_norm`.
    """
    model, dataset = trainer.model, trainer.train_dataset
    if not hasattr(dataset, "__len__"):
        return
    size = smallest_batch(len(dataset), trainer.args)
    if size > 1 or trainer.is_deepspeed_enabled or not _normalises_batches(model, trainer.args.world_size):
        return
    inputs = send_to_device(trainer.data_collator([dataset[0]]), next(model.parameters()).device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    try:
        with torch.random.fork_rng(), torch.no_grad(), trainer.compute_loss_context_manager():
            trainer.compute_loss(model.train(), inputs)
    except ValueError as error:
        if _ONE_VALUE not in str(error):
            raise
        batch = trainer.args.per_device_train_batch_size
        advice = f"dataloader_drop_last to true, or per_device_train_batch_size to another number than {batch}"
        if batch == 1:
            advice = "per_device_train_batch_size to 2 or more"
        raise ValueError(
            f"{len(dataset)} training images in batches of {trainer.args.train_batch_size} leave a batch of one image, "
            f"of which a batch norm of this model gets one value a channel: set {advice}."
        ) from error
    finally:
        model.train(was_training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _normalises_batches(model: nn.Module, processes: int) -> bool:
    """Return True if the model has a batch norm over the images of one process."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not (processes > 1 and isinstance(module, nn.SyncBatchNorm))
        for module in model.modules()
    )


@contextlib.contextmanager
def explain_batch_norm() -> Iterator[None]:
    """Say what to do when a batch norm gets one value a channel."""
    try:
        yield
    except ValueError as error:
        if _ONE_VALUE not in str(error):
            raise
        raise ValueError(
            f"A batch norm of this model got one value a channel, from a batch of one image ({error}): set "
            "per_device_train_batch_size to 2 or more, and dataloader_drop_last to true if only the last batch is so "
            "small."
        ) from error


__all__ = ["explain_batch_norm", "refuse_single_images", "smallest_batch"]
