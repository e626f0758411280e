# SPDX-License-Identifier: MIT
"""Load this package's metrics as the library `evaluate` does, without a network."""

from pathlib import Path
from typing import Any


def load_metric_module(path: Path, **options: Any) -> Any:
    """Return the metric in a Python file.

    Args:
        path: file of one `evaluate.Metric`.
        options: of `evaluate.load`, and of the metric itself.

    Raises:
        ImportError: if another module is in the place of that package, as a script named evaluate.py is for its
            neighbours.
    """
    import evaluate

    if not hasattr(evaluate, "EvaluationModule"):
        raise ImportError(
            f"`import evaluate` found {getattr(evaluate, '__file__', 'a folder')} instead of the package evaluate: "
            "take that folder off sys.path."
        )
    return evaluate.load(str(path), keep_in_memory=True, **options)


__all__ = ["load_metric_module"]
