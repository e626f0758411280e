# SPDX-License-Identifier: MIT
"""Train, save, reload and use a small InternImage, from scratch and without a network.

The data are scikit-learn's digits: 1797 scans of handwritten digits of 8x8 pixels, which come with that package
(E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository). One in five
is held out. Writes the model and a sheet of predictions; ends with status 1 if too many held-out digits are read wrong.

    pip install ".[demo]" && python scripts/demo.py
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)
from transformers.utils import logging

# Importing the package is also what makes the Auto classes and the pipeline know InternImage.
from hf_internimage import InternImageConfig, InternImageForImageClassification, InternImageImageProcessorPil

try:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name or error} is missing: pip install "hf-internimage[demo]"')

SIZE = 32  # pixels the processor enlarges the scans to; the stem then makes a map of 8x8 again
BATCH_SIZE = 64
REQUIRED_ACCURACY = 0.975
SHEET_COLUMNS, SHEET_ROWS = 8, 6


def load_data(seed: int) -> DatasetDict:
    """Load the digits as PIL images and class labels, in "train" and "test"; both have equal shares of each digit."""
    digits = load_digits()
    images = [PILImage.fromarray(np.round(scan * (255 / 16)).astype(np.uint8)) for scan in digits.images]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in digits.target_names])})
    data = Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)
    return data.train_test_split(test_size=0.2, stratify_by_column="label", seed=seed)


def augment(image: PILImage.Image) -> PILImage.Image:
    """Rotate and shift an image a little. It is never mirrored: a mirrored digit is another digit, or none."""
    enlarged = image.resize((SIZE, SIZE), PILImage.Resampling.BICUBIC)  # finer shifts than the scan's own pixels allow
    shift = (random.randint(-3, 3), random.randint(-3, 3))
    return enlarged.rotate(random.uniform(-12, 12), PILImage.Resampling.BICUBIC, translate=shift)


def make_transform(processor: Any, augmented: bool) -> Callable[[dict[str, list]], dict[str, Any]]:
    """Return the function that `Dataset.with_transform` applies to a batch of examples each time it is read."""

    def transform(batch: dict[str, list]) -> dict[str, Any]:
        images = [augment(image) for image in batch["image"]] if augmented else batch["image"]
        return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"], "labels": batch["label"]}

    return transform


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of images whose class is right."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


class OneLinePerEpoch(ProgressCallback):
    """Show the Trainer's progress bar, and one short line after each epoch."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "eval_accuracy" in logs and self.training_bar is not None:
            loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
            line = f"epoch {round(state.epoch):2d}   loss {loss:.3f}   held-out accuracy {logs['eval_accuracy']:.1%}"
            self.training_bar.write(line)


def train(data: DatasetDict, processor: Any, epochs: int, seed: int, scratch: Path) -> PreTrainedModel:
    """Train a new model on `data["train"]`, and print its accuracy on `data["test"]` after each epoch."""
    set_seed(seed)  # the initial weights, too
    names = data["train"].features["label"].names
    config = InternImageConfig(
        image_size=SIZE,
        channels=32,
        depths=[1, 1, 2],
        groups=[2, 4, 8],
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = InternImageForImageClassification(config)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # a share of all steps
        weight_decay=0.05,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        remove_unused_columns=False,  # the transform needs "image", which the model's forward does not take
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        seed=seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data["train"].with_transform(make_transform(processor, augmented=True)),
        eval_dataset=data["test"].with_transform(make_transform(processor, augmented=False)),
        compute_metrics=compute_metrics,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(OneLinePerEpoch)
    trainer.train()
    return model.cpu().eval()


@torch.inference_mode()
def predict(model: torch.nn.Module, processor: Any, images: list[PILImage.Image]) -> torch.Tensor:
    """Return the logits (images, classes)."""
    batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
    return torch.cat([model(**processor(batch, return_tensors="pt")).logits for batch in batches])


def draw_sheet(images: list[PILImage.Image], truth: list[str], predictions: list[dict], title: str) -> PILImage.Image:
    """Draw one tile for each image: the scan, and below it the predicted label and its score; mistakes are red."""
    side, gap, margin, header, caption = 96, 16, 32, 88, 28
    ink, grey, red = "#1d2733", "#5b6770", "#c8102e"
    large, small = ImageFont.load_default(size=24), ImageFont.load_default(size=16)
    rows = -(-len(images) // SHEET_COLUMNS)
    size = (2 * margin + SHEET_COLUMNS * (side + gap) - gap, header + rows * (side + caption + gap) - gap + margin)
    sheet = PILImage.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 22), title, fill=ink, font=large)
    draw.text(
        (margin, 54), "below each scan: predicted label and its score; mistakes come first", fill=grey, font=small
    )
    for index, (image, label, best) in enumerate(zip(images, truth, predictions, strict=True)):
        left = margin + index % SHEET_COLUMNS * (side + gap)
        top = header + index // SHEET_COLUMNS * (side + caption + gap)
        sheet.paste(image.convert("RGB").resize((side, side), PILImage.Resampling.BICUBIC), (left, top))
        text, colour = f"{best['label']}   {best['score']:.0%}", ink
        if best["label"] != label:
            text, colour = f"{best['label']} (is {label})  {best['score']:.0%}", red
            draw.rectangle((left - 4, top - 4, left + side + 3, top + side + 3), outline=red, width=4)
        draw.text((left + side / 2, top + side + 6), text, fill=colour, font=small, anchor="ma")
    return sheet


