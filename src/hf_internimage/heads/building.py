# SPDX-License-Identifier: MIT
"""Build heads of transformers on an InternImage, and load pretrained weights into their backbones."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models import auto
from ..plain_text import listed
from .table import HEADS, Head, head_name

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

_STEM_STRIDE = 4
_PLAIN, _COMPOSITE = "internimage", "cb_internimage"
# Fields of a backbone's configuration that may differ between checkpoint and head, because they do not change the
# results of trained weights. `num_channels` and `layer_scale` have rules of their own, see `load_backbone`.
FREE_FIELDS = {
    *("core_op", "image_size", "drop_rate", "drop_path_rate", "drop_path_type", "with_cp", "initializer_range"),
    *("cls_scale", "use_clip_projector", "num_channels", "layer_scale"),
}
_FROM_WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def head_config(head: str | type, backbone: "PreTrainedConfig | str", **fields: Any) -> "PreTrainedConfig":
    """Return the configuration of a head of transformers on an InternImage.

    It sets the fields that follow from the backbone: `out_features` that the head reads and, if the head has fields for
    them, channels, strides and number of levels. The backbone's configuration is copied without class names and dtype.

    Args:
        head: a name of `HEADS`, or a configuration or model class there, or its name. DetrConfig means detection.
        backbone: an InternImageConfig, or the name of a size ("t" ... "g").
        fields: any field of the head's configuration, in place of the value set by this function; and `out_features`,
            for other stages than the default ones. With a smaller `num_feature_levels`, the last stages are taken.

    Raises:
        ValueError: for an unknown head or size, a backbone that is not an InternImage or lacks stages, or values that
            the head cannot work with.
    """
    import transformers

    from ..models.checked_configuration import no_field

    entry = HEADS[head_name(head)]
    config_class = getattr(transformers, entry.config)
    if "backbone_config" in fields:
        raise ValueError("backbone_config is given twice; give the backbone as the second argument only.")
    default = config_class()
    for name in fields:
        if name != "out_features" and not hasattr(default, name):
            raise ValueError(no_field(config_class, name))
    backbone = _backbone_config(backbone)
    out_features = fields.pop("out_features", None) or _stages(entry, backbone, fields.get("num_feature_levels"))
    changes: dict[str, Any] = {"out_features": list(out_features)}
    if entry.channels is not None:
        changes["num_channels"] = entry.channels
    backbone = type(backbone).from_dict({**_own_fields(backbone), **changes})
    strides = [_stride(backbone, stage) for stage in out_features]
    derived_fields = entry.extra(config_class, backbone, strides, fields) if entry.extra is not None else {}
    if "decoder_config" in derived_fields:
        fields.pop("decoder_config", None)  # it is part of the derived one
    return config_class(**{**derived_fields, **fields, "backbone_config": backbone})


def from_backbone(
    head: str | type,
    checkpoint: "str | os.PathLike | nn.Module",
    *,
    backbone_fields: Mapping[str, Any] | None = None,
    **fields: Any,
) -> "PreTrainedModel":
    """Return a head of transformers on a pretrained InternImage; the rest of the model is newly initialised.

    Args:
        head: as for `head_config`.
        checkpoint: source of the backbone's weights, as for `load_backbone`, and of its configuration.
        backbone_fields: fields of the backbone's configuration to change, such as `drop_path_rate` or `layer_scale`.
        fields: as for `head_config`; and revision, token, subfolder, cache_dir, force_download and local_files_only as
            for `from_pretrained`, when the checkpoint is a folder or repository.

    Returns: the model, in float32 on the CPU, in evaluation mode.

    Raises:
        ValueError: as `head_config` and `load_backbone`.
        OSError: if there is no such folder or repository.
    """
    import torch
    import transformers

    from ..models.checked_configuration import check_fields

    where = {name: fields.pop(name) for name in _FROM_WHERE if name in fields}
    if isinstance(checkpoint, torch.nn.Module):
        source: Any = find_backbone(checkpoint)[1].config
    else:
        source = auto.load_config(checkpoint, **where)
    source = _backbone_config(source)
    check_fields(type(source), backbone_fields or {})
    source = type(source).from_dict({**_own_fields(source), **(backbone_fields or {})})
    config = head_config(head, source, **fields)
    model = getattr(transformers, HEADS[head_name(head)].model)(config)
    return load_backbone(model, checkpoint, **where).eval()


def load_backbone(
    model: "nn.Module", checkpoint: "str | os.PathLike | nn.Module", **from_pretrained: Any
) -> "PreTrainedModel":
    """Load pretrained weights into the InternImage inside `model`. After an error, the model is unchanged.

    Every name, shape and field of the architecture must agree, with two exceptions, which do not change the features:
    layer scales that only `model` has are set to 1 (as in the authors' segmentation and detection with T), and weights
    for input channels that only `model` has are set to 0 (the trimap of matting). In a composite backbone, both parts
    receive the weights of a plain InternImage, as in the original, and the connections between them are kept. Dtype and
    device of the weights stay those of `model`.

    Args:
        model: a model with one InternImage inside, such as a head.
        checkpoint: a folder or a repository of the Hub with a model of any InternImage class; or a model in memory with
            an InternImage inside.
        from_pretrained: arguments of `from_pretrained` for a folder or repository, such as `revision`.

    Returns: `model`.

    Raises:
        ValueError: with both values if something does not agree; if one of the models has no InternImage inside.
        OSError: if there is no such folder or repository.
    """
    import torch

    _, backbone = find_backbone(model)
    target = backbone.state_dict()
    if any(tensor.is_meta for tensor in target.values()):
        raise ValueError(f"{type(model).__name__} is on the meta device, which holds no weights; build it on another.")
    if isinstance(checkpoint, torch.nn.Module):
        source = find_backbone(checkpoint)[1]
        missing: set[str] = set()
    else:
        source, missing = _from_pretrained(checkpoint, from_pretrained)
    _check_architecture(source.config, backbone.config)
    tensors = source.state_dict()
    if (source.config.model_type, backbone.config.model_type) == (_PLAIN, _COMPOSITE):
        tensors = _tensors_for_composite(tensors, target)
    tensors = _with_added_tensors(tensors, target)
    absent = sorted((target.keys() - tensors.keys()) | missing)
    unknown = sorted(tensors.keys() - target.keys())
    shapes = [
        f"{name} {tuple(tensor.shape)}, in the model {tuple(target[name].shape)}"
        for name, tensor in tensors.items()
        if name in target and tensor.shape != target[name].shape
    ]
    for what, names in (
        ("The checkpoint lacks weights of the backbone", absent),
        ("The checkpoint has weights the backbone has no place for", unknown),
        ("The checkpoint has other shapes than the backbone", shapes),
    ):
        if names:
            raise ValueError(f"{what}: {listed(names)}; is it of the same architecture, and whole?")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(tensors[name])
    return model  # type: ignore[return-value]


def gradient_checkpointing(model: "nn.Module", enable: bool = True) -> None:
    """Enable (or disable) gradient checkpointing in the InternImage inside `model`, even if the head has none.

    In training mode, activations of the blocks are then computed again in the backward pass instead of being kept.

    Raises: ValueError if there is no InternImage in `model`.
    """
    _, backbone = find_backbone(model)
    state = "enable" if enable else "disable"
    # transformers 5.23 renamed the methods and warns about the old names
    names = (f"activation_checkpointing_{state}", f"gradient_checkpointing_{state}")
    getattr(backbone, next(name for name in names if hasattr(backbone, name)))()


def check_queries(config: "PreTrainedConfig", height: int, width: int) -> None:
    """Check that images of this size have as many positions as the head has queries.

    RT-DETR, RT-DETR v2, D-FINE and DEIMv2 choose their queries among the positions of all feature maps. Other heads
    pass.

    Args:
        config: configuration of the head.
        height, width: of the images, in pixels.

    Raises: ValueError for more queries than positions.
    """
    strides, queries = getattr(config, "feat_strides", None), getattr(config, "num_queries", None)
    if strides is None or queries is None:
        return
    positions = sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in strides)
    if queries > positions:
        raise ValueError(
            f"num_queries is {queries}, but images of {height}x{width} pixels have only {positions} positions to "
            f"choose from; take larger images, or num_queries={positions} or less."
        )


def find_backbone(model: "nn.Module") -> "tuple[str, PreTrainedModel]":
    """Return the prefix of parameter names and the module of the InternImage inside a model.

    The prefix ends with a dot, and is empty if `model` is an InternImageModel or InternImageBackbone itself.

    Raises: ValueError if there is none (the message names another backbone), or more than one.
    """
    from transformers import PreTrainedModel
    from transformers.backbone_utils import BackboneMixin

    from ..models.modeling_internimage import InternImageTrunk

    backbones: list[tuple[str, PreTrainedModel]] = []
    others = []
    for name, module in model.named_modules():
        if not isinstance(module, (InternImageTrunk, BackboneMixin)):
            continue
        prefix = f"{name}." if name else ""
        if getattr(getattr(module, "config", None), "model_type", None) not in auto.model_types("AutoBackbone"):
            others.append(type(module).__name__)
        elif not backbones or not prefix.startswith(backbones[-1][0]):  # a composite backbone has others inside
            backbones.append((prefix, module))  # type: ignore[arg-type]
    if not backbones:
        instead = f", its backbone is {others[0]}" if others else ""
        raise ValueError(f"{type(model).__name__} has no InternImage inside{instead}; give a model that has.")
    if len(backbones) > 1:
        names = ", ".join(prefix.removesuffix(".") for prefix, _ in backbones)
        raise ValueError(f"{type(model).__name__} has several InternImages inside: {names}; give one of these modules.")
    return backbones[0]


def _backbone_config(backbone: Any) -> "PreTrainedConfig":
    """Return the configuration of a size, or the given one; raise ValueError if it is not an InternImage's."""
    from ..models.configuration_internimage import InternImageConfig

    if isinstance(backbone, str):
        return InternImageConfig.from_size(backbone)
    if getattr(backbone, "model_type", None) not in auto.model_types("AutoBackbone"):
        kind = getattr(backbone, "model_type", None) or type(backbone).__name__
        raise ValueError(f"The backbone is of type {kind!r}, expected an InternImage or the name of a size.")
    return backbone


def _own_fields(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return the fields of the architecture, without those of every configuration and those that follow from others."""
    from transformers import PreTrainedConfig

    general = {*PreTrainedConfig().to_dict(), "model_type", "auto_map", "stage_names", "out_features", "out_indices"}
    return {name: value for name, value in config.to_dict().items() if name not in general}


def _stages(entry: Head, backbone: Any, levels: int | None) -> list[str]:
    """Return the stages a head reads; only the last `levels` of them if that is fewer."""
    by_stride = {_stride(backbone, stage): stage for stage in backbone.stage_names[1:]}
    if missing := [stride for stride in entry.strides if stride not in by_stride]:
        raise ValueError(
            f"{entry.model} reads features of strides {list(entry.strides)} and this backbone has none of stride "
            f"{missing[0]}; give out_features, of {', '.join(backbone.stage_names[1:])}."
        )
    stages = [by_stride[stride] for stride in entry.strides]
    return stages[-levels:] if levels else stages


def _stride(backbone: Any, stage: str) -> int:
    """Return the stride of a stage in pixels; stem and first stage have the same."""
    return _STEM_STRIDE * 2 ** max(backbone.stage_names.index(stage) - 1, 0)


def _from_pretrained(checkpoint: str | os.PathLike, options: dict[str, Any]) -> "tuple[PreTrainedModel, set[str]]":
    """Load the checkpoint's backbone; return it with the names of missing weights."""
    where = {name: options[name] for name in _FROM_WHERE if name in options}
    model_type = auto.load_config(checkpoint, **where).model_type
    if model_type not in auto.model_types("AutoBackbone"):
        raise ValueError(
            f"{os.fspath(checkpoint)} holds a model of type {model_type!r}, expected an InternImage; if there is one "
            "inside, load that model and give it in place of the folder."
        )
    backbone_class = auto.model_class(model_type, "AutoBackbone")
    source, info = backbone_class.from_pretrained(checkpoint, **{**options, "output_loading_info": True})
    return source, set(info["missing_keys"])


def _check_architecture(source: Any, target: Any) -> None:
    """Raise ValueError with field and both values if weights of `source` would give other results in `target`."""
    theirs, ours = _effective(source), _effective(target)
    differences = []
    if source.model_type != target.model_type and (source.model_type, target.model_type) != (_PLAIN, _COMPOSITE):
        differences.append(f"model_type ({source.model_type!r}, in the model {target.model_type!r})")
    differences += [
        f"{name} ({theirs.get(name)!r}, in the model {ours.get(name)!r})"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if source.num_channels > target.num_channels:
        differences.append(f"num_channels ({source.num_channels}, in the model {target.num_channels})")
    if source.layer_scale is not None and target.layer_scale is None:
        differences.append(f"layer_scale ({source.layer_scale!r}, in the model None)")
    if differences:
        raise ValueError(
            f"The checkpoint's backbone differs from the model's in {', '.join(differences)}; build the model with the "
            "checkpoint's values, as from_backbone does."
        )


def _effective(config: Any) -> dict[str, Any]:
    """Return the fields that decide the results of weights, with equivalent values made equal."""
    fields = {name: value for name, value in _own_fields(config).items() if name not in FREE_FIELDS}
    fields.pop("round_gamma", None)  # concerns the connection of the two backbones, not their weights
    if config.model_type in (_PLAIN, _COMPOSITE):  # in the others, None means that there is no such convolution
        fields["dw_kernel_size"] = config.dw_kernel_size or 3
    fields["res_post_norm"] = config.res_post_norm and not config.post_norm and config.layer_scale is None
    if not config.level2_post_norm:
        fields["level2_post_norm_block_ids"] = None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _tensors_for_composite(
    source: "dict[str, torch.Tensor]", target: "dict[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """Return the tensors of a composite backbone: both parts from one InternImage, the connections from `target`."""
    tensors = {
        name: tensor for name, tensor in target.items() if ".levels." not in name and ".patch_embed." not in name
    }
    for name, tensor in source.items():
        tensors[f"cb_modules.0.{name}"] = tensor
        if name.startswith("levels."):  # the second has no stem
            tensors[f"cb_modules.1.{name}"] = tensor
    return tensors


def _with_added_tensors(
    source: "dict[str, torch.Tensor]", target: "dict[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """Return the checkpoint's tensors, with the layer scales and input channels that only the model has added."""
    import torch

    # DETR's frozen batch norms do not count batches.
    tensors = {
        name: tensor for name, tensor in source.items() if name in target or not name.endswith(".num_batches_tracked")
    }
    for name, tensor in target.items():
        if name not in tensors and name.rpartition(".")[2] in ("layer_scale1", "layer_scale2"):
            tensors[name] = torch.ones_like(tensor)
    for name in [name for name in tensors if name.endswith("patch_embed.conv1.weight")]:
        # (channels, num_channels, 3, 3)
        if name in target and (further := target[name].shape[1] - tensors[name].shape[1]) > 0:
            tensors[name] = torch.nn.functional.pad(tensors[name], (0, 0, 0, 0, 0, further))
    return tensors


__all__ = [
    "FREE_FIELDS",
    "check_queries",
    "find_backbone",
    "from_backbone",
    "gradient_checkpointing",
    "head_config",
    "load_backbone",
]
