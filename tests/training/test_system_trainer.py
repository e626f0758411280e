# SPDX-License-Identifier: MIT
"""What the trainers hand on of their recipes: rates, schedules, averages, cards."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_internimage.training import batch_sizes, system_trainer
from hf_internimage.training import trainer as trainers
from hf_internimage.training.classification import trainer as classification
from hf_internimage.training.system_trainer import SystemRecipe, SystemTrainer, checkpoint_backbone
from hf_internimage.training.trainer import RecipeArguments, RecipeTrainer, check_checkpoint


def arguments(folder, **settings):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **settings)


class Noted:
    def __init__(self, monkeypatch, module, name):
        self.calls = []
        monkeypatch.setattr(module, name, self)

    def __call__(self, *given, **options):
        self.calls.append((given, options))
        return "result"


# ---- Rates ----


def test_rates_of_a_system_are_those_of_its_recipe(tmp_path, monkeypatch):
    noted = Noted(monkeypatch, system_trainer, "system_parameter_groups")
    recipe = SystemRecipe(layer_decay=0.9, backbone_lr_scale=0.1, sampling_lr_scale=0.01)
    of = SystemTrainer(model=nn.Linear(1, 1), args=arguments(tmp_path, weight_decay=0.05), recipe=recipe)
    assert of.parameter_groups("model", 0.5) == "result"
    options = {"layer_decay": 0.9, "backbone_scale": 0.1, "sampling_scale": 0.01}
    assert noted.calls == [(("model", 0.5, 0.05), options)]


def test_rates_of_a_classifier_are_those_of_its_recipe(tmp_path, monkeypatch):
    noted = Noted(monkeypatch, classification, "parameter_groups")
    recipe = classification.ClassificationRecipe(layer_decay=0.9, geometry_lr_scale=0.1)
    of = classification.ClassificationTrainer(
        model=nn.Linear(1, 1), args=arguments(tmp_path, weight_decay=0.05), recipe=recipe
    )
    assert of.parameter_groups("model", 0.5) == "result"
    assert noted.calls == [(("model", 0.5, 0.05), {"layer_decay": 0.9, "geometry_scale": 0.1})]


@pytest.mark.parametrize(
    ("kind", "power", "drops"),
    [("polynomial", 2.0, ()), ("constant_with_warmup", 0.0, [0.5]), ("linear", None, None), ("constant", None, None)],
)
def test_schedules_of_a_system(kind, power, drops, tmp_path, monkeypatch):
    noted = Noted(monkeypatch, system_trainer, "drop_schedule")
    recipe = SystemRecipe(polynomial_power=2.0, lr_drops=[0.5], warmup_start_ratio=0.25)
    settings = arguments(tmp_path, lr_scheduler_type=kind, warmup_steps=0.1)
    of = SystemTrainer(model=nn.Linear(1, 1), args=settings, recipe=recipe)
    result = of.recipe_schedule("optimizer", 50)
    if power is None:
        assert (result, noted.calls) == (None, [])
    else:
        options = {"steps": 50, "warmup_steps": 5, "warmup_start": 0.25, "power": power, "drops": drops}
        assert noted.calls == [(("optimizer",), options)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_start_ratio": -0.01}, "warmup_start_ratio is -0.01"), ({"warmup_start_ratio": 1.01}, "is 1.01"),
        ({"polynomial_power": -0.5}, "polynomial_power is -0.5"), ({"lr_drops": [0.5, 0]}, r"lr_drops is \[0.5, 0\]"),
        ({"lr_drops": [1.0]}, r"lr_drops is \[1.0\]"), ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)  # fmt: skip
def test_ends_of_the_recipe_of_a_system(values, message):
    for good in ({"warmup_start_ratio": 0}, {"warmup_start_ratio": 1}, {"polynomial_power": 0}, {"lr_drops": 0.5}):
        SystemRecipe(**good)
    with pytest.raises(ValueError, match=message):
        SystemRecipe(**values)


@pytest.mark.parametrize("processes", [1, 4])
def test_the_factor_of_the_rates_is_that_of_all_images_a_step(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", processes)
    settings = arguments(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    for given, expected in ((4, 4 * processes), (None, 1), (32, processes / 2)):
        recipe = SystemRecipe(learning_rate_batch_size=given)
        of = SystemTrainer(model=nn.Linear(1, 1), args=settings, recipe=recipe)
        assert of.learning_rate_factor == expected
    of.learning_rate_factor = 3.0
    monkeypatch.setattr(of, "parameter_groups", lambda model, rate: [{"params": model.parameters(), "lr": rate}])
    of.args.learning_rate, of.args.adam_beta1 = 0.5, 0.75
    optimizer = of.create_optimizer()
    assert optimizer.defaults["lr"] == optimizer.param_groups[0]["lr"] == 1.5
    assert optimizer.defaults["betas"][0] == 0.75
    assert of.create_optimizer() is optimizer


# ---- Batches ----


def test_evaluation_keeps_its_last_batch_and_the_training_drops_it(tmp_path, monkeypatch):
    seen = []

    def note(self, *given, **options):
        seen.append(self.args.dataloader_drop_last)
        if given == ("fail",):
            raise RuntimeError("in between")

    for name in ("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader"):
        monkeypatch.setattr(Trainer, name, note)
    settings = arguments(tmp_path, dataloader_drop_last=True)
    of = SystemTrainer(model=nn.Linear(1, 1), args=settings, recipe=SystemRecipe())
    of.get_train_dataloader()
    of.get_eval_dataloader()
    of.get_test_dataloader("rows")
    for name in ("get_eval_dataloader", "get_test_dataloader"):
        with pytest.raises(RuntimeError, match="in between"):
            getattr(of, name)("fail")
    assert seen == [True, False, False, False, False]
    assert of.args.dataloader_drop_last is True


def test_one_value_a_channel_has_its_advice_by_the_size_of_the_batch(tmp_path):
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, values):
            return {"loss": self.norm(values).mean()}

    for batch, images, advice in (
        (1, 3, "leave a batch of one image, .* set per_device_train_batch_size to 2 or more\\.$"),
        (2, 3, "set dataloader_drop_last to true, or per_device_train_batch_size to another number than 2\\.$"),
    ):
        rows = [{"values": torch.zeros(2)}] * images
        of = SystemTrainer(
            model=Maps(), args=arguments(tmp_path, per_device_train_batch_size=batch), recipe=SystemRecipe(),
            train_dataset=rows,
        )  # fmt: skip
        with pytest.raises(ValueError, match=f"^{images} training images in batches of {batch} .*{advice}"):
            batch_sizes.refuse_single_images(of)
        of.is_deepspeed_enabled = True  # which has a model of its own
        batch_sizes.refuse_single_images(of)


def test_only_norms_over_the_images_of_one_process_count():
    for norm, processes, counts in (
        (nn.BatchNorm2d(1), 1, True), (nn.BatchNorm2d(1), 2, True), (nn.SyncBatchNorm(1), 2, False),
        (nn.SyncBatchNorm(1), 1, True), (nn.GroupNorm(1, 1), 1, False), (nn.BatchNorm1d(1), 1, True),
    ):  # fmt: skip
        assert batch_sizes._normalises_batches(nn.Sequential(norm), processes) is counts


def test_several_gpus_in_one_process_are_refused(tmp_path):
    of = SystemTrainer(model=nn.Linear(1, 1), args=arguments(tmp_path), recipe=SystemRecipe())
    of.refuse_data_parallel()
    of.args._n_gpu = 2
    with pytest.raises(ValueError, match=r"One process sees 2 GPUs, .*torchrun --nproc-per-node 2, or set CUDA"):
        of.refuse_data_parallel()


# ---- Checkpoints ----


def test_a_checkpoint_in_parts_has_other_files(tmp_path):
    (tmp_path / "weights.txt").write_text("whatever")
    check_checkpoint(tmp_path, sharded=True)
    with pytest.raises(ValueError, match=r"optimizer\.pt is missing, so that the training cannot go on from there"):
        check_checkpoint(tmp_path, sharded=False)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.zeros(9)}, tmp_path / name)
    check_checkpoint(tmp_path, sharded=False)
    for name in ("rng_state.pth", "pytorch_model.bin", "model.safetensors"):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
        (tmp_path / name).write_bytes(b"damaged")
        for sharded in (True, False):
            with pytest.raises(ValueError, match=f"{name} is damaged: choose another checkpoint"):
                check_checkpoint(tmp_path, sharded=sharded)
        if before is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(before)


def test_averages_of_a_model_in_parts_are_refused(tmp_path, monkeypatch):
    gathers = SimpleNamespace(is_true=lambda name: name.endswith("stage3_gather_16bit_weights_on_model_save"))

    def start(self, *given, **options):
        self.args, self.model, self.is_deepspeed_enabled, self.callbacks = options["args"], options["model"], True, []
        self.accelerator = SimpleNamespace(
            state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=self.args.stage, hf_ds_config=gathers))
        )

    monkeypatch.setattr(Trainer, "__init__", start)
    monkeypatch.setattr(Trainer, "add_callback", lambda self, callback: self.callbacks.append(type(callback).__name__))

    def make(stage, decay):
        recipe = RecipeArguments(ema_decay=decay)
        return RecipeTrainer(model=nn.Linear(1, 1), args=SimpleNamespace(stage=stage), recipe=recipe)

    assert make(2, 0.5).callbacks == ["DivergenceCallback", "_LengthCallback", "_AverageCallback"]
    assert make(3, 0.0).callbacks == ["DivergenceCallback", "_LengthCallback"]
    with pytest.raises(ValueError, match="ema_decay does not work with DeepSpeed's ZeRO-3: use FSDP2, or ZeRO-2 at mo"):
        make(3, 0.5)


@pytest.mark.parametrize(("step", "end", "said"), [(0, 4, False), (3, 4, False), (4, 4, True), (0, 0, False)])
def test_the_length_of_a_training_that_goes_on(step, end, said, caplog):
    callback = trainers._LengthCallback()
    callback.on_train_begin(None, SimpleNamespace(global_step=step, max_steps=end), None)
    assert callback.first_step == step
    assert ("The training is finished, with 4 steps: nothing is trained" in caplog.text) is said
    with pytest.raises(ValueError, match="The checkpoint has 5 steps, and the training ends after 4: set num_train"):
        callback.on_train_begin(None, SimpleNamespace(global_step=5, max_steps=4), None)


@pytest.mark.parametrize(("epoch", "expected"), [(None, 0), (0.0, 0), (1.0, 1), (2.75, 2)])
def test_the_number_of_an_epoch(epoch, expected):
    shared = torch.tensor(9)
    trainers.EpochCallback(shared).on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
    assert int(shared) == expected


@pytest.mark.parametrize(("decay", "warmup", "steps", "warned"), [
    (0.9, False, 9, True), (0.9, False, 10, False), (0.9, True, 1, False), (0.999, False, 999, True),
])  # fmt: skip
def test_averages_that_reach_over_more_than_the_training(decay, warmup, steps, warned, caplog):
    average = SimpleNamespace(decay=decay, warmup=warmup)
    callback = trainers._AverageCallback(SimpleNamespace(start_average=lambda: average))
    callback.on_train_begin(None, SimpleNamespace(max_steps=steps), None)
    text = (
        f"The averages of ema_decay={decay} reach over {round(1 / (1 - decay)):,} steps, and the training has {steps}:"
    )
    assert (text in caplog.text) is warned


# ---- Gradient checkpointing and cards ----


@pytest.mark.parametrize(
    ("asked", "own", "switched"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_gradient_checkpointing_of_the_backbone(asked, own, switched, monkeypatch):
    noted = Noted(monkeypatch, system_trainer, "gradient_checkpointing")
    training = SimpleNamespace(gradient_checkpointing=asked)
    model = SimpleNamespace(supports_gradient_checkpointing=own)
    checkpoint_backbone(model, training)
    assert noted.calls == [((model,), {})] * switched
    assert training.gradient_checkpointing is (asked and not switched)


def test_trainers_own_card_is_for_folders_without_one(tmp_path, monkeypatch):
    noted = Noted(monkeypatch, Trainer, "create_model_card")
    of = SystemTrainer(model=nn.Linear(1, 1), args=arguments(tmp_path), recipe=SystemRecipe())
    of.create_model_card(tags="a")
    assert noted.calls == [((), {"tags": "a"})]
    Path(tmp_path, "README.md").write_text("ours")
    of.create_model_card()
    assert len(noted.calls) == 1
