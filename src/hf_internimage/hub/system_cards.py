# SPDX-License-Identifier: MIT
"""Model cards of the published segmentation and detection checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from ..checkpoints.systems import SEMANTIC_SEGMENTATION, SOURCE, Score, SystemCheckpoint
from ..models.configuration_internimage import SIZES
from .card_blocks import (
    IMPORT_PACKAGE,
    REPORTED,
    architecture,
    card_metadata,
    full_card,
    introduction,
    markdown_table,
    parameter_count,
    pipeline_code,
    python_block,
    reported_result,
    segmentation_code,
    weight_sizes,
)
from .reproduced_scores import Result, measured_scores

SYSTEM_TITLES = {
    "upernet": "UperNet",
    "mask2former": "Mask2Former",
    "dino": "DINO",
    "cb_dino": "DINO on the composite backbone of two InternImages",
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade Mask R-CNN",
}
PIPELINE_TAGS = {
    "semantic-segmentation": "image-segmentation",
    "instance-segmentation": "object-detection",  # there is no pipeline for instance segmentation of our models
    "object-detection": "object-detection",
}
_METRIC_TYPES = {"mIoU": "mean_iou", "box AP": "mean_average_precision", "mask AP": "mean_average_precision"}
_REPORTED_FLAGS = ("post_norm", "res_post_norm", "level2_post_norm", "center_feature_scale")

_CONVERT = """\
The authors' file was written by their own training code, and `from_pretrained` cannot read it. Convert it once, by
the command that comes with `hf_internimage`:

```bash
hf-internimage convert {name}.pth {name}
```

