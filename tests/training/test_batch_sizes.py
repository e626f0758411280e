# SPDX-License-Identifier: MIT
"""Batches of one image: which there will be, what is refused before a training, and that evaluation drops nothing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from PIL import Image
from support.detection_scenes import coco
from support.segmentation_scenes import write, write_all
from support.training_scripts import as_arguments
from torch import nn
from torch.utils.data import BatchSampler
from transformers import TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from hf_internimage.training.batch_sizes import explain_batch_norm, refuse_single_images, smallest_batch
from hf_internimage.training.classification import main as classification
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.detection import main as detection
from hf_internimage.training.segmentation import main as segmentation

SMALL = '{"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'
RT_DETR = {
    "encoder_hidden_dim": 32, "encoder_in_channels": [32, 64, 128], "d_model": 32, "decoder_layers": 1,
    "encoder_layers": 1, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_queries": 8,
    "decoder_ffn_dim": 32, "encoder_ffn_dim": 32, "decoder_in_channels": [32, 32, 32], "num_denoising": 4,
}  # fmt: skip
COMMON = {
    "use_cpu": True, "disable_tqdm": True, "report_to": "none", "num_train_epochs": 1, "config_overrides": SMALL,
}  # fmt: skip


def training(batch=8, processes=1, gpus=1, drop_last=False, even_batches=True, max_steps=-1, accumulation=1):
    return SimpleNamespace(
        train_batch_size=batch,
        world_size=processes,
        n_gpu=gpus,
        dataloader_drop_last=drop_last,
        max_steps=max_steps,
        gradient_accumulation_steps=accumulation,
        accelerator_config=SimpleNamespace(even_batches=even_batches),
    )


@pytest.mark.parametrize(
    ("images", "settings", "expected"),
    [
        (17, {}, 1),
        (18, {}, 2),
        (16, {}, 8),
        (1, {}, 1),
        (17, {"drop_last": True}, 8),
        (17, {"batch": 1}, 1),
        (17, {"processes": 2}, 8),  # filled up with images from the beginning
        (17, {"processes": 2, "even_batches": False}, 1),
        (17, {"gpus": 2}, 1),
        (23, {"gpus": 2}, 3),  # seven images: four and three
        (20, {"gpus": 3}, 2),
        (25, {"gpus": 4, "batch": 16}, 3),
        (21, {"gpus": 4, "batch": 16}, 1),
        (16, {"gpus": 8}, 1),
        (17, {"max_steps": 2}, 8),  # the training ends before the last batch
        (17, {"max_steps": 3}, 1),
        (17, {"max_steps": 1, "accumulation": 2}, 8),
        (17, {"max_steps": 2, "accumulation": 2}, 1),
    ],
    ids=str,
)
def test_smallest_batch(images, settings, expected):
    assert smallest_batch(images, training(**settings)) == expected


@pytest.mark.parametrize(("images", "processes"), [(7, 1), (15, 2)])
def test_nothing_left_to_train_on(images, processes):
    with pytest.raises(ValueError, match=rf"{images} training images for batches of {8 * processes}, .*drop_last"):
        smallest_batch(images, training(processes=processes, drop_last=True))
    assert smallest_batch(8 * processes, training(processes=processes, drop_last=True)) == 8


@pytest.mark.parametrize("batch", [1, 3])
def test_smallest_batch_is_that_of_the_loader(batch, tmp_path):
    for images in range(1, 8):
        trainer = tiny_trainer(tmp_path, Normalised(), images, per_device_train_batch_size=batch)
        sizes = [len(part["labels"]) for part in trainer.get_train_dataloader()]
        assert smallest_batch(images, trainer.args) == min(sizes)


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("processes", [2, 3])
def test_smallest_batch_is_accelerates(processes, even_batches):
    for images in range(1, 30):
        sizes = [
            len(batch)
            for rank in range(processes)
            for batch in BatchSamplerShard(
                BatchSampler(range(images), 4, drop_last=False), processes, rank, even_batches=even_batches
            )
        ]
        settings = training(4, processes, even_batches=even_batches)
        assert smallest_batch(images, settings) == min(sizes), images


class Normalised(nn.Module):
    """A classifier with batch norm after pooling, and with dropout, whose random numbers have to stay."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, problem_type=None)
        self.norm, self.drop, self.head = norm(3), nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.drop(self.norm(pixel_values.mean((2, 3)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def examples(count):
    pixels = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [row % 2 for row in range(count)]})


def tiny_trainer(folder, model, images, **settings):
    arguments = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False, "save_strategy": "no"}
    return ClassificationTrainer(
        model=model,
        args=TrainingArguments(str(folder), **{**arguments, "disable_tqdm": True, "num_train_epochs": 1, **settings}),
        train_dataset=examples(images).with_format("torch"),
        eval_dataset=examples(7).with_format("torch"),
        recipe=ClassificationRecipe(),
        compute_metrics=lambda prediction: {"count": len(prediction.label_ids)},
    )


def test_a_single_image_is_refused_without_a_trace(tmp_path):
    model = Normalised().eval()
    trainer = tiny_trainer(tmp_path, model, 9, per_device_train_batch_size=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError, match=r"^9 training images in batches of 4 .*dataloader_drop_last to true, or .* 4\.$"
    ):
        refuse_single_images(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, nn.Identity])
