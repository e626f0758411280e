# SPDX-License-Identifier: MIT
"""A model as files hold it: a function from pixels to a tuple of tensors with names."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .errors import ExportError
from .query_choice import QueryChoice
from .sampling_points import SamplingPoints
from .symbolic_sizes import SymbolicSizes

# In the order in which they are returned; a model has those that it knows.
_OUTPUTS = (
    *("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits"),
    *("feature_maps", "last_hidden_state", "pooler_output"),
)
_ODD_SIDES, _SIZE_DIVISOR = (75, 107), 32
PIXEL_VALUES, PIXEL_MASK = "pixel_values", "pixel_mask"
QUERY_POSITIONS = "query_positions"  # the last output of models that choose queries, in files and comparisons


def random_pixels(shape: Sequence[int]) -> torch.Tensor:
    """Return normal pixels (N, C, H, W), the same for a shape at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class System(nn.Module):
    """A model in evaluation mode that takes pixels (N, C, H, W) and returns its tensors as a tuple.

    Args:
        model: in float32.
        sampling_points: what records the sampling points that are further outputs; None for none.

    Attributes:
        model: the model.
        output_names: their names: those of the model's output, the stages' names of a backbone's feature maps, those of
            `sampling_points`, and `QUERY_POSITIONS`.
        num_channels: of the pixels.
        size_divisor: height and width of the pixels are multiples of it.
    """

    def __init__(self, model: PreTrainedModel, sampling_points: SamplingPoints | None = None) -> None:
        super().__init__()
        self.sampling_points = sampling_points
        self.model = model.eval()
        self.eval()
        backbone = getattr(model.config, "backbone_config", None) or model.config
        self.num_channels = getattr(backbone, "num_channels", 3)
        self.size_divisor = 1
        self.output_names: tuple[str, ...] = ()

    @torch.no_grad()
    def name_outputs(self, pixel_values: torch.Tensor) -> None:
        """Run the model to see which outputs it has, and whether it takes sides that are no multiples of 32.

        Raises:
            ExportError: if it has none that files hold.
        """
        names: list[str] = []
        for name in self._outputs(pixel_values, QueryChoice()):
            names += self.model.out_features if name == "feature_maps" else [name]
        if not names:
            raise ExportError(
                f"{type(self.model).__name__} cannot be exported: it returns none of {', '.join(_OUTPUTS)}."
            )
        self.output_names = tuple(names)
        try:
            self(random_pixels((1, self.num_channels, *_ODD_SIDES)))
        except Exception:  # models that add neighbouring maps have errors of their own, or PyTorch's
            self.size_divisor = _SIZE_DIVISOR

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return the model's tensors; when it is exported, the positions of its queries as well.

        pixel_mask: (N, H, W), 1 on images and 0 on padding, of models that take one.
        """
        if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            return _flat(self._outputs(pixel_values, pixel_mask=pixel_mask))
        with SymbolicSizes():
            return _flat(self._outputs(pixel_values, QueryChoice(), pixel_mask))

    def on_queries(
        self, pixel_values: torch.Tensor, choice: QueryChoice, pixel_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the model's tensors with queries from the positions of the choice, and the positions."""
        return _flat(self._outputs(pixel_values, choice, pixel_mask))

    def _outputs(
        self, pixel_values: torch.Tensor, choice: QueryChoice | None = None, pixel_mask: torch.Tensor | None = None
    ) -> dict[str, Any]:
        inputs = {PIXEL_VALUES: pixel_values} | ({} if pixel_mask is None else {PIXEL_MASK: pixel_mask})
        points = self.sampling_points
        with (
            contextlib.nullcontext() if choice is None else choice,
            contextlib.nullcontext() if points is None else points,
        ):
            outputs = self.model(**inputs, return_dict=True)
        tensors = {name: outputs[name] for name in _OUTPUTS if outputs.get(name) is not None}
        if points is not None:
            tensors |= {name: points.tensors[name] for name in points.names}
        if choice is not None and choice.chosen is not None:
            tensors[QUERY_POSITIONS] = choice.chosen
        return tensors


def _flat(outputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    tensors: list[torch.Tensor] = []
    for output in outputs.values():
        tensors += [output] if isinstance(output, torch.Tensor) else output
    return tuple(tensors)


__all__ = ["PIXEL_MASK", "PIXEL_VALUES", "QUERY_POSITIONS", "System", "random_pixels"]
