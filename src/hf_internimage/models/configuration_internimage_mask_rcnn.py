# SPDX-License-Identifier: MIT
"""Configuration of Mask R-CNN and Cascade Mask R-CNN on an InternImage or FlashInternImage.

The model, in `mask_rcnn`, needs torchvision.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .checked_configuration import MOST, CheckedConfig, is_count, is_finite_number
from .configuration_flash_internimage import FlashInternImageConfig
from .configuration_internimage import InternImageConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Values of Cascade Mask R-CNN that differ from the defaults: OpenGVLab/InternImage@31c962d,
# detection/configs/coco/cascade_internimage_xl_fpn_3x_coco.py, on mmdet 2.28's cascade_mask_rcnn_r50_fpn.
CASCADE: dict[str, Any] = {
    "stage_iou_thresholds": [0.5, 0.6, 0.7],
    "stage_box_stds": [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]],
    "stage_loss_weights": [1.0, 0.5, 0.25],
    "box_head_convs": 4,
    "box_head_linears": 1,
    "box_loss": "giou",
    "box_loss_weight": 10.0,
    "rpn_smooth_l1_beta": 1 / 9,
    "rpn_train_proposals": 2000,
}
_CASCADE_SIZES = ("l", "xl")
_SIZES = ("t", "s", "b", *_CASCADE_SIZES)
_BACKBONES: dict[str, type[InternImageConfig]] = {
    config.model_type: config for config in (InternImageConfig, FlashInternImageConfig)
}
_FPN_NORMS = (None, "layer_norm")
_BOX_LOSSES = ("l1", "giou")


class InternImageMaskRCNNConfig(CheckedConfig):
    r"""Architecture of a Mask R-CNN with an InternImage backbone. The defaults give Mask R-CNN with InternImage-T.

    With one stage it is Mask R-CNN, with several it is Cascade Mask R-CNN: each stage has its own heads and starts from
    the boxes of the one before. `from_size` gives the released combinations.

    Args:
        backbone_config (`InternImageConfig`, `FlashInternImageConfig` or `dict`, *optional*): backbone; its four
            `out_features` must have the strides 4, 8, 16 and 32. InternImage-T with layer scale if None.
        fpn_channels (`int`): channels of the feature pyramid, the proposal network and the convolutions of the heads.
        fpn_norm (`str`, *optional*): `"layer_norm"` for a LayerNorm over the channels after each convolution of the
            feature pyramid, which then has no bias, as in the authors' detectors with a FlashInternImage.
        box_head_convs (`int`): 3x3 convolutions, each with a batch norm, at the start of a box head.
        box_head_linears (`int`): linear layers after them.
        box_head_size (`int`): features of those linear layers.
        stage_iou_thresholds (`list[float]`): smallest overlap of a box with its object in training, one per stage.
        stage_box_stds (`list[list[float]]`): units of the predicted (dx, dy, dw, dh), four numbers per stage.
        stage_loss_weights (`list[float]`): weight of the losses of each stage.
        box_loss (`str`): `"l1"` on (dx, dy, dw, dh) or `"giou"` on boxes.
        box_loss_weight (`float`): weight of that loss.
        rpn_smooth_l1_beta (`float`): where the proposal network's smooth L1 loss turns from square to linear; 0 for L1.
        rpn_train_proposals (`int`): proposals per image in training.
        rpn_test_proposals (`int`): proposals per image in evaluation.
        rpn_nms_threshold (`float`): overlap above which the lesser of two proposals of a level is removed.
        score_threshold (`float`): detections need a greater score.
        nms_threshold (`float`): overlap above which the lesser of two detections of a class is removed.
        max_detections (`int`): detections per image.

    Raises:
        ValueError: for a value that cannot work; names the field, the value and the rule.

    Source: https://arxiv.org/abs/1703.06870, https://arxiv.org/abs/1712.00726; OpenGVLab/InternImage@31c962d,
    detection/configs/coco.
    """

    model_type = "internimage_mask_rcnn"
    sub_configs = {"backbone_config": InternImageConfig}
    keys_to_ignore_at_inference = ["loss_dict", "box_masks"]  # of Trainer's evaluation, which needs boxes only

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    fpn_channels: int = 256
    fpn_norm: str | None = None
    box_head_convs: int = 0
    box_head_linears: int = 2
    box_head_size: int = 1024
    stage_iou_thresholds: list[float] | tuple[float, ...] = (0.5,)
    stage_box_stds: list[list[float]] | tuple[tuple[float, ...], ...] = ((0.1, 0.1, 0.2, 0.2),)
    stage_loss_weights: list[float] | tuple[float, ...] = (1.0,)
    box_loss: str = "l1"
    box_loss_weight: float = 1.0
    rpn_smooth_l1_beta: float = 0.0
    rpn_train_proposals: int = 1000
    rpn_test_proposals: int = 1000
    rpn_nms_threshold: float = 0.7
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_given(kwargs)
        self.backbone_config = _parse_backbone(self.backbone_config)
        self.check_architecture()
        super().__post_init__(**kwargs)

    @classmethod
    def _read_backbone(cls, backbone: dict[str, Any]) -> PreTrainedConfig:
        return _parse_backbone(backbone, from_file=True)

    @classmethod
    def from_size(cls, size: str, num_labels: int = 80, **kwargs: Any) -> "InternImageMaskRCNNConfig":
        """Return the released architecture `size`: Mask R-CNN for "t", "s" and "b", Cascade for "l" and "xl".

        Args:
            size: name of the size, in either case.
            num_labels: classes without background; 80 as released, for COCO.
            kwargs: any other field, in place of the released value.

        Raises:
            ValueError: for an unknown size.
        """
        key = size.lower() if isinstance(size, str) else size
        if key not in _SIZES:
            raise ValueError(f"size is {size!r}, expected one of {', '.join(_SIZES)}.")
        fields: dict[str, Any] = {"backbone_config": _backbone(key), **(CASCADE if key in _CASCADE_SIZES else {})}
        if "id2label" not in kwargs:
            fields["num_labels"] = num_labels
        return cls(**{**fields, **kwargs})

    @property
    def num_stages(self) -> int:
        """Return the number of stages: 1 in Mask R-CNN, 3 in Cascade Mask R-CNN."""
        return len(self.stage_iou_thresholds)

    def check_architecture(self) -> None:
        """Raise ValueError with field, value and rule if a model of this configuration cannot work."""
        out_features = list(getattr(self.backbone_config, "out_features", None) or [])
        if out_features != STAGES:
            raise ValueError(f"backbone_config.out_features is {out_features}, expected {STAGES}.")
        for name, rule, is_valid in (
            ("stage_iou_thresholds", "a list of numbers, one per stage", is_finite_number),
            ("stage_loss_weights", "a list of numbers of at least 0, one per stage", _is_weight),
            ("stage_box_stds", "four positive numbers per stage", _is_four_units),
        ):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(map(is_valid, values)):
                raise ValueError(f"{name} is {values!r}, expected {rule}.")
        if self.num_stages < 1 or not self.num_stages == len(self.stage_box_stds) == len(self.stage_loss_weights):
            raise ValueError(
                f"stage_iou_thresholds, stage_box_stds and stage_loss_weights have {self.num_stages}, "
                f"{len(self.stage_box_stds)} and {len(self.stage_loss_weights)} entries, expected one each per stage."
            )
        if self.fpn_norm not in _FPN_NORMS:
            raise ValueError(f"fpn_norm is {self.fpn_norm!r}, expected 'layer_norm' or None.")
        if self.box_loss not in _BOX_LOSSES:
            raise ValueError(f"box_loss is {self.box_loss!r}, expected one of {', '.join(_BOX_LOSSES)}.")
        for name, least in (
            ("fpn_channels", 1),
            ("box_head_convs", 0),
            ("box_head_linears", 1),
            ("box_head_size", 1),
            ("rpn_train_proposals", 1),
            ("rpn_test_proposals", 1),
            ("max_detections", 1),
        ):
            if not is_count(getattr(self, name), least):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected an integer of at least {least} and at most {MOST}."
                )

        for name in ("box_loss_weight", "rpn_smooth_l1_beta"):
            if not _is_weight(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a finite number of at least 0.")
        for name in ("rpn_nms_threshold", "score_threshold", "nms_threshold"):
            if not is_finite_number(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a finite number.")


def _is_weight(value: Any) -> bool:
    return is_finite_number(value) and value >= 0


def _is_four_units(values: Any) -> bool:
    is_list = isinstance(values, (list, tuple)) and len(values) == 4
    return is_list and all(is_finite_number(value) and value > 0 for value in values)


def _parse_backbone(backbone: Any, from_file: bool = False) -> Any:
    """Return the backbone's configuration as an object; None gives InternImage-T.

    Fields that do not exist are refused, unless they are `from_file`.
    """
    if backbone is None:
        return _backbone("t")
    is_fields = isinstance(backbone, dict)
    default = InternImageConfig.model_type
    model_type = backbone.get("model_type", default) if is_fields else getattr(backbone, "model_type", default)
    if model_type not in _BACKBONES:
        raise ValueError(
            f"backbone_config has model_type {model_type!r}, expected {' or '.join(map(repr, _BACKBONES))}."
        )
    if not is_fields:
        return backbone
    kind = _BACKBONES[model_type]
    return kind.from_dict(backbone) if from_file else kind(**backbone)


def _backbone(size: str) -> InternImageConfig:
    return InternImageConfig.from_size(size, num_labels=0, layer_scale=1.0, out_features=STAGES)


__all__ = ["CASCADE", "STAGES", "InternImageMaskRCNNConfig"]
