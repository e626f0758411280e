# SPDX-License-Identifier: MIT
"""Save a model repository that works with and without this package, and push it to the Hugging Face Hub.

A repository holds the weights, the configuration, the preprocessor, a model card, and the source files of the model.
Where this package is imported, transformers uses its classes; elsewhere it runs those source files with
`trust_remote_code=True`. Segmenters and detectors of transformers on an InternImage are saved without source files, and
need this package.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from transformers import BaseImageProcessor, ImageProcessingMixin, PreTrainedConfig, PreTrainedModel

from ..atomic_write import atomic_update, atomic_write
from ..models import auto
from ..models.image_processing_pil_internimage import image_processor_for
from ..tensors import check_tensors, shapes_of, writing
from .card_blocks import (
    NEEDS_PACKAGE,
    RUNS_OWN_CODE,
    backbone_family,
    card_metadata,
    family_link,
    pipeline_code,
    plain_card,
    python_block,
    segmentation_code,
)
from .system_cards import PIPELINE_TAGS
from .tokens import without_tokens

AUTO_MAPS = {model_type: entry.auto_map for model_type, entry in auto.MODELS.items() if entry.travels}
MAX_SHARD_SIZE = "5GB"
# Name of a model class -> (model_type, Auto class, "module.Class").
_CLASSES = {
    name.rpartition(".")[2]: (model_type, auto_class, name)
    for model_type, auto_map in AUTO_MAPS.items()
    for auto_class, name in auto_map.items()
    if auto_class != "AutoConfig"
}
# Ends of the names of model classes -> tag of the Hub.
_TASKS = {
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForUniversalSegmentation": "semantic-segmentation",
    "ForObjectDetection": "object-detection",
}
_PIPELINES = {
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForObjectDetection": "object-detection",
}
# Image processors of ours -> the one of transformers that gives the same pixels and is named in their place: it needs
# neither this package nor trust in any code.
_BUILT_IN_PROCESSORS = {
    name.rpartition(".")[2]: entry.saved_processor
    for entry in auto.MODELS.values()
    for name in entry.processors.values()
    if entry.saved_processor is not None
}
_CARD = "README.md"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_WEIGHTS_ON_THE_HUB = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]


class PushError(RuntimeError):
    """The upload of a model failed. The message says why, what to do, and where the files are.

    Attributes:
        folder: folder with everything to upload; None if nothing was written yet.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


def default_image_processor(config: PreTrainedConfig) -> BaseImageProcessor:
    """Return the preprocessing of the released classifiers, at the size `config.image_size`.

    Raises:
        ValueError: for a detector or segmenter, because its configuration holds no image size, and for a model that
            does not take three channels.
    """
    if not hasattr(config, "image_size"):
        raise ValueError(
            "The configuration of a detector or segmenter does not say at what size it sees images; give "
            "image_processor, an InternImageDetectionImageProcessor or InternImageSegmentationImageProcessor."
        )
    if config.num_channels != 3:
        raise ValueError(
            f"num_channels is {config.num_channels}, and the default image processor makes 3 channels; give "
            "image_processor."
        )
    sides = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    return image_processor_for(sides[0], sides[-1])


