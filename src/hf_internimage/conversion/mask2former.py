# SPDX-License-Identifier: MIT
"""Conversion of Mask2Former segmenters of upstream's mmseg fork to Mask2FormerForUniversalSegmentation.

Source: names and shapes of OpenGVLab/InternImage@31c962d, segmentation/configs and
segmentation/mmseg_custom/models/decode_heads/mask2former_head.py.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ..tensors import Shapes, dimensions
from .backbone import backbone_config, backbone_rules
from .renaming import Converted, Drop, Rule, rename, split_in_three

_PIXELS = r"decode_head\.pixel_decoder"
_PIXELS_TO = "model.pixel_level_module.decoder"
_LAYER = r"decode_head\.transformer_decoder\.layers\.(\d+)"
_MODULE_TO = "model.transformer_module"
_LAYER_TO = rf"{_MODULE_TO}.decoder.layers.\1"
_WB = r"(weight|bias)"
_POINTS = 4  # per head and level; fixed in transformers
_LEVELS = 3

_RULES: tuple[Rule, ...] = (
    *backbone_rules(target="model.pixel_level_module.encoder."),
    # pixel decoder
    (rf"{_PIXELS}\.input_convs\.(\d+)\.conv\.{_WB}", rf"{_PIXELS_TO}.input_projections.\1.0.\2"),
    (rf"{_PIXELS}\.input_convs\.(\d+)\.gn\.{_WB}", rf"{_PIXELS_TO}.input_projections.\1.1.\2"),
    (
        rf"{_PIXELS}\.encoder\.layers\.(\d+)\.attentions\.0\."
        rf"(sampling_offsets|attention_weights|value_proj|output_proj)\.{_WB}",
        rf"{_PIXELS_TO}.encoder.layers.\1.self_attn.\2.\3",
    ),
    (rf"{_PIXELS}\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.{_WB}", rf"{_PIXELS_TO}.encoder.layers.\1.fc1.\2"),
    (rf"{_PIXELS}\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.1\.{_WB}", rf"{_PIXELS_TO}.encoder.layers.\1.fc2.\2"),
    (
        rf"{_PIXELS}\.encoder\.layers\.(\d+)\.norms\.0\.{_WB}",
        rf"{_PIXELS_TO}.encoder.layers.\1.self_attn_layer_norm.\2",
    ),
    (rf"{_PIXELS}\.encoder\.layers\.(\d+)\.norms\.1\.{_WB}", rf"{_PIXELS_TO}.encoder.layers.\1.final_layer_norm.\2"),
    (rf"{_PIXELS}\.level_encoding\.weight", f"{_PIXELS_TO}.level_embed"),
    (rf"{_PIXELS}\.lateral_convs\.0\.conv\.weight", f"{_PIXELS_TO}.adapter_1.0.weight"),
    (rf"{_PIXELS}\.lateral_convs\.0\.gn\.{_WB}", rf"{_PIXELS_TO}.adapter_1.1.\1"),
    (rf"{_PIXELS}\.output_convs\.0\.conv\.weight", f"{_PIXELS_TO}.layer_1.0.weight"),
    (rf"{_PIXELS}\.output_convs\.0\.gn\.{_WB}", rf"{_PIXELS_TO}.layer_1.1.\1"),
    (rf"{_PIXELS}\.mask_feature\.{_WB}", rf"{_PIXELS_TO}.mask_projection.\1"),
    # transformer decoder
    (rf"{_LAYER}\.attentions\.0\.attn\.(in_proj_weight|in_proj_bias)", rf"{_LAYER_TO}.cross_attn.\2"),
    (rf"{_LAYER}\.attentions\.0\.attn\.out_proj\.{_WB}", rf"{_LAYER_TO}.cross_attn.out_proj.\2"),
    (
        rf"{_LAYER}\.attentions\.1\.attn\.in_proj_{_WB}",
        split_in_three(*(rf"{_LAYER_TO}.self_attn.{name}_proj.\2" for name in "qkv")),
    ),
    (rf"{_LAYER}\.attentions\.1\.attn\.out_proj\.{_WB}", rf"{_LAYER_TO}.self_attn.out_proj.\2"),
    (rf"{_LAYER}\.ffns\.0\.layers\.0\.0\.{_WB}", rf"{_LAYER_TO}.fc1.\2"),
    (rf"{_LAYER}\.ffns\.0\.layers\.1\.{_WB}", rf"{_LAYER_TO}.fc2.\2"),
    (rf"{_LAYER}\.norms\.0\.{_WB}", rf"{_LAYER_TO}.cross_attn_layer_norm.\2"),
    (rf"{_LAYER}\.norms\.1\.{_WB}", rf"{_LAYER_TO}.self_attn_layer_norm.\2"),
    (rf"{_LAYER}\.norms\.2\.{_WB}", rf"{_LAYER_TO}.final_layer_norm.\2"),
    (rf"decode_head\.transformer_decoder\.post_norm\.{_WB}", rf"{_MODULE_TO}.decoder.layernorm.\1"),
    (r"decode_head\.query_embed\.weight", f"{_MODULE_TO}.queries_embedder.weight"),
    (r"decode_head\.query_feat\.weight", f"{_MODULE_TO}.queries_features.weight"),
    (r"decode_head\.level_embed\.weight", f"{_MODULE_TO}.level_embed.weight"),
    # predictions; the layers of mask_embed with odd numbers are activations
    (rf"decode_head\.cls_embed\.{_WB}", r"class_predictor.\1"),
    *(
        (
            rf"decode_head\.mask_embed\.{2 * layer}\.{_WB}",
            rf"{_MODULE_TO}.decoder.mask_predictor.mask_embedder.{layer}.0.\1",
        )
        for layer in range(3)
    ),
)
_DROPS: tuple[Drop, ...] = (
    (
        rf"decode_head\.conv_seg\.{_WB}",
        "classifier of the base class of mmseg's heads, which Mask2Former does not use",
    ),
)


def matches(names: Collection[str]) -> bool:
    """Return True for names of a pixel decoder and of a transformer decoder."""
    return all(
        any(name.startswith(f"decode_head.{part}.") for name in names)
        for part in ("pixel_decoder", "transformer_decoder")
    )


def guess_config(shapes: Shapes) -> Mask2FormerConfig:
    """Return the configuration of the released system; shapes give widths, layers, queries, classes and heads.

    The number of heads follows from the (heads * levels * points) weights of the deformable attention; in released
    systems the decoder has as many. Shapes say nothing of the loss: its weights are those of the released systems.

    Raises:
        ValueError: for a backbone that was not released, and for an incomplete head.
    """
    attention = "decode_head.pixel_decoder.encoder.layers.0.attentions.0"
    attention_weights = dimensions(shapes, f"{attention}.attention_weights.weight", 2)[0]
    if attention_weights % (_LEVELS * _POINTS):
        raise ValueError(
            f"The pixel decoder has {attention_weights} attention weights, expected a multiple of {_LEVELS} levels "
            f"times {_POINTS} points; give the model's own configuration."
        )
    queries, hidden = dimensions(shapes, "decode_head.query_feat.weight", 2)
    mask_features, features = dimensions(shapes, "decode_head.pixel_decoder.mask_feature.weight", 4)[:2]
    fields: dict[str, Any] = {
        "backbone_config": backbone_config(shapes),
        "feature_size": features,
        "mask_feature_size": mask_features,
        "hidden_dim": hidden,
        "encoder_layers": _count(shapes, r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\."),
        "encoder_feedforward_dim": _hidden(shapes, "decode_head.pixel_decoder.encoder"),
        # transformers counts the prediction from the learned queries as one more layer
        "decoder_layers": _count(shapes, rf"{_LAYER}\.") + 1,
        "dim_feedforward": _hidden(shapes, "decode_head.transformer_decoder"),
        "num_attention_heads": attention_weights // (_LEVELS * _POINTS),
        "num_queries": queries,
        "num_labels": dimensions(shapes, "decode_head.cls_embed.weight", 2)[0] - 1,
        "dropout": 0.0,
        "pre_norm": False,
        "enforce_input_projection": False,
        "no_object_weight": 0.1,
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "ignore_value": 255,
    }
    return Mask2FormerConfig(**fields)


def _hidden(shapes: Shapes, part: str) -> int:
    return dimensions(shapes, f"{part}.layers.0.ffns.0.layers.0.0.weight", 2)[0]


def _count(shapes: Shapes, pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})


def convert(state_dict: Mapping[str, torch.Tensor], config: Mask2FormerConfig) -> Converted:
    """Return the tensors under the names of `Mask2FormerForUniversalSegmentation`.

    The weights of the classes in the loss are a setting upstream and a tensor in transformers,
    `criterion.empty_weight`, which is made from `config.no_object_weight`.

    Raises:
        ValueError: as `rename`, and for a packed projection that cannot be split.
    """
    converted = rename(state_dict, _RULES, _DROPS)
    class_weights = torch.ones(int(config.num_labels or 0) + 1)
    class_weights[-1] = config.no_object_weight
    return Converted({**converted.tensors, "criterion.empty_weight": class_weights}, converted.dropped)


def build_model(config: Mask2FormerConfig) -> Mask2FormerForUniversalSegmentation:
    """Build the segmenter of a configuration."""
    return Mask2FormerForUniversalSegmentation(config)


__all__ = ["build_model", "convert", "guess_config", "matches"]
