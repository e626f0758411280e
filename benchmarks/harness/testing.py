# SPDX-License-Identifier: MIT
"""Run pytest in several processes, for benchmarks/gpu_check.py; a process that dies loses no result."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import pytest_shards
from .steps import Budget, Row

_POLL_SECONDS = 2.0
_MOST_RESTARTS = 10
_TEXT_LENGTH = 4000  # characters of a failure, from the end


class Shards:
    """Processes that run tests from one list."""

    def __init__(self, arguments: list[str], count: int, folder: Path) -> None:
        self._arguments, self._folder, self._restarts = arguments, folder, 0
        self._processes = {number: self._start(number) for number in range(count)}

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--no-summary", "-p", "no:cacheprovider"]
        command += ["-p", pytest_shards.__name__, *self._arguments]
        environment = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "GPU_CHECK_SHARDS": str(self._folder),
            "GPU_CHECK_SHARD": f"{number}_{self._restarts}",
        }
        with (self._folder / "output.txt").open("ab") as file:
            return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def running(self) -> bool:
        """Return True while processes run; start a process again that broke."""
        for number, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[number]
            if (code < 0 or code == pytest_shards.BROKEN) and self._restarts < _MOST_RESTARTS:
                self._restarts += 1
                self._processes[number] = self._start(number)
        return bool(self._processes)

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def results(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return the result of each test that was started, by name, and the number of all tests."""
        results: dict[str, dict[str, Any]] = {}
        collected = 0
        for path in sorted(self._folder.glob("results_*.jsonl")):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # the last line may be incomplete
                entry = json.loads(line)
                if "collected" in entry:
                    collected = max(collected, entry["collected"])
                elif "started" in entry:
                    results.setdefault(entry["started"], {"outcome": "started", "seconds": 0.0, "reason": None})
                elif results.get(entry["test"], {}).get("outcome") != "failed":  # a failure stays one
                    results[entry["test"]] = entry
        return results, collected

    def output(self) -> str:
        """Return everything that pytest printed."""
        return (self._folder / "output.txt").read_text(encoding="utf-8", errors="replace")


def run_tests(
    files: list[str], backends: tuple[str, ...], count: int, budget: Budget, log: Path, root: Path, only: str | None
) -> Iterator[Row]:
    """Yield a row with the counts, again and again while tests run, then one for each backend that must have run."""
    missing = [file for file in files if not (root / file).is_file()]
    arguments = [f"--rootdir={root}", *(str(root / file) for file in files if file not in missing)]
    arguments += ["-k", only] if only else []
    with tempfile.TemporaryDirectory(prefix="gpu_check_tests_") as folder:
        shards = Shards(arguments, count, Path(folder))
        try:
            while (running := shards.running()) and budget.left() > 0:
                time.sleep(min(_POLL_SECONDS, max(0.0, budget.left())))
                results, collected = shards.results()
                yield {"name": "tests", **_counts(results, collected)}
        finally:
            shards.stop()
        results, collected = shards.results()
        write_log(log, results, shards.output())
    row: Row = {"name": "tests", **_counts(results, collected)}
    problems = [f"there is no {file}" for file in missing]
    if row["failed_tests"]:
        problems.append(f"{len(row['failed_tests'])} tests failed, see {log.name}")
    unfinished = sorted(name for name, entry in results.items() if entry["outcome"] == "started")
    if unfinished:
        problems.append(f"{'ended' if running else 'crashed'} in {', '.join(unfinished)}")
    if row["not_run"]:
        problems.append(f"{row['not_run']} tests were not run")
    if not collected:
        problems.append("no time to find tests" if running else f"pytest found no tests, see {log.name}")
    yield {**row, **({"failed": "; ".join(problems)} if problems else {})}
    for backend in backends:
        passed = sum(entry["outcome"] == "passed" and _is_about(backend, name) for name, entry in results.items())
        row = {"name": f"tests of {backend}", "passed": passed}
        yield row if passed else {**row, "failed": "none passed"}


def _is_about(backend: str, name: str) -> bool:
    """Return True if the parameters of a test name a backend."""
    return re.search(rf"[\[-]{backend}[-\]_]", name) is not None


def _counts(results: dict[str, dict[str, Any]], collected: int) -> Row:
    outcomes = Counter(entry["outcome"] for entry in results.values())
    skipped = Counter(
        str(entry["reason"]).removeprefix("Skipped: ") for entry in results.values() if entry["outcome"] == "skipped"
    )
    failed = {name: entry["reason"][:300] for name, entry in results.items() if entry["outcome"] == "failed"}
    slowest = sorted(((entry["seconds"], name) for name, entry in results.items()), reverse=True)[:5]
    return {
        "collected": collected,
        "passed": outcomes["passed"],
        "skipped": outcomes["skipped"],
        "not_run": max(0, collected - len(results)),
        "failed_tests": failed,
        "skip_reasons": dict(skipped.most_common()),
        "slowest": {name: seconds for seconds, name in slowest},
    }


def write_log(log: Path, results: dict[str, dict[str, Any]], output: str) -> None:
    """Append every failure in full, every unfinished test, a line for every test, and the output of pytest."""
    lines = []
    for name, entry in sorted(results.items()):
        if entry["outcome"] == "failed":
            lines += [f"FAILED {name}", entry["text"][-_TEXT_LENGTH:], ""]
        elif entry["outcome"] == "started":
            lines += [f"NOT FINISHED {name}", ""]
    lines += [f"{entry['outcome']:8} {entry['seconds']:7.2f} s  {name}" for name, entry in sorted(results.items())]
    with log.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, "", output, ""]))
