# SPDX-License-Identifier: MIT
"""Build model cards from blocks: metadata, code that loads the model, sentences that many cards share, and tables.

`full_card` fills the template `model_card.md` in; `plain_card` joins paragraphs. Nothing here uses the network.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..models import auto

REPORTED = "reported by the authors, not measured by us"
# For each family: its operator, its paper and where it appeared.
_FAMILIES = {
    "InternImage": ("DCNv3", "https://arxiv.org/abs/2211.05778", "CVPR 2023"),
    "FlashInternImage": ("DCNv4", "https://arxiv.org/abs/2401.06197", "CVPR 2024"),
}

IMPORT_PACKAGE = "import hf_internimage  # makes the Auto classes and pipelines know InternImage"
RUNS_OWN_CODE = """\
This runs the source files of this repository: in plain PyTorch, or with the faster operator of the package
`hf_internimage` where that is installed. After `import hf_internimage` the package's own classes are taken, and
`trust_remote_code` is not needed."""
NEEDS_PACKAGE = (
    "Without `import hf_internimage` transformers does not know the backbone, and says so with a `KeyError`."
)

# For each pipeline: the variable that holds it, and the lines that use it.
_PIPELINE_USES = {
    "image-classification": ("classify", 'print(classify("cat.jpg"))'),
    "object-detection": (
        "detect",
        'for detection in detect("street.jpg", threshold=0.3):\n'
        '    print(detection["label"], detection["score"], detection["box"])',
    ),
}
_SEGMENT = """\
import hf_internimage  # makes the Auto classes know InternImage
from hf_internimage.segmentation import SemanticSegmenter
from PIL import Image
from transformers import AutoImageProcessor, {model_class}

{variable} = "{repository}"
model = {model_class}.from_pretrained({variable}).eval()
segment = SemanticSegmenter(model, AutoImageProcessor.from_pretrained({variable}){options})
labels = segment(Image.open("street.jpg"))  # (height, width), the class of each pixel"""


def family_of(model_type: str) -> str:
    """Return "FlashInternImage" or "InternImage", the family of a model type of this package."""
    return "FlashInternImage" if model_type == "flash_internimage" else "InternImage"


def backbone_family(config: Any) -> str:
    """Return the family of a model's backbone, or of the model itself if it has none, from its configuration."""
    return family_of(getattr(getattr(config, "backbone_config", None) or config, "model_type", ""))


def family_link(family: str) -> str:
    """Return the name of a family as a link to its paper, in Markdown."""
    return f"[{family}]({_FAMILIES[family][1]})"


def introduction(family: str) -> str:
    """Return one sentence on a family of models, with its paper."""
    operator, paper, conference = _FAMILIES[family]
    return (
        f"{family} is a convolutional network built on {operator}, a deformable convolution: each output value is a "
        f"weighted sum of samples of the image at learned positions ([paper]({paper}), {conference})."
    )


def card_metadata(
    tags: Sequence[str], *, family: str, license: str | None, base_model: str | None = None, **more: Any
) -> ModelCardData:
    """Return the metadata at the head of a card.

    Args:
        tags: tags of the Hub for the task; the first is also the pipeline that runs the model.
        family: "InternImage" or "FlashInternImage".
        license: SPDX identifier in lower case, as the Hub writes it; not stated if None.
        base_model: repository on the Hub of the checkpoint that the model was fine-tuned from.
        more: other fields of `ModelCardData`; those that are None are left out.
    """
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=tags[0],
        base_model=base_model,
        tags=["internimage", *tags, _FAMILIES[family][0].lower(), "vision"],
        **more,
    )


def reported_result(
    metric: str,
    percent: float,
    *,
    metric_type: str,
    task: str,
    task_name: str,
    dataset: str,
    dataset_name: str,
    split: str,
    source: str,
) -> EvalResult:
    """Return a result that the authors report, marked as theirs, for the metadata of a card.

    Args:
        metric: name of the metric for people.
        percent: its value, from 0 to 100.
        metric_type, task, dataset: as the Hub names them.
        task_name, dataset_name: names for people.
        split: part of the data set.
        source: address of the page that reports it.
    """
    return EvalResult(
        task_type=task,
        task_name=task_name,
        dataset_type=dataset,
        dataset_name=dataset_name,
        dataset_split=split,
        metric_type=metric_type,
        metric_name=f"{metric}, {REPORTED}",
        metric_value=round(percent / 100, 4),
        source_name="OpenGVLab/InternImage",
        source_url=source,
    )