def save_for_hub(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    image_processor: BaseImageProcessor | None = None,
    card: ModelCard | str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write a repository of `model` that transformers also loads without this package.

    A new folder appears complete or not at all. In an existing folder, files of the same names and older weights are
    replaced at once and other files stay; an error leaves everything as it was. A folder that loads does so at any
    time, as the old model or the new one, also after the process was killed (see `atomic_write.atomic_update`).

    Args:
        model: a model of a class in `AUTO_MAPS`, of this package or loaded by `trust_remote_code=True`. In both cases
            the source files written are this package's. Or a segmenter or detector of transformers on an InternImage,
            which gets no source files.
        folder: the repository's folder; parents are created.
        image_processor: if None, the one of the released classifiers at `config.image_size`; others need one. Our
            processor for classification is saved as transformers' CLIPImageProcessor, which gives the same pixels; for
            the others the source files are saved.
        card: the model card. If None, a card in the folder stays; without one, a short card without a licence is
            written.
        max_shard_size: split larger weights into several files.

    Raises:
        ValueError: if such a repository cannot hold the model or image processor, or if the folder is a file.
        OSError: if files cannot be written.
    """
    processor = _checked(model, image_processor, folder)
    destination = Path(os.path.realpath(folder))
    text = None if card is None else str(card)
    if text is None and not (destination / _CARD).exists():
        text = str(short_card(model, destination.name))
    _save(model, processor, text, destination, max_shard_size)


def push(
    model: PreTrainedModel,
    repo_id: str,
    *,
    image_processor: BaseImageProcessor | None = None,
    card: ModelCard | str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    folder: str | os.PathLike | None = None,
) -> CommitInfo:
    """Upload the files that `save_for_hub` writes to the Hub in one commit, and remove older weights there.

    Args:
        model, image_processor, max_shard_size: as for `save_for_hub`.
        repo_id: "name" or "owner/name"; a repository that does not exist is created.
        card: the model card. If None, the card in `folder` or in the repository stays; without one, a short card
            without a licence is written.
        private: whether a new repository is private; None for the owner's default.
        token: access token of the Hub; None for the one of `hf auth login` or HF_TOKEN.
        revision: branch to commit to; a branch that does not exist is created from the main branch.
        commit_message: first line of the commit message.
        create_pr: open a pull request instead.
        folder: keep the files in this folder; if None, they are in a temporary folder until they are uploaded.

    Returns: the commit, or the last one if nothing has changed.

    Raises:
        ValueError: as `save_for_hub`, and for an impossible repository name.
        PushError: if the Hub cannot be reached or refuses. If the upload failed, its `folder` holds the files.
    """
    processor = _checked(model, image_processor, folder)
    api = HfApi(token=token)
    with _explained(api, repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise PushError(
                f"{repo_id} exists and is public, nothing was uploaded; make it private in its settings on the Hub, or "
                "leave out private."
            )
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        has_card = api.file_exists(repo_id, _CARD, revision=revision)
    destination = Path(os.path.realpath(tempfile.mkdtemp(prefix="hf_internimage_") if folder is None else folder))
    temporary = folder is None
    try:
        text = None if card is None else str(card)
        if text is None and not has_card and not (destination / _CARD).exists():
            text = str(short_card(model, repo_id))
        names = _save(model, processor, text, destination, max_shard_size)
        with _explained(api, repo_id, destination):
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=destination,
                allow_patterns=[*names, _CARD],
                delete_patterns=_WEIGHTS_ON_THE_HUB,
                revision=revision,
                commit_message=commit_message or f"Upload {type(model).__name__}",
                create_pr=create_pr,
            )
    except PushError:
        temporary = False  # keep the files that were not uploaded
        raise
    finally:
        if temporary:
            shutil.rmtree(destination, ignore_errors=True)


def short_card(model: PreTrainedModel, model_id: str, *, license: str | None = None) -> ModelCard:
    """Return a model card with the facts known of any model, without data and accuracy.

    Args:
        model: as for `save_for_hub`.
        model_id: repository on the Hub, or name of the folder.
        license: SPDX identifier in lower case, as the Hub writes it; None to state none.
    """
    name, family = type(model).__name__, backbone_family(model.config)
    if not has_code(model):
        tag = PIPELINE_TAGS[str(task_of(model))]
        code = pipeline_code(tag, model_id) if tag in _PIPELINES.values() else segmentation_code(name, model_id)
        paragraphs = [_first_sentence(model), python_block(code), NEEDS_PACKAGE]
        return plain_card(card_metadata([tag], family=family, license=license), model_id, paragraphs)
    auto_class = _CLASSES[name][1]
    task = _PIPELINES.get(auto_class, "image-feature-extraction")
    if auto_class in _PIPELINES:
        code = pipeline_code(task, model_id, first_line=None)
    else:
        code = f"""from transformers import AutoImageProcessor, {auto_class}

processor = AutoImageProcessor.from_pretrained("{model_id}")
model = {auto_class}.from_pretrained("{model_id}", trust_remote_code=True)"""
    paragraphs = [_first_sentence(model), python_block(code), RUNS_OWN_CODE]
    return plain_card(card_metadata([task], family=family, license=license), model_id, paragraphs)


def _first_sentence(model: PreTrainedModel) -> str:
    family = backbone_family(model.config)
    article = "An" if family == "InternImage" else "A"
    name, parameters = type(model).__name__, model.num_parameters()
    return f"{article} {family_link(family)} model (`{name}`) with {parameters:,} parameters."


def has_code(model: PreTrainedModel) -> bool:
    """Return whether a model's source files are saved with it."""
    return type(model).__name__ in _CLASSES


def task_of(model: PreTrainedModel) -> str | None:
    """Return "semantic-segmentation" or "object-detection"; None for a classifier and a model without a head."""
    name = type(model).__name__
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)


def is_head(class_name: str, config: dict[str, Any]) -> bool:
    """Return whether a class is a segmenter or detector of transformers, and its configuration names our backbone."""
    backbone = config.get("backbone_config") or {}
    known = class_name.endswith(tuple(_TASKS)) and hasattr(transformers, class_name)
    return known and backbone.get("model_type") in auto.model_types("AutoBackbone")


def _checked(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor | None,
    folder: str | os.PathLike | None,
) -> BaseImageProcessor:
    """Return the image processor to save. Raises ValueError for impossible arguments."""
    _check_model(model)
    processor = default_image_processor(model.config) if image_processor is None else image_processor
    _check_processor(processor)
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file; give the path of a folder.")
    return processor


