# SPDX-License-Identifier: MIT
"""Which positions a detector makes its queries of: recorded, or given and checked.

Detectors such as DINO take the positions with the best scores (top-k). Rounding can exchange positions of nearly equal
scores, also between two runs of PyTorch, and then whole queries differ. So files return the positions, too, and the
model is compared on those that the file has chosen, if they are as good as the model's own.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import ExportError


class QueryChoice(TorchFunctionMode):
    """Record the choice of a model that runs in this context; with `positions`, make it choose these.

    Args:
        positions: (N, Q), or None.
        tolerance: by how much the scores of these may differ from the best ones in order, over the range of all scores.

    Attributes:
        chosen: (N, Q), the positions by falling score; None if the model has chosen none.
        agreement: share of `positions` that the model chooses itself; None without positions.

    Raises:
        ExportError: in the model's run, if the positions are not as good as its own.
    """

    def __init__(self, positions: torch.Tensor | None = None, tolerance: float = 0.0) -> None:
        super().__init__()
        self.positions, self.tolerance = positions, tolerance
        self.chosen: torch.Tensor | None = None
        self.agreement: float | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Of scores (N, S): other calls, such as those in the heads of D-FINE, choose no queries.
        if func not in (torch.topk, torch.Tensor.topk) or args[0].dim() != 2 or self.chosen is not None:
            return result
        if self.positions is not None:
            own = result.indices
            result = torch.return_types.topk(_taken(args[0], result.values, self.positions, self.tolerance))
            self.agreement = float((self.positions[:, :, None] == own[:, None, :]).any(2).double().mean())
        self.chosen = result.indices
        return result


def _taken(
    scores: torch.Tensor, best: torch.Tensor, positions: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores at `positions`, and these."""
    ordered = positions.sort(dim=1).values
    if (
        positions.shape != best.shape
        or bool((ordered[:, 1:] == ordered[:, :-1]).any())
        or not 0 <= int(ordered.min()) <= int(ordered.max()) < scores.shape[1]
    ):
        raise ExportError("the positions of the file's queries are not as many different ones as the model's.")
    values = scores.gather(1, positions)
    difference = float((values - best).abs().max() / (scores.max() - scores.min()).clamp(min=1e-12))
    if not difference <= tolerance:  # NaN compares false
        raise ExportError(
            f"the file makes its queries of other positions than the model, whose scores differ by {difference:.2e} of "
            f"the scores' range; the tolerance is {tolerance:g}."
        )
    return values, positions


__all__ = ["QueryChoice"]
