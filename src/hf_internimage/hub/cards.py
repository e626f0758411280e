# SPDX-License-Identifier: MIT
"""Model cards of image classifiers: of the published checkpoints, and of any other model from its own evaluation.

Both are made from one template, `model_card.md`. Nothing here uses the network; `ModelCard.validate()` asks the Hub.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..checkpoints.classifiers import CHECKPOINTS, IMAGENET_1K, IMAGENET_22K, JOINT_427M, SOURCE, PublishedCheckpoint
from ..models import auto
from .card_blocks import (
    REPORTED,
    architecture,
    card_metadata,
    family_of,
    full_card,
    introduction,
    markdown_table,
    model_facts,
    parameter_count,
    percent,
    pipeline_code,
    python_block,
    released_config,
    released_name,
    reported_result,
    repository_link,
    table_cell,
    weight_sizes,
)
from .evaluation_blocks import (
    FOLDER_TYPE,
    class_table,
    evaluated_data,
    evaluation_facts,
    field,
    image_size,
    is_repository,
    number,
)
from .reproduced_scores import Result, measured_scores

_TASK = "image-classification"
# Data sets on the Hub; the joint set of 427 million images is not there as a whole.
_DATASETS = {IMAGENET_1K: "ILSVRC/imagenet-1k", IMAGENET_22K: "timm/imagenet-22k-wds"}

_WITH_PACKAGE = "With the package `hf_internimage` and transformers:\n\n"

_CLASSIFY_1K = """\
import hf_internimage  # makes the Auto classes and pipelines know InternImage
from hf_internimage.checkpoints import imagenet_1k_labels
from transformers import pipeline

classify = pipeline("image-classification", model="{repository}")
names = imagenet_1k_labels()  # the published configuration has none
for prediction in classify("cat.jpg"):
    print(names[int(prediction["label"].removeprefix("LABEL_"))], prediction["score"])"""

_WITHOUT_PACKAGE = """
Without the package, `pipeline("image-classification", model="{repository}", trust_remote_code=True)` runs the source
files of this repository, in plain PyTorch.
"""

_BACKBONE = """
As a backbone, for detection, segmentation and other dense tasks:

```python
import torch
from hf_internimage import {backbone}

backbone = {backbone}.from_pretrained("{repository}")
backbone.out_features = backbone.stage_names[1:]  # all stages; the default is the last one
features = backbone(torch.rand(1, 3, {height}, {width})).feature_maps  # (N, C, H, W) each, strides 4, 8, 16, ...
```
"""

_FINE_TUNE = """
To fine-tune on classes of your own:

