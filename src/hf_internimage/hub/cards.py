# SPDX-License-Identifier: MIT
"""Model cards: of the published checkpoints from `checkpoints.py`, of any other model from its own evaluation.

Both are made of one template, `data/model_card.md`. Nothing here is sent anywhere; `ModelCard.validate()` asks the Hub.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..checkpoints.classifiers import CHECKPOINTS, IMAGENET_1K, IMAGENET_22K, JOINT_427M, SOURCE, PublishedCheckpoint
from ..models.configuration_internimage import SIZES

REPORTED = "reported by the authors, not measured by us"
_PAPER = "https://arxiv.org/abs/2211.05778"
_HUB = "https://huggingface.co"
LIBRARY = "transformers"
_TASK = "image-classification"
# Where the data can be found on the Hub; the joint set is nowhere as a whole.
_DATASETS = {IMAGENET_1K: "ILSVRC/imagenet-1k", IMAGENET_22K: "timm/imagenet-22k-wds"}
_FOLDER_TYPE = "imagefolder"  # what `datasets` calls a folder of images
_MISSING = object()

INTRODUCTION = (
    "InternImage is a convolutional network built on DCNv3, a deformable convolution: each output value is a weighted "
    f"sum of samples of the image at learned positions ([paper]({_PAPER}), CVPR 2023)."
)

_CLASSIFY_1K = """\
With the package `hf_internimage` and transformers:

```python
import hf_internimage  # makes the Auto classes and pipelines know InternImage
from hf_internimage.checkpoints import imagenet_1k_labels
from transformers import pipeline

classify = pipeline("image-classification", model="{repository}")
names = imagenet_1k_labels()  # the published configuration has none
for found in classify("cat.jpg"):
    print(names[int(found["label"].removeprefix("LABEL_"))], found["score"])
```
"""

_CLASSIFY = """\
With the package `hf_internimage` and transformers:

```python
import hf_internimage  # makes the Auto classes and pipelines know InternImage
from transformers import pipeline

classify = pipeline("image-classification", model="{repository}")
print(classify("cat.jpg"))
```
"""

_WITHOUT_PACKAGE = """
Without the package, `pipeline("image-classification", model="{repository}", trust_remote_code=True)` runs the source
files of this repository, in plain PyTorch.
"""

_BACKBONE = """
As a backbone, for detection, segmentation and other dense tasks:

