# SPDX-License-Identifier: MIT
"""RecipeTrainer in one process: averaged weights, loss, learning rates, checkpoints."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.golden_data import tiny_config
from torch.utils.data import Dataset
from transformers import ConvNextConfig, ConvNextForImageClassification, TrainerCallback, TrainingArguments

from hf_internimage import InternImageForImageClassification
from hf_internimage.training import divergence
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.ema import FILE_NAME, WeightAverage
from hf_internimage.training.system_trainer import SystemRecipe, SystemTrainer
from hf_internimage.training.trainer import EpochCallback, accumulation_steps, last_complete_checkpoint


class Noise(Dataset):
    def __init__(self, count=16, multi_label=False):
        self.count, self.multi_label = count, multi_label

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        label = index % 3
        return {
            "pixel_values": torch.randn(3, 32, 32, generator=generator) + 0.5 * label,
            "labels": F.one_hot(torch.tensor(label), 3).float() if self.multi_label else label,
        }


def model(**kwargs):
    torch.manual_seed(0)
    return InternImageForImageClassification(tiny_config(num_labels=3, **kwargs))


def trainer(folder, recipe=None, network=None, data=None, class_weights=None, callbacks=(), **arguments):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, **arguments}
    return ClassificationTrainer(
        model=network or model(),
        args=TrainingArguments(
            output_dir=str(folder),
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            logging_steps=1,
            **{"save_strategy": "no", "lr_scheduler_type": "cosine", **arguments},
        ),
        recipe=recipe or ClassificationRecipe(),
        train_dataset=data or Noise(),
        eval_dataset=data or Noise(),
        class_weights=class_weights,
        callbacks=list(callbacks),
        compute_metrics=lambda prediction: {
            "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        },
    )


class Record(TrainerCallback):
    """Keep a copy of the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights.append(copies(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(copies(model))


def copies(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


# ---- Averaged weights ----


def test_average_after_n_steps():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(network, 0.9)
    expected = {name: tensor.double() for name, tensor in copies(network).items()}
    for step in range(5):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * (step + 1))
        average.update(step + 1)
        expected = {name: 0.9 * old + 0.1 * network.state_dict()[name] for name, old in expected.items()}
    assert average.averages.keys() == expected.keys()
    assert "1.running_mean" in expected
    for name, tensor in expected.items():
        torch.testing.assert_close(average.averages[name].double(), tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_average_of_halves_is_kept_in_float32():
    network = torch.nn.Linear(1, 1, bias=False).bfloat16()
    network.weight.data.fill_(1.0)
    average = WeightAverage(network, 0.999)
    network.weight.data.fill_(2.0)
    for step in range(10):
        average.update(step + 1)
    assert average.averages["weight"].item() == pytest.approx(2 - 0.999**10, rel=1e-5)
    with average.applied():
        assert network.weight.dtype == torch.bfloat16
    assert network.weight.item() == 2


def test_warm_up_forgets_the_first_weights():
    """The small recipe's average (0.998) after 96 steps: without a warm-up it is mostly the first weights."""
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    averages = {warmup: WeightAverage(network, 0.998, warmup=warmup) for warmup in (True, False)}
    network.weight.data.zero_()  # what remains is the share of the first weights
    shares = {True: 1.0, False: 1.0}
    for step in range(1, 97):
        for warmup, average in averages.items():
            average.update(step)
            shares[warmup] *= min(0.998, (1 + step) / (10 + step)) if warmup else 0.998
    for warmup, average in averages.items():
        assert average.averages["weight"].item() == pytest.approx(shares[warmup], rel=1e-4)
    assert shares[True] < 1e-6
    assert shares[False] > 0.8
    average = averages[True]
    network.weight.data.fill_(1.0)
    before = average.averages["weight"].item()
    average.update(100_000)  # past the warm-up
    assert average.averages["weight"].item() == pytest.approx(0.998 * before + 0.002)


def test_warm_up_counts_the_steps_of_the_whole_training(tmp_path):
    recipe = ClassificationRecipe(ema_decay=0.9)
    arguments = {"save_strategy": "steps", "save_steps": 2}
    record = Record()
    straight = trainer(tmp_path / "straight", recipe, callbacks=[record], **arguments)
    straight.train()
    expected = record.weights[0]
    for step, weights in enumerate(record.weights[1:], 1):
        decay = (1 + step) / (10 + step)  # all below 0.9
        expected = {name: decay * old + (1 - decay) * weights[name] for name, old in expected.items()}
    for name, tensor in copies(straight.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    resumed = trainer(tmp_path / "other", recipe, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    for name, tensor in copies(straight.model).items():
        assert torch.equal(copies(resumed.model)[name], tensor), name


def test_averages_longer_than_the_training_are_warned_of(tmp_path, caplog):
    logger = logging.getLogger("hf_internimage.training.trainer")
    for recipe in (ClassificationRecipe(ema_decay=0.99, ema_warmup=False), ClassificationRecipe(ema_decay=0.99)):
        caplog.clear()
        with caplog.at_level("WARNING", logger.name):
            logger.addHandler(caplog.handler)
            trainer(tmp_path, recipe, max_steps=1).train()
            logger.removeHandler(caplog.handler)
        warned = "reach over 100 steps, and the training has 1:" in caplog.text
        assert warned is not recipe.ema_warmup


def test_a_skipped_step_does_not_move_the_averages(tmp_path):
    """As for fp16 on a GPU, where the scale of the loss grows until gradients overflow and a step is left out."""
    steps = []

    class KeepAverages(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            averages = {name: tensor.clone() for name, tensor in run.average.averages.items()}
            steps.append((run.divergence.step_was_skipped, averages))

    run = trainer(tmp_path, ClassificationRecipe(ema_decay=0.5), max_grad_norm=0)  # clipping comes before the scale
    run.add_callback(KeepAverages())  # after the callback that updates them
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_factor=2.0**127, growth_interval=1)
    run.train()
    assert [skipped for skipped, _ in steps[:2]] == [False, True]
    first, second = steps[0][1], steps[1][1]
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert torch.equal(run.model.state_dict()["head.weight"], steps[-1][1]["head.weight"])


def test_own_weights_come_back_after_an_error():
    network = torch.nn.Linear(2, 2)
    average = WeightAverage(network, 0.5)
    network.weight.data += 1
    own = network.weight.clone()

    def fail():
        with average.applied():
            assert not torch.equal(network.weight, own)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert torch.equal(network.weight, own)


def test_average_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"ema_decay is 1\.0"):
        WeightAverage(torch.nn.Linear(1, 1), 1.0)
    average = WeightAverage(torch.nn.Linear(1, 1), 0.9)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} has no {FILE_NAME}: train it on without ema_decay"):
        average.load(tmp_path)
    WeightAverage(torch.nn.Linear(1, 1, bias=False), 0.9).save(tmp_path, main=True)
    with pytest.raises(ValueError, match=r"another model: it differs in \['bias'\]"):
        average.load(tmp_path)


def test_training_averages_evaluates_and_ends_with_the_average(tmp_path):
    record = Record()
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    recipe = ClassificationRecipe(ema_decay=0.8, ema_warmup=False)
    run = trainer(tmp_path, recipe, callbacks=[record], **steps)
    run.train()
    expected = record.weights[0]
    for weights in record.weights[1:]:
        expected = {name: 0.8 * old + 0.2 * weights[name] for name, old in expected.items()}
        if weights is record.weights[3]:
            third = expected
    for name, tensor in copies(run.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    # the evaluation after step 3 used the average after step 3
    network = model()
    network.load_state_dict(third, strict=False)
    loss = next(entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry)
    assert trainer(tmp_path / "other", network=network).evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    # a checkpoint holds the weights and the averages
    raw = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert torch.equal(raw["head.weight"], record.weights[4]["head.weight"])
    saved = load_file(tmp_path / "checkpoint-4" / FILE_NAME)
    torch.testing.assert_close(saved["head.weight"], expected["head.weight"])


def test_best_model_is_the_best_average(tmp_path):
    run = trainer(
        tmp_path,
        ClassificationRecipe(ema_decay=0.5),
        learning_rate=0.3,  # so high that the loss rises
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        max_steps=5,
    )
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert losses[-1] > min(losses)
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.slow
def test_resuming_continues_the_average(tmp_path):
    recipe = ClassificationRecipe(ema_decay=0.7, mixup_alpha=0.8, cutmix_alpha=1.0)
    arguments = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "label_smoothing_factor": 0.1}
    straight = trainer(tmp_path / "straight", recipe, model(drop_path_rate=0.2), **arguments)
    straight.train()
    resumed = trainer(tmp_path / "other", recipe, model(drop_path_rate=0.2), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    for name, tensor in copies(straight.model).items():
        assert torch.equal(copies(resumed.model)[name], tensor), name
    without = trainer(tmp_path / "plain", save_strategy="steps", save_steps=2)
    without.train()
    with pytest.raises(FileNotFoundError, match=FILE_NAME):
        trainer(tmp_path / "third", recipe).train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))


# ---- Loss ----


def batch(multi_label=False):
    rows = [Noise(multi_label=multi_label)[index] for index in range(8)]
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "labels": torch.stack([torch.as_tensor(row["labels"]) for row in rows])}


def test_loss_with_smoothing_and_class_weights(tmp_path):
    weights = torch.tensor([0.5, 1.0, 1.5])
    run = trainer(tmp_path, class_weights=weights, label_smoothing_factor=0.1)
    inputs = batch()
    loss, outputs = run.compute_loss(run.model.train(), inputs, return_outputs=True)
    expected = F.cross_entropy(outputs.logits, inputs["labels"], weight=weights, label_smoothing=0.1)
    assert torch.equal(loss, expected)
    loss, outputs = run.compute_loss(run.model.eval(), inputs, return_outputs=True)
    torch.testing.assert_close(loss, F.cross_entropy(outputs.logits, inputs["labels"]))  # as the original evaluates


def test_loss_of_mixed_images_is_that_of_both_labels(tmp_path):
    run = trainer(tmp_path, ClassificationRecipe(mixup_alpha=0.8), label_smoothing_factor=0.1)
    inputs, labels = batch(), batch()["labels"]
    torch.manual_seed(4)
    loss, outputs = run.compute_loss(run.model.train(), inputs, return_outputs=True)
    torch.manual_seed(4)
    torch.rand(())
    share = torch.distributions.Beta(*[torch.tensor(0.8, dtype=torch.float64)] * 2).sample().item()
    parts = [F.cross_entropy(outputs.logits, target, label_smoothing=0.1) for target in (labels, labels.flip(0))]
    torch.testing.assert_close(loss, share * parts[0] + (1 - share) * parts[1])


def test_loss_of_several_labels(tmp_path):
    network = model(problem_type="multi_label_classification")
    run = trainer(tmp_path, network=network, data=Noise(multi_label=True), class_weights=torch.tensor([1.0, 2.0, 3.0]))
    inputs = batch(multi_label=True)
    loss, outputs = run.compute_loss(run.model.train(), inputs, return_outputs=True)
    expected = F.binary_cross_entropy_with_logits(
        outputs.logits, inputs["labels"], weight=torch.tensor([1.0, 2.0, 3.0])
    )
    assert torch.equal(loss, expected)
    with pytest.warns(UserWarning, match="not compatible with multi-label"):
        smoothed = trainer(tmp_path, network=network, data=Noise(multi_label=True), label_smoothing_factor=0.1)
    unweighted = F.binary_cross_entropy_with_logits(outputs.logits, inputs["labels"])
    torch.testing.assert_close(smoothed.compute_loss(network.train(), inputs), unweighted)


# ---- Learning rates ----


def test_rates_scale_with_the_batch_and_follow_the_cosine(tmp_path):
    recipe = ClassificationRecipe(
        learning_rate_batch_size=4, warmup_learning_rate=1e-5, minimum_learning_rate=1e-6, layer_decay=0.5
    )
    run = trainer(tmp_path, recipe, warmup_steps=2, weight_decay=0.05, gradient_accumulation_steps=2)
    assert run.learning_rate_factor == 4  # 8 images, 2 batches accumulated; rates are given for 4
    run.train()
    logged = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    cosine = 4e-6 + (4e-3 - 4e-6) * (1 + np.cos(np.pi * np.array([2, 3]) / 4)) / 2
    np.testing.assert_allclose(logged, [4e-5, (4e-5 + 4e-3) / 2, *cosine], rtol=1e-6)
    rates = {group["initial_lr"] for group in run.optimizer.param_groups}
    assert rates == {4e-3 * 0.5**layer for layer in range(sum(run.model.config.depths))}


def test_other_schedules_and_models(tmp_path):
    run = trainer(tmp_path, lr_scheduler_type="constant")
    run.train()
    assert {entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry} == {1e-3}
    torch.manual_seed(0)
    other = ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    )
    run = trainer(tmp_path, ClassificationRecipe(ema_decay=0.5, mixup_alpha=0.2), other)
    run.train()
    assert np.isfinite(run.evaluate()["eval_loss"])
    with pytest.raises(ValueError, match="ConvNextForImageClassification leave both at 1"):
        trainer(tmp_path, ClassificationRecipe(layer_decay=0.9), other).train()


