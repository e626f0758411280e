# SPDX-License-Identifier: MIT
"""Report a result of benchmarks/gpu_check.py as Markdown, beside the goals of the CUDA work.

Needs only the standard library.
"""

from typing import Any

from .markdown import DASH, left_out_sentences, number, one_line, percent, table
from .steps import Row

# Goals at stage 1 of InternImage-T, batch 64, bfloat16: milliseconds, and speedup over PyTorch's best compiled form.
FASTEST = {"forward": 0.080, "backward": 0.45}
TIMES_FASTER = {"forward": 5.0, "backward": 3.0}
_MOST_LISTED = 30
_LEGEND = (
    "Operator: medians of the GPU's own time (CUDA events), caches cold, launches hidden. Floor: the bytes that must "
    "move (forward: value, offset, mask in, output out; backward: those three and the output's gradient in, three "
    "gradients out) over the bandwidth of a copy on the same device, bytes read and written. Models: medians of time "
    "on the clock, batches of random images of 224x224; ratios are medians of the ratios of neighbouring runs. Peak "
    "memory is the memory of a call beyond its inputs or its model."
)


def to_markdown(result: Row) -> str:
    """Return the whole result."""
    steps = {step["name"]: step for step in result["steps"]}
    lines = ["# GPU check", "", *_headline(result, steps), "", f"    {result['command']}", ""]
    if result["quick"] or result["device"] != "cuda":
        lines += ["**A dry run: the numbers mean nothing.**", ""]
    lines += [*_step_table(result), ""]
    if rows := goals(result):
        lines += ["## Goals", "", *table(["Goal", "Measured", "Reached"], [], rows), ""]
    lines += _environment(_rows(steps, "environment"))
    for name in ("operator_tests", "model_tests"):
        lines += _tests(steps[name]["title"], _rows(steps, name)) if name in steps else []
    lines += _sanitizer(_rows(steps, "sanitizer"))
    lines += _operator(_rows(steps, "operator"))
    lines += _models(_rows(steps, "models"))
    lines += _not_run(result)
    for step in result["steps"]:
        if step["log"] and step["status"] not in ("passed", "running"):
            lines += [f"## End of the log: {step['title']}", "", "```", step["log"].strip(), "```", ""]
    return "\n".join(lines)


def summary(result: Row) -> str:
    """Return a short table for the terminal."""
    lines = [
        f"{step['title']:28} {step['status']:14} {step['seconds']:6.1f} s  {one_line(step['reason'] or '')}".rstrip()
        for step in result["steps"]
    ]
    lines += [f"{goal:58} {measured:>24}  {reached}" for goal, measured, reached in goals(result)]
    return "\n".join([*lines, "PASSED" if result["passed"] else "FAILED"])


def goals(result: Row) -> list[tuple[str, str, str]]:
    """Return each goal that was measured as (goal, measured value, "yes" or "no")."""
    steps = {step["name"]: step for step in result["steps"]}
    lines = []
    for row in _rows(steps, "operator"):
        if (row.get("size"), row.get("stage"), row.get("dtype"), row.get("offsets")) != ("t", 1, "bfloat16", "normal"):
            continue
        direction = "backward" if row["backward"] else "forward"
        milliseconds = {name: timing["milliseconds"] for name, timing in row.get("implementations", {}).items()}
        ours = {name: milliseconds[name] for name in result["backends"] if name in milliseconds}
        compiled = {name: time for name, time in milliseconds.items() if "," in name}
        if not ours:
            continue
        name, best = min(ours.items(), key=lambda item: item[1])
        limit = FASTEST[direction]
        text = f"T stage 1, batch 64, bf16, {direction}: at most {limit:g} ms"
        lines.append((text, f"{best:.3g} ms ({name})", _yes(best <= limit)))
        if compiled:
            baseline, time = min(compiled.items(), key=lambda item: item[1])
            text = f"{direction}: {TIMES_FASTER[direction]:g} times as fast as compiled PyTorch"
            lines.append((text, f"{time / best:.2f} ({baseline})", _yes(time / best >= TIMES_FASTER[direction])))
    for row in _rows(steps, "models"):
        if row.get("size") != "t":
            continue
        speeds = {name: timing["images_per_second"] for name, timing in row.get("models", {}).items()}
        ours = {name: speed for name, speed in speeds.items() if name.startswith("internimage")}
        others = {name: speed for name, speed in speeds.items() if name.startswith("convnext")}
        if ours and others:
            ratio = max(ours.values()) / max(others.values())
            lines.append((f"{row['name']}: ConvNeXt-T's speed", f"{ratio:.2f} times", _yes(ratio >= 1)))
    return lines


def _headline(result: Row, steps: dict[str, Any]) -> list[str]:
    rows = {row["name"]: row for row in _rows(steps, "environment")}
    device = rows.get("device", {}).get("device", result["device"])
    versions = rows.get("versions", {})
    shown = ", ".join(
        f"{name} {versions[name]}"
        for name in ("hf_internimage", "torch", "cuda", "triton", "transformers")
        if versions.get(name)
    )
    verdict = "passed" if result["passed"] else "not passed"
    return [f"{device}; {shown}; {result['date'][:10]}: **{verdict}**."]


