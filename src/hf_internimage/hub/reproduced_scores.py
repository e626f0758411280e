# SPDX-License-Identifier: MIT
"""Read the results of `hf-internimage reproduce`, and quote them in the cards of the published checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .card_blocks import markdown_table, table_cell

Result = Mapping[str, Any]


def read_results(folder: Path) -> dict[str, list[Result]]:
    """Return name of a checkpoint -> its results in the JSON files of a folder; those of some images only are left out.

    A file holds one result, or with `--all` a list of them.
    """
    results: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for result in content if isinstance(content, list) else [content]:
            if result["reproduction"]["agrees"] is not None:
                results.setdefault(result["model"], []).append(result)
    return results


def measured_scores(results: Sequence[Result]) -> str:
    """Return a table of a checkpoint's measured scores beside the reported ones, in Markdown; "" for no results."""
    if not results:
        return ""
    columns = ("Metric", "Measured", "Reported", "Tolerance", "Views", "Images", "Computed in", "On", "Date")
    table = markdown_table(columns, [tuple(map(table_cell, _row(result))) for result in results])
    hashes = sorted({file["sha256"] for result in results if (file := result["reproduction"]["file"])})
    origin = f", of the file with the SHA-256 `{'`, `'.join(hashes)}`" if hashes else ""
    return f"Measured with hf_internimage by `hf-internimage reproduce`{origin}:\n\n{table}"


def _row(result: Result) -> tuple[object, ...]:
    facts = result["reproduction"]
    return (
        facts["metric"],
        f"{facts['measured']:.2f} %",
        f"{facts['reported']} %",
        facts["tolerance"],
        facts["views"],
        f"{result['samples']:,}",
        result["dtype"],
        result["device"],
        result["date"].partition("T")[0],
    )


__all__ = ["Result", "measured_scores", "read_results"]