```python
import hf_internimage
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(
    "{repository}", num_labels=10, ignore_mismatched_sizes=True
)
```
"""


def official_card(checkpoint: PublishedCheckpoint, reproduced: Sequence[Result] = ()) -> ModelCard:
    """Return the card of a published checkpoint, from the table of classifiers and its measured scores, if any.

    The metadata hold its accuracy with its source and the words of `REPORTED`; 22K heads have none.
    """
    side, family = checkpoint.image_size, family_of(checkpoint.model_type)
    is_1k = checkpoint.num_labels == 1000
    data_name = IMAGENET_1K if is_1k else IMAGENET_22K
    base = next((other for other in CHECKPOINTS if other.name == checkpoint.base), None)
    results = []
    if checkpoint.top1 is not None:
        results.append(
            reported_result(
                "Top-1 accuracy",
                checkpoint.top1,
                metric_type="accuracy",
                task=_TASK,
                task_name="Image classification",
                dataset=_DATASETS[IMAGENET_1K],
                dataset_name=IMAGENET_1K,
                split="validation",
                source=SOURCE,
            )
        )
    metadata = card_metadata(
        [_TASK],
        family=family,
        license=checkpoint.licence,
        base_model=base.repo_id if base else None,
        base_model_relation="finetune" if base else None,
        model_name=checkpoint.name if results else None,
        datasets=[_DATASETS[name] for name in checkpoint.data if name in _DATASETS],
        metrics=["accuracy"] if results else None,
        eval_results=results or None,
    )
    repository = checkpoint.repo_id
    classify = _CLASSIFY_1K.format(repository=repository) if is_1k else pipeline_code(_TASK, repository)
    more_uses = _backbone_use(checkpoint.model_type, repository, side, side) + _FINE_TUNE.format(repository=repository)
    return full_card(
        metadata,
        title=f"{released_name(checkpoint.size, checkpoint.model_type)}, {data_name}, {side}x{side}",
        summary=f"{introduction(family)} This is the published checkpoint {repository_link(repository)}, a classifier "
        f"of {checkpoint.num_labels} classes.",
        facts=_official_facts(checkpoint, base),
        accuracy="\n\n".join(filter(None, [_official_accuracy(checkpoint), measured_scores(reproduced)])),
        use=(_WITH_PACKAGE + python_block(classify) + more_uses).strip(),
        training=None,
        limits=_official_limits(checkpoint, measured=bool(reproduced)),
        licence="MIT, as the authors state in the checkpoint's repository. Data sets have terms of their own.",
    )


def _backbone_use(model_type: str, repository: str, height: int, width: int) -> str:
    """Return the section that loads a classifier as a backbone; "" if this package has no backbone of the type."""
    if model_type not in auto.model_types("AutoBackbone"):
        return ""
    backbone = auto.MODELS[model_type].models["AutoBackbone"].rpartition(".")[2]
    return _BACKBONE.format(backbone=backbone, repository=repository, height=height, width=width)


def _official_facts(checkpoint: PublishedCheckpoint, base: PublishedCheckpoint | None) -> list[tuple[str, str]]:
    groups = ", ".join(map(str, released_config(checkpoint.size, checkpoint.model_type).groups))
    side = checkpoint.image_size
    authors = "the authors report no number for this one"
    if checkpoint.reported_gflops is not None:
        authors = f'the authors report {checkpoint.reported_gflops} G "FLOPs", which are multiply-accumulates'
    facts = [
        ("Architecture", f"{architecture(checkpoint.size, checkpoint.model_type)}, groups {groups}"),
        ("Parameters", parameter_count(checkpoint.parameters)),
        (
            "Multiply-accumulates",
            f"{checkpoint.macs / 1e9:.1f} G for one image of {side}x{side}, counted by us; {authors}",
        ),
        (
            "Input",
            f"RGB, {side}x{side}: short side resized to {side} (bicubic), centre crop, mean and standard deviation of "
            "ImageNet",
        ),
        ("Output", f"scores of {checkpoint.num_labels} classes"),
        ("Trained on", ", then ".join(checkpoint.data)),
    ]
    if base is not None:
        facts.append(("Fine-tuned from", repository_link(base.repo_id)))
    return facts


def _official_accuracy(checkpoint: PublishedCheckpoint) -> str:
    if checkpoint.top1 is None:
        return f"The authors report no accuracy for this head, and we measured none ([model zoo]({SOURCE}))."
    return markdown_table(
        ("Data set", "Metric", "Value", "Source"),
        [
            (
                f"{IMAGENET_1K}, validation",
                "top-1, one view",
                f"{checkpoint.top1:.1f} %",
                f"[model zoo]({SOURCE}): {REPORTED}",
            )
        ],
    )


def _official_limits(checkpoint: PublishedCheckpoint, measured: bool) -> list[str]:
    limits = []
    if checkpoint.num_labels == 1000:
        limits += [
            "Every picture gets one of 1000 fixed classes, about 120 of them breeds of dogs, also a picture of "
            "anything else.",
            "The published configuration has no class names: labels come out as `LABEL_281`. "
            "`hf_internimage.checkpoints.imagenet_1k_labels()` has them in order.",
        ]
    else:
        limits += [
            f"Neither the published configuration nor this package has the names of the {checkpoint.num_labels} "
            "classes: labels come out as `LABEL_7`. The head was not evaluated; take the checkpoint as a backbone or "
            "to fine-tune.",
        ]
    limits.append(
        "ImageNet's pictures come from the web and mostly from few, Western countries "
        "([study](https://arxiv.org/abs/1711.08536)); expect lower accuracy on pictures from elsewhere, on drawings, "
        "and on medical or aerial images."
    )
    if IMAGENET_22K in checkpoint.data:
        limits.append(
            "ImageNet-22K has classes of people that its makers have since withdrawn, some of them offensive "
            "([their statement](https://www.image-net.org/update-sep-17-2019.php))."
        )
    if JOINT_427M in checkpoint.data:
        limits.append(
            "The first part of its training used uncurated pictures from the web "
            "([LAION-400M](https://laion.ai/blog/laion-400-open-dataset/))."
        )
    limits.append("Not made for decisions about people.")
    if released_config(checkpoint.size, checkpoint.model_type).use_clip_projector:
        limits.append(
            "The classifier takes images whose height and width are multiples of 32; the backbone takes any size. "
            f"{weight_sizes(checkpoint.parameters)}."
        )
    not_measured = "" if measured else "We did not measure this checkpoint's accuracy. "
    limits.append(
        f"{not_measured}Our tests compare the package with outputs of the original code, on small models and on a "
        "whole InternImage-T with random weights."
    )
    return limits


def evaluated_card(
    result: Mapping[str, Any],
    *,
    model_id: str,
    base_model: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    training: Mapping[str, Any] | None = None,
    model: Any = None,
) -> ModelCard:
    """Return the card of a classifier that was evaluated by `hf-internimage evaluate` or at the end of a training.

    Args:
        result: the evaluation's JSON: `dataset` (name, config, split, revision), `samples`, `metrics` (top1 and
            optionally top5, from 0 to 1; optionally loss), `image_size`, `batch_size`, `dtype`, `backend`, `device`,
            `images_per_second`, `versions`, `date`, `model_type` (internimage if it is missing).
        model_id: repository on the Hub that the card is for, with or without its owner.
        base_model: repository on the Hub of the checkpoint that the model was fine-tuned from.
        license: SPDX identifier in lower case, as the Hub writes it.
        dataset: data set on the Hub; by default the result's, unless that is a folder: then the card shows only the
            folder's name.
        training: settings to list, such as {"Epochs": 20}.
        model: the whole model, for its parameters and classes.

    Raises:
        ValueError: for a result that lacks a field or has an impossible value, and for an invalid repository name.
    """
    for name, value in (("model_id", model_id), ("base_model", base_model), ("dataset", dataset)):
        if value is not None and not is_repository(value):
            raise ValueError(f"{name} is {value!r}, expected the name of a repository on the Hub, such as 'me/model'.")
    height, width = image_size(result)
    samples = number(result, "samples", least=1)
    top1 = number(result, "metrics", "top1", least=0, most=1)
    data = evaluated_data(result, dataset)

    metrics: list[tuple[str, str, float, dict[str, Any] | None]] = [("accuracy", "Top-1 accuracy", top1, None)]
    if field(result, "metrics", "top5", default=None) is not None:
        top5 = number(result, "metrics", "top5", least=0, most=1)
        metrics.append(("accuracy", "Top-5 accuracy", top5, {"k": 5}))
    if field(result, "metrics", "loss", default=None) is not None:
        metrics.append(("loss", "Cross-entropy", number(result, "metrics", "loss"), None))
    name = model_id.rpartition("/")[2]
    model_type = str(field(result, "model_type", default="internimage"))
    metadata = card_metadata(
        [_TASK],
        family=family_of(model_type),
        license=license,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        model_name=name,
        datasets=[data.repository] if data.repository else None,
        metrics=["accuracy"],
        eval_results=[
            EvalResult(
                task_type=_TASK,
                task_name="Image classification",
                dataset_type=data.repository or FOLDER_TYPE,
                dataset_name=data.name,
                dataset_config=data.config,
                dataset_split=data.split,
                dataset_revision=data.revision,
                metric_type=kind,
                metric_name=label,
                metric_value=round(value, 6),
                metric_args=args,
            )
            for kind, label, value, args in metrics
        ],
    )
    origin = f", fine-tuned from {repository_link(base_model)}" if base_model else ""
    more_uses = _WITHOUT_PACKAGE.format(repository=model_id) + _backbone_use(model_type, model_id, height, width)
    return full_card(
        metadata,
        title=name,
        summary=f"{introduction(family_of(model_type))} This is an image classifier{origin}.",
        facts=[*([] if model is None else model_facts(model)), *evaluation_facts(result, data)],
        accuracy="\n\n".join(filter(None, [_measured_table(metrics, int(samples)), class_table(result)])),
        use=(_WITH_PACKAGE + python_block(pipeline_code(_TASK, model_id)) + more_uses).strip(),
        training=[(table_cell(label), table_cell(value)) for label, value in (training or {}).items()],
        limits=[
            f"Measured on one data set only, {table_cell(data.name)}: accuracy on other images may be much lower.",
            "Every picture gets one of the classes in its configuration, also a picture of anything else.",
            *(["It may share the limits of the checkpoint it was fine-tuned from."] if base_model else []),
        ],
        licence=f"`{license}`" if license else "Not stated by whoever made this model.",
    )


def _measured_table(metrics: list[tuple[str, str, float, dict[str, Any] | None]], samples: int) -> str:
    """Return a table of the metrics; accuracies have a 95 % confidence interval for this number of images."""
    rows = []
    for kind, label, value, _ in metrics:
        if kind == "accuracy":
            low, high = _wilson_interval(value, samples)
            rows.append((label, percent(value, 2), f"{100 * low:.2f} to {percent(high, 2)}"))
        else:
            rows.append((label, f"{value:.4f}", "-"))
    table = markdown_table(("Metric", "Value", "95 % interval"), rows)
    return f"Measured with hf_internimage on the images above.\n\n{table}"


def _wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share that was measured on this number of samples.

    Source: E. B. Wilson, 1927.
    """
    z = 1.96
    middle = share + z**2 / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return max(0.0, (middle - half) / (1 + z**2 / samples)), min(1.0, (middle + half) / (1 + z**2 / samples))


__all__ = ["evaluated_card", "official_card"]
