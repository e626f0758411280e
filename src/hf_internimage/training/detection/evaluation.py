# SPDX-License-Identifier: MIT
"""The end of a detection training: judged by COCO's measure, drawn, described on a card, pushed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForObjectDetection

from ..evaluation_results import evaluation_result, precision, write_json
from ..publish import (
    base_repository,
    card_data,
    images_of,
    model_id_of,
    publish_by_trainer,
    score_table,
    write_repository,
)
from .coco_map import CocoMap
from .data import DetectionData, DetectionDataArguments
from .plots import draw_overlays
from .trainer import DetectionTrainer

_ON_THE_CARD = {
    "map": "average precision (mAP, IoU .5 to .95)",
    "map_50": "at IoU .5",
    "map_75": "at IoU .75",
    "map_small": "of small objects (under 32² pixels)",
    "map_medium": "of medium ones (to 96²)",
    "map_large": "of large ones",
    "mar_100": "average recall, 100 detections an image",
}


def judge(
    trainer: DetectionTrainer,
    split: Dataset,
    prefix: str,
    arguments: DetectionDataArguments,
    data: DetectionData,
    *,
    name: str,
    overlays: int,
    overlay_threshold: float,
) -> dict[str, Any]:
    """Evaluate on a split; write its metrics and overlays to the output folder. All processes call this.

    Args:
        trainer: with the model to judge.
        split: of `data`.
        prefix: of the files' names: eval or test.
        arguments: what the data are from.
        data: all of them.
        name: folder or repository the model is from.
        overlays: how many images to draw, evenly from the split.
        overlay_threshold: least score of a detection that is drawn.

    Returns: the evaluation as it is written to `{prefix}_evaluation.json`.
    """
    measure = CocoMap(split, data.label_names)
    trainer.compute_metrics = measure
    processor: Any = trainer.processing_class
    dataset: Any = split.with_transform(data.evaluation_transform(processor))
    prediction = trainer.predict(dataset, metric_key_prefix=prefix)
    found: Any = prediction.metrics
    trainer.log_metrics(prefix, found)
    trainer.save_metrics(prefix, found)
    detections: Any = prediction.predictions
    image_ids: Any = prediction.label_ids
    result = measure.evaluate(detections, image_ids)
    training = trainer.args
    evaluation = evaluation_result(
        trainer.model,
        name,
        arguments,
        "test" if prefix == "test" else "validation",
        samples=len(split),
        metrics={**result.metrics, "loss": found[f"{prefix}_loss"]},
        image_size=_sides(processor),
        batch_size=training.eval_batch_size,
        dtype=precision(training),
        device=training.device,
        images_per_second=found[f"{prefix}_samples_per_second"],
        processes=training.world_size,
        map_per_class=result.per_class,
    )
    if trainer.is_world_process_zero():
        output = Path(str(training.output_dir))
        write_json(evaluation, output / f"{prefix}_evaluation.json")
        by_image: Mapping[int, Any] = dict(zip(image_ids.reshape(-1).tolist(), detections, strict=True))
        draw_overlays(
            split,
            by_image,
            data.label_names,
            output / "overlays",
            prefix=f"{prefix}_",
            count=overlays,
            threshold=overlay_threshold,
            max_pixels=data.max_pixels,
        )
    return evaluation


def curves(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Trainer's log with those of COCO's twelve measures that a picture has room for."""
    hidden = ("eval_map_", "eval_mar_")
    shown = ("eval_map_50", "eval_map_75", "eval_mar_100")
    return [
        {name: value for name, value in entry.items() if name in shown or not name.startswith(hidden)}
        for entry in log_history
    ]


def _sides(processor: Any) -> list[int]:
    """Shortest and longest side, or height and width."""
    size = dict(processor.size)
    names = ("height", "width") if size.get("height") else ("shortest_edge", "longest_edge")
    return [size[name] for name in names]


def publish(
    trainer: DetectionTrainer,
    evaluation: dict[str, Any] | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
) -> None:
    """Give the output folder its card, and DINO's source files so that it works without this package; push it if asked.

    All processes have to call this. Heads of transformers are pushed by Trainer's own means.

    Args:
        trainer: after `save_full_model` into its output folder.
        evaluation: what `judge` returned, for the card.
        base_model: what the training began with: a folder, or a repository on the Hub, which the card names.
        license: SPDX identifier in lower case; not stated if None.

    Raises:
        PushError: if the Hub does not take it; the folder keeps everything.
    """
    model_id = model_id_of(trainer.args, "detector")
    data = card_data(["object-detection"], base_model=base_repository(base_model), license=license)

    def make_card(model: Any) -> ModelCard:
        return _card(model, model_id, evaluation, data)

    if trainer.model.config.model_type == "internimage_dino":
        write_repository(trainer, AutoModelForObjectDetection, model_id, make_card)
    else:
        publish_by_trainer(trainer, make_card(trainer.model))


def _card(model: Any, model_id: str, evaluation: dict[str, Any] | None, data: ModelCardData) -> ModelCard:
    """What the model is, how it is loaded, what was measured."""
    measured = ""
    if evaluation is not None:
        table = score_table(evaluation, _ON_THE_CARD, 1)
        split = evaluation["dataset"]["split"]
        measured = f"\nBy COCO's measure, on {images_of(evaluation)} ({split}):\n\n{table}"
    remote = model.config.model_type == "internimage_dino"
    trust = ", trust_remote_code=True" if remote else ""
    first = "" if remote else "import hf_internimage  # pip install hf-internimage; knows the backbone\n"
    how = (
        "This runs the source files of this repository. After `import hf_internimage` the package's own classes and\n"
        "faster operator are taken, and `trust_remote_code` is not needed."
        if remote
        else "Without `import hf_internimage` transformers does not know the backbone, and says so with a `KeyError`."
    )
    return ModelCard(f"""---
{data.to_yaml()}
---

# {model_id.rpartition("/")[2]}

Object detection with an [InternImage](https://arxiv.org/abs/2211.05778) backbone: `{type(model).__name__}`,
{model.num_parameters():,} parameters, {model.config.num_labels} classes.

```python
{first}from transformers import pipeline

detect = pipeline("object-detection", "{model_id}"{trust})
detect("street.jpg", threshold=0.4)  # label, score and box of each object
```

{how}
{measured}""")


__all__ = ["curves", "judge", "publish"]
