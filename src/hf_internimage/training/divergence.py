# SPDX-License-Identifier: MIT
"""Stop a training that has diverged: a loss, a gradient or weights that are NaN or infinite."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

_NEVER = 2**62
_MOST_SKIPPED_STEPS = 100  # in a row; the scale of the loss is then a 2^100th


class DivergenceCallback(TrainerCallback):
    """Raise FloatingPointError before a diverged training is evaluated or saved, or when its log says so.

    Losses are watched on their device, and the weights are looked at before each evaluation and checkpoint: no step
    waits for the device. With float16 (`fp16`) the GradScaler leaves out steps whose gradients are not finite, which is
    normal; there a training has diverged when it leaves out a hundred in a row, and each step waits for the scale.

    Args:
        trainer: whose `training_step` calls `watch`.

    Attributes:
        step_was_skipped: whether the last optimizer step was left out.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.step_was_skipped = False
        self._skipped_steps = 0
        self._scale = 0.0
        self._first_step: torch.Tensor | None = None  # whose loss is not finite

    def watch(self, loss: torch.Tensor) -> None:
        """Note the step if its loss is not finite."""
        if self.trainer.args.fp16:
            return
        step = self.trainer.state.global_step + 1
        first = torch.tensor(_NEVER, device=loss.device) if self._first_step is None else self._first_step
        self._first_step = torch.where(loss.detach().isfinite().all(), first, first.clamp(max=step))

    def explain(self, error: Exception, inputs: Mapping[str, Any]) -> None:
        """Raise FloatingPointError if a step failed because this process's weights or predictions are not finite.

        Losses that match predictions with objects refuse NaN by errors of their own.
        """
        model, step = self.trainer.model, self.trainer.state.global_step + 1
        if not weights_are_finite(model, everywhere=False):
            raise self._error(f"the weights before step {step} are not finite numbers") from error
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            return  # the forward pass needs all processes
        images = {name: value for name, value in inputs.items() if not name.endswith("labels")}
        try:
            with torch.no_grad():
                outputs = model(**self.trainer._prepare_inputs(images))
        except (ValueError, RuntimeError):  # not the loss failed, but the model
            return
        predictions = [value for value in outputs.values() if isinstance(value, torch.Tensor)]
        if any(bool(prediction.isnan().any()) for prediction in predictions):
            raise self._error(f"the predictions of step {step} are not numbers") from error

    def refuse(self, step: int, *, weights: bool) -> None:
        """Raise FloatingPointError if a loss was not finite, or if `weights` those after `step` are not."""
        if self._first_step is not None:
            first = self._first_step
            if self.trainer.args.world_size > 1 and dist.is_initialized():
                dist.all_reduce(first, dist.ReduceOp.MIN)
            if first.item() != _NEVER:
                raise self._error(f"the loss of step {int(first)} is not a finite number")
        if weights and not weights_are_finite(self.trainer.model):
            raise self._error(f"the weights after step {step} are not finite numbers")

    def refuse_evaluation(self, metrics: Mapping[str, Any] | None) -> None:
        """Raise FloatingPointError if the loss of a trained model's evaluation is not finite."""
        for name, value in (metrics or {}).items():
            if self.trainer.args.do_train and name.endswith("_loss") and not math.isfinite(value):
                raise self._error(f"{name} after step {self.trainer.state.global_step} is {value}")

    def _error(self, problem: str) -> FloatingPointError:
        return FloatingPointError(
            f"The training has diverged: {problem}. Nothing more was saved; start anew with a lower learning_rate (now "
            f"{self.trainer.args.learning_rate:g}), a longer warm-up or a smaller max_grad_norm."
        )

    def _scaler(self) -> Any:
        scaler = self.trainer.accelerator.scaler
        return scaler if scaler is not None and scaler.is_enabled() else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step, self._skipped_steps = None, 0
        self._scale = self._scaler().get_scale() if self._scaler() else 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_was_skipped = self.trainer.accelerator.optimizer_step_was_skipped
        if self._scaler():  # accelerate does not notice that a fused optimizer has left out a step
            scale = self._scaler().get_scale()
            self.step_was_skipped |= scale < self._scale
            self._scale = scale
        self._skipped_steps = self._skipped_steps + 1 if self.step_was_skipped else 0
        if self._skipped_steps >= _MOST_SKIPPED_STEPS:
            raise self._error(
                f"the gradients of the last {self._skipped_steps} steps up to {state.global_step} overflow"
            )
        self._refuse_before(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._refuse_before(state, control)

    def _refuse_before(self, state: Any, control: Any) -> None:
        keeps = control.should_evaluate or control.should_save or control.should_training_stop
        if keeps or control.should_log:
            self.refuse(state.global_step, weights=keeps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        norm = (logs or {}).get("grad_norm")
        if isinstance(norm, float) and not math.isfinite(norm) and not self._scaler() and not args.fp16:
            raise self._error(f"the gradient of step {state.global_step} is not finite (its norm is {norm})")


@torch.no_grad()
def weights_are_finite(model: nn.Module, *, everywhere: bool = True) -> bool:
    """Return whether all parameters and saved buffers are finite.

    With `everywhere`, in all processes, which have to call this.
    """
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    if not local:
        return True
    result = torch.stack([tensor.isfinite().all().to(local[0].device) for tensor in local]).all().int()
    if everywhere and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(result, dist.ReduceOp.MIN)
    return bool(result)


__all__ = ["DivergenceCallback", "weights_are_finite"]
