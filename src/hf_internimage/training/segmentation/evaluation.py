# SPDX-License-Identifier: MIT
"""The end of a segmentation training: judged at the images' own size, drawn, described on a card."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard

from ...segmentation import SemanticSegmenter
from ..evaluation_results import evaluation_result, precision, write_json
from ..metric_modules import load_metric_module
from ..plot_style import rows_to_draw
from ..publish import base_repository, card_data, images_of, model_id_of, publish_by_trainer, score_table
from .data import PairTransform, ProcessorPair, SegmentationData, SegmentationDataArguments
from .plots import draw_masks
from .trainer import MEAN_IOU, SegmentationTrainer

_ON_THE_CARD = {
    "mean_iou": "mean IoU",
    "mean_accuracy": "mean accuracy of the classes",
    "overall_accuracy": "accuracy of the pixels",
}


@dataclass
class InferenceArguments:
    """How images are segmented in the evaluation at the end."""

    inference: str = field(
        default="whole", metadata={"help": "See images whole, or through windows that slide over them: slide."}
    )
    inference_crop: list[int] = field(
        default_factory=list, metadata={"help": "slide: side of the windows in pixels, or height and width."}
    )
    inference_stride: list[int] = field(
        default_factory=list, metadata={"help": "slide: pixels from window to window, or down and across."}
    )
    inference_windows: int = field(default=1, metadata={"help": "slide: windows that go through the model at once."})
    tta_ratios: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Average over these multiples of the image's size."}
    )
    tta_flip: bool = field(default=False, metadata={"help": "Average over each of them and its mirror image."})
    overlays: int = field(default=16, metadata={"help": "Images of the evaluation to draw; 0 for none."})

    def __post_init__(self) -> None:
        for name in ("inference_crop", "inference_stride", "tta_ratios"):
            if isinstance(value := getattr(self, name), (int, float)):  # in a file of settings
                setattr(self, name, [value])
        for name in ("inference_crop", "inference_stride"):
            if len(getattr(self, name)) > 2:
                raise ValueError(f"{name} is {getattr(self, name)}, expected one number, or height and width.")
        if self.inference not in ("whole", "slide"):
            raise ValueError(f"inference is {self.inference!r}, expected 'whole' or 'slide'.")
        given = bool(self.inference_crop) and bool(self.inference_stride)
        if given != (self.inference == "slide") or bool(self.inference_crop) != bool(self.inference_stride):
            raise ValueError("inference_crop and inference_stride are for inference=slide, which needs both.")

    def segmenter(self, model: Any, processor: Any) -> SemanticSegmenter:
        """Raises: ValueError for settings that `SemanticSegmenter` refuses."""
        return SemanticSegmenter(
            model,
            processor,
            crop_size=_pair(self.inference_crop),
            stride=_pair(self.inference_stride),
            window_batch_size=self.inference_windows,
            scale_ratios=self.tta_ratios,
            flip=self.tta_flip,
        )


def judge(
    trainer: SegmentationTrainer,
    split: Dataset,
    arguments: SegmentationDataArguments,
    inference: InferenceArguments,
    loaded: SegmentationData,
    name: str,
) -> dict[str, Any]:
    """Segment a split at the images' own size; write metrics and overlays to the output folder.

    Written are eval_results.json, eval_evaluation.json (with each class's IoU, and what is needed to repeat it), and
    overlays/*.png of images spread evenly over the split. All processes have to call this; each takes its share.

    Args:
        trainer: with the model, its image processor and the output folder.
        split: a part of `loaded`, from where `arguments` say.
        inference: how images are seen, and how many are drawn.
        name: folder or repository the model is from.

    Returns: the evaluation as in eval_evaluation.json.
    """
    training = trainer.args
    output = Path(str(training.output_dir))
    names = loaded.label_names
    processor: Any = trainer.processing_class
    size = processor.size
    metric = load_metric_module(MEAN_IOU, num_labels=len(names))
    model = trainer.model.eval()
    segmenter = inference.segmenter(model, processor)
    transform = loaded.transform(ProcessorPair(processor))
    count, world = len(split), training.world_size
    if trainer.is_fsdp_enabled and inference.inference == "slide":
        raise ValueError(
            "inference=slide needs as many windows in every process: evaluate the saved model without FSDP."
        )
    with trainer.evaluation_weights():
        seconds = _segment(trainer, split, segmenter, transform, metric, names, inference.overlays)
    counts = torch.from_numpy(metric.counts).to(training.device)
    metric.counts = trainer.accelerator.reduce(counts, "sum").cpu().numpy()
    measured = metric.compute()
    means = {name: value for name, value in measured.items() if isinstance(value, float)}
    trainer.log_metrics("eval", {f"eval_{name}": value for name, value in means.items()})
    trainer.save_metrics("eval", {f"eval_{name}": value for name, value in means.items()})
    evaluation = evaluation_result(
        model,
        name,
        arguments,
        "validation",
        samples=count,
        metrics=means,
        image_size=[size["shortest_edge"], size["longest_edge"]],
        batch_size=1,
        dtype=precision(training),
        device=training.device,
        images_per_second=count / seconds,
        processes=world,
        class_iou={
            name: None if math.isnan(value) else value for name, value in zip(names, measured["iou"], strict=True)
        },
        inference={name: getattr(inference, name) for name in _DESCRIBED},
    )
    if trainer.is_world_process_zero():
        write_json(evaluation, output / "eval_evaluation.json")
    return evaluation


def _segment(
    trainer: SegmentationTrainer,
    split: Dataset,
    segmenter: SemanticSegmenter,
    transform: PairTransform,
    metric: Any,
    names: list[str],
    overlays: int,
) -> float:
    """Segment this process's share of a split, add it to the metric and draw some; returns the seconds it took."""
    count, world = len(split), trainer.args.world_size
    folder = Path(str(trainer.args.output_dir), "overlays")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = rows_to_draw(count, overlays)
    seconds = 0.0
    # As many images in each process: a sharded model runs in all of them at once. The last ones come twice, uncounted.
    for turn in range(-(-count // world)):
        row = turn * world + trainer.args.process_index
        example = split[min(row, count - 1)]
        image, labels, _ = transform.read(example["image"], example["label"])
        started = time.perf_counter()
        with trainer.compute_loss_context_manager():
            found = segmenter(image).cpu().numpy()
        seconds += time.perf_counter() - started
        if row >= count:
            continue
        metric.add(found, labels)
        if row in drawn:
            draw_masks(image, labels, found, names, folder / f"{row:05d}.png")
    return seconds


_DESCRIBED = ("inference", "inference_crop", "inference_stride", "tta_ratios", "tta_flip")


def _pair(values: list[int]) -> tuple[int, int] | None:
    return (values[0], values[-1]) if values else None


def publish(
    trainer: SegmentationTrainer,
    evaluation: dict[str, Any] | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
) -> None:
    """Give the output folder its card: what the model is, how it is loaded, what was measured; push it if asked to.

    All processes have to call this.

    Args:
        trainer: after `save_full_model` into its output folder.
        evaluation: what `judge` returned, for the card.
        base_model: what the training began with: a folder, or a repository on the Hub, which the card names.
        license: SPDX identifier in lower case; not stated if None.
    """
    model, model_id = trainer.model, model_id_of(trainer.args, "internimage-segmentation")
    tasks = ["image-segmentation", "semantic-segmentation"]
    data = card_data(tasks, base_model=base_repository(base_model), license=license)
    measured = ""
    if evaluation is not None:
        table = score_table(evaluation, _ON_THE_CARD, 2)
        measured = f"\nOn {images_of(evaluation)}, at their own size:\n\n{table}"
    card = ModelCard(f"""---
{data.to_yaml()}
---

# {model_id.rpartition("/")[2]}

Semantic segmentation with an [InternImage](https://arxiv.org/abs/2211.05778) backbone: `{type(model).__name__}` of
transformers, {model.num_parameters():,} parameters, {model.config.num_labels} classes.

```python
import hf_internimage  # pip install hf-internimage; has to be imported before the model is loaded
from hf_internimage.segmentation import SemanticSegmenter
from PIL import Image
from transformers import AutoImageProcessor, {type(model).__name__}

processor = AutoImageProcessor.from_pretrained("{model_id}")
model = {type(model).__name__}.from_pretrained("{model_id}").eval()
labels = SemanticSegmenter(model, processor)(Image.open("street.jpg"))  # (height, width), a class of each pixel
```

Without `import hf_internimage` transformers does not know the backbone, and says so with a `KeyError`.
{measured}""")
    publish_by_trainer(trainer, card)


__all__ = ["InferenceArguments", "judge", "publish"]
