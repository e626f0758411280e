# SPDX-License-Identifier: MIT
"""Conversion of DINO detectors of upstream's mmdet fork, with an InternImage or a composite CB-InternImage.

The configuration of G names another class for its MLPs, EfficientFFN, and no such file was published. A file of G is
converted if its tensors have the names of the usual class.

Source: names and shapes of OpenGVLab/InternImage@31c962d, detection/configs and detection/mmdet_custom/models.
"""

import re
from collections.abc import Collection, Mapping

import torch

from ..models.configuration_cb_internimage import CBInternImageConfig
from ..models.configuration_internimage import InternImageConfig
from ..models.configuration_internimage_dino import InternImageDinoConfig
from ..models.modeling_internimage_dino import InternImageDinoForObjectDetection
from ..tensors import Shapes, dimensions
from .backbone import backbone_config, backbone_rules, released_size
from .renaming import Converted, Rule, rename, split_in_three

_COMPOSITE = "backbone.cb_modules."
_HEAD = "bbox_head."
_TRANSFORMER = "bbox_head.transformer."
_POINTS = 4  # per head and level, in every configuration; shapes give only heads times points
_WB = r"(weight|bias)"


def matches(names: Collection[str]) -> bool:
    """Return True for names with proposals of an encoder and with label embeddings for denoising."""
    return f"{_TRANSFORMER}enc_output.weight" in names and f"{_HEAD}label_embedding.weight" in names


def guess_config(shapes: Shapes) -> InternImageDinoConfig:
    """Return the configuration of the released system; shapes give widths, layers, heads, queries and classes.

    The heads are those of the deformable attention with 4 points each; the self-attention has as many heads.

    Raises:
        ValueError: for a backbone that was not released, and for an incomplete neck or head.
    """
    levels, width = dimensions(shapes, f"{_TRANSFORMER}level_embeds", 2)
    backbone, size = _backbone(shapes)
    num_labels = dimensions(shapes, f"{_HEAD}cls_branches.0.weight", 2)[0]
    return InternImageDinoConfig(
        backbone_config=backbone,
        d_model=width,
        num_feature_levels=levels,
        encoder_layers=_layers(shapes, "encoder"),
        decoder_layers=_layers(shapes, "decoder"),
        encoder_ffn_dim=_hidden(shapes, "encoder"),
        decoder_ffn_dim=_hidden(shapes, "decoder"),
        encoder_attention_heads=_heads(shapes, "encoder.layers.0.attentions.0", levels),
        decoder_attention_heads=_heads(shapes, "decoder.layers.0.attentions.1", levels),
        encoder_n_points=_POINTS,
        decoder_n_points=_POINTS,
        num_queries=dimensions(shapes, f"{_TRANSFORMER}query_embed.weight", 2)[0],
        num_denoising=1000 if size in ("h", "g") else 100,
        id2label={index: f"LABEL_{index}" for index in range(num_labels)},
    )


def _backbone(shapes: Shapes) -> tuple[InternImageConfig, str]:
    """Return the configuration of the backbone, with the stages that the neck takes as outputs, and its size."""
    composite = any(name.startswith(_COMPOSITE) for name in shapes)
    prefix = f"{_COMPOSITE}0." if composite else "backbone."
    config = backbone_config(shapes, prefix)
    neck = re.compile(r"neck\.(?:0\.)?convs\.\d+\.conv\.weight")
    neck_channels = {dimensions(shapes, name, 4)[1] for name in shapes if neck.fullmatch(name)}
    stages = dict(zip(config.stage_names[1:], config.hidden_sizes, strict=True))
    config.out_features = [stage for stage, channels in stages.items() if channels in neck_channels]
    if not neck_channels or len(config.out_features) != len(neck_channels):
        raise ValueError(
            f"The neck takes feature maps of {sorted(neck_channels)} channels, expected some of {config.hidden_sizes}, "
            "the backbone's stages; give a complete checkpoint."
        )
    size = released_size(shapes, prefix)
    if composite:
        config = CBInternImageConfig.from_size(
            size,
            num_labels=0,
            layer_scale=config.layer_scale,
            use_clip_projector=False,
            out_features=config.out_features,
        )
    return config, size


def _layers(shapes: Shapes, part: str) -> int:
    layer = re.compile(rf"{re.escape(_TRANSFORMER)}{part}\.layers\.(\d+)\.")
    return len({match[1] for match in map(layer.match, shapes) if match})


def _hidden(shapes: Shapes, part: str) -> int:
    return dimensions(shapes, f"{_TRANSFORMER}{part}.layers.0.ffns.0.layers.0.0.weight", 2)[0]


def _heads(shapes: Shapes, attention: str, levels: int) -> int:
    name = f"{_TRANSFORMER}{attention}.sampling_offsets.weight"
    rows = dimensions(shapes, name, 2)[0]
    if rows % (levels * _POINTS * 2):
        raise ValueError(
            f"{name} has {rows} rows, expected a multiple of {levels * _POINTS * 2}: {levels} levels, {_POINTS} "
            "points, x and y; give the model's own configuration."
        )
    return rows // (levels * _POINTS * 2)


