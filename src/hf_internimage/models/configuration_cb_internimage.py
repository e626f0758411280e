# SPDX-License-Identifier: MIT
"""Configuration of the composite backbone CB-InternImage."""

from .configuration_internimage import InternImageConfig


class CBInternImageConfig(InternImageConfig):
    r"""Architecture of a composite backbone: two InternImages of the same shape; the second reads the first's features.

    It has the fields of [`InternImageConfig`], which hold for both InternImages, and:

    Args:
        round_gamma (`bool`): round the weights of the first backbone's features to float16 before use, as the original
            does. It moves features by up to 2e-3 where the weights are around 0.5.

    Raises:
        ValueError: for a value that cannot work; names the field, the value and the rule.

    Source: https://arxiv.org/abs/2107.00420; OpenGVLab/InternImage@31c962d, detection/mmdet_custom/models/backbones.
    """

    model_type = "cb_internimage"

    round_gamma: bool = True

    def check_architecture(self) -> None:
        """Raise ValueError with field, value and rule if a model of this configuration cannot work."""
        super().check_architecture()
        if not isinstance(self.round_gamma, bool):
            raise ValueError(f"round_gamma is {self.round_gamma!r}, expected True or False.")


__all__ = ["CBInternImageConfig"]
