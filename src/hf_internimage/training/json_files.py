# SPDX-License-Identifier: MIT
"""Write JSON that every reader takes: without NaN and infinity, complete or not at all."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write


def finite(value: Any) -> Any:
    """Return the value with None in place of each NaN and infinity in it, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """Return the value as JSON in lines; numbers that are not finite are null."""
    return json.dumps(finite(value), indent=2, allow_nan=False) + "\n"


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file that appears complete or not at all; numbers that are not finite are null."""
    with atomic_write(path) as new:
        new.write_text(json_text(value), encoding="utf-8")


__all__ = ["finite", "json_text", "write_json"]