def run_demo(data: DatasetDict, output_dir: Path, epochs: int, seed: int) -> float:
    """Train on `data`, write `model` and `predictions.png` to `output_dir`, return the held-out accuracy.

    The accuracy is that of the model as it was saved and loaded again.
    """
    processor = InternImageImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    output_dir.mkdir(parents=True, exist_ok=True)
    # Everything is written to a temporary folder first, so that a failure leaves the files of an earlier run unchanged.
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=output_dir) as scratch_name:
        scratch = Path(scratch_name)
        trained = train(data, processor, epochs, seed, scratch / "trainer")
        trained.save_pretrained(scratch / "model")
        processor.save_pretrained(scratch / "model")

        model = AutoModelForImageClassification.from_pretrained(scratch / "model").eval()
        # The same resize as in training; the default would be torchvision's where that is installed.
        reloaded_processor = AutoImageProcessor.from_pretrained(scratch / "model", backend="pil")
        images, labels = list(data["test"]["image"]), torch.tensor(data["test"]["label"])
        logits = predict(model, reloaded_processor, images)
        torch.testing.assert_close(
            logits,
            predict(trained, processor, images),
            msg=lambda text: f"The logits of the reloaded model differ from those of the trained one: {text}",
        )
        right = logits.argmax(-1) == labels
        accuracy = right.float().mean().item()

        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
        order.sort(key=lambda index: bool(right[index]))  # a stable sort: mistakes first, each part in random order
        chosen = order[: SHEET_COLUMNS * SHEET_ROWS]
        classify = pipeline("image-classification", model=model, image_processor=reloaded_processor, device="cpu")
        predictions = [best for (best,) in classify([images[index] for index in chosen], top_k=1)]
        draw_sheet(
            [images[index] for index in chosen],
            [model.config.id2label[int(labels[index])] for index in chosen],
            predictions,
            f"InternImage reads {int(right.sum())} of {len(images)} held-out digits right ({accuracy:.1%})",
        ).save(scratch / "predictions.png")

        for name in ("model", "predictions.png"):
            replace(output_dir / name, by=scratch / name)
    return accuracy


def replace(target: Path, by: Path) -> None:
    """Move `by` to `target`. The former target goes to the folder of `by`, or comes back if the move fails."""
    former = by.with_name(f"former-{by.name}")
    if target.exists():
        target.rename(former)
    try:
        by.rename(target)
    except OSError:
        if former.exists():
            former.rename(target)
        raise


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 if the accuracy is too low."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("demo_output"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of split, weights and training; default: %(default)s")
    options = parser.parse_args(argv)

    started = time.perf_counter()
    logging.disable_progress_bar()  # of saving and loading; the Trainer's bar stays
    # Each operation on images this small takes microseconds, so more threads gain little. If other programs use the
    # cores too, the threads wait for each other, and training takes ten times as long.
    torch.set_num_threads(1)
    accuracy = run_demo(load_data(options.seed), options.output_dir, options.epochs, options.seed)
    print(f"held-out accuracy  {accuracy:.2%}, of the model saved and loaded again")
    print(f"seconds            {time.perf_counter() - started:.0f}")
    print(f"model              {options.output_dir / 'model'}")
    print(f"predictions        {options.output_dir / 'predictions.png'}")
    if accuracy < REQUIRED_ACCURACY:
        print(f"Held-out accuracy is {accuracy:.2%}, expected at least {REQUIRED_ACCURACY:.1%}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
