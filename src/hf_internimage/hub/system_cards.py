# SPDX-License-Identifier: MIT
"""Model cards of the published segmentation and detection checkpoints, from `dense_checkpoints.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoints.systems import SEMANTIC_SEGMENTATION, SOURCE, Score, SystemCheckpoint
from ..models.configuration_internimage import SIZES
from .cards import INTRODUCTION, LIBRARY, REPORTED, fill_template, markdown_table

SYSTEM_TITLES = {
    "upernet": "UperNet",
    "mask2former": "Mask2Former",
    "dino": "DINO",
    "cb_dino": "DINO on the composite backbone of two InternImages",
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade Mask R-CNN",
}
_PIPELINE_TAGS = {
    "semantic-segmentation": "image-segmentation",
    "instance-segmentation": "object-detection",  # the pipeline they work in
    "object-detection": "object-detection",
}
_METRIC_TYPES = {"mIoU": "mean_iou", "box AP": "mean_average_precision", "mask AP": "mean_average_precision"}
_REPORTED_FLAGS = ("post_norm", "res_post_norm", "level2_post_norm", "center_feature_scale")

_CONVERT = """\
The authors' file is that of their own training code, which `from_pretrained` cannot read. Convert it once; the script
is in the repository and the source distribution of `hf_internimage`:

```bash
python scripts/convert_checkpoint.py {name}.pth {name}
```