def convert(state_dict: Mapping[str, torch.Tensor], config: InternImageDinoConfig) -> Converted:
    """Return the tensors under the names of `InternImageDinoForObjectDetection`.

    Raises:
        ValueError: as `rename`, and for a packed projection that cannot be split.
    """
    return rename(state_dict, _rules(len(config.backbone_config.out_features)))


def _rules(backbone_levels: int) -> tuple[Rule, ...]:
    transformer = re.escape(_TRANSFORMER)
    encoder = rf"{transformer}encoder\.layers\.(\d+)"
    decoder = rf"{transformer}decoder\.layers\.(\d+)"
    sampling = rf"(sampling_offsets|attention_weights|value_proj|output_proj)\.{_WB}"

    def extra_level(match: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        part = {"conv": 0, "gn": 1}[match[2]]
        return {f"input_proj.{backbone_levels + int(match[1])}.{part}.{match[3]}": tensor}

    return (
        # In blocks, gamma is layer scale; gamma0 to gamma3 of the second backbone weight the first one's features.
        *backbone_rules(),
        *backbone_rules(f"{_COMPOSITE}0.", f"{_COMPOSITE}0."),
        *backbone_rules(f"{_COMPOSITE}1.", f"{_COMPOSITE}1."),
        (r"backbone\.(cb_modules\.1\.gamma\d|cb_linears\..+)", r"backbone.\1"),
        (r"neck\.(?:0\.)?convs\.(\d+)\.conv\.(weight)", r"input_proj.\1.0.\2"),
        (rf"neck\.(?:0\.)?convs\.(\d+)\.gn\.{_WB}", r"input_proj.\1.1.\2"),
        (rf"neck\.(?:0\.)?extra_convs\.(\d+)\.(conv|gn)\.{_WB}", extra_level),
        (rf"{transformer}level_embeds", "level_embeddings.weight"),
        (rf"{encoder}\.attentions\.0\.{sampling}", r"encoder.layers.\1.self_attn.\2.\3"),
        (rf"{encoder}\.norms\.0\.{_WB}", r"encoder.layers.\1.self_attn_layer_norm.\2"),
        (rf"{encoder}\.norms\.1\.{_WB}", r"encoder.layers.\1.final_layer_norm.\2"),
        (
            rf"{decoder}\.attentions\.0\.attn\.in_proj_{_WB}",
            split_in_three(*(rf"decoder.layers.\1.self_attn.{name}_proj.\2" for name in "qkv")),
        ),
        (rf"{decoder}\.attentions\.0\.attn\.out_proj\.{_WB}", r"decoder.layers.\1.self_attn.o_proj.\2"),
        (rf"{decoder}\.attentions\.1\.{sampling}", r"decoder.layers.\1.encoder_attn.\2.\3"),
        (rf"{decoder}\.norms\.0\.{_WB}", r"decoder.layers.\1.self_attn_layer_norm.\2"),
        (rf"{decoder}\.norms\.1\.{_WB}", r"decoder.layers.\1.encoder_attn_layer_norm.\2"),
        (rf"{decoder}\.norms\.2\.{_WB}", r"decoder.layers.\1.final_layer_norm.\2"),
        (rf"{transformer}(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.{_WB}", r"\1.layers.\2.mlp.fc1.\3"),
        (rf"{transformer}(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.1\.{_WB}", r"\1.layers.\2.mlp.fc2.\3"),
        (rf"{transformer}decoder\.norm\.{_WB}", r"decoder.norm.\1"),
        (rf"{transformer}enc_output\.{_WB}", r"encoder_output.\1"),
        (rf"{transformer}enc_output_norm\.{_WB}", r"encoder_output_norm.\1"),
        (rf"{transformer}query_embed\.(weight)", r"query_embeddings.\1"),
        (r"bbox_head\.label_embedding\.(weight)", r"label_embeddings.\1"),
        (rf"bbox_head\.cls_branches\.(\d+)\.{_WB}", r"class_heads.\1.\2"),
        # The layers with odd numbers are activations.
        *(
            (rf"{transformer}decoder\.ref_point_head\.{2 * i}\.{_WB}", rf"decoder.reference_point_head.layers.{i}.\1")
            for i in range(2)
        ),
        *((rf"bbox_head\.reg_branches\.(\d+)\.{2 * i}\.{_WB}", rf"box_heads.\1.layers.{i}.\2") for i in range(3)),
    )


def build_model(config: InternImageDinoConfig) -> InternImageDinoForObjectDetection:
    """Build the detector of a configuration."""
    return InternImageDinoForObjectDetection(config)


__all__ = ["build_model", "convert", "guess_config", "matches"]
