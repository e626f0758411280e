# SPDX-License-Identifier: MIT
"""Configuration of FlashInternImage: architecture, and the released sizes."""

from typing import Any, ClassVar

from .configuration_internimage import SIZES, InternImageConfig

# Released architectures: OpenGVLab/DCNv4@4b848f7, classification/configs.
FLASH_SIZES: dict[str, dict[str, Any]] = {
    "t": SIZES["t"],
    "s": {**SIZES["s"], "dw_kernel_size": 3},
    "b": {**SIZES["b"], "dw_kernel_size": 3, "offset_scale": 0.5},
    "l": {**SIZES["l"], "dw_kernel_size": 3, "dcn_output_bias": True, "mlp_fc2_bias": True},
}


class FlashInternImageConfig(InternImageConfig):
    r"""Architecture of a FlashInternImage, an InternImage with DCNv4 in place of DCNv3. The defaults give the size T.

    It has the fields of [`InternImageConfig`], of which two have another meaning, and two more:

    Args:
        core_op (`str`): name of the operator, `"DCNv4"`.
        dw_kernel_size (`int`, *optional*): kernel of the depth-wise convolution before offsets and weights, odd. No
            such convolution if None.
        center_feature_scale (`bool`): a norm at the end of each stage, also with `post_norm`; nothing else (as in the
            original).
        dcn_output_bias (`bool`): bias of the linear layer after the operator.
        mlp_fc2_bias (`bool`): bias of the second linear layer of the MLPs.

    The released sizes, as `from_size` sets them; all other fields keep their default:

    | Field | T | S | B | L |
    | --- | --- | --- | --- | --- |
    | channels | 64 | 80 | 112 | 160 |
    | depths | 4 4 18 4 | 4 4 21 4 | 4 4 21 4 | 5 5 22 5 |
    | groups | 4 8 16 32 | 5 10 20 40 | 7 14 28 56 | 10 20 40 80 |
    | image_size | 224 | 224 | 224 | 384 |
    | layer_scale | None | 1e-05 | 1e-05 | 1e-05 |
    | offset_scale | 1.0 | 1.0 | 0.5 | 2.0 |
    | post_norm | False | True | True | True |
    | dw_kernel_size | None | 3 | 3 | 3 |
    | dcn_output_bias | False | False | False | True |
    | mlp_fc2_bias | False | False | False | True |

    Raises:
        ValueError: for a value that cannot work; names the field, the value and the rule.

    Example:
        >>> from hf_internimage import FlashInternImageConfig, FlashInternImageForImageClassification
        >>> config = FlashInternImageConfig.from_size("b", num_labels=10)
        >>> config.channels, config.dw_kernel_size, config.offset_scale
        (112, 3, 0.5)

    Source: https://arxiv.org/abs/2401.06197, OpenGVLab/DCNv4@4b848f7.
    """

    model_type = "flash_internimage"
    _operators: ClassVar[tuple[str, ...]] = ("DCNv4",)
    _sizes: ClassVar[dict[str, dict[str, Any]]] = FLASH_SIZES

    core_op: str = "DCNv4"
    dcn_output_bias: bool = False
    mlp_fc2_bias: bool = False

    def check_architecture(self) -> None:
        """Raise ValueError with field, value and rule if a model of this configuration cannot work."""
        super().check_architecture()
        for name in ("dcn_output_bias", "mlp_fc2_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False.")


__all__ = ["FlashInternImageConfig"]