def test_what_can_train_is_left_alone(norm, tmp_path):
    """Another number of images, another model, batches that are dropped, steps that end before."""
    model = Normalised(norm if norm is not nn.Identity else lambda channels: nn.Identity())
    for images, settings in (
        (8, {}),
        (10, {}),
        (9, {"dataloader_drop_last": True}),
        (9, {"max_steps": 2}),
        *([] if norm is nn.BatchNorm1d else [(9, {})]),
    ):
        trainer = tiny_trainer(tmp_path, model, images, per_device_train_batch_size=4, **settings)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        refuse_single_images(trainer)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        trainer.train()


def test_statistics_stay_if_the_image_is_large_enough(tmp_path):
    """A batch norm of maps takes one image; the try leaves no statistics of it."""

    class Maps(Normalised):
        def __init__(self):
            super().__init__(nn.Identity)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, pixel_values, labels=None):
            return ImageClassifierOutput(logits=self.head(self.drop(self.norm(pixel_values).mean((2, 3)))))

    model = Maps()
    trainer = tiny_trainer(tmp_path, model, 9, per_device_train_batch_size=4)
    state = torch.get_rng_state()
    refuse_single_images(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_a_batch_norm_in_the_training_is_explained(tmp_path):
    """As with streams, whose examples are not looked at before."""
    trainer = tiny_trainer(tmp_path, Normalised(), 9, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match=r"one value a channel.*set per_device_train_batch_size to 2 or more"):
        trainer.train()
    with pytest.raises(ValueError, match="another fault"), explain_batch_norm():
        raise ValueError("another fault")


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_evaluation_counts_every_image(batch, tmp_path):
    settings = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": batch, "dataloader_drop_last": True}
    trainer = tiny_trainer(tmp_path, Normalised(), 9, **settings)
    assert trainer.evaluate()["eval_count"] == 7
    assert trainer.predict(trainer.eval_dataset).metrics["test_count"] == 7
    assert len(list(trainer.get_train_dataloader())) == 2  # of the training, it is dropped
    assert trainer.args.dataloader_drop_last


# ---- All tasks ----


def refusal(script, arguments, output, capsys):
    assert script.main(as_arguments({**COMMON, "output_dir": output, **arguments})) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert not list(output.glob("*.safetensors"))
    return error


def write_classes(folder, counts, side=32):
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_classification_refuses(tmp_path, capsys):
    arguments = {
        "train_dir": write_classes(tmp_path / "train", {"a": 3, "b": 2}),
        "validation_dir": write_classes(tmp_path / "validation", {"a": 2, "b": 1}),
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "image_size": 32,
    }  # fmt: skip
    error = refusal(classification, arguments, tmp_path / "out", capsys)
    assert error.startswith("error: 5 training images in batches of 4 leave a batch of one image")
    # The advice helps, and the evaluation counts all of its images.
    advised = {**COMMON, "output_dir": tmp_path / "out", **arguments, "dataloader_drop_last": True}
    assert classification.main(as_arguments(advised)) == 0
    assert json.loads((tmp_path / "out" / "eval_evaluation.json").read_text())["samples"] == 3
    assert len((tmp_path / "out" / "eval_predictions.csv").read_text().splitlines()) == 4


def test_a_stream_of_single_images_is_explained(tmp_path, capsys):
    """Its length is unknown, and nothing of it is read before the training."""
    arguments = {
        "train_dir": write_classes(tmp_path / "train", {"a": 3, "b": 2}),
        "validation_dir": write_classes(tmp_path / "validation", {"a": 2, "b": 1}),
        "per_device_train_batch_size": 1, "image_size": 32, "streaming": True, "max_steps": 2,
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": None,
    }  # fmt: skip
    error = refusal(classification, arguments, tmp_path / "out", capsys)
    assert error.startswith("error: A batch norm of this model got one value a channel, from a batch of one image")
    assert "set per_device_train_batch_size to 2 or more" in error


def test_segmentation_refuses(tmp_path, capsys):
    scenes = write_all(tmp_path)
    write(tmp_path / "nine", 9, height=40, width=48)
    arguments = {
        "train_dir": tmp_path / "nine", "validation_dir": scenes / "validation", "shortest_edge": 32, "crop_size": 32,
        "label_names_file": scenes / "names.txt", "head_overrides": '{"hidden_size": 32, "auxiliary_channels": 16}',
        "color_distortion": False,
    }  # fmt: skip
    unkept = {"per_device_train_batch_size": 4, "dataloader_drop_last": False}
    error = refusal(segmentation, {**arguments, **unkept}, tmp_path / "out", capsys)
    assert error.startswith("error: 9 training images in batches of 4 leave a batch of one image")
    error = refusal(segmentation, {**arguments, "per_device_train_batch_size": 1}, tmp_path / "out", capsys)
    assert error.endswith("set per_device_train_batch_size to 2 or more.")


def test_detection_refuses(tmp_path, capsys):
    coco(tmp_path / "train", 5)
    coco(tmp_path / "validation", 2)
    arguments = {
        "train_dir": tmp_path / "train", "validation_dir": tmp_path / "validation", "head": "rt_detr",
        "head_overrides": json.dumps(RT_DETR), "shortest_edge": 32, "per_device_train_batch_size": 4,
    }  # fmt: skip
    error = refusal(detection, arguments, tmp_path / "out", capsys)
    assert error.startswith("error: 5 training images in batches of 4 leave a batch of one image")
