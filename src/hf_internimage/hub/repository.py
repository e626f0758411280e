# SPDX-License-Identifier: MIT
"""Model repositories that work with and without this package: saved in a folder or pushed to the Hugging Face Hub.

A repository holds the weights, the configuration, the preprocessor, a model card, and the source files of the model.
Where this package is not imported, transformers runs those files with `trust_remote_code=True`; where it is, the
package's own classes are taken.
"""

import importlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from .. import models

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    from ..models.image_processing_pil_internimage import InternImageImageProcessorPil

# For each model_type, what transformers' Auto classes find in a repository.
AUTO_MAPS = {
    "internimage": {
        "AutoBackbone": "modeling_internimage.InternImageBackbone",
        "AutoConfig": "configuration_internimage.InternImageConfig",
        "AutoModel": "modeling_internimage.InternImageModel",
        "AutoModelForImageClassification": "modeling_internimage.InternImageForImageClassification",
    },
    "cb_internimage": {
        "AutoBackbone": "modeling_cb_internimage.CBInternImageBackbone",
        "AutoConfig": "configuration_cb_internimage.CBInternImageConfig",
    },
    "internimage_dino": {
        "AutoConfig": "configuration_internimage_dino.InternImageDinoConfig",
        "AutoModelForObjectDetection": "modeling_internimage_dino.InternImageDinoForObjectDetection",
    },
}
MAX_SHARD_SIZE = "5GB"
_CLASSES = {
    reference.split(".")[1]: (model_type, auto, reference)
    for model_type, auto_map in AUTO_MAPS.items()
    for auto, reference in auto_map.items()
    if auto != "AutoConfig"
}
_PIPELINES = {
    "AutoModelForImageClassification": ("image-classification", "classify"),
    "AutoModelForObjectDetection": ("object-detection", "detect"),
}
# Does the same as our classification processors, and is a part of transformers: it needs neither this package nor trust
# in any code.
_BUILT_IN_PROCESSOR = "CLIPImageProcessor"
# Those of our image processors that transformers has no equal of: their source files are saved.
_PROCESSORS = {
    "InternImageDetectionImageProcessor": "image_processing_internimage_detection",
    "InternImageSegmentationImageProcessor": "image_processing_internimage_segmentation",
}
_CARD = "README.md"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_WEIGHTS_ON_THE_HUB = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]


class PushError(RuntimeError):
    """A model did not get to the Hub; says why and what to do, and where its files are.

    Attributes:
        folder: the folder with everything that was to be uploaded; None if nothing was written yet.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


def default_image_processor(config: "PreTrainedConfig") -> "BaseImageProcessor":
    """The preprocessing of the released classifiers, at the size `config.image_size`.

    Raises: ValueError for a detector, whose size is no part of its configuration, and if the model does not take three
    channels.
    """
    if config.model_type == "internimage_dino":
        raise ValueError(
            "A detector's configuration does not say at what size it sees images; give image_processor, an "
            "InternImageDetectionImageProcessor."
        )
    if config.num_channels != 3:
        raise ValueError(
            f"num_channels is {config.num_channels}, and the default image processor makes 3 channels; give "
            "image_processor."
        )
    sides = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    return image_processor_for(sides[0], sides[-1])


def image_processor_for(height: int, width: int) -> "InternImageImageProcessorPil":
    """The preprocessing of the released models, for images of this size in pixels."""
    from ..models.image_processing_pil_internimage import InternImageImageProcessorPil

    return InternImageImageProcessorPil(
        size={"shortest_edge": max(height, width)}, crop_size={"height": height, "width": width}
    )


def save_for_hub(
    model: "PreTrainedModel",
    folder: str | os.PathLike,
    *,
    image_processor: "BaseImageProcessor | None" = None,
    card: ModelCard | str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write a repository of `model` that transformers also loads without this package.

    A new folder appears complete or not at all. In one that exists, files of the same names and older weights are
    replaced, others stay; an error leaves everything as it was.

    Args:
        model: an InternImageForImageClassification, InternImageModel, InternImageBackbone, CBInternImageBackbone or
            InternImageDinoForObjectDetection, of this package or loaded by `trust_remote_code=True`. Either way the
            source files written are this package's.
        folder: where to; parents are made.
        image_processor: if None, that of the released classifiers at `config.image_size`; a detector needs one. Ours
            for classification is written as the CLIPImageProcessor of transformers, which gives the same pixels; the
            source files of the others are saved.
        card: the model card. If None, a card in the folder stays; where there is none, a short one is written, without
            a licence.
        max_shard_size: larger weights are split into several files.

    Raises:
        ValueError: for a model or image processor that such a repository cannot hold, or a folder that is a file.
        OSError: if files cannot be written.
    """
    processor = _checked(model, image_processor, folder)
    destination = Path(folder).resolve()
    text = None if card is None else str(card)
    if text is None and not (destination / _CARD).exists():
        text = str(short_card(model, destination.name))
    _save(model, processor, text, destination, max_shard_size)


