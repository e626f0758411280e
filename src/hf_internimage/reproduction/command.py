# SPDX-License-Identifier: MIT
"""The command `hf-internimage reproduce`: one checkpoint, or all whose files and data are there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..hub.tokens import without_tokens
from ..plain_text import text_table
from ..training.json_files import write_json
from .data import find_data
from .files import cached_file
from .measure import Settings, reproduce
from .protocols import MULTI_SCALE, SINGLE_SCALE, Protocol, find_protocol, protocols

_COLUMNS = ("name", "score", "views", "images", "reported", "measured", "difference", "tolerance", "result")
_NUMBERS = ("images", "reported", "measured", "difference", "tolerance")


def reproduce_one(
    name: str,
    data: Path,
    file: Path | None,
    *,
    multi_scale: bool,
    sha256: str | None,
    output: Path | None,
    settings: Settings,
    report: Callable[[str], None],
) -> int:
    """Measure one score, report it beside the authors', and write the result as JSON.

    Args: `report` is called with each text for the user; see `reproduce` for the others.

    Returns: 0, or 1 if the difference is larger than the tolerance.

    Raises: as `find_protocol` and `reproduce`.
    """
    logging.disable_progress_bar()  # of files; those of evaluations stay
    protocol = find_protocol(name, MULTI_SCALE if multi_scale else SINGLE_SCALE)
    result = reproduce(protocol, data, file, sha256=sha256, settings=settings, report=report)
    if output is not None:
        write_json(result, output)
        report(f"written to {output}")
    report("\n" + text_table(_COLUMNS, [_row(result)], _NUMBERS))
    return int(result["reproduction"]["agrees"] is False)


def reproduce_all(
    data: Path,
    files: Path | None,
    *,
    multi_scale: bool,
    output: Path | None,
    settings: Settings,
    report: Callable[[str], None],
) -> int:
    """Measure every score whose file and data are there, and report a table of all of them at the end.

    An error of one of them does not stop the others. Files are the NAME.pth in the folder `files`, or those in the
    cache of the Hub; nothing is downloaded. The JSON file is a list, and is written after each result.

    Returns: 0, or 1 if a score differs by more than its tolerance, fails, or nothing is there.
    """
    logging.disable_progress_bar()  # of files; those of evaluations stay
    results: list[dict[str, Any]] = []
    rows: list[Sequence[str]] = []
    missing, failed = [], False
    views = {SINGLE_SCALE, MULTI_SCALE} if multi_scale else {SINGLE_SCALE}
    for protocol in protocols():
        if protocol.score.views not in views:
            continue
        file, reason = _look_for(protocol, data, files)
        if reason is not None:
            missing.append((protocol.name, protocol.score.views, reason))
            continue
        report(f"{protocol.name}, {protocol.score.views}")
        try:
            result = reproduce(protocol, data, file, settings=settings, report=lambda line: report(f"  {line}"))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            message = without_tokens(" ".join(str(error).split()))
            report(f"  failed: {message}")
            rows.append((protocol.name, protocol.score.metric, protocol.score.views, *[""] * 5, "failed"))
            failed = True
            continue
        results.append(result)
        rows.append(_row(result))
        if output is not None:
            write_json(results, output)
    if missing:
        place = files or "the cache of the Hub"
        table = text_table(("name", "views", "reason"), missing)
        report(f"\nnot measured (files NAME.pth are looked for in {place}):\n{table}")
    if rows:
        report("\n" + text_table(_COLUMNS, rows, _NUMBERS))
    disagree = any(result["reproduction"]["agrees"] is False for result in results)
    return int(failed or disagree or not rows)


def _look_for(protocol: Protocol, data: Path, files: Path | None) -> tuple[Path | None, str | None]:
    """Return the checkpoint's file and None, or None and why the score cannot be measured here."""
    file = cached_file(protocol.name) if files is None else files / f"{protocol.name}.pth"
    if file is None or not file.is_file():
        return None, "no file"
    try:
        find_data(protocol.dataset, data)
    except ValueError as error:
        return None, str(error)
    return file, None


def _row(result: dict[str, Any]) -> Sequence[str]:
    """Return the entries of a result in the table."""
    facts = result["reproduction"]
    verdict = {True: "agrees", False: "differs", None: "some images only"}[facts["agrees"]]
    return (
        result["model"],
        f"{facts['metric']}, %",
        facts["views"],
        f"{result['samples']:,}",
        f"{facts['reported']}",
        f"{facts['measured']:.2f}",
        f"{facts['measured'] - facts['reported']:+.2f}",
        f"{facts['tolerance']}",
        verdict,
    )


__all__ = ["reproduce_all", "reproduce_one"]