def _check_model(model: PreTrainedModel) -> None:
    """Raise ValueError unless the classes of the repository can load this model."""
    name = type(model).__name__
    model_type, _, reference = _CLASSES.get(name, ("", "", ""))
    is_ours = bool(reference) and getattr(getattr(model, "config", None), "model_type", None) == model_type
    if not is_ours and not (type(model) is getattr(transformers, name, None) and is_head(name, model.config.to_dict())):
        raise ValueError(
            f"model is a {name}, expected {', '.join(sorted(_CLASSES))}, or a segmenter or detector of transformers on "
            "one of these backbones; give the model itself, without wrappers, adapters and subclasses."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("model has adapters loaded; merge them into its weights, or remove them.")
    if not hasattr(model, "hf_device_map") and any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model has no weights, its parameters are on the meta device; load them first.")
    with torch.device("meta"):
        config_class: Any = auto.load(auto.MODELS[model_type].config) if is_ours else type(model.config)
        config = config_class.from_dict(model.config.to_dict())
        described = auto.load(reference)(config) if is_ours else type(model)(config)
    try:
        check_tensors(shapes_of(model.state_dict()), shapes_of(described.state_dict()))
    except ValueError as error:
        raise ValueError(f"model is not what its configuration describes: {error}") from error


def _check_processor(processor: BaseImageProcessor) -> None:
    """Raise ValueError unless the image processor can be loaded on machines without its package."""
    build = type(processor)
    if not isinstance(processor, ImageProcessingMixin):
        raise ValueError(f"image_processor is a {build.__name__}, expected an image processor of transformers.")
    if build.__module__.partition(".")[0] not in ("hf_internimage", "transformers") and build._auto_class is None:
        raise ValueError(
            f"image_processor is a {build.__name__}, which transformers does not have; call its "
            "register_for_auto_class(), so that its source file is saved too."
        )


def _save(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    card: str | None,
    destination: Path,
    max_shard_size: int | str,
) -> list[str]:
    """Write the repository, or leave everything as it was. Return the names of the files written."""
    exists = destination.is_dir()
    with atomic_update(destination, is_weights) if exists else atomic_write(destination) as new:
        with writing(destination):
            model.save_pretrained(new, max_shard_size=max_shard_size)
        for path in new.glob("*.py"):  # a class loaded from a repository brings its own, perhaps older files
            path.unlink()
        processor.save_pretrained(new)
        if has_code(model):
            _add_code(new, type(model).__name__, type(processor).__name__)
        if card is not None:
            (new / _CARD).write_text(card, encoding="utf-8", newline="")
        return sorted(path.name for path in new.iterdir())


def _add_code(folder: Path, model_class: str, processor_class: str) -> None:
    """Add the source files of a model and its image processor to a saved model, and name them in its files."""
    model_type, _, reference = _CLASSES[model_class]
    _set_in_json(folder / "config.json", "auto_map", AUTO_MAPS[model_type])
    references = [reference]
    if processor_class in _BUILT_IN_PROCESSORS:
        built_in = _BUILT_IN_PROCESSORS[processor_class]
        _set_in_json(folder / "preprocessor_config.json", "image_processor_type", built_in)
    elif processor_class in auto.public_classes():
        reference = auto.public_classes()[processor_class]
        _set_in_json(folder / "preprocessor_config.json", "auto_map", {"AutoImageProcessor": reference})
        references.append(reference)
    for path in auto.source_files(*references):
        shutil.copyfile(path, folder / path.name)


def is_weights(name: str) -> bool:
    """Return whether a file of this name holds weights, or the index of several such files."""
    return _WEIGHTS.fullmatch(name) is not None


def _set_in_json(path: Path, key: str, value: Any) -> None:
    fields = {**json.loads(path.read_text(encoding="utf-8")), key: value}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="")


@contextmanager
def _explained(api: HfApi, repo_id: str, folder: Path | None = None) -> Iterator[None]:
    """Turn errors of the Hub's client into a PushError. Impossible arguments stay ValueErrors."""
    try:
        yield
    except (PushError, HFValidationError):
        raise
    except Exception as error:  # uploads raise any error of their transport
        where = "" if folder is None else f"; the files are in {folder}"
        message = without_tokens(f"{repo_id} was not uploaded: {_reason(error, api)}{where}.", api.token)
        shown = str(error)  # in a traceback
        raise PushError(message, folder) from (error if without_tokens(shown, api.token) == shown else None)


def _reason(error: Exception, api: HfApi) -> str:
    said = " ".join((getattr(error, "server_message", None) or str(error)).split()).rstrip(".")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if status == 401:
        return f"the Hub wants a valid token ({said}); log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token may not do this ({said}); use one that may write, or a pull request"
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("httpx"):
        return f"the Hub at {api.endpoint} cannot be reached ({said}); check the connection and try again"
    return f"the Hub or its client refused ({said})"


__all__ = [
    "AUTO_MAPS",
    "MAX_SHARD_SIZE",
    "PushError",
    "default_image_processor",
    "has_code",
    "image_processor_for",
    "is_head",
    "is_weights",
    "push",
    "save_for_hub",
    "short_card",
    "task_of",
]