The file is read as tensors only (no code in it is run), every tensor is used or named as dropped, and the folder
appears complete or not at all.
"""

_SEGMENT = """
```python
import hf_internimage  # makes the Auto classes know InternImage
from hf_internimage.segmentation import SemanticSegmenter
from PIL import Image
from transformers import AutoImageProcessor, {auto}

folder = "{name}"
model = {auto}.from_pretrained(folder).eval()
segment = SemanticSegmenter(model, AutoImageProcessor.from_pretrained(folder){options})
labels = segment(Image.open("street.jpg").convert("RGB"))  # (height, width), the class of each pixel
```
"""

_DETECT = """
```python
import hf_internimage  # makes the Auto classes and pipelines know InternImage
from transformers import pipeline

detect = pipeline("object-detection", model="{name}")
for found in detect("street.jpg", threshold=0.3):
    print(found["label"], found["score"], found["box"])
```
"""

_MASKS = """
Masks come from `hf_internimage.models.mask_rcnn.post_process_instance_segmentation` on the model's outputs.
"""


def published_dense_card(checkpoint: SystemCheckpoint, measured: Mapping[str, Any] | None = None) -> ModelCard:
    """The card of a published checkpoint that `scripts/convert_checkpoint.py` converts.

    Args:
        checkpoint: a row of the table.
        measured: what `benchmarks/benchmark.py --systems` wrote of the converted model or of one of the same
            architecture and input (`name`, `height`, `width`, `seconds`, `peak_memory_mib`, `threads`, `device`,
            `dtype`); None if it was not measured.
    """
    results = [
        EvalResult(
            task_type=_PIPELINE_TAGS[checkpoint.task],
            task_name=checkpoint.task.replace("-", " ").capitalize(),
            dataset_type=checkpoint.dataset.lower().replace(" ", "-"),
            dataset_name=checkpoint.dataset,
            dataset_split=score.split or "validation",
            metric_type=_METRIC_TYPES.get(score.metric, "mean_average_precision"),
            metric_name=f"{score.metric}, {score.views}, {REPORTED}",
            metric_value=round(score.value / 100, 4),
            source_name="OpenGVLab/InternImage",
            source_url=SOURCE,
        )
        for score in checkpoint.scores
    ]
    data = ModelCardData(
        model_name=checkpoint.name if results else None,
        license=checkpoint.licence,
        library_name=LIBRARY,
        pipeline_tag=_PIPELINE_TAGS[checkpoint.task],
        tags=["internimage", _PIPELINE_TAGS[checkpoint.task], checkpoint.system.replace("_", "-"), "dcnv3", "vision"],
        eval_results=results or None,
    )
    system = SYSTEM_TITLES[checkpoint.system]
    origin = f"the published file `{checkpoint.name}.pth`" if checkpoint.released else "a checkpoint of this training"
    return fill_template(
        data,
        title=f"{system}, InternImage-{checkpoint.size.upper()}, {checkpoint.dataset}",
        summary=f"{INTRODUCTION} This is {system} with an InternImage-{checkpoint.size.upper()} backbone for "
        f"{checkpoint.task.replace('-', ' ')}, trained on {checkpoint.dataset}: {origin} ({checkpoint.url}).",
        facts=[*_facts(checkpoint), *_measurements(checkpoint, measured)],
        accuracy=_scores(checkpoint.scores),
        use=(_CONVERT + _use(checkpoint)).format(name=checkpoint.name).strip(),
        training=None,
        limits=_limits(checkpoint),
        licence="MIT, as the authors state of their repository. Data sets have terms of their own.",
    )


def _facts(checkpoint: SystemCheckpoint) -> list[tuple[str, str]]:
    fields = SIZES[checkpoint.size]
    flags = [name for name in _REPORTED_FLAGS if fields.get(name)]
    depths = ", ".join(map(str, fields["depths"]))
    resized = f"the largest size within {checkpoint.longest_edge} x {checkpoint.shortest_edge} pixels of its shape"
    if checkpoint.size_divisor and checkpoint.task == SEMANTIC_SEGMENTATION:
        resized += f", then resized again to multiples of {checkpoint.size_divisor}"
    elif checkpoint.size_divisor:
        resized += f", padded to multiples of {checkpoint.size_divisor}"
    facts = [
        (
            "Backbone",
            f"InternImage-{checkpoint.size.upper()}: {fields['channels']} channels in the first stage, blocks {depths}"
            + (f"; {', '.join(flags)}" if flags else ""),
        ),
        (
            "Parameters",
            f"{checkpoint.parameters:,} ({checkpoint.parameters * 4 / 1e9:.2f} GB in float32), counted by us",
        ),
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
        f"{checkpoint.num_labels} outputs, of which the first {checkpoint.real_labels} occur; "
        f"`--num-labels {checkpoint.real_labels}` keeps those only"
    )


def _measurements(checkpoint: SystemCheckpoint, measured: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if measured is None:
        return []
    architecture = "" if measured["name"] == checkpoint.name else f" (measured on `{measured['name']}`)"
    return [
        (
            "Time and memory",
            f"{measured['seconds']:.3g} s and {measured['peak_memory_mib'] / 1024:.3g} GiB for one input of "
            f"{measured['height']} x {measured['width']} in {measured['dtype']} on {measured['device']}, "
            f"{measured['threads']} threads, with made-up weights{architecture}",
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
    if checkpoint.system in ("mask_rcnn", "cascade_rcnn"):
        return _DETECT.replace("import hf_internimage  #", "import hf_internimage.models.mask_rcnn  #") + _MASKS
    if checkpoint.task != SEMANTIC_SEGMENTATION:
        return _DETECT
    options = f", crop_size={checkpoint.crop_size}, stride={checkpoint.stride}" if checkpoint.crop_size else ""
    is_mask2former = checkpoint.system == "mask2former"
    auto = "AutoModelForUniversalSegmentation" if is_mask2former else "AutoModelForSemanticSegmentation"
    return _SEGMENT.replace("{auto}", auto).replace("{options}", options)


def _limits(checkpoint: SystemCheckpoint) -> list[str]:
    limits = [
        f"It knows the classes of {checkpoint.dataset} and nothing else, and was tested on pictures of that kind.",
        "We opened no released file and measured no score. That the package computes what the original computes is "
        "tested with the original's numbers on small models with made-up weights.",
        "Not made for decisions about people, nor for driving a vehicle.",
    ]
    if not checkpoint.released:
        limits.insert(0, "The authors' model zoo names the configuration; we know of no public file of its weights.")
    if checkpoint.parameters > 1e9:
        limits.append(
            f"The weights alone need {checkpoint.parameters * 4 / 1e9:.1f} GB in float32, "
            f"{checkpoint.parameters * 2 / 1e9:.1f} GB in bfloat16 (`dtype` of `from_pretrained`)."
        )
    if checkpoint.system in ("mask_rcnn", "cascade_rcnn"):
        limits.append('Needs torchvision: `pip install "hf-internimage[torchvision]"`.')
    return limits


__all__ = ["SYSTEM_TITLES", "published_dense_card"]
