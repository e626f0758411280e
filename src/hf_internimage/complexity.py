# SPDX-License-Identifier: MIT
"""Cost of a model: multiply-accumulates for one image, and parameters, counted on the meta device.

A multiply-accumulate (MAC) is one multiplication and one addition. The "FLOPs" of the InternImage paper, and of most
vision papers, are MACs; the number of single operations is twice as high.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from .models import auto
from .models.checked_configuration import is_integer
from .models.configuration_internimage import InternImageConfig
from .models.layers_flash_internimage import FlashInternImageDeformableConvolution
from .models.layers_internimage import InternImageDeformableConvolution

# Per output value and tap: four corners of the bilinear sample, and the mask.
DCNV3_MACS = 5
_CONVOLUTIONS = (InternImageDeformableConvolution, FlashInternImageDeformableConvolution)
_KINDS = {"aten.convolution": "convolution", "aten.mm": "linear", "aten.addmm": "linear"}


class Macs(NamedTuple):
    """Multiply-accumulates for one image, by kind of operation.

    Attributes:
        convolution: ordinary, depth-wise and transposed convolutions.
        linear: linear layers.
        matmul: other matrix products, such as those of attention.
        dcnv3: sampling and weighted sum of the operator (DCNv3 or DCNv4), without the layers that compute offsets and
            masks.
    """

    convolution: int
    linear: int
    matmul: int
    dcnv3: int

    @property
    def total(self) -> int:
        """Return the sum of all kinds."""
        return sum(self)


def count_macs(config_or_model: InternImageConfig | PreTrainedModel, image_size: Any = None) -> Macs:
    """Count the multiply-accumulates of one image's forward pass.

    The DCNv3 operator counts `DCNV3_MACS` = 5 for each output value and tap, 4 for the bilinear corners and 1 for the
    mask, as in the authors' own count. Norms, activations, softmax, sums and biases are left out, as is usual.

    Args:
        config_or_model: a configuration (of an image classifier), or any model that takes `pixel_values`. A new model
            of the same class and configuration is counted; the weights are not used.
        image_size: height and width in pixels, one number or a pair; the configuration's if None.

    Raises:
        ValueError: for an image size other than a positive integer or a pair of them, and for a configuration of a
            type that has no classifier.

    Source: arXiv:2211.05778 eq. 2; OpenGVLab/InternImage@31c962d, segmentation/get_flops.py (5 * n * k * c).
    """
    model = _on_meta(config_or_model)
    height, width = _sides(model.config.image_size if image_size is None else image_size)
    pixels = torch.empty((1, getattr(model.config, "num_channels", 3), height, width), device="meta")
    sampled: list[int] = []
    hooks = [
        module.register_forward_hook(_count_sampling(sampled))
        for module in model.modules()
        if isinstance(module, _CONVOLUTIONS)
    ]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(pixel_values=pixels)
    finally:
        for hook in hooks:
            hook.remove()
    macs: Counter[str] = Counter()
    for operator, flops in counter.get_flop_counts()["Global"].items():
        macs[_KINDS.get(str(operator), "matmul")] += flops // 2
    return Macs(macs["convolution"], macs["linear"], macs["matmul"], sum(sampled))


def count_parameters(config_or_model: InternImageConfig | nn.Module) -> int:
    """Count the parameters of a model, or of a configuration's classifier.

    Frozen parameters are included; parameters shared between layers count once.
    """
    model = config_or_model if isinstance(config_or_model, nn.Module) else _on_meta(config_or_model)
    return sum(parameter.numel() for parameter in model.parameters())


def _on_meta(config_or_model: InternImageConfig | PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same class and configuration on the meta device, in evaluation mode."""
    with torch.device("meta"):
        if isinstance(config_or_model, nn.Module):
            return type(config_or_model)(config_or_model.config).eval()
        if config_or_model.model_type not in auto.model_types("AutoModelForImageClassification"):
            raise ValueError(
                f"There is no image classifier for a configuration of type {config_or_model.model_type!r}; give a "
                "model."
            )
        classifier = auto.model_class(config_or_model.model_type, "AutoModelForImageClassification")
        return classifier(config_or_model).eval()


def _count_sampling(sampled: list[int]) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    """Return a forward hook that appends the MACs of a module's sampling to `sampled`."""

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module, _CONVOLUTIONS)
        sampled.append(DCNV3_MACS * (module.kernel_size**2 - module.remove_center) * output.numel())

    return count


def _sides(image_size: Any) -> tuple[int, int]:
    """Return (height, width) from one number or such a pair; raise ValueError unless they are positive integers."""
    sides = list(image_size) if isinstance(image_size, (list, tuple)) else [image_size, image_size]
    if len(sides) != 2 or not all(is_integer(side) and side >= 1 for side in sides):
        raise ValueError(
            f"image_size is {image_size!r}, expected a positive integer or a pair (height, width) of them."
        )
    return sides[0], sides[1]


__all__ = ["DCNV3_MACS", "Macs", "count_macs", "count_parameters"]
