# SPDX-License-Identifier: MIT
"""Training of a classifier with Trainer and datasets."""

import pytest
import torch
from datasets import Dataset
from support.golden_data import tiny_config
from support.tiny_models import OPTIONS
from transformers import Trainer, TrainingArguments

from hf_internimage import InternImageForImageClassification


def stripes(count=32):
    """Return pictures of two classes, horizontal and vertical stripes, which a few steps can learn."""
    generator = torch.Generator().manual_seed(0)
    labels = [index % 2 for index in range(count)]
    rows = []
    for label in labels:
        wave = torch.sin(torch.arange(32) * 0.8 + torch.rand((), generator=generator) * 6)
        picture = wave.expand(3, 32, 32) if label else wave[:, None].expand(3, 32, 32)
        rows.append((picture + 0.1 * torch.randn(3, 32, 32, generator=generator)).tolist())
    return Dataset.from_dict({"pixel_values": rows, "labels": labels}).with_format("torch")


def train(model, folder, **arguments):
    arguments = {"max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 5e-4, **arguments}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=1, **arguments
        ),
        train_dataset=stripes(),
        eval_dataset=stripes(),
    )
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.slow
def test_every_option_trains(options, tmp_path):
    model = InternImageForImageClassification(tiny_config(num_labels=2, drop_path_rate=0.05, **options))
    # The attention pooling of H and G overshoots at a rate that suits the others.
    rate = 1e-4 if model.config.use_clip_projector else 5e-4
    trainer = train(model, tmp_path, save_strategy="no", learning_rate=rate, max_steps=16)
    assert len(losses(trainer)) == 16
    with torch.no_grad():
        fresh = InternImageForImageClassification(model.config).eval()
        rows = stripes()[:]
        untrained = fresh(rows["pixel_values"], labels=rows["labels"]).loss.item()
    assert trainer.evaluate()["eval_loss"] < 0.9 * untrained


def test_accumulating_gradients_is_one_large_batch(tmp_path):
    """If `accepts_loss_kwargs` were wrong, Trainer would not divide by the accumulation steps."""

    def trained(**arguments):
        torch.manual_seed(0)
        model = InternImageForImageClassification(tiny_config(num_labels=2, norm_layer="LN"))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # whose statistics do depend on the batch
                module.eval()
                module.train = lambda mode=True: None
        train(model, tmp_path, max_steps=2, save_strategy="no", max_grad_norm=1e9, optim="sgd", **arguments)
        return model.state_dict()

    whole = trained(per_device_train_batch_size=8)
    parts = trained(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_resuming_gives_the_same_weights(tmp_path):
    def model():
        torch.manual_seed(0)
        return InternImageForImageClassification(tiny_config(num_labels=2, drop_path_rate=0.2))

    straight = train(model(), tmp_path / "straight", save_strategy="no")
    train(model(), tmp_path / "halted", save_steps=3, save_total_limit=3)
    resumed = Trainer(
        model=model(),
        args=TrainingArguments(
            output_dir=str(tmp_path / "halted"),
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            max_steps=8,
            per_device_train_batch_size=8,
            learning_rate=5e-4,
        ),
        train_dataset=stripes(),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "halted" / "checkpoint-3"))
    for name, tensor in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("arguments", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["bf16", "checkpointing"])
def test_training_arguments(arguments, tmp_path):
    model = InternImageForImageClassification(tiny_config(num_labels=2))
    trainer = train(model, tmp_path, save_strategy="no", **arguments)
    assert min(losses(trainer)[-2:]) < losses(trainer)[0]
