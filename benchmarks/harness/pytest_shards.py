# SPDX-License-Identifier: MIT
"""A pytest plugin: several processes share one list of tests, and each writes its results to a file at once.

The process that creates the file of a test's number runs that test. A process whose GPU context was broken by a failing
test ends, so that the next tests start in a new process.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("GPU_CHECK_SHARDS", "."))
RESULTS = FOLDER / f"results_{os.environ.get('GPU_CHECK_SHARD', '0')}.jsonl"
BROKEN = 70  # exit status
_LONG = ("half_types", "triton")  # parts of the names of long tests, which start first
_BROKEN_CONTEXT = ("CUDA error", "cudaError", "CUDA_ERROR", "illegal memory access", "(700)", "(719)")


def note(**entry: Any) -> None:
    """Append an entry to the results of this process."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.hookimpl(trylast=True)  # after other plugins have deselected tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -sum(text in item.name for text in _LONG))
    note(collected=len(items))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    number = item.session.items.index(item)
    try:
        os.close(os.open(FOLDER / f"taken_{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return True  # another process runs it
    note(started=item.nodeid)
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    reason = text = None
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = report.longreprtext
        reason = getattr(crash, "message", text).strip().split("\n")[0]
    note(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), reason=reason, text=text)
    if report.failed and any(text in report.longreprtext for text in _BROKEN_CONTEXT):
        os._exit(BROKEN)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        text = report.longreprtext
        note(test=report.nodeid, outcome="failed", seconds=0.0, reason=text.strip().split("\n")[-1], text=text)
