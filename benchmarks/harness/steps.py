# SPDX-License-Identifier: MIT
"""Run the steps of benchmarks/gpu_check.py, each in a process of its own that may crash, hang or run out of time.

A step prints rows, each on its own line after `ROW`; a later row replaces an earlier one of the same name. Everything
else that it prints is its log. Needs only the standard library.
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
LOG_LENGTH = 4000  # characters, from the end
_GRACE = 3.0  # seconds between SIGTERM and SIGKILL

_processes: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Step:
    """One part of the check.

    Attributes:
        name, title: names for programs and for people.
        command: arguments of the Python interpreter.
        seconds: time limit.
        required: False if being out of time is no failure.
        worth_starting: the step is not run with less time left, in seconds.
    """

    name: str
    title: str
    command: tuple[str, ...]
    seconds: float
    required: bool = True
    worth_starting: float = 5.0


@dataclass
class Outcome:
    """The result of a step: "passed", "failed", "crashed", "timed out", "not available" or "not run", and why."""

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
        """True if the whole check may pass with this result."""
        good = ("passed", "not available") if self.required else ("passed", "not available", "not run", "timed out")
        return self.status in good


def emit(row: Row) -> None:
    """Send a row to the process that runs this step."""
    sys.stdout.write(f"\n{ROW}{json.dumps(row)}\n")  # other output may lack its line break
    sys.stdout.flush()


class Budget:
    """The seconds that a step has left, and the time that each kind of work took so far."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._longest: dict[str, float] = {}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def refusal(self, kind: str, expected: float) -> str | None:
        """Return None if there is time for work of this kind, else the reason.

        Work takes about `expected` seconds, or as long as the longest of its kind so far.
        """
        needed = 1.2 * self._longest.get(kind, expected)
        return None if needed <= self.left() else f"needs about {needed:.0f} s, {max(0, self.left()):.0f} s were left"

    def record(self, kind: str, seconds: float) -> None:
        """Note how long a piece of work took."""
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))


def run_step(
    step: Step, seconds: float, environment: Mapping[str, str], on_change: Callable[[Outcome], None]
) -> Outcome:
    """Run a step for at most so many seconds; call `on_change` after every row and at the end."""
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
            outcome.log = (outcome.log + line)[-LOG_LENGTH:]
        outcome.seconds = round(time.monotonic() - start, 1)
        if line.startswith(ROW):
            on_change(outcome)
    end(process)
    outcome.seconds = round(time.monotonic() - start, 1)
    if outcome.status == "running":
        outcome.status, outcome.reason = _verdict(process.returncode, outcome)
    if outcome.status == "passed":
        outcome.log = ""
    on_change(outcome)
    return outcome


def add_row(rows: list[Row], line: str) -> None:
    """Append the row of a line, or replace the row of the same name."""
    row = json.loads(line[len(ROW) :])
    for index, other in enumerate(rows):
        if other["name"] == row["name"]:
            rows[index] = row
            return
    rows.append(row)


def _verdict(code: int, outcome: Outcome) -> tuple[str, str | None]:
    """Return the status of a step that has ended by itself, and the reason."""
    last = (outcome.log.strip().splitlines() or ["it printed nothing"])[-1]
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
    command: Iterable[str], environment: Mapping[str, str], own_group: bool = True, quiet: bool = False
) -> subprocess.Popen[str]:
    """Start Python, with output and errors in one pipe, or nowhere if `quiet`.

    With `own_group` it gets a process group of its own; else it ends with this process.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=own_group,
    )
    with _lock:
        _processes.add(process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End a process and its children, unless it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # it has ended, or is in our own group
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    process.wait()
    with _lock:
        _processes.discard(process)


def end_all() -> None:
    """End every process that was started here and is still running."""
    with _lock:
        running = list(_processes)
    for process in running:
        end(process)


def _lines(process: subprocess.Popen[str], deadline: float) -> Iterable[str | None]:
    """Yield the lines that a process prints, until it ends; yield None at last if the deadline comes first."""
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
    on_change: Callable[[Outcome], None],
    before_group: Callable[[int], str | None] = lambda index: None,
) -> None:
    """Run groups of steps one after the other, the steps of a group at the same time, in so many seconds altogether.

    Args:
        groups: the steps.
        seconds: time limit of everything.
        environment: variables for all steps.
        on_change: called with the outcome of a step after every change; calls do not overlap.
        before_group: called with the number of a group before it starts; may return a reason not to run it.
    """
    deadline = time.monotonic() + seconds
    lock = threading.Lock()

    def report(outcome: Outcome) -> None:
        with lock:
            on_change(outcome)

    def run(step: Step) -> None:
        left = deadline - time.monotonic()
        if left < step.worth_starting:
            reason = f"{max(0.0, left):.0f} s were left, {step.worth_starting:.0f} s are the least it needs"
            report(Outcome(step.name, step.title, step.required, reason=reason))
            return
        limit = min(step.seconds, left)
        # With this limit, a step plans its own work and ends shortly before it would be ended.
        own_limit = {"GPU_CHECK_SECONDS": f"{max(1.0, limit - 3):.1f}"}
        run_step(step, limit, {**environment, **own_limit}, report)

    for index, group in enumerate(groups):
        if reason := before_group(index):
            for step in group:
                report(Outcome(step.name, step.title, step.required, reason=reason))
            continue
        threads = [threading.Thread(target=run, args=(step,), daemon=True) for step in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
