# SPDX-License-Identifier: MIT
"""What the last block of each stage samples, as outputs of a file: its offsets, and its masks after the softmax."""

from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..models.layers_internimage import InternImageDeformableConvolution
from ..models.modeling_internimage import InternImageTrunk
from .errors import ExportError


class SamplingPoints:
    """Record what the last blocks of a model's stages sample while it runs in this context.

    Attributes:
        names: of the tensors, `stage1_offset`, `stage1_mask`, and so on.
        tensors: by their names, after a run: offset (N, H, W, G, P, 2), pairs (x, y) in pixels of the stage's feature
            map, to add to the taps; mask (N, H, W, G, P), which sums to 1 over the taps of a group.

    Raises:
        ExportError: for a model without DCNv3.
    """

    def __init__(self, model: nn.Module) -> None:
        trunk: Any = next((part for part in model.modules() if isinstance(part, InternImageTrunk)), None)
        self._blocks = [] if trunk is None else [level.blocks[-1].dcn for level in trunk.levels]
        if not self._blocks or not all(isinstance(block, InternImageDeformableConvolution) for block in self._blocks):
            raise ExportError(f"{type(model).__name__} has no DCNv3, whose sampling points files can return.")
        stages = range(1, len(self._blocks) + 1)
        self.names = tuple(f"stage{stage}_{part}" for stage in stages for part in ("offset", "mask"))
        self.tensors: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "SamplingPoints":
        for stage, block in enumerate(self._blocks, start=1):
            for name in ("offset", "mask"):
                self._handles.append(
                    getattr(block, name).register_forward_hook(self._keep(f"stage{stage}_{name}", block))
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keep(self, name: str, block: Any) -> Any:
        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            if name.endswith("offset"):
                self.tensors[name] = output.unflatten(3, (block.groups, -1, 2))
            else:
                self.tensors[name] = output.unflatten(3, (block.groups, -1)).softmax(-1)

        return keep


__all__ = ["SamplingPoints"]
