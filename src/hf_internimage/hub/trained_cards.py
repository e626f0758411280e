# SPDX-License-Identifier: MIT
"""Model cards of newly trained segmenters and detectors, and of classifiers without a top-1 accuracy."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .card_blocks import (
    IMPORT_PACKAGE,
    NEEDS_PACKAGE,
    RUNS_OWN_CODE,
    backbone_family,
    card_metadata,
    full_card,
    introduction,
    markdown_table,
    model_facts,
    percent,
    pipeline_code,
    python_block,
    repository_link,
    segmentation_code,
    table_cell,
)
from .evaluation_blocks import FOLDER_TYPE, class_table, evaluated_data, evaluation_facts, field
from .system_cards import PIPELINE_TAGS

_TASK_NAMES = {
    "image-classification": "Image classification",
    "semantic-segmentation": "Semantic segmentation",
    "object-detection": "Object detection",
}
# For each task: key of a metric -> its name for people, in the order of the card. The first one is for the metadata.
_METRICS = {
    "image-classification": {
        "mean_average_precision": "mean average precision of the classes",
        "f1": "F1 at a threshold of 0.5, over all labels",
    },
    "semantic-segmentation": {
        "mean_iou": "mean IoU",
        "mean_accuracy": "mean accuracy of the classes",
        "overall_accuracy": "accuracy of the pixels",
    },
    "object-detection": {
        "map": "average precision (mAP, IoU .5 to .95)",
        "map_50": "at IoU .5",
        "map_75": "at IoU .75",
        "map_small": "of small objects (under 32² pixels)",
        "map_medium": "of medium ones (to 96²)",
        "map_large": "of large ones",
        "mar_100": "average recall, 100 detections an image",
    },
}
_MEASURED = {
    "image-classification": "Measured with hf_internimage on the images above.",
    "semantic-segmentation": "Measured with hf_internimage on the images above, at their own size.",
    "object-detection": "Measured with hf_internimage by COCO's measure on the images above, at their own size.",
}
_CLASSES = {
    "image-classification": "It knows only the classes in its configuration.",
    "semantic-segmentation": "Every pixel gets one of the classes in its configuration, also one of anything else.",
    "object-detection": "It detects only objects of the classes in its configuration.",
}


def trained_card(
    model: Any,
    model_id: str,
    *,
    task: str,
    has_code: bool,
    base_model: str | None,
    license: str | None,
    evaluation: Mapping[str, Any] | None,
    training: Mapping[str, Any],
) -> ModelCard:
    """Return the card of a newly trained model, in the same form as that of `cards.evaluated_card`.

    Args:
        model: whole model.
        model_id: repository on the Hub that the card is for, or the name of a folder.
        task: "semantic-segmentation", "object-detection" or "image-classification".
        has_code: True if the repository holds the model's source files and so works without this package.
        base_model: repository on the Hub of the checkpoint that the model was fine-tuned from.
        license: SPDX identifier in lower case; not stated if None.
        evaluation: the evaluation's JSON, see `training.evaluation_results`; None if there is none.
        training: settings to list, such as {"Epochs": 20}.
    """
    title, family = model_id.rpartition("/")[2], backbone_family(model.config)
    data = None if evaluation is None else evaluated_data(evaluation)
    origin = f", fine-tuned from {repository_link(base_model)}" if base_model else ""
    facts = model_facts(model)
    accuracy, results = "It was not evaluated.", []
    limits = [_CLASSES[task], "Not made for decisions about people."]
    if evaluation is not None and data is not None:
        facts += evaluation_facts(evaluation, data, "RGB, resized to fit {} x {} pixels")
        accuracy = "\n\n".join(
            filter(None, [_MEASURED[task], _score_table(evaluation["metrics"], task), class_table(evaluation)])
        )
        results = _results(evaluation, task)
        limits.insert(
            0, f"Measured on one data set only, {table_cell(data.name)}: on other images it may be much worse."
        )
    if base_model:
        limits.append("It may share the limits of the checkpoint it was fine-tuned from.")
    metadata = card_metadata(
        list(dict.fromkeys([PIPELINE_TAGS.get(task, task), task])),
        family=family,
        license=license,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        model_name=title if results else None,
        datasets=[data.repository] if data is not None and data.repository else None,
        eval_results=results or None,
    )
    return full_card(
        metadata,
        title=title,
        summary=f"{introduction(family)} This is a model for {_TASK_NAMES[task].lower()}{origin}.",
        facts=facts,
        accuracy=accuracy,
        use=f"{_use(type(model).__name__, model_id, task, has_code)}\n{RUNS_OWN_CODE if has_code else NEEDS_PACKAGE}",
        training=[(table_cell(label), table_cell(value)) for label, value in training.items()],
        limits=limits,
        licence=f"`{license}`" if license else "Not stated by whoever made this model.",
    )


def _use(class_name: str, model_id: str, task: str, has_code: bool) -> str:
    if task == "semantic-segmentation":
        return python_block(segmentation_code(class_name, model_id))
    return python_block(pipeline_code(task, model_id, first_line=None if has_code else IMPORT_PACKAGE))


def _score_table(metrics: Mapping[str, float], task: str) -> str:
    rows = [(title, percent(metrics[name])) for name, title in _METRICS[task].items() if name in metrics]
    return markdown_table(("Metric", "Value"), rows)


def _results(evaluation: Mapping[str, Any], task: str) -> list[EvalResult]:
    """Return the main metric of an evaluation for the metadata; none if it was not measured."""
    name, title = next(iter(_METRICS[task].items()))
    value = field(evaluation, "metrics", name, default=None)
    if value is None:
        return []
    data = evaluated_data(evaluation)
    return [
        EvalResult(
            task_type=PIPELINE_TAGS.get(task, task),
            task_name=_TASK_NAMES[task],
            dataset_type=data.repository or FOLDER_TYPE,
            dataset_name=data.name,
            dataset_config=data.config,
            dataset_split=data.split,
            dataset_revision=data.revision,
            metric_type="mean_average_precision" if name == "map" else name,
            metric_name=title,
            metric_value=round(value, 6),
        )
    ]


__all__ = ["trained_card"]
