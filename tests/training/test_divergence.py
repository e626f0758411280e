# SPDX-License-Identifier: MIT
"""When a training counts as diverged, step by step, with a trainer that only holds what is asked of it."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from hf_internimage.training.divergence import DivergenceCallback, weights_are_finite

NAN = float("nan")


def callback(model=None, scaler=None, skipped=False, step=0, sharded=(False, False), **arguments):
    values = {"fp16": False, "world_size": 1, "do_train": True, "learning_rate": 0.125}
    trainer = SimpleNamespace(
        args=SimpleNamespace(**values | arguments),
        model=nn.Linear(2, 2) if model is None else model,
        state=SimpleNamespace(global_step=step),
        accelerator=SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=skipped),
        is_fsdp_enabled=sharded[0],
        is_deepspeed_enabled=sharded[1],
        _prepare_inputs=lambda inputs: inputs,
    )
    return DivergenceCallback(trainer)


def losses(of, *values):
    for value in values:
        of.watch(torch.tensor(value))
        of.trainer.state.global_step += 1
    return of


def diverged(problem):
    end = (
        r"Nothing more was saved; start anew with a lower learning_rate \(now 0\.125\), a longer warm-up or a smaller "
    )
    return pytest.raises(FloatingPointError, match=f"^The training has diverged: {problem}\\. {end}max_grad_norm\\.$")


def test_the_first_loss_that_is_not_finite_is_named():
    of = losses(callback(), 1.0, math.inf, 2.0, NAN, 3.0)
    with diverged("the loss of step 2 is not a finite number"):
        of.refuse(5, weights=False)
    of.on_train_begin(None, None, None)  # of another training
    of.refuse(5, weights=True)
    losses(callback(), 1.0, 2.0).refuse(2, weights=True)
    losses(callback(fp16=True), NAN).refuse(1, weights=True)  # the scaler leaves such steps out
    of = callback(step=7)
    of.watch(torch.tensor([1.0, NAN]))
    with diverged("the loss of step 8 is not a finite number"):
        of.refuse(8, weights=False)


def test_weights_are_looked_at_if_asked_for():
    of = callback()
    nn.init.constant_(of.trainer.model.bias, NAN)
    of.refuse(3, weights=False)
    with diverged("the weights after step 3 are not finite numbers"):
        of.refuse(3, weights=True)


@pytest.mark.parametrize("hook", ["on_step_end", "on_epoch_end"])
@pytest.mark.parametrize(
    ("reason", "weights"),
    [
        ("should_evaluate", True), ("should_save", True), ("should_training_stop", True), ("should_log", False),
        (None, None),
    ],
)  # fmt: skip
def test_what_is_looked_at_before_what(hook, reason, weights, monkeypatch):
    calls = []
    of = callback()
    monkeypatch.setattr(of, "refuse", lambda step, *, weights: calls.append((step, weights)))
    names = ("should_evaluate", "should_save", "should_training_stop", "should_log")
    control = SimpleNamespace(**{name: name == reason for name in names})
    getattr(of, hook)(None, SimpleNamespace(global_step=4), control)
    assert calls == ([] if reason is None else [(4, weights)])


class Scaler:
    """Stands for a GradScaler with these scales, one for each look."""

    def __init__(self, *scales, enabled=True):
        self.scales, self.enabled = list(scales), enabled

    def is_enabled(self):
        return self.enabled

    def get_scale(self):
        return self.scales.pop(0)


@pytest.mark.parametrize(
    ("logs", "fp16", "scaler", "stops"),
    [
        ({"grad_norm": NAN}, False, None, True), ({"grad_norm": math.inf}, False, None, True),
        ({"grad_norm": math.inf}, False, Scaler(enabled=False), True), ({"grad_norm": 3.0}, False, None, False),
        ({"grad_norm": NAN}, True, None, False), ({"grad_norm": NAN}, False, Scaler(), False),
        ({"loss": NAN}, False, None, False), ({"grad_norm": "nan"}, False, None, False), ({}, False, None, False),
        (None, False, None, False),
    ],
)  # fmt: skip
def test_the_norm_of_the_gradient_in_the_log(logs, fp16, scaler, stops):
    of, state = callback(scaler=scaler, fp16=fp16), SimpleNamespace(global_step=4)
    if stops:
        with diverged(rf"the gradient of step 4 is not finite \(its norm is {logs['grad_norm']}\)"):
            of.on_log(of.trainer.args, state, None, logs=logs)
    else:
        of.on_log(of.trainer.args, state, None, logs=logs)


def test_a_step_was_skipped_if_the_scale_went_down_or_accelerate_says_so():
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False, should_log=False)
    state = SimpleNamespace(global_step=1)
    of = callback(scaler=Scaler(8.0, 8.0, 4.0, 4.0, 8.0))
    of.on_train_begin(None, None, None)
    skipped = []
    for _ in range(4):
        of.on_step_end(None, state, control)
        skipped.append(of.step_was_skipped)
    assert skipped == [False, True, False, False]
    of.trainer.accelerator = SimpleNamespace(scaler=None, optimizer_step_was_skipped=True)
    for _ in range(99):
        of.on_step_end(None, state, control)
    of.trainer.accelerator.optimizer_step_was_skipped = False
    of.on_step_end(None, state, control)  # not in a row
    of.trainer.accelerator.optimizer_step_was_skipped = True
    for _ in range(99):
        of.on_step_end(None, state, control)
    with diverged("the gradients of the last 100 steps up to 1 overflow"):
        of.on_step_end(None, state, control)


@pytest.mark.parametrize(
    ("metrics", "do_train", "name"),
    [
        ({"eval_loss": NAN}, True, "eval_loss"), ({"eval_own_loss": -math.inf}, True, "eval_own_loss"),
        ({"eval_loss": 1.0, "eval_score": NAN}, True, None), ({"eval_loss": NAN}, False, None), (None, True, None),
    ],
)  # fmt: skip
def test_losses_of_an_evaluation(metrics, do_train, name):
    of = callback(do_train=do_train, step=6)
    if name is None:
        of.refuse_evaluation(metrics)
    else:
        with diverged(f"{name} after step 6 is {metrics[name]}"):
            of.refuse_evaluation(metrics)


class Model(nn.Module):
    """Gives these outputs, and keeps the names of its inputs."""

    def __init__(self, outputs):
        super().__init__()
        self.weight, self.outputs, self.seen = nn.Parameter(torch.zeros(1)), outputs, []

    def forward(self, **inputs):
        self.seen.append(sorted(inputs))
        assert not torch.is_grad_enabled()
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return ModelOutput(**self.outputs)


INPUTS = {"pixel_values": 1, "pixel_mask": 2, "labels": 3, "class_labels": 4}
GOOD = {"logits": torch.zeros(2), "none": (torch.tensor(NAN),), "infinite": torch.tensor(math.inf)}


def test_a_failed_step_is_explained_by_what_is_not_finite():
    fault = ValueError("matrix contains invalid numeric entries")
    of = callback(Model(GOOD), step=2)
    of.explain(fault, INPUTS)  # nothing to say
    assert of.trainer.model.seen == [["pixel_mask", "pixel_values"]]
    for error in (ValueError("wrong"), RuntimeError("shapes")):
        callback(Model(error)).explain(fault, INPUTS)  # the model failed, not the loss
    of = callback(Model({**GOOD, "boxes": torch.tensor([0.0, NAN])}), step=2)
    with diverged("the predictions of step 3 are not numbers") as caught:
        of.explain(fault, INPUTS)
    assert caught.value.__cause__ is fault
    for sharded in ((True, False), (False, True)):
        of = callback(Model({"boxes": torch.tensor(NAN)}), sharded=sharded)
        of.explain(fault, INPUTS)  # the forward pass would need all processes
        assert not of.trainer.model.seen
    nn.init.constant_(of.trainer.model.weight, NAN)
    with diverged("the weights before step 1 are not finite numbers") as caught:
        of.explain(fault, INPUTS)
    assert caught.value.__cause__ is fault


def test_all_saved_tensors_of_numbers_count():
    model = nn.BatchNorm1d(2)
    model.register_buffer("unsaved", torch.tensor(NAN), persistent=False)
    assert weights_are_finite(model)
    for value in (NAN, math.inf, -math.inf):
        model.running_var.fill_(1.0)[0] = value
        assert not weights_are_finite(model)
        assert not weights_are_finite(model, everywhere=False)
    assert weights_are_finite(nn.Identity())
