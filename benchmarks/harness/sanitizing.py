# SPDX-License-Identifier: MIT
"""Run NVIDIA's compute-sanitizer (memory accesses, races), where it is installed, for benchmarks/gpu_check.py."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .steps import Budget, Row, end, start_python

TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards? displayed)")
_REFUSALS = ("not supported", "Failed to initialize", "LibraryNotLoaded", "Unable to find injection library")
# Allocations are made one by one, so that an access beyond the end of one is seen. PyTorch's own errors of CUDA's
# interface do not count.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_OPTIONS = ("--report-api-errors", "no", "--print-limit", "20")


def sanitizer() -> str | None:
    """Return the path of the program, from PATH or CUDA's usual folder; None if it is not installed."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def sanitize(out: Path, backends: tuple[str, ...], device: str, budget: Budget) -> Iterator[Row]:
    """Yield a row for each tool and backend; they run at once. Without the program, make the same calls unwatched."""
    tool = sanitizer() if device.startswith("cuda") else None
    log = out / "sanitizer.log"
    log.write_text("", encoding="utf-8")
    target = [sys.argv[0], str(out), "--step", "sanitizer_target", "--device", device]
    runs = {}
    for backend in backends:
        # Races are checked in shared memory, which only the first backend manages by itself.
        for check in ("unwatched",) if tool is None else TOOLS if backend == backends[0] else TOOLS[:1]:
            runs[f"{check}, {backend}"] = (check, [*target, "--backend", backend])
    environment = {**os.environ, **_ENVIRONMENT}
    processes = {}
    for name, (check, command) in runs.items():
        if tool:
            watched = (tool, "--tool", check, *_OPTIONS, sys.executable, *command)
            # start_python starts Python, which then becomes the sanitizer.
            command = ["-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", *watched]
        processes[name] = start_python(command, environment, own_group=False)
    try:
        for name, process in processes.items():
            try:
                text, _ = process.communicate(timeout=max(0.1, budget.left()))
            except subprocess.TimeoutExpired:
                text = None
            end(process)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"=== {name}\n{text or 'not finished in time'}\n")
            yield {"name": name, **verdict(text, process.returncode, tool is not None, backends[0] in name)}
    finally:
        for process in processes.values():
            end(process)
    if tool is None:
        yield {
            "name": "compute-sanitizer",
            "not_available": "compute-sanitizer is neither on the PATH nor in CUDA's folder",
        }


def verdict(text: str | None, code: int, watched: bool, required: bool = True) -> Row:
    """Return the counts of a run, and why it failed if it did.

    Args:
        text: output of the run; None if it was not finished in time.
        code: its exit status.
        watched: True if compute-sanitizer ran the calls.
        required: False if being out of time is no failure.
    """
    if text is None:
        return {"failed" if required else "not_run": "not finished in time"}
    checked = re.search(r"checked (\d+) calls of \w+, (\d+) wrong", text)
    summary = _SUMMARY.search(text)
    row: Row = {"calls": int(checked[1]) if checked else None, "wrong": int(checked[2]) if checked else None}
    if watched:
        row["errors"] = int(summary[1] or summary[2]) if summary else None
        if (summary is None or not checked) and any(words in text for words in _REFUSALS):
            words = next(line for line in text.splitlines() if any(words in line for words in _REFUSALS))
            return {"not_available": f"compute-sanitizer does not work here: {words.strip('= ')}"}
    if not checked:
        return {**row, "failed": f"stopped early with exit status {code}, see sanitizer.log"}
    if row["wrong"]:
        return {**row, "failed": f"{row['wrong']} wrong results, see sanitizer.log"}
    if watched and row["errors"] != 0:
        return {
            **row,
            "failed": f"{row['errors']} errors, see sanitizer.log" if summary else "no summary, see sanitizer.log",
        }
    return row
