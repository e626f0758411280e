# SPDX-License-Identifier: MIT
"""Configuration of the DINO detector on an InternImage backbone."""

import math
from typing import TYPE_CHECKING, Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .checked_configuration import MOST, CheckedConfig, is_count, is_finite_number
from .configuration_cb_internimage import CBInternImageConfig
from .configuration_flash_internimage import FlashInternImageConfig
from .configuration_internimage import InternImageConfig

if TYPE_CHECKING:
    from transformers import DeformableDetrConfig

logger = logging.get_logger(__name__)

# Our own backbones by name, so that this file works without their registration.
_BACKBONES: dict[str, type[InternImageConfig]] = {
    "internimage": InternImageConfig,
    "cb_internimage": CBInternImageConfig,
    "flash_internimage": FlashInternImageConfig,
}
_NORM_GROUPS = 32
_COUNTS = (
    "d_model",
    "num_feature_levels",
    "encoder_layers",
    "decoder_layers",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_n_points",
    "decoder_n_points",
    "num_queries",
    "num_labels",
)
_RATES = ("dropout", "attention_dropout", "activation_dropout", "label_noise_ratio")
_WEIGHTS = (
    "box_noise_scale",
    "class_cost",
    "bbox_cost",
    "giou_cost",
    "class_loss_coefficient",
    "bbox_loss_coefficient",
    "giou_loss_coefficient",
)


class InternImageDinoConfig(CheckedConfig):
    r"""Architecture and training loss of a DINO detector. The defaults are those of the released T on 256 channels.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): the backbone; its `out_features` are the stages the
            detector reads. If None, InternImage-T with layer scale and stages 2 to 4.
        d_model (`int`): width of the transformer, a multiple of 32; also `hidden_size`.
        num_feature_levels (`int`): feature maps in the transformer. If the backbone returns fewer, the others are
            computed from its last one by convolutions of stride 2.
        encoder_layers, decoder_layers (`int`): layers of each.
        encoder_ffn_dim, decoder_ffn_dim (`int`): hidden features of their MLPs.
        encoder_attention_heads, decoder_attention_heads (`int`): heads, divisors of `d_model`.
        encoder_n_points, decoder_n_points (`int`): sampling points of each head on each feature level.
        activation_function (`str`): of the MLPs.
        dropout, attention_dropout, activation_dropout (`float`): rates in the transformer.
        num_queries (`int`): detections per image, before thresholds.
        encoder_position_temperature (`float`): of the sine encoding of feature positions.
        query_position_temperature (`float`): of the sine encoding of the boxes that queries look at.
        inverse_sigmoid_eps (`float`): clamp of the inverse sigmoid in box refinement.
        num_denoising (`int`): denoising queries per image in training, at least; 0 for none.
        label_noise_ratio (`float`): share of denoising queries that get a random class.
        box_noise_scale (`float`): largest shift of their corners, in units of half the box.
        class_cost, bbox_cost, giou_cost (`float`): weights in matching queries with objects.
        class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient (`float`): weights in the loss.
        focal_alpha (`float`): weight of the matched class in the focal loss, whose gamma is 2.
        auxiliary_loss (`bool`): train every decoder layer, not only the last.

    Raises:
        ValueError: for a value that cannot work; names the field, the value and the rule.

    Source: https://arxiv.org/abs/2203.03605; OpenGVLab/InternImage@31c962d, detection/configs/coco/dino_*.
    """

    model_type = "internimage_dino"
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    keys_to_ignore_at_inference = [
        "loss_dict",
        "auxiliary_outputs",
        "last_hidden_state",
        "decoder_hidden_states",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_topk_indices",
        "encoder_topk_logits",
        "encoder_topk_boxes",
    ]

    backbone_config: Any = None
    d_model: int = 256
    num_feature_levels: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    activation_function: str = "relu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    num_queries: int = 900
    encoder_position_temperature: float = 20.0
    query_position_temperature: float = 10000.0
    inverse_sigmoid_eps: float = 1e-3
    num_denoising: int = 100
    label_noise_ratio: float = 0.5
    box_noise_scale: float = 1.0
    class_cost: float = 2.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0
    class_loss_coefficient: float = 1.0
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    focal_alpha: float = 0.25
    auxiliary_loss: bool = True

    _other_names = ("init_std",)

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.pop("init_std", None) is not None:
            logger.warning_once("init_std is deprecated and has no effect: every initial weight has a rule of its own.")
        self.check_given(kwargs)
        self.backbone_config = _parse_backbone(self.backbone_config)
        super().__post_init__(**kwargs)
        self.check_architecture()

    @classmethod
    def _read_backbone(cls, backbone: dict[str, Any]) -> PreTrainedConfig:
        return _parse_backbone(backbone, from_file=True)

    def check_architecture(self) -> None:
        """Raise ValueError with field, value and rule if a model of this configuration cannot work."""
        for name in _COUNTS:
            value = getattr(self, name)
            _require(self, name, is_count(value), f"an integer of at least 1 and at most {MOST}")
        _require(
            self,
            "num_denoising",
            is_count(self.num_denoising, 0),
            f"an integer of at least 0 and at most {MOST}",
        )
        for name in _RATES:
            value = getattr(self, name)
            _require(self, name, is_finite_number(value) and 0 <= value <= 1, "a number from 0 to 1")
        for name in _WEIGHTS:
            value = getattr(self, name)
            _require(self, name, is_finite_number(value) and value >= 0, "a finite number of at least 0")
        for name in ("encoder_position_temperature", "query_position_temperature"):
            value = getattr(self, name)
            _require(self, name, is_finite_number(value) and value > 0, "a finite number above 0")
        _require(self, "focal_alpha", is_finite_number(self.focal_alpha), "a finite number")
        _require(self, "auxiliary_loss", isinstance(self.auxiliary_loss, bool), "True or False")
        activation = self.activation_function
        known = isinstance(activation, str) and activation in ACT2FN
        _require(self, "activation_function", known, "the name of an activation in transformers, such as 'relu'")
        eps = self.inverse_sigmoid_eps
        _require(self, "inverse_sigmoid_eps", is_finite_number(eps) and 0 < eps < 0.5, "a number between 0 and 0.5")
        multiple = math.lcm(_NORM_GROUPS, 4, self.encoder_attention_heads, self.decoder_attention_heads)
        if self.d_model % multiple:
            raise ValueError(
                f"d_model is {self.d_model}, expected a multiple of {multiple}: of the {_NORM_GROUPS} groups of its "
                f"norms and of the heads ({self.encoder_attention_heads} and {self.decoder_attention_heads})."
            )
        outputs = list(self.backbone_config.out_features or ())
        if not 1 <= len(outputs) <= self.num_feature_levels:
            raise ValueError(
                f"backbone_config gives {len(outputs)} feature maps ({', '.join(outputs)}) for "
                f"{self.num_feature_levels} feature levels; set its out_features, or num_feature_levels."
            )
        if len(outputs) == 1 < self.num_feature_levels:
            raise ValueError(
                f"backbone_config gives one feature map ({outputs[0]}) for {self.num_feature_levels} feature levels; "
                "set its out_features to the stages the detector shall see, such as stage2, stage3 and stage4."
            )

    def deformable_detr_config(self) -> "DeformableDetrConfig":
        """Return the configuration for the layers of transformers' Deformable DETR, which the detector consists of."""
        from transformers import CONFIG_MAPPING, DeformableDetrConfig

        names = ["d_model", "num_feature_levels", "activation_function", "num_queries"]
        names += [name for name in _COUNTS if name.startswith(("encoder_", "decoder_"))]
        names += [name for name in _RATES if name.endswith("dropout")]
        # The layers do not read the backbone, so any registered one serves; ours may not be registered.
        return DeformableDetrConfig(
            backbone_config=CONFIG_MAPPING["resnet"](), **{name: getattr(self, name) for name in names}
        )