The file is read as tensors only (no code in it is run), every tensor is used or listed as dropped, and the folder
appears complete or not at all.
"""

_MASKS = """
Masks come from `hf_internimage.models.mask_rcnn.post_process_instance_segmentation` on the model's outputs.
"""


def published_system_card(
    checkpoint: SystemCheckpoint, measured: Mapping[str, Any] | None = None, reproduced: Sequence[Result] = ()
) -> ModelCard:
    """Return the card of a published checkpoint that `hf-internimage convert` converts.

    Args:
        checkpoint: row of the table of systems.
        measured: row of the result of `benchmarks/benchmark.py --systems`, of this model or of one with the same
            architecture and input (`name`, `height`, `width`, `seconds`, `peak_memory_mib`, `threads`), with the
            result's `device` and `dtype`; None if it was not measured.
        reproduced: results of `hf-internimage reproduce` for it, if any.
    """
    pipeline_tag = PIPELINE_TAGS[checkpoint.task]
    task_name = checkpoint.task.replace("-", " ")
    results = [
        reported_result(
            f"{score.metric}, {score.views}",
            score.value,
            metric_type=_METRIC_TYPES.get(score.metric, "mean_average_precision"),
            task=pipeline_tag,
            task_name=task_name.capitalize(),
            dataset=checkpoint.dataset.lower().replace(" ", "-"),
            dataset_name=checkpoint.dataset,
            split=score.split or "validation",
            source=SOURCE,
        )
        for score in checkpoint.scores
    ]
    family = "InternImage"
    metadata = card_metadata(
        [pipeline_tag, checkpoint.system.replace("_", "-")],
        family=family,
        license=checkpoint.licence,
        model_name=checkpoint.name if results else None,
        eval_results=results or None,
    )
    system = SYSTEM_TITLES[checkpoint.system]
    origin = f"the published file `{checkpoint.name}.pth`" if checkpoint.released else "a checkpoint of this training"
    return full_card(
        metadata,
        title=f"{system}, InternImage-{checkpoint.size.upper()}, {checkpoint.dataset}",
        summary=f"{introduction(family)} This is {system} with an {family}-{checkpoint.size.upper()} backbone for "
        f"{task_name}, trained on {checkpoint.dataset}: {origin} ({checkpoint.url}).",
        facts=[*_facts(checkpoint), *_measurements(checkpoint, measured)],
        accuracy="\n\n".join(filter(None, [_scores(checkpoint.scores), measured_scores(reproduced)])),
        use=f"{_CONVERT.format(name=checkpoint.name)}\n{_use(checkpoint)}".strip(),
        training=None,
        limits=_limits(checkpoint, measured=bool(reproduced)),
        licence="MIT, as the authors state of their repository. Data sets have terms of their own.",
    )


def _facts(checkpoint: SystemCheckpoint) -> list[tuple[str, str]]:
    fields = SIZES[checkpoint.size]
    flags = [name for name in _REPORTED_FLAGS if fields.get(name)]
    resized = f"the largest size within {checkpoint.longest_edge} x {checkpoint.shortest_edge} pixels of its shape"
    if checkpoint.size_divisor and checkpoint.task == SEMANTIC_SEGMENTATION:
        resized += f", then resized again to multiples of {checkpoint.size_divisor}"
    elif checkpoint.size_divisor:
        resized += f", padded to multiples of {checkpoint.size_divisor}"
    facts = [
        ("Backbone", "; ".join([architecture(checkpoint.size), *([", ".join(flags)] if flags else [])])),
        ("Parameters", parameter_count(checkpoint.parameters)),
        ("Test image", f"{resized} (bilinear, not antialiased)"),
        ("Classes", _classes(checkpoint)),
    ]
    if checkpoint.crop_size:
        facts.append(("Windows", f"{checkpoint.crop_size} x {checkpoint.crop_size}, every {checkpoint.stride} pixels"))
    if checkpoint.scale_ratios:
        scales = ", ".join(f"{ratio:.3g}" for ratio in checkpoint.scale_ratios)
        facts.append(("Multi-scale views", f"{scales}{' and mirrored' if checkpoint.flip else ''}"))
    return facts


def _classes(checkpoint: SystemCheckpoint) -> str:
    if checkpoint.real_labels is None:
        return str(checkpoint.num_labels)
    return (
        f"{checkpoint.num_labels} outputs, but only the first {checkpoint.real_labels} occur; "
        f"`--num_labels {checkpoint.real_labels}` keeps only those"
    )


def _measurements(checkpoint: SystemCheckpoint, measured: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if measured is None:
        return []
    same_architecture = "" if measured["name"] == checkpoint.name else f" (measured on `{measured['name']}`)"
    return [
        (
            "Time and memory",
            f"{measured['seconds']:.3g} s and {measured['peak_memory_mib'] / 1024:.3g} GiB for one input of "
            f"{measured['height']} x {measured['width']} in {measured['dtype']} on {measured['device']}, "
            f"{measured['threads']} threads, with random weights{same_architecture}",
        )
    ]


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return f"The authors report no result for this file, and we measured none ([model zoo]({SOURCE}))."
    rows = [
        (score.metric, f"{score.value:g} %", score.views, score.split or "validation", f"[model zoo]({SOURCE})")
        for score in scores
    ]
    table = markdown_table(("Metric", "Value", "Views", "Split", "Source"), rows)
    return f"These results are {REPORTED}.\n\n{table}"


def _use(checkpoint: SystemCheckpoint) -> str:
    """Return how to load and run the converted model, in Markdown."""
    if checkpoint.system in ("mask_rcnn", "cascade_rcnn"):
        first_line = IMPORT_PACKAGE.replace("hf_internimage", "hf_internimage.models.mask_rcnn")
        return python_block(pipeline_code("object-detection", checkpoint.name, first_line=first_line)) + _MASKS
    if checkpoint.task != SEMANTIC_SEGMENTATION:
        return python_block(pipeline_code("object-detection", checkpoint.name))
    universal = checkpoint.system == "mask2former"
    model_class = "AutoModelForUniversalSegmentation" if universal else "AutoModelForSemanticSegmentation"
    options = f", crop_size={checkpoint.crop_size}, stride={checkpoint.stride}" if checkpoint.crop_size else ""
    return python_block(segmentation_code(model_class, checkpoint.name, variable="folder", options=options))


def _limits(checkpoint: SystemCheckpoint, measured: bool) -> list[str]:
    not_measured = "" if measured else "We opened no released file and measured no score. "
    limits = [
        f"It knows only the classes of {checkpoint.dataset}, and was tested only on pictures of that data set.",
        f"{not_measured}Our tests compare the package with outputs of the original code, on small models with random "
        "weights.",
        "Not made for decisions about people, nor for driving a vehicle.",
    ]
    if not checkpoint.released:
        limits.insert(0, "The authors' model zoo names the configuration; we know of no public file of its weights.")
    if checkpoint.parameters > 1e9:
        limits.append(f"{weight_sizes(checkpoint.parameters)} (`dtype` of `from_pretrained`).")
    if checkpoint.system in ("mask_rcnn", "cascade_rcnn"):
        limits.append('Needs torchvision: `pip install "hf-internimage[torchvision]"`.')
    return limits


__all__ = ["PIPELINE_TAGS", "SYSTEM_TITLES", "published_system_card"]
