# SPDX-License-Identifier: MIT
"""The end of a detection training: judged by COCO's measure, drawn, described on a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData

from .box_overlays import draw_overlays
from .coco_map import CocoMap
from .detection import DetectionTrainer
from .detection_data import DetectionData, DetectionDataArguments
from .results import evaluation_result, write_json

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
    overlays: int,
    overlay_threshold: float,
) -> dict[str, Any]:
    """Evaluate on a split; write its metrics, detections and overlays to the output folder. All processes call this.

    Args:
        trainer: with the model to judge.
        split: of `data`.
        prefix: of the files' names: eval or test.
        arguments: what the data are from.
        data: all of them.
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
        training.hub_model_id or str(training.output_dir),
        arguments,  # type: ignore[arg-type]
        "test" if prefix == "test" else "validation",
        samples=len(split),
        metrics={**result.metrics, "loss": found[f"{prefix}_loss"]},
        image_size=[int(side) for side in dict(processor.size).values() if side],
        batch_size=training.eval_batch_size,
        dtype="bfloat16" if training.bf16 else "float16" if training.fp16 else "float32",
        device=training.device,
        images_per_second=found[f"{prefix}_samples_per_second"],
        processes=training.world_size,
        map_per_class=result.per_class,
    )
    if trainer.is_world_process_zero():
        output = Path(str(training.output_dir))
        write_json(evaluation, output / f"{prefix}_evaluation.json")
        by_image: Mapping[int, Any] = dict(zip(image_ids.reshape(-1).tolist(), detections, strict=True))
        write_json({"detections": _as_coco(by_image, data.label_names)}, output / f"{prefix}_detections.json")
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


def _as_coco(by_image: Mapping[int, Any], names: list[str]) -> list[dict[str, Any]]:
    """Detections as COCO's result files have them, with the class's name in place of its number."""
    return [
        {
            "image_id": image_id,
            "category": names[int(label)],
            "bbox": [round(float(side), 2) for side in (left, top, right - left, bottom - top)],
            "score": round(float(score), 5),
        }
        for image_id, found in sorted(by_image.items())
        for score, label, left, top, right, bottom in found
        if score >= 0
    ]


def detection_card(
    model: Any, model_id: str, evaluation: dict[str, Any] | None, *, base_model: str | None, license: str | None
) -> ModelCard:
    """A short card: what the model is, how it is loaded, what was measured.

    Args:
        model: the model itself.
        model_id: repository on the Hub the card is for, or the name of a folder.
        evaluation: what `judge` returned, or None.
        base_model: repository on the Hub that the training began with, or None.
        license: SPDX identifier in lower case; not stated if None.
    """
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="object-detection",
        base_model=base_model,
        tags=["internimage", "object-detection", "dcnv3", "vision"],
    )
    measured = ""
    if evaluation is not None:
        where = Path(str(evaluation["dataset"]["name"])).name
        measured = (
            f"\nBy COCO's measure, on {evaluation['samples']:,} images of {where} "
            f"({evaluation['dataset']['split']}):\n\n| | |\n|---|---|\n"
        ) + "".join(
            f"| {what} | {100 * evaluation['metrics'][name]:.1f} % |\n"
            for name, what in _ON_THE_CARD.items()
            if name in evaluation["metrics"]
        )
    return ModelCard(f"""---
{data.to_yaml()}
---

# {model_id.rpartition("/")[2]}

Object detection with an [InternImage](https://arxiv.org/abs/2211.05778) backbone: `{type(model).__name__}`,
{model.num_parameters():,} parameters, {model.config.num_labels} classes.

```python
import hf_internimage  # pip install hf-internimage; has to be imported before the model is loaded
from transformers import pipeline

detect = pipeline("object-detection", "{model_id}")
detect("street.jpg", threshold=0.4)  # label, score and box of each object
```

Without `import hf_internimage` transformers does not know the backbone, and says so with a `KeyError`.
{measured}""")


__all__ = ["detection_card", "judge"]