def _parse_backbone(backbone: dict | PreTrainedConfig | None, from_file: bool = False) -> PreTrainedConfig:
    """Return the backbone's configuration as an object; None gives the default backbone.

    Fields of ours that do not exist are refused, unless they are `from_file`.
    """
    if backbone is None:
        fields: dict[str, Any] = {"layer_scale": 1.0, "out_features": ["stage2", "stage3", "stage4"]}
        return InternImageConfig(**fields)
    if not isinstance(backbone, dict):
        if not hasattr(backbone, "out_features"):
            raise ValueError(f"backbone_config is a {type(backbone).__name__}, expected a backbone's configuration.")
        return backbone
    # Not at the top of the file: the class is registered while that module is still being imported.
    from transformers import CONFIG_MAPPING

    name = str(backbone.get("model_type"))
    if name in _BACKBONES:
        config: PreTrainedConfig = _BACKBONES[name].from_dict(backbone) if from_file else _BACKBONES[name](**backbone)
        return config
    if name not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has the model_type {name!r}, expected {', '.join(_BACKBONES)} or that of a backbone of "
            "transformers."
        )
    return CONFIG_MAPPING[name].from_dict(backbone)


def _require(config: InternImageDinoConfig, name: str, is_valid: bool, rule: str) -> None:
    """Raise ValueError with field, value and rule unless the value is valid."""
    if not is_valid:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected {rule}.")


__all__ = ["InternImageDinoConfig"]
