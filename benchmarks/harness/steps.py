# SPDX-License-Identifier: MIT
"""Running the steps of benchmarks/gpu_check.py, each in a process of its own that may crash, hang or be out of time.

A step prints rows, each on a line of its own behind `ROW`; a later row of the same name replaces an earlier one. All
else that it prints is log. Needs Python alone.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
ROW = "@row "
LOG_KEPT = 4000  # characters, from the end
_GRACE = 3.0  # seconds between asking a process to end and ending it

_processes: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Step:
    """One part of the check; `command` follows the Python interpreter."""

    name: str
    title: str
    command: tuple[str, ...]
    seconds: float  # at most
    required: bool = True  # False: being out of time is no failure
    worth_starting: float = 5.0  # with less time left it is not run


@dataclass
class Outcome:
    """What became of a step: "passed", "failed", "crashed", "timed out", "not available" or "not run", and why."""

    name: str
    title: str
    required: bool
    status: str = "not run"
    reason: str | None = None
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    log: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the whole check may pass with this."""
        good = ("passed", "not available") if self.required else ("passed", "not available", "not run", "timed out")
        return self.status in good


def emit(row: Row) -> None:
    """Hand a row to the process that runs this step."""
    sys.stdout.write(f"\n{ROW}{json.dumps(row)}\n")  # other output may have left its line unfinished
    sys.stdout.flush()


class Budget:
    """The seconds a step has left, and how long its kinds of work took so far."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._longest: dict[str, float] = {}

    def left(self) -> float:
        return self._end - time.monotonic()

    def refusal(self, kind: str, guess: float) -> str | None:
        """None if there is time for work of this kind, which takes about `guess` seconds until one was seen."""
        needed = 1.2 * self._longest.get(kind, guess)
        return None if needed <= self.left() else f"needs about {needed:.0f} s, {max(0, self.left()):.0f} s were left"

    def took(self, kind: str, seconds: float) -> None:
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))


def run_step(step: Step, seconds: float, environment: Mapping[str, str], changed: Callable[[Outcome], None]) -> Outcome:
    """Run a step for at most so many seconds; `changed` hears of every row and of the end."""
    outcome = Outcome(step.name, step.title, step.required, status="running")
    start = time.monotonic()
    process = start_python(step.command, environment)
    for line in _lines(process, start + seconds):
        if line is None:
            outcome.status, outcome.reason = "timed out", f"ended after {seconds:.0f} s"
            break
        if line.startswith(ROW):
            add_row(outcome.rows, line)
        elif line.strip():
            outcome.log = (outcome.log + line)[-LOG_KEPT:]
        outcome.seconds = round(time.monotonic() - start, 1)
        if line.startswith(ROW):
            changed(outcome)
    end(process)
    outcome.seconds = round(time.monotonic() - start, 1)
    if outcome.status == "running":
        outcome.status, outcome.reason = _verdict(process.returncode, outcome)
    if outcome.status == "passed":
        outcome.log = ""
    changed(outcome)
    return outcome


def add_row(rows: list[Row], line: str) -> None:
    """Append the row of a line, or put it in the place of the one of that name."""
    row = json.loads(line[len(ROW) :])
    for index, other in enumerate(rows):
        if other["name"] == row["name"]:
            rows[index] = row
            return
    rows.append(row)


def _verdict(code: int, outcome: Outcome) -> tuple[str, str | None]:
    """The status of a step that has ended by itself, and the reason."""
    last = (outcome.log.strip().splitlines() or ["it said nothing"])[-1]
    if code < 0:
        return "crashed", f"{signal.Signals(-code).name}: {last}"
    if code:
        return "failed", f"exit status {code}: {last}"
    failed = [f"{row['name']}: {row['failed']}" for row in outcome.rows if row.get("failed")]
    if failed:
        return "failed", "; ".join(failed)
    missing = [row["not_available"] for row in outcome.rows if row.get("not_available")]
    if missing:
        return "not available", missing[0]
    if not outcome.rows:
        return "failed", f"no results: {last}"
    return "passed", None


def start_python(
    command: Iterable[str], environment: Mapping[str, str], apart: bool = True, quiet: bool = False
) -> subprocess.Popen[str]:
    """Python, with output and errors in one pipe or, if `quiet`, nowhere.

    `apart`: in a process group of its own, else it ends with ours.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=apart,
    )
    with _lock:
        _processes.add(process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, unless it is over."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # over, or in our own group
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    process.wait()
    with _lock:
        _processes.discard(process)


def end_all() -> None:
    """End every process that was started here and still runs."""
    with _lock:
        running = list(_processes)
    for process in running:
        end(process)


def _lines(process: subprocess.Popen[str], deadline: float) -> Iterable[str | None]:
    """The lines a process prints, until it ends; a last None if the deadline came first."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(0.01, deadline - time.monotonic()))
        except queue.Empty:
            yield None
            return
        if line is None:
            break
        yield line
    try:
        process.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        yield None


def run_groups(
    groups: Iterable[list[Step]],
    seconds: float,
    environment: Mapping[str, str],
    changed: Callable[[Outcome], None],
    before: Callable[[int], str | None] = lambda index: None,
) -> None:
    """Run groups of steps one after the other, the steps of a group at once, in so many seconds altogether.

    `changed` hears of every change, `before` of every group about to start; it may give a reason not to. Calls do not
    overlap.
    """
    deadline = time.monotonic() + seconds
    quiet = threading.Lock()

    def hear(outcome: Outcome) -> None:
        with quiet:
            changed(outcome)

    def run(step: Step) -> None:
        left = deadline - time.monotonic()
        if left < step.worth_starting:
            reason = f"{max(0.0, left):.0f} s were left, {step.worth_starting:.0f} s are the least it needs"
            hear(Outcome(step.name, step.title, step.required, reason=reason))
            return
        limit = min(step.seconds, left)
        # A step plans its own work by this, and ends a little before it would be ended.
        own = {"GPU_CHECK_SECONDS": f"{max(1.0, limit - 3):.1f}"}
        run_step(step, limit, {**environment, **own}, hear)

    for index, group in enumerate(groups):
        if reason := before(index):
            for step in group:
                hear(Outcome(step.name, step.title, step.required, reason=reason))
            continue
        threads = [threading.Thread(target=run, args=(step,), daemon=True) for step in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
