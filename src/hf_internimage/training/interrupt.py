# SPDX-License-Identifier: MIT
"""Save a checkpoint when the user stops a training with Ctrl-C."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback


class InterruptCallback(TrainerCallback):
    """Save a checkpoint after the step in which `requested` was set, then raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1 and dist.is_initialized():  # the signal reaches processes in different steps
            requested = torch.tensor(int(self.requested), device=args.device)
            dist.all_reduce(requested, dist.ReduceOp.MAX)
            self.requested = bool(requested)
        control.should_save |= self.requested

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def saving_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C in this context save a checkpoint after the step, then raise KeyboardInterrupt.

    In a single process, a second Ctrl-C stops at once. Processes that a launcher started may get the signal from the
    terminal and from the launcher; there, all of them save. Processes that read data go on until then.
    """
    callback, process = InterruptCallback(), os.getpid()

    def request(number: int, frame: Any) -> None:
        if os.getpid() != process:
            return
        if trainer.args.world_size == 1:
            signal.signal(signal.SIGINT, previous)
        if not callback.requested and trainer.is_world_process_zero():
            sys.stderr.write("Saving a checkpoint after this step.\n")
        callback.requested = True

    trainer.add_callback(callback)
    previous = signal.signal(signal.SIGINT, request)
    try:
        yield
        if callback.requested:  # after the last step
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, previous)
        trainer.remove_callback(callback)


__all__ = ["saving_on_interrupt"]
