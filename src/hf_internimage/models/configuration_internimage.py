# SPDX-License-Identifier: MIT
"""Configuration of InternImage: architecture, and the released sizes."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from transformers.backbone_utils import BackboneConfigMixin

from .checked_configuration import MOST, CheckedConfig, check_label_count, is_count, is_finite_number, is_integer

# Released architectures: OpenGVLab/InternImage@31c962d, classification/configs. Other fields keep their default.
SIZES: dict[str, dict[str, Any]] = {
    "t": {"channels": 64, "depths": [4, 4, 18, 4], "groups": [4, 8, 16, 32], "image_size": 224},
    "s": {
        "channels": 80,
        "depths": [4, 4, 21, 4],
        "groups": [5, 10, 20, 40],
        "layer_scale": 1e-5,
        "post_norm": True,
        "image_size": 224,
    },
    "b": {
        "channels": 112,
        "depths": [4, 4, 21, 4],
        "groups": [7, 14, 28, 56],
        "layer_scale": 1e-5,
        "post_norm": True,
        "image_size": 224,
    },
    "l": {
        "channels": 160,
        "depths": [5, 5, 22, 5],
        "groups": [10, 20, 40, 80],
        "layer_scale": 1e-5,
        "offset_scale": 2.0,
        "post_norm": True,
        "image_size": 384,
    },
    "xl": {
        "channels": 192,
        "depths": [5, 5, 24, 5],
        "groups": [12, 24, 48, 96],
        "layer_scale": 1e-5,
        "offset_scale": 2.0,
        "post_norm": True,
        "image_size": 384,
    },
    "h": {
        "channels": 320,
        "depths": [6, 6, 32, 6],
        "groups": [10, 20, 40, 80],
        "dw_kernel_size": 5,
        "res_post_norm": True,
        "level2_post_norm": True,
        "level2_post_norm_block_ids": [5, 11, 17, 23, 29],
        "center_feature_scale": True,
        "use_clip_projector": True,
        "image_size": 640,
    },
    "g": {
        "channels": 512,
        "depths": [2, 2, 48, 4],
        "groups": [16, 32, 64, 128],
        "dw_kernel_size": 5,
        "post_norm": True,
        "level2_post_norm": True,
        "level2_post_norm_block_ids": [5, 11, 17, 23, 29, 35, 41, 47],
        "center_feature_scale": True,
        "use_clip_projector": True,
        "image_size": 512,
    },
}
_ACTIVATIONS = ("GELU", "SiLU", "ReLU")
_NORMS = ("LN", "BN")
_DROP_PATH_TYPES = ("linear", "uniform")
_FLAGS = (
    "post_norm",
    "res_post_norm",
    "level2_post_norm",
    "center_feature_scale",
    "use_clip_projector",
    "remove_center",
    "with_cp",
)
_MOST_KERNEL = 1001
_MOST_BLOCKS = 10_000
# The classifier class of OpenGVLab's own remote code, which this package replaces.
_OFFICIAL_CLASSIFIER = "InternImageModelForImageClassification"


class InternImageConfig(BackboneConfigMixin, CheckedConfig):
    r"""Architecture of an InternImage model. The defaults give InternImage-T.

    Field names are those of OpenGVLab's `config.json` files, which load unchanged; `num_classes` and `num_labels`
    are two names of one value.

    Args:
        core_op (`str`): name of the operator; `"DCNv3"` or `"DCNv3_pytorch"`, which mean the same here.
        num_channels (`int`): channels of the input image.
        image_size (`int` or pair of `int`): input size (height, width) in pixels the weights were trained for. The
            model accepts other sizes too.
        channels (`int`): channels of the first stage; each further stage has twice as many.
        depths (`list[int]`): blocks of each stage.
        groups (`list[int]`): DCNv3 groups of each stage; must divide the channels of the stage.
        dw_kernel_size (`int`, *optional*): kernel of the depth-wise convolution before offsets and masks, odd. 3 if
            None.
        layer_scale (`float`, *optional*): start value of the per-channel factor of each residual branch; no such
            factor if None.
        offset_scale (`float`): factor of the sampling grid and the offsets.
        mlp_ratio (`float`): hidden features of the MLP in units of the stage's channels.
        post_norm (`bool`): normalise the result of each residual branch in place of its input.
        res_post_norm (`bool`): normalise the result of each residual branch as well as its input. No effect with
            `post_norm` or `layer_scale` (as in the original).
        level2_post_norm (`bool`): further norms in the third stage, after the blocks `level2_post_norm_block_ids`.
        level2_post_norm_block_ids (`list[int]`, *optional*): indices of those blocks, ascending.
        center_feature_scale (`bool`): blend the operator's result with its input by a learned factor per group.
        use_clip_projector (`bool`): attention-pooling head of InternImage-H and G. Sizes must make the third stage
            even (multiples of 32 are safe).
        remove_center (`bool`): leave the centre tap out of the operator.
        drop_rate (`float`): dropout after the stem and in the MLPs.
        drop_path_rate (`float`): stochastic depth rate.
        drop_path_type (`str`): `"linear"` raises the rate from 0 at the first block to `drop_path_rate` at the last,
            `"uniform"` uses it everywhere.
        act_layer (`str`): `"GELU"`, `"SiLU"` or `"ReLU"`.
        norm_layer (`str`): norm of stem, downsampling and depth-wise convolutions: `"LN"` or `"BN"`.
        cls_scale (`float`): width of the classification head in units of the last stage's channels.
        with_cp (`bool`): gradient checkpointing from the start.
        initializer_range (`float`): standard deviation of the initial weights of linear layers.
        num_labels (`int`): classes of the classifier.
        out_features (`list[str]`, *optional*): feature maps that a backbone returns, of `"stem"`, `"stage1"`,
            `"stage2"` and so on; the last stage if None.
        out_indices (`list[int]`, *optional*): the same as numbers; 0 is the stem.

    The released sizes, as `from_size` sets them; all other fields keep their default:

    | Field | T | S | B | L | XL | H | G |
    | --- | --- | --- | --- | --- | --- | --- | --- |
    | channels | 64 | 80 | 112 | 160 | 192 | 320 | 512 |
    | depths | 4 4 18 4 | 4 4 21 4 | 4 4 21 4 | 5 5 22 5 | 5 5 24 5 | 6 6 32 6 | 2 2 48 4 |
    | groups | 4 8 16 32 | 5 10 20 40 | 7 14 28 56 | 10 20 40 80 | 12 24 48 96 | 10 20 40 80 | 16 32 64 128 |
    | image_size | 224 | 224 | 224 | 384 | 384 | 640 | 512 |
    | layer_scale | None | 1e-05 | 1e-05 | 1e-05 | 1e-05 | None | None |
    | offset_scale | 1.0 | 1.0 | 1.0 | 2.0 | 2.0 | 1.0 | 1.0 |
    | post_norm | False | True | True | True | True | False | True |
    | res_post_norm | False | False | False | False | False | True | False |
    | dw_kernel_size | None | None | None | None | None | 5 | 5 |
    | center_feature_scale | False | False | False | False | False | True | True |
    | use_clip_projector | False | False | False | False | False | True | True |
    | level2_post_norm | False | False | False | False | False | True | True |
    | level2_post_norm_block_ids | None | None | None | None | None | 5 11 17 23 29 | 5 11 17 23 29 35 41 47 |

    Raises:
        ValueError: for a value that cannot work; names the field, the value and the rule.

    Example:
        >>> from hf_internimage import InternImageConfig, InternImageForImageClassification
        >>> config = InternImageConfig.from_size("s", num_labels=10, drop_path_rate=0.2)
        >>> config.channels, config.depths, config.layer_scale
        (80, [4, 4, 21, 4], 1e-05)
        >>> small = InternImageConfig(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], num_labels=10)
        >>> model = InternImageForImageClassification(small)  # with random weights

    Source: https://arxiv.org/abs/2211.05778, OpenGVLab/InternImage@31c962d.
    """

    model_type = "internimage"
    attribute_map = {"num_classes": "num_labels", "num_hidden_layers": "num_stages"}
    _other_names = ("hidden_sizes", "out_features", "out_indices", "stage_names")
    _operators: ClassVar[tuple[str, ...]] = ("DCNv3", "DCNv3_pytorch")
    _sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES

    core_op: str = "DCNv3"
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    channels: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 18, 4)
    groups: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    dw_kernel_size: int | None = None
    layer_scale: float | None = None
    offset_scale: float = 1.0
    mlp_ratio: float = 4.0
    post_norm: bool = False
    res_post_norm: bool = False
    level2_post_norm: bool = False
    level2_post_norm_block_ids: list[int] | tuple[int, ...] | None = None
    center_feature_scale: bool = False
    use_clip_projector: bool = False
    remove_center: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_path_type: str = "linear"
    act_layer: str = "GELU"
    norm_layer: str = "LN"
    cls_scale: float = 1.5
    with_cp: bool = False
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_given(kwargs)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        hidden_sizes = kwargs.pop("hidden_sizes", None)
        for name, value in (
            ("out_features", out_features),
            ("out_indices", out_indices),
            ("hidden_sizes", hidden_sizes),
        ):
            if isinstance(value, (str, Mapping)) or not isinstance(value, (Iterable, type(None))):
                raise ValueError(f"{name} is {value!r}, expected a list or None.")
        kwargs.pop("stage_names", None)
        self._set_num_labels(kwargs)
        if any(_OFFICIAL_CLASSIFIER in str(target) for target in (kwargs.get("auto_map") or {}).values()):
            del kwargs["auto_map"]
        self.check_architecture()
        if hidden_sizes is not None and list(hidden_sizes) != self.hidden_sizes:
            raise ValueError(
                f"hidden_sizes is {list(hidden_sizes)} but channels={self.channels} and {len(self.depths)} stages give "
                f"{self.hidden_sizes}; set channels and depths, hidden_sizes follows from them."
            )
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, len(self.depths) + 1))]
        self.set_output_features_output_indices(
            out_features=list(out_features) if out_features is not None else None,
            out_indices=list(out_indices) if out_indices is not None else None,
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, num_labels: int = 1000, **kwargs: Any) -> "InternImageConfig":
        """Return the released architecture `size` (no weights are loaded).

        Args:
            size: name of a size in the table of the class, such as "t", in either case.
            num_labels: classes of the classification head; 1000 as released.
            kwargs: any other field, in place of the released value.

        Raises:
            ValueError: for an unknown size.

        Source: classification/configs of the repository that the class names.
        """
        key = size.lower() if isinstance(size, str) else size
        if key not in cls._sizes:
            raise ValueError(f"size is {size!r}, expected one of {', '.join(cls._sizes)}.")
        fields = {name: list(value) if isinstance(value, list) else value for name, value in cls._sizes[key].items()}
        if "id2label" not in kwargs and "num_classes" not in kwargs:
            fields["num_labels"] = num_labels
        return cls(**{**fields, **kwargs})

    @property
    def num_stages(self) -> int:
        """Return the number of stages."""
        return len(self.depths)

    @property
    def hidden_sizes(self) -> list[int]:
        """Return the channels of each stage."""
        return [self.channels * 2**index for index in range(len(self.depths))]

    def _set_num_labels(self, kwargs: dict[str, Any]) -> None:
        """Convert `num_classes` to `num_labels`; an explicit `num_labels` takes precedence over it."""
        num_classes = kwargs.pop("num_classes", None)
        for name, value in (("num_classes", num_classes), ("num_labels", kwargs.get("num_labels"))):
            if value is not None:
                check_label_count(name, value)
        if num_classes is None or kwargs.get("num_labels") is not None:
            return
        if self.id2label is None:
            kwargs["num_labels"] = num_classes
        elif len(self.id2label) != num_classes:
            raise ValueError(
                f"num_classes is {num_classes} but id2label has {len(self.id2label)} entries: make them agree, or "
                "leave one out."
            )

    def check_architecture(self) -> None:
        """Raise ValueError with field, value and rule if a model of this configuration cannot work."""
        for name, allowed in (
            ("core_op", self._operators),
            ("act_layer", _ACTIVATIONS),
            ("norm_layer", _NORMS),
            ("drop_path_type", _DROP_PATH_TYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}.")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False.")
        for name in ("num_channels", "channels"):
            if not is_count(getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected an integer of at least 1 and at most {MOST}."
                )
        if not is_finite_number(self.offset_scale):
            raise ValueError(f"offset_scale is {self.offset_scale!r}, expected a finite number.")
        if not is_finite_number(self.initializer_range) or self.initializer_range <= 0:
            raise ValueError(f"initializer_range is {self.initializer_range!r}, expected a finite number above 0.")
        for name in ("drop_rate", "drop_path_rate"):
            if not is_finite_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number in [0, 1).")
        if self.layer_scale is not None and not is_finite_number(self.layer_scale):
            raise ValueError(f"layer_scale is {self.layer_scale!r}, expected a finite number or None.")
        size = self.image_size
        sides = list(size) if isinstance(size, (list, tuple)) else [size]
        if len(sides) not in (1, 2) or not all(map(is_count, sides)):
            raise ValueError(
                f"image_size is {size!r}, expected a positive integer or a pair (height, width) of them, each at most "
                f"{MOST}."
            )
        self._check_stages()
        self._check_kernels_and_heads()

    def _check_stages(self) -> None:
        for name in ("depths", "groups"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not values or not all(map(is_count, values)):
                raise ValueError(
                    f"{name} is {values!r}, expected a list of integers of at least 1 and at most {MOST}, one for each "
                    "stage."
                )
        if sum(self.depths) > _MOST_BLOCKS:
            raise ValueError(f"depths is {list(self.depths)}, expected at most {_MOST_BLOCKS} blocks in all stages.")
        if len(self.groups) != len(self.depths):
            raise ValueError(
                f"groups is {list(self.groups)} and depths is {list(self.depths)}: expected the same length, one entry "
                "for each stage."
            )
        if self.channels % 2:
            raise ValueError(f"channels is {self.channels}, expected an even number (the stem halves it).")
        if self.hidden_sizes[-1] > MOST:
            raise ValueError(
                f"channels is {self.channels} and depths is {list(self.depths)}: the last stage would have "
                f"{self.hidden_sizes[-1]} channels, expected at most {MOST}."
            )
        for index, (width, groups) in enumerate(zip(self.hidden_sizes, self.groups, strict=True)):
            if width % groups:
                raise ValueError(
                    f"groups[{index}] is {groups}, which does not divide the {width} channels of stage {index + 1} "
                    f"(channels={self.channels} times 2**{index}); choose a divisor."
                )
        ids = self.level2_post_norm_block_ids
        if ids is not None and not (isinstance(ids, (list, tuple)) and all(is_integer(i) for i in ids)):
            raise ValueError(f"level2_post_norm_block_ids is {ids!r}, expected a list of block indices or None.")
        if self.level2_post_norm and ids is not None:
            if len(self.depths) < 3:
                raise ValueError(f"level2_post_norm is True but depths is {list(self.depths)}: it needs three stages.")
            if list(ids) != sorted(set(ids)) or any(not 0 <= i < self.depths[2] for i in ids):
                raise ValueError(
                    f"level2_post_norm_block_ids is {list(ids)}, expected ascending block indices of the third stage, "
                    f"each in 0..{self.depths[2] - 1} (depths[2] is {self.depths[2]})."
                )

    def _check_kernels_and_heads(self) -> None:
        kernel = self.dw_kernel_size
        if kernel is not None and (not is_integer(kernel) or not 1 <= kernel <= _MOST_KERNEL or kernel % 2 == 0):
            rule = (
                f"an odd integer of at most {_MOST_KERNEL}, or None (an even kernel has no centre: it would "
                "change the feature map's size)"
            )
            raise ValueError(f"dw_kernel_size is {kernel!r}, expected {rule}.")
        widest = self.hidden_sizes[-1]
        ratio, scale = self.mlp_ratio, self.cls_scale
        if not is_finite_number(ratio) or int(self.channels * ratio) < 1 or int(widest * ratio) > MOST:
            raise ValueError(
                f"mlp_ratio is {ratio!r}, expected a number that leaves at least one hidden feature "
                f"(channels={self.channels}), and at most {MOST} in the last stage of {widest} channels."
            )
        if not is_finite_number(scale) or not 1 <= int(widest * scale) <= MOST:
            raise ValueError(
                f"cls_scale is {scale!r}, expected a number that leaves at least one feature of the last stage's "
                f"{widest}, and at most {MOST}."
            )
        if self.use_clip_projector and len(self.depths) < 2:
            raise ValueError(
                f"use_clip_projector is True but depths is {list(self.depths)}: the head reads the last two stages."
            )


__all__ = ["InternImageConfig"]
