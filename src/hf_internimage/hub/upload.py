# SPDX-License-Identifier: MIT
"""Upload a model that lies in a folder or on the Hub, with its card: the command `hf-internimage push`.

It takes everything that `from_pretrained` takes, and the checkpoint folders of a Trainer. An image processor in the
model's folder is pushed too. A README.md there becomes the model card, unless a result or a licence ask for a new one.
"""

import json
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import CommitInfo, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ..models import auto
from . import repository
from .cards import evaluated_card
from .evaluation_blocks import number
from .loading import check_folder
from .trained_cards import trained_card

_PREPROCESSOR = "preprocessor_config.json"
_MAIN_METRICS = {"semantic-segmentation": "mean_iou", "object-detection": "map"}  # task -> what its evaluation has


def upload(
    name: str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    result: Path | None = None,
    license: str | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
    folder: Path | None = None,
) -> CommitInfo | None:
    """Push a model as a repository that works with and without this package; return the commit, None of a dry run.

    Args:
        name: folder of the model, or its repository on the Hub.
        repo_id: repository to push to: name, or owner/name.
        private, revision, create_pr, folder: see `repository.push`.
        result: JSON file of an evaluation, for a card with its numbers.
        license: of the weights, for a new card.
        base_model: what it was fine-tuned from, for the card of `result`.
        dry_run: only write the files into `folder`.

    Raises:
        ValueError, OSError, PushError: in one sentence, for a model that cannot be used, and a push that fails.
    """
    try:
        check_folder(name)
        model, processor = _load_model(name), _load_processor(name)
        if processor is None and repository.task_of(model) is not None:
            raise ValueError(f"{name} has no {_PREPROCESSOR}; copy the one of its training into the folder.")
        card = _make_card(name, repo_id, model, result, license, base_model)
    except RecursionError as error:
        raise ValueError(f"{name} has JSON that is nested too deeply.") from error
    except RuntimeError as error:  # of PyTorch, for weights of other shapes
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    if dry_run:
        if folder is None:
            raise ValueError("A dry run needs a folder to write into.")
        repository.save_for_hub(model, folder, image_processor=processor, card=card)
        return None
    return repository.push(
        model,
        repo_id,
        image_processor=processor,
        card=card,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        folder=folder,
    )


def _load_model(name: str) -> PreTrainedModel:
    """Load a classifier, a segmenter, a detector, a backbone or a model without a head.

    Raises: ValueError for another type of model, and for weights that lack tensors.
    """
    for model_class in _classes(name):
        model, info = model_class.from_pretrained(name, output_loading_info=True)
        if not info["missing_keys"]:
            return model
    missing = sorted(info["missing_keys"])
    raise ValueError(f"{name} has no weights for {len(missing)} tensors (such as {missing[0]}); give a complete model.")


def _classes(name: str) -> list[Any]:
    """Return the classes that may load a model; the first one that misses no weights is right."""
    fields = PreTrainedConfig.get_config_dict(name)[0]
    model_type, (saved_class, *_) = fields.get("model_type"), fields.get("architectures") or [""]
    if model_type in auto.model_types("AutoModelForImageClassification"):
        # Official configurations name the class without a head, although their weights have one: the classifier first.
        backbone = auto.model_class(model_type, "AutoBackbone")
        others = [auto.model_class(model_type, name) for name in ("AutoModelForImageClassification", "AutoModel")]
        return [backbone] if saved_class == backbone.__name__ else others
    if model_type in repository.AUTO_MAPS and saved_class in auto.public_classes():
        return [auto.load(auto.public_classes()[saved_class])]
    if repository.is_head(saved_class, fields):
        return [getattr(transformers, saved_class)]
    raise ValueError(
        f"{name} is a model of type {model_type!r}, expected a classifier, segmenter, detector or backbone with "
        f"InternImage; `hf upload REPO_ID {name}` uploads any folder."
    )


def _load_processor(name: str) -> BaseImageProcessor | None:
    """Load the image processor of the model's folder or repository; return None if it has none."""
    if Path(name).is_dir():
        if not Path(name, _PREPROCESSOR).exists():
            return None
    else:
        try:
            hf_hub_download(name, _PREPROCESSOR)
        except EntryNotFoundError:
            return None
    return AutoImageProcessor.from_pretrained(name)


def _make_card(
    name: str,
    repo_id: str,
    model: PreTrainedModel,
    result: Path | None,
    license: str | None,
    base_model: str | None,
) -> ModelCard | str | None:
    """Return a new card if a result or a licence ask for one, else the card in the model's folder, else None."""
    if result is not None:
        task = repository.task_of(model)
        if task is None and not type(model).__name__.endswith("ForImageClassification"):
            raise ValueError(f"--result is for models with a head, and {name} has none; leave it out.")
        try:
            evaluation = json.loads(result.read_text(encoding="utf-8"))
            if task is None:
                return evaluated_card(evaluation, model_id=repo_id, base_model=base_model, license=license)
            number(evaluation, "metrics", _MAIN_METRICS[task])
            return trained_card(
                model,
                repo_id,
                task=task,
                has_code=repository.has_code(model),
                base_model=base_model,
                license=license,
                evaluation=evaluation,
                training={},
            )
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{result}: {error}") from error
    if license:
        return repository.short_card(model, repo_id, license=license)
    path = Path(name, "README.md")
    return path.read_text(encoding="utf-8") if path.is_file() else None


__all__ = ["upload"]