def push(
    model: "PreTrainedModel",
    repo_id: str,
    *,
    image_processor: "BaseImageProcessor | None" = None,
    card: ModelCard | str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    folder: str | os.PathLike | None = None,
) -> CommitInfo:
    """Upload to the Hub, in one commit, what `save_for_hub` writes; weights of an earlier commit go.

    Args:
        model, image_processor, max_shard_size: as for `save_for_hub`.
        repo_id: "name" or "owner/name"; the repository is made where it does not exist.
        card: the model card. If None, the card in `folder` or else in the repository stays; where there is none, a
            short one is written, without a licence.
        private: whether a new repository is private; None for the owner's default.
        token: of the Hub; None for the one of `hf auth login` or of HF_TOKEN.
        revision: branch to commit to, made from the main branch where it does not exist.
        commit_message: first line of the commit.
        create_pr: open a pull request instead.
        folder: keep the files here; if None, in a temporary folder until they are uploaded.

    Returns: the commit, or the last one if nothing has changed.

    Raises:
        ValueError: as `save_for_hub`, and for an impossible name of a repository.
        PushError: if the Hub cannot be reached or refuses. If the upload failed, the files are kept in its `folder`.
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
    destination = Path(tempfile.mkdtemp(prefix="hf_internimage_") if folder is None else folder).resolve()
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
        temporary = False  # what was not uploaded is not lost
        raise
    finally:
        if temporary:
            shutil.rmtree(destination, ignore_errors=True)


def short_card(model: "PreTrainedModel", model_id: str, *, license: str | None = None) -> ModelCard:
    """A model card with what is known of any model: nothing of its data and its accuracy.

    Args:
        model: as for `save_for_hub`.
        model_id: repository on the Hub the card is for, or the name of a folder.
        license: SPDX identifier in lower case, as the Hub writes it; not stated if None.
    """
    build = type(model).__name__
    auto = _CLASSES[build][1]
    task, verb = _PIPELINES.get(auto, ("image-feature-extraction", ""))
    data = ModelCardData(
        license=license, library_name="transformers", pipeline_tag=task, tags=["internimage", task, "dcnv3", "vision"]
    )
    use = f'''from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained("{model_id}")
model = {auto}.from_pretrained("{model_id}", trust_remote_code=True)'''
    if verb:
        use = f'''from transformers import pipeline

{verb} = pipeline("{task}", model="{model_id}", trust_remote_code=True)
print({verb}("cat.jpg"))'''
    return ModelCard(f"""---
{data.to_yaml()}
---

# {model_id.rpartition("/")[2]}

