# SPDX-License-Identifier: MIT
"""A model as files hold it: a function from pixels to a tuple of tensors with names."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# In the order in which they are returned; a model has those that it knows.
_OUTPUTS = (
    *("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits"),
    *("feature_maps", "last_hidden_state", "pooler_output"),
)


class System(nn.Module):
    """A model in evaluation mode that takes pixels (N, C, H, W) and returns its tensors as a tuple.

    Attributes:
        model: the model.
        output_names: their names: those of the model's output, and the stages' names of a backbone's feature maps.
        num_channels: of the pixels.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.eval()
        self.eval()
        backbone = getattr(model.config, "backbone_config", None) or model.config
        self.num_channels = getattr(backbone, "num_channels", 3)
        self.output_names: tuple[str, ...] = ()

    def name_outputs(self, pixel_values: torch.Tensor) -> None:
        """Run the model to see which outputs it has."""
        with torch.no_grad():
            names: list[str] = []
            for name, output in self._outputs(pixel_values).items():
                names += self.model.out_features if name == "feature_maps" else [name]
                assert isinstance(output, (torch.Tensor, tuple))
        self.output_names = tuple(names)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensors: list[torch.Tensor] = []
        for output in self._outputs(pixel_values).values():
            tensors += [output] if isinstance(output, torch.Tensor) else output
        return tuple(tensors)

    def _outputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        outputs = self.model(pixel_values=pixel_values, return_dict=True)
        return {name: outputs[name] for name in _OUTPUTS if outputs.get(name) is not None}


__all__ = ["System"]
