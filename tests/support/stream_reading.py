# SPDX-License-Identifier: MIT
"""Short trainings on streams, run by training/classification/test_data.py: `torchrun stream_reading.py SETTINGS.json`.

Each process writes what its trainer was given, and which shards its workers opened.
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import config
from torch import nn
from transformers import PreTrainedConfig, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from hf_internimage.training.classification.data import ClassificationDataArguments, load_data
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.streams import TrainingStream

torch.set_num_threads(1)
config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # after each pass over Parquet files
MAIN = os.getpid()
opened: list[Path] = []  # where to note it, while there is such a file


def note_shards(event: str, arguments: tuple) -> None:
    if event == "open" and opened and str(arguments[0]).endswith((".tar", ".parquet")) and os.getpid() != MAIN:
        with open(opened[0], "a") as file:
            file.write(f"{os.getpid()} {Path(arguments[0]).name}\n")


class Recorder(nn.Module):
    """A model that keeps its inputs: pairs of an image's key and the number of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig(num_labels=10)
        self.weight = nn.Parameter(torch.zeros(10))
        self.seen: list[list[int]] = []

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        self.seen += pixel_values.tolist()
        return ImageClassifierOutput(logits=self.weight.expand(len(pixel_values), 10))


def key_as_pixels(image: object, key: list[int]) -> torch.Tensor:
    return torch.tensor(key)


def read(case: dict, output: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=case.get("accumulation", 1),
        max_steps=case["steps"],
        dataloader_num_workers=case["workers"],
        seed=case.get("seed", 0),
    )
    data = load_data(
        ClassificationDataArguments(
            train_dir=case["folder"],
            streaming=True,
            num_classes=10,
            train_val_split=0,
            data_cache_dir=str(output / "cache"),
            shuffle_buffer=8,
        )
    )
    rank, world = arguments.process_index, arguments.world_size
    model = Recorder()
    stream = TrainingStream(data.train, data.training_transform(key_as_pixels), arguments.seed, 8, rank, world)
    trainer = ClassificationTrainer(model=model, args=arguments, train_dataset=stream, recipe=ClassificationRecipe())
    opened[:] = [output / f"opened-{rank}.txt"]
    opened[0].touch()
    trainer.train()
    opened.clear()
    (output / f"seen-{rank}.json").write_text(json.dumps(model.seen))


if __name__ == "__main__":
    sys.addaudithook(note_shards)
    for name, case in json.loads(Path(sys.argv[1]).read_text()).items():
        read(case, Path(sys.argv[1]).parent / name)