class Mean(torch.nn.Module):
    """A model whose forward takes any keyword, so that Trainer expects it to divide its loss by the number of items."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, pixel_values, labels=None, **kwargs):
        logits = self.linear(pixel_values.mean((2, 3)))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_accumulated_batches_give_the_mean_gradient(tmp_path):
    def first_step(batch_size, steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            lr_scheduler_type="polynomial",
            max_grad_norm=1e9,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
        )
        run = SystemTrainer(model=Mean(), args=arguments, recipe=SystemRecipe(), train_dataset=Noise(8))
        run.train()
        return next(entry for entry in run.state.log_history if "grad_norm" in entry)

    whole, halves = first_step(8, 1), first_step(4, 2)
    assert halves["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert halves["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_accumulation():
    assert accumulation_steps(4096, 128, 8) == 4
    assert accumulation_steps(512, 16, 32) == 1
    assert accumulation_steps(6, 2, 1) == 3


def test_accumulation_refuses():
    with pytest.raises(ValueError, match="total_train_batch_size=100 is no multiple of 16 images on each of 2 devices"):
        accumulation_steps(100, 16, 2)


@pytest.mark.parametrize("wrong", [{"ema_decay": 1.0}, {"total_train_batch_size": 0}, {"learning_rate_batch_size": -1}])
def test_recipe_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        ClassificationRecipe(**wrong)


# ---- Diverged trainings ----


class Failing(Mean):
    """A model whose loss or gradient is not finite from one of its forward passes on, or in some of them only."""

    def __init__(self, at, loss=None, gradient=None, every=1):
        super().__init__()
        self.at, self.loss, self.gradient, self.every, self.count = at, loss, gradient, every, 0

    def forward(self, pixel_values, labels=None, **kwargs):
        outputs = super().forward(pixel_values, labels)
        self.count += self.training
        if self.training and self.count >= self.at and (self.count - self.at) % self.every == 0:
            if self.loss is not None:
                outputs["loss"] = outputs["loss"] * self.loss
            if self.gradient is not None and outputs["loss"].requires_grad:
                outputs["loss"].register_hook(lambda gradient: gradient * self.gradient)
        return outputs


@pytest.mark.parametrize(
    ("failing", "settings", "message"),
    [
        (Failing(3, loss=float("nan")), {}, "the loss of step 3 is not a finite number"),
        (Failing(3, loss=float("inf")), {}, "the loss of step 3 is not a finite number"),
        (Failing(3, loss=float("nan")), {"save_strategy": "steps", "save_steps": 4}, "the loss of step 3 is not"),
        (Failing(3, loss=float("nan")), {"logging_steps": 100}, "the loss of step 3 is not a finite number"),
        (Failing(2, gradient=float("nan")), {}, r"the gradient of step 2 is not finite \(its norm is nan\)"),
        (Failing(2, gradient=float("inf")), {}, "the gradient of step 2 is not finite"),
        (Failing(4, gradient=float("nan")), {"logging_steps": 100}, "the weights after step 4 are not finite numbers"),
        (
            Failing(2, gradient=float("nan")),
            {"logging_steps": 100, "save_strategy": "steps", "save_steps": 2},
            "the weights after step 2 are not finite numbers",
        ),
    ],
)
def test_a_diverged_training_stops(failing, settings, message, tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=4, per_device_train_batch_size=2, disable_tqdm=True,
        **{"report_to": "none", "save_strategy": "no", "logging_steps": 1, **settings},
    )  # fmt: skip
    run = SystemTrainer(model=failing, args=arguments, recipe=SystemRecipe(ema_decay=0.5), train_dataset=Noise())
    with pytest.raises(FloatingPointError, match=f"The training has diverged: {message}.*lower learning_rate"):
        run.train_and_save(None)
    assert not list(tmp_path.iterdir())


def test_steps_that_the_scaler_leaves_out_are_no_divergence_until_there_are_too_many(tmp_path, monkeypatch):
    def scaled(failing, steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, max_steps=steps, per_device_train_batch_size=2, report_to="none",
            save_strategy="no", logging_steps=1, disable_tqdm=True, lr_scheduler_type="constant",
        )  # fmt: skip
        run = SystemTrainer(model=failing, args=arguments, recipe=SystemRecipe(), train_dataset=Noise())
        run.accelerator.scaler = torch.amp.GradScaler("cpu")
        return run

    run = scaled(Failing(3, gradient=float("inf")), 20)
    run.train()
    assert run.divergence.step_was_skipped
    assert torch.isfinite(run.model.linear.weight).all()
    with pytest.raises(FloatingPointError, match="the gradients of the last 100 steps up to 102 overflow"):
        scaled(Failing(3, gradient=float("inf")), 200).train()
    # Only those in a row count, however many there are in a long training.
    monkeypatch.setattr(divergence, "_MOST_SKIPPED_STEPS", 3)
    run = scaled(Failing(1, gradient=float("inf"), every=2), 12)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    run.train()
    assert run.state.global_step == 12
    run.model.every = 1
    with pytest.raises(FloatingPointError, match="the gradients of the last 3 steps up to 3 overflow"):
        run.train()


@pytest.mark.parametrize("way", ["evaluate", "predict"])
@pytest.mark.parametrize("trained", [True, False])
def test_an_evaluation_whose_loss_is_no_number_is_divergence_too(trained, way, tmp_path):
    """Weights of 1e30 are finite, and what they compute is not."""
    run = trainer(tmp_path, do_train=trained)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.fill_(1e30)
    data = run.eval_dataset
    if trained:
        with pytest.raises(FloatingPointError, match=r"The training has diverged: [a-z]+_loss after step 0 is nan"):
            getattr(run, way)(data)
    else:
        getattr(run, way)(data)


def test_json_holds_no_nan(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    class NoScore(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            state.log_history.append({"eval_score": float("nan"), "step": state.global_step})

    run = trainer(
        tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, callbacks=[NoScore()]
    )
    run.train_and_save(None)
    run.save_metrics("eval", {"eval_loss": float("inf"), "eval_accuracy": 0.5})
    assert json.loads((tmp_path / "eval_results.json").read_text()) == {"eval_loss": None, "eval_accuracy": 0.5}
    files = [*tmp_path.glob("*.json"), *tmp_path.glob("checkpoint-*/*.json")]
    assert {"trainer_state.json", "all_results.json"} <= {file.name for file in files}
    for file in files:
        json.loads(file.read_text(), parse_constant=refuse)


# ---- Checkpoints and epochs ----


def test_unfinished_checkpoints_are_ignored(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    run = trainer(tmp_path, save_strategy="steps", save_steps=1)
    run.train()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    whole = state.read_text()
    state.write_text(whole[: len(whole) // 2])
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    state.write_text(whole)
    (tmp_path / "checkpoint-4" / "processes.json").write_text("2\n")  # the second process's file is missing
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    """Not of their names: 9 comes before 10 and 100. Folders with other names are none."""
    trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    for step in (2, 9, 10, 99, 100):
        shutil.copytree(tmp_path / "checkpoint-1", tmp_path / f"checkpoint-{step}")
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-best")
    for step in (100, 99, 10, 9, 2, 1):
        assert last_complete_checkpoint(tmp_path) == tmp_path / f"checkpoint-{step}"
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert last_complete_checkpoint(tmp_path) is None


def test_an_older_model_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    trainer(tmp_path, max_steps=1).train_and_save(None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = trainer(tmp_path, max_steps=2)

    def fail(folder):
        (Path(folder) / "config.json").write_text("{}")
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(again, "save_full_model", fail)
    with pytest.raises(OSError, match="disk full"):
        again.train_and_save(None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    trainer(tmp_path, max_steps=2).train_and_save(None)
    assert (tmp_path / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} == before.keys()


def test_a_checkpoint_written_over_an_older_one_is_incomplete_until_its_end(tmp_path, monkeypatch):
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    again = trainer(tmp_path, save_strategy="steps", save_steps=2)

    def fail(output_dir):
        raise OSError("disk full")

    monkeypatch.setattr(again, "_save_rng_state", fail)
    with pytest.raises(OSError, match="disk full"):
        again.train()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-2" / "trainer_state.json").exists()


def test_epochs_are_set_after_resuming_too(tmp_path):
    class Reading(Noise):
        def __init__(self, epoch):
            super().__init__()
            self.epoch, self.seen = epoch, []

        def __getitem__(self, index):
            self.seen.append(int(self.epoch))
            return super().__getitem__(index)

    def train(folder, **kwargs):
        epoch = torch.zeros((), dtype=torch.int64)
        data = Reading(epoch)
        run = trainer(
            folder, data=data, callbacks=[EpochCallback(epoch)], max_steps=6, save_strategy="steps", save_steps=3
        )
        run.train(**kwargs)
        return data.seen

    assert train(tmp_path) == [0] * 16 + [1] * 16 + [2] * 16
    # two steps an epoch: checkpoint 3 lies in the second
    assert train(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "checkpoint-3")) == [1] * 8 + [2] * 16


def test_averages_of_a_channels_last_model_are_saved(tmp_path):
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    average = WeightAverage(network, 0.9)
    average.save(tmp_path, main=True)
    assert torch.equal(load_file(tmp_path / FILE_NAME)["weight"], network.weight)