def _step_table(result: Row) -> list[str]:
    rows = [
        (step["title"], step["status"], one_line(step["reason"] or ""), f"{step['seconds']:.0f}")
        for step in result["steps"]
    ]
    return table(["Step", "Result", "Reason"], ["Seconds"], rows)


def _environment(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for row in rows:
        if row["name"] in ("device", "versions"):
            facts = ", ".join(f"{key} {value}" for key, value in row.items() if key != "name")
            lines += [f"- {row['name']}: {facts}"]
        elif row["name"].startswith("first calls"):
            timed = f"forward {row.get('forward_seconds')} s, backward {row.get('backward_seconds')} s"
            lines += [f"- {row['name']}: {row.get('failed') or timed}"]
    reports = [line for row in rows if "text" in row for line in ("", "```", row["text"], "```")]
    return ["## Environment", "", *lines, *reports, ""] if lines else []


def _tests(title: str, rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [f"## {title}", ""]
    for row in rows:
        if row["name"] != "tests":
            lines += [f"- {row['name']}: {row['passed']} passed"]
            continue
        counts = f"{row['passed']} passed, {len(row['failed_tests'])} failed, {row['skipped']} skipped"
        lines += [f"- {counts}, {row['not_run']} not run, of {row['collected']}"]
        lines += [f"- skipped {count}: {one_line(reason)}" for reason, count in row["skip_reasons"].items()]
        failed = [f"- FAILED {name}: {one_line(reason)}" for name, reason in row["failed_tests"].items()]
        more = [f"- and {len(failed) - _MOST_LISTED} more"] if len(failed) > _MOST_LISTED else []
        lines += [*failed[:_MOST_LISTED], *more]
        slowest = [f"{name.rpartition('::')[2]} {seconds:.0f} s" for name, seconds in row["slowest"].items()]
        lines += [f"- slowest: {', '.join(slowest)}"]
    return [*lines, ""]


def _sanitizer(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    cells = [
        (
            row["name"],
            next((row[key] for key in ("failed", "not_available", "not_run") if key in row), "passed"),
            *(DASH if row.get(key) is None else str(row[key]) for key in ("calls", "errors")),
        )
        for row in rows
    ]
    return ["## compute-sanitizer", "", *table(["Check", "Result"], ["Calls", "Errors"], cells), ""]


def _operator(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["## Operator", "", _LEGEND, ""]
    cells = []
    for row in rows:
        if row["name"] == "ceilings":
            speed = row["copy_bytes_per_second"] / 1e12
            shortest = row["shortest_call_microseconds"]
            lines += [f"Copy: {speed:.2f} TB/s. A kernel with nothing to do measures {shortest:.1f} us.", ""]
        elif row["name"] == "host time of a call":
            heads = ["Forward", "with gradients", "and backward"]
            kinds = ("forward", "forward_with_gradients", "forward_and_backward")
            hosts = [
                (f"`{name}`", *(number(times[kind]) for kind in kinds)) for name, times in row["microseconds"].items()
            ]
            lines += [*table(["Processor's time for a call, us"], heads, hosts), ""]
        for name, timing in row.get("implementations", {}).items():
            first = next(iter(row["implementations"]))
            ratio = timing[f"time_to_{first}"]["ratio"]
            cells.append(
                (
                    row["name"],
                    f"`{name}`",
                    number(timing["milliseconds"] * 1e3),
                    percent(timing["spread"]),
                    f"{timing['floor_fraction']:.0%}",
                    number(ratio),
                    number(timing["peak_memory_mib"]),
                )
            )
    heads = ["us", "Spread", "Floor / time", "Time (first = 1)", "Peak memory, MiB"]
    return [*lines, *table(["Case", "Implementation"], heads, cells), *left_out_sentences(rows), ""]


def _models(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    cells = []
    for row in rows:
        for name, timing in row.get("models", {}).items():
            ratio = timing.get("time_to_convnext", {})
            speed = 1 / ratio["ratio"] if ratio else None
            cells.append(
                (
                    row["name"],
                    f"`{name}`",
                    number(timing["images_per_second"]),
                    number(timing["milliseconds"]),
                    percent(timing["spread"]),
                    number(speed),
                    number(timing["peak_memory_mib"]),
                )
            )
    heads = ["Images/s", "ms", "Spread", "Speed (ConvNeXt = 1)", "Peak memory, MiB"]
    return ["## Models", "", *table(["Case", "Model"], heads, cells), *left_out_sentences(rows), ""]


def _not_run(result: Row) -> list[str]:
    lines = [
        f"- {step['title']}, {row['name']}: {row['not_run']}"
        for step in result["steps"]
        for row in step["rows"]
        if isinstance(row.get("not_run"), str)
    ]
    lines += [f"- {step['title']}: {step['reason']}" for step in result["steps"] if step["status"] == "not run"]
    return ["## Not run", "", *lines, ""] if lines else []


def _rows(steps: dict[str, Any], name: str) -> list[Row]:
    return steps[name]["rows"] if name in steps else []


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"