An [InternImage](https://arxiv.org/abs/2211.05778) model (`{build}`) with {model.num_parameters():,} parameters.

```python
{use}
```

This runs the source files of this repository: in plain PyTorch, or with the faster operator of the package
`hf_internimage` where that is installed. After `import hf_internimage` the package's own classes are taken, and
`trust_remote_code` is not needed.
""")


def _checked(
    model: "PreTrainedModel",
    image_processor: "BaseImageProcessor | None",
    folder: str | os.PathLike | None,
) -> "BaseImageProcessor":
    """The image processor to save; raises ValueError for arguments that cannot work."""
    _check_model(model)
    processor = default_image_processor(model.config) if image_processor is None else image_processor
    _check_processor(processor)
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file; give the path of a folder.")
    return processor


def _check_model(model: "PreTrainedModel") -> None:
    """Raise ValueError unless the classes of the repository can load what this model holds."""
    import torch

    from ..tensors import check_tensors, shapes_of

    name = type(model).__name__
    model_type, _, reference = _CLASSES.get(name, ("", "", ""))
    if not reference or getattr(getattr(model, "config", None), "model_type", None) != model_type:
        raise ValueError(
            f"model is a {name}, expected {', '.join(sorted(_CLASSES))}; give the model itself, without wrappers, "
            "adapters and subclasses."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("model has adapters loaded; merge them into its weights, or remove them.")
    if not hasattr(model, "hf_device_map") and any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model has no weights, its parameters are on the meta device; load them first.")
    with torch.device("meta"):
        config = _own_class(AUTO_MAPS[model_type]["AutoConfig"]).from_dict(model.config.to_dict())
        described = _own_class(reference)(config)
    try:
        check_tensors(shapes_of(model.state_dict()), shapes_of(described.state_dict()))
    except ValueError as error:
        raise ValueError(f"model is not what its configuration describes: {error}") from error


def _own_class(reference: str) -> Any:
    """The class of this package that an entry of `AUTO_MAPS` names."""
    module, name = reference.split(".")
    return getattr(importlib.import_module(f"hf_internimage.models.{module}"), name)


def _check_processor(processor: "BaseImageProcessor") -> None:
    """Raise ValueError unless the image processor can be loaded where its package is absent."""
    from transformers import ImageProcessingMixin

    build = type(processor)
    if not isinstance(processor, ImageProcessingMixin):
        raise ValueError(f"image_processor is a {build.__name__}, expected an image processor of transformers.")
    if build.__module__.partition(".")[0] not in ("hf_internimage", "transformers") and build._auto_class is None:
        raise ValueError(
            f"image_processor is a {build.__name__}, which transformers does not have; call its "
            "register_for_auto_class(), so that its source file is saved too."
        )


def _save(
    model: "PreTrainedModel",
    processor: "BaseImageProcessor",
    card: str | None,
    destination: Path,
    max_shard_size: int | str,
) -> list[str]:
    """Write the repository, or leave everything as it was. Returns the names of the files written."""
    exists = destination.is_dir()
    home = destination if exists else destination.parent  # on the destination's file system: files are moved there
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=home) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        model.save_pretrained(new, max_shard_size=max_shard_size)
        for path in new.glob("*.py"):  # those of a class that was itself loaded from a repository may be older
            path.unlink()
        processor.save_pretrained(new)
        model_type, _, reference = _CLASSES[type(model).__name__]
        stems = {reference.split(".")[0]}
        _set_in_json(new / "config.json", "auto_map", AUTO_MAPS[model_type])
        name = type(processor).__name__
        if name in _PROCESSORS:
            stems.add(_PROCESSORS[name])
            auto_map = {"AutoImageProcessor": f"{_PROCESSORS[name]}.{name}"}
            _set_in_json(new / "preprocessor_config.json", "auto_map", auto_map)
        elif type(processor).__module__.partition(".")[0] == "hf_internimage":
            _set_in_json(new / "preprocessor_config.json", "image_processor_type", _BUILT_IN_PROCESSOR)
        for path in _source_files(stems):
            shutil.copyfile(path, new / path.name)
        if card is not None:
            (new / _CARD).write_text(card, encoding="utf-8", newline="")
        names = sorted(path.name for path in new.iterdir())
        if exists:
            old.mkdir()
            _replace_files(new, destination, old)
        else:
            os.replace(new, destination)
    return names


def _source_files(stems: Collection[str]) -> list[Path]:
    """The source files of these modules: what transformers finds from each on."""
    from transformers.dynamic_module_utils import get_relative_import_files

    modules = [Path(models.__file__).with_name(f"{stem}.py") for stem in stems]
    return sorted({*modules, *(Path(file) for module in modules for file in get_relative_import_files(module))})


def _set_in_json(path: Path, key: str, value: Any) -> None:
    fields = {**json.loads(path.read_text(encoding="utf-8")), key: value}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="")


def _replace_files(new: Path, destination: Path, old: Path) -> None:
    """Move the files of `new` to the destination, and what they replace to `old`; after an error, everything back."""
    names = {path.name for path in new.iterdir()}
    older = {path.name for path in destination.iterdir() if path.name in names or _WEIGHTS.fullmatch(path.name)}
    moves = [(destination / name, old / name) for name in older] + [(new / name, destination / name) for name in names]
    done = []
    try:
        for source, target in moves:
            os.replace(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        raise


@contextmanager
def _explained(api: HfApi, repo_id: str, folder: Path | None = None) -> Iterator[None]:
    """Turn what the Hub's client raises into a PushError. Impossible arguments stay ValueErrors."""
    try:
        yield
    except (PushError, HFValidationError):
        raise
    except Exception as error:  # uploads raise whatever their transport does
        where = "" if folder is None else f"; the files are in {folder}"
        raise PushError(f"{repo_id} was not uploaded: {_reason(error, api)}{where}.", folder) from error


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
    "image_processor_for",
    "push",
    "save_for_hub",
    "short_card",
]