```python
import torch
from hf_internimage import InternImageBackbone

backbone = InternImageBackbone.from_pretrained(
    "{repository}", out_features=["stage1", "stage2", "stage3", "stage4"]
)
features = backbone(torch.rand(1, 3, {height}, {width})).feature_maps  # (N, C, H, W) each, strides 4, 8, 16, 32
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


def official_card(checkpoint: PublishedCheckpoint) -> ModelCard:
    """The card of a published checkpoint, from the table in `checkpoints.py` alone.

    Its accuracy stands in the metadata with its source and the words of `REPORTED`; 22K heads have none.
    """
    side = checkpoint.image_size
    is_1k = checkpoint.num_labels == 1000
    data_name = IMAGENET_1K if is_1k else IMAGENET_22K
    base = next((found for found in CHECKPOINTS if found.name == checkpoint.base), None)
    results = []
    if checkpoint.top1 is not None:
        results.append(
            EvalResult(
                task_type=_TASK,
                task_name="Image classification",
                dataset_type=_DATASETS[IMAGENET_1K],
                dataset_name=IMAGENET_1K,
                dataset_split="validation",
                metric_type="accuracy",
                metric_name=f"Top-1 accuracy, {REPORTED}",
                metric_value=round(checkpoint.top1 / 100, 4),
                source_name="OpenGVLab/InternImage",
                source_url=SOURCE,
            )
        )
    card_data = ModelCardData(
        model_name=checkpoint.name if results else None,
        license=checkpoint.licence,
        library_name=LIBRARY,
        pipeline_tag=_TASK,
        tags=["internimage", _TASK, "dcnv3", "vision"],
        datasets=[_DATASETS[name] for name in checkpoint.data if name in _DATASETS],
        metrics=["accuracy"] if results else None,
        base_model=base.repo_id if base else None,
        base_model_relation="finetune" if base else None,
        eval_results=results or None,
    )
    use = (_CLASSIFY_1K if is_1k else _CLASSIFY) + _BACKBONE + _FINE_TUNE
    return fill_template(
        card_data,
        title=f"InternImage-{checkpoint.size.upper()}, {data_name}, {side}x{side}",
        summary=f"{INTRODUCTION} This is the published checkpoint {_link(checkpoint.repo_id)}, a classifier of "
        f"{checkpoint.num_labels} classes.",
        facts=_official_facts(checkpoint, base),
        accuracy=_official_accuracy(checkpoint),
        use=use.format(repository=checkpoint.repo_id, height=side, width=side).strip(),
        training=None,
        limits=_official_limits(checkpoint),
        licence="MIT, as the authors state in the checkpoint's repository. Data sets have terms of their own.",
    )


def _official_facts(checkpoint: PublishedCheckpoint, base: PublishedCheckpoint | None) -> list[tuple[str, str]]:
    fields = SIZES[checkpoint.size]
    depths, groups = (", ".join(map(str, fields[name])) for name in ("depths", "groups"))
    side = checkpoint.image_size
    authors = "the authors report no number for this one"
    if checkpoint.reported_gflops is not None:
        authors = f'the authors report {checkpoint.reported_gflops} G "FLOPs", which are multiply-accumulates'
    facts = [
        (
            "Architecture",
            f"InternImage-{checkpoint.size.upper()}: {fields['channels']} channels in the first stage, blocks {depths},"
            f" groups {groups}",
        ),
        (
            "Parameters",
            f"{checkpoint.parameters:,} ({checkpoint.parameters * 4 / 1e9:.2f} GB in float32), counted by us",
        ),
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
        facts.append(("Fine-tuned from", _link(base.repo_id)))
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


def _official_limits(checkpoint: PublishedCheckpoint) -> list[str]:
    limits = []
    if checkpoint.num_labels == 1000:
        limits += [
            "One of 1000 fixed classes for every picture, about 120 of them breeds of dogs; a picture of anything else "
            "gets one of them, too.",
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
        "([study](https://arxiv.org/abs/1711.08536)); expect less elsewhere, and on drawings, medical or aerial images."
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
    if SIZES[checkpoint.size].get("use_clip_projector"):
        limits.append(
            "The classifier takes images whose height and width are multiples of 32; the backbone takes any size. The "
            f"weights alone need {checkpoint.parameters * 4 / 1e9:.1f} GB in float32, "
            f"{checkpoint.parameters * 2 / 1e9:.1f} GB in bfloat16."
        )
    limits.append(
        "We did not measure this checkpoint's accuracy. That the package computes what the original computes is tested "
        "with the original's numbers, on small models and on a whole InternImage-T with made-up weights."
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
) -> ModelCard:
    """The card of a model that was evaluated by `scripts/evaluate.py` or at the end of a training.

    Args:
        result: what the evaluation wrote as JSON: `dataset` (name, config, split, revision), `samples`, `metrics`
            (top1, perhaps top5, from 0 to 1; perhaps loss), `image_size`, `batch_size`, `dtype`, `backend`, `device`,
            `images_per_second`, `versions`, `date`.
        model_id: repository on the Hub the card is for, with or without its owner.
        base_model: repository on the Hub of the checkpoint it was fine-tuned from.
        license: SPDX identifier in lower case, as the Hub writes it.
        dataset: data set on the Hub; by default the result's, unless that is a folder, of which only the name is shown.
        training: settings to list, such as {"Epochs": 20}.

    Raises:
        ValueError: for a result that lacks a field or has a value that cannot be, and for an invalid repository name.
    """
    for name, value in (("model_id", model_id), ("base_model", base_model), ("dataset", dataset)):
        if value is not None and not _is_repository(value):
            raise ValueError(f"{name} is {value!r}, expected the name of a repository on the Hub, such as 'me/model'.")
    height, width = _sides_of(result)
    samples = _number(result, "samples", least=1)
    top1 = _number(result, "metrics", "top1", least=0, most=1)
    found = str(_get(result, "dataset", "name"))
    split = str(_get(result, "dataset", "split"))
    config, revision = (_get(result, "dataset", name, default=None) for name in ("config", "revision"))
    if dataset is None and _is_repository(found) and found != _FOLDER_TYPE and not Path(found).exists():
        dataset = found
    data_name = dataset or PurePosixPath(found.replace("\\", "/")).name or "local images"

    metrics: list[tuple[str, str, float, dict[str, Any] | None]] = [("accuracy", "Top-1 accuracy", top1, None)]
    if _get(result, "metrics", "top5", default=None) is not None:
        top5 = _number(result, "metrics", "top5", least=0, most=1)
        metrics.append(("accuracy", "Top-5 accuracy", top5, {"k": 5}))
    if _get(result, "metrics", "loss", default=None) is not None:
        metrics.append(("loss", "Cross-entropy", _number(result, "metrics", "loss"), None))
    name = model_id.rpartition("/")[2]
    card_data = ModelCardData(
        model_name=name,
        license=license,
        library_name=LIBRARY,
        pipeline_tag=_TASK,
        tags=["internimage", _TASK, "dcnv3", "vision"],
        datasets=[dataset] if dataset else None,
        metrics=["accuracy"],
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        eval_results=[
            EvalResult(
                task_type=_TASK,
                task_name="Image classification",
                dataset_type=dataset or _FOLDER_TYPE,
                dataset_name=data_name,
                dataset_config=config,
                dataset_split=split,
                dataset_revision=revision,
                metric_type=kind,
                metric_name=label,
                metric_value=round(value, 6),
                metric_args=args,
            )
            for kind, label, value, args in metrics
        ],
    )
    origin = f", fine-tuned from {_link(base_model)}" if base_model else ""
    facts = [
        ("Evaluated on", ", ".join(str(part) for part in (data_name, config, split, revision) if part)),
        ("Images", f"{samples:,}"),
        ("Input", f"RGB, {height}x{width}"),
        ("Computed in", str(_get(result, "dtype"))),
    ]
    facts += _run_facts(result)
    return fill_template(
        card_data,
        title=name,
        summary=f"{INTRODUCTION} This is an image classifier{origin}.",
        facts=[(label, _cell(value)) for label, value in facts],
        accuracy=_measured(metrics, int(samples)),
        use=(_CLASSIFY + _WITHOUT_PACKAGE + _BACKBONE).format(repository=model_id, height=height, width=width).strip(),
        training=[(_cell(label), _cell(value)) for label, value in (training or {}).items()],
        limits=[
            f"Measured on one data set only, {_cell(data_name)}: other images may be classified much worse.",
            "One of the classes in its configuration for every picture, also for a picture of anything else.",
            *(["It may share the limits of the checkpoint it was fine-tuned from."] if base_model else []),
        ],
        licence=f"`{license}`" if license else "Not stated by whoever made this model.",
    )


def _run_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the evaluation ran, as far as its result says so."""
    facts = []
    for label, name in (("Device", "device"), ("Operator's backend", "backend"), ("Batch size", "batch_size")):
        value = _get(result, name, default=None)
        if value is not None:
            facts.append((label, str(value)))
    if _get(result, "images_per_second", default=None) is not None:
        facts.append(("Images per second", f"{_number(result, 'images_per_second', least=0):.4g}"))
    versions = _get(result, "versions", default={})
    if versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if _get(result, "date", default=None) is not None:
        facts.append(("Date", str(_get(result, "date"))))
    return facts


def _measured(metrics: list[tuple[str, str, float, dict[str, Any] | None]], samples: int) -> str:
    """A table of the metrics, accuracies with the 95 % interval that so many images leave."""
    rows = []
    for kind, label, value, _ in metrics:
        if kind == "accuracy":
            low, high = _wilson(value, samples)
            rows.append((label, f"{100 * value:.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"))
        else:
            rows.append((label, f"{value:.4f}", "-"))
    table = markdown_table(("Metric", "Value", "95 % interval"), rows)
    return f"Measured with hf_internimage on the images above.\n\n{table}"


def _wilson(share: float, samples: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of so many samples. Source: E. B. Wilson, 1927."""
    z = 1.96
    middle = share + z**2 / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return max(0.0, (middle - half) / (1 + z**2 / samples)), min(1.0, (middle + half) / (1 + z**2 / samples))


def fill_template(card_data: ModelCardData, **parts: Any) -> ModelCard:
    """The template with its parts filled in; ends with a line break."""
    template = files("hf_internimage").joinpath("hub/model_card.md").read_text(encoding="utf-8")
    return ModelCard(ModelCard.from_template(card_data, template_str=template, **parts).content.rstrip() + "\n")


def _link(repository: str) -> str:
    return f"[{repository}]({_HUB}/{repository})"


def markdown_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ("---",) * len(heads), *rows])


def _cell(value: Any) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _is_repository(name: str) -> bool:
    """Whether this can be the name of a repository on the Hub, rather than a folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _get(result: Mapping[str, Any], *path: str, default: Any = _MISSING) -> Any:
    """A field of the evaluation's result, by its path."""
    value: Any = result
    for name in path:
        value = value.get(name, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            if default is not _MISSING:
                return default
            raise ValueError(f"The result of the evaluation has no {'.'.join(path)}; evaluate the model again.")
    return value


def _number(result: Mapping[str, Any], *path: str, least: float | None = None, most: float | None = None) -> Any:
    """A number of the evaluation's result, within bounds."""
    value = _get(result, *path)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or (least is not None and value < least)
        or (most is not None and value > most)
    ):
        bounds = "" if least is None else f" of at least {least}" + ("" if most is None else f" and at most {most}")
        raise ValueError(f"{'.'.join(path)} of the evaluation's result is {value!r}, expected a number{bounds}.")
    return value


def _sides_of(result: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the images that were evaluated."""
    sides = _get(result, "image_size")
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(isinstance(s, int) and s >= 1 for s in sides):
        raise ValueError(f"image_size of the evaluation's result is {sides!r}, expected [height, width] in pixels.")
    return sides[0], sides[1]


__all__ = ["REPORTED", "evaluated_card", "official_card"]