def full_card(metadata: ModelCardData, **parts: Any) -> ModelCard:
    """Return the template with its parts filled in; it ends with a line break."""
    template = files("hf_internimage").joinpath("hub/model_card.md").read_text(encoding="utf-8")
    return ModelCard(ModelCard.from_template(metadata, template_str=template, **parts).content.rstrip() + "\n")


def plain_card(metadata: ModelCardData, model_id: str, paragraphs: Sequence[str]) -> ModelCard:
    """Return a card of the repository's name as title and these paragraphs, in Markdown; empty ones are left out."""
    title = f"# {model_id.rpartition('/')[2]}"
    body = "\n\n".join(text.strip("\n") for text in (title, *paragraphs) if text)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")


def python_block(code: str) -> str:
    """Return code as a block of Markdown."""
    return f"```python\n{code}\n```\n"


def pipeline_code(task: str, repository: str, *, first_line: str | None = IMPORT_PACKAGE) -> str:
    """Return code that runs a pipeline of transformers on an image.

    Args:
        task: "image-classification" or "object-detection".
        repository: repository on the Hub, or a folder.
        first_line: import that makes the model known; if None, the repository's own code is trusted and run.
    """
    variable, use = _PIPELINE_USES[task]
    start, trust = ("", ", trust_remote_code=True") if first_line is None else (f"{first_line}\n", "")
    return (
        f"{start}from transformers import pipeline\n\n"
        f'{variable} = pipeline("{task}", model="{repository}"{trust})\n{use}'
    )


def segmentation_code(model_class: str, repository: str, *, variable: str = "repository", options: str = "") -> str:
    """Return code that segments an image.

    Args:
        model_class: class of transformers that loads the model.
        repository: repository on the Hub, or a folder.
        variable: name for it in the code.
        options: more arguments of `SemanticSegmenter`, with a comma before each.
    """
    return _SEGMENT.format(model_class=model_class, repository=repository, variable=variable, options=options)


def released_config(size: str, model_type: str = "internimage") -> Any:
    """Return the configuration of a released size of a model type."""
    return auto.load(auto.MODELS[model_type].config).from_size(size)


def released_name(size: str, model_type: str = "internimage") -> str:
    """Return the name of a released size of a model type, such as "InternImage-T"."""
    family = auto.MODELS[model_type].config.rpartition(".")[2].removesuffix("Config")
    return f"{family}-{size.upper()}"


def architecture(size: str, model_type: str = "internimage") -> str:
    """Return a released size of a model type in words: its name, channels and blocks."""
    config = released_config(size, model_type)
    depths = ", ".join(map(str, config.depths))
    return f"{released_name(size, model_type)}: {config.channels} channels in the first stage, blocks {depths}"


def model_facts(model: Any) -> list[tuple[str, str]]:
    """Return rows of a card on a whole model: its class, parameters and classes."""
    return [
        ("Model", f"`{type(model).__name__}`"),
        ("Parameters", f"{model.num_parameters():,}"),
        ("Classes", f"{model.config.num_labels:,}"),
    ]


def parameter_count(parameters: int) -> str:
    """Return the number of parameters in words, with the size of the weights."""
    return f"{parameters:,} ({parameters * 4 / 1e9:.2f} GB in float32), counted by us"


def weight_sizes(parameters: int) -> str:
    """Return the first part of a sentence: the memory that the weights of a large model need."""
    return f"The weights alone need {parameters * 4 / 1e9:.1f} GB in float32, {parameters * 2 / 1e9:.1f} GB in bfloat16"


def repository_link(repository: str) -> str:
    """Return a link to a repository on the Hub, in Markdown."""
    return f"[{repository}](https://huggingface.co/{repository})"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, without a last line break."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def table_cell(value: Any) -> str:
    """Return a value as text that stays within its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def percent(share: float, digits: int = 1) -> str:
    """Return a share from 0 to 1 in percent."""
    return f"{100 * share:.{digits}f} %"


__all__ = [
    "IMPORT_PACKAGE",
    "NEEDS_PACKAGE",
    "REPORTED",
    "RUNS_OWN_CODE",
    "architecture",
    "backbone_family",
    "card_metadata",
    "family_link",
    "family_of",
    "full_card",
    "introduction",
    "markdown_table",
    "model_facts",
    "parameter_count",
    "percent",
    "pipeline_code",
    "plain_card",
    "python_block",
    "released_config",
    "released_name",
    "reported_result",
    "repository_link",
    "segmentation_code",
    "table_cell",
    "weight_sizes",
]
