# SPDX-License-Identifier: MIT
"""benchmarks/gpu_check.py where there is no GPU: a dry run of all of it, steps that fail in every way, its report."""

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.operator_cases import CPU_FALLBACK
from support.paths import BENCHMARKS, ROOT

from hf_internimage.ops import native

pytestmark = pytest.mark.slow

gpu_check = importlib.import_module("gpu_check")
hostile_calls = importlib.import_module("harness.hostile_calls")
gpu = importlib.import_module("harness.gpu")
gpu_models = importlib.import_module("harness.gpu_models")
gpu_operators = importlib.import_module("harness.gpu_operators")
gpu_report = importlib.import_module("harness.gpu_report")
sanitizing = importlib.import_module("harness.sanitizing")
steps = importlib.import_module("harness.steps")
testing = importlib.import_module("harness.testing")

BACKEND = CPU_FALLBACK if native.why_not() else "cpu"
FILES = ["gpu_check.json", "gpu_check.md", "pytest.log", "sanitizer.log"]
PRINT_ROW = "import json; print('@row ' + json.dumps({'name': 'one', 'value': 1}), flush=True)\n"


# The whole


def test_dry_run(tmp_path: Path) -> None:
    """The script as a user runs it, without GPU, in an environment that does not know the package."""
    out = tmp_path / "made" / "by the script"
    command = ["benchmarks/gpu_check.py", str(out), "--device", "cpu", "--quick", "--backends", BACKEND]
    command += ["--shards", "1", "--no-warm-up"]
    environ = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "PASSED"
    assert sorted(path.name for path in out.iterdir()) == FILES

    result = json.loads((out / "gpu_check.json").read_text())
    by_name = {step["name"]: step for step in result["steps"]}
    assert list(by_name) == ["environment", "operator_tests", "model_tests", "sanitizer", "operator", "models"]
    statuses = {name: step["status"] for name, step in by_name.items()}
    assert statuses == {name: "not available" if name == "sanitizer" else "passed" for name in by_name}
    assert result["passed"]
    rows = {name: {row["name"]: row for row in step["rows"]} for name, step in by_name.items()}
    check_correctness(rows)
    check_measurements(rows)

    report = (out / "gpu_check.md").read_text()
    assert report == gpu_report.to_markdown(result)
    for text in (
        "A dry run",
        "## Environment",
        "## Operator",
        "## Models",
        "hf_internimage",
        f"`{BACKEND}`",
        "0 failed",
    ):
        assert text in report
    assert "::test_matches_the_original[" in (out / "pytest.log").read_text()
    assert "0 wrong" in (out / "sanitizer.log").read_text()


def check_correctness(rows: dict[str, dict[str, Any]]) -> None:
    environment = rows["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert "dcnv3 on cpu, float32" in environment["report"]["text"]
    for state in ("cold", "warm"):
        assert environment[f"first calls, {BACKEND}, {state} cache"]["forward_seconds"] >= 0
    for name in ("operator_tests", "model_tests"):
        counts = rows[name]["tests"]
        assert counts["passed"] == counts["collected"] > 0
        assert counts["not_run"] == 0
        assert counts["failed_tests"] == {}
        assert rows[name][f"tests of {BACKEND}"]["passed"] > 0
    assert rows["sanitizer"][f"unwatched, {BACKEND}"]["calls"] == len(hostile_calls.hostile_calls())


def check_measurements(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["operator"]["ceilings"]["copy_bytes_per_second"] > 0
    assert set(rows["operator"]["host time of a call"]["microseconds"]) == {BACKEND, "torch"}
    cases = [row for row in rows["operator"].values() if "size" in row]
    assert [row["backward"] for row in cases] == [False, True]
    for row in cases:
        names = [*dict.fromkeys([BACKEND, "torch"]), "grid_sample", "torch, compiled", "grid_sample, compiled"]
        assert list(row["implementations"]) == names
        assert row["left_out"] == {}
        for got in row["implementations"].values():
            assert got["milliseconds"] > 0
            assert got["floor_fraction"] >= 0
            assert got["peak_memory_mib"] is None
    models = list(rows["models"].values())
    assert [(row["mode"], row["training"]) for row in models] == [("eager", True), ("compile", True)]
    for row in models:
        others = ["convnext_tiny (channels_last)"] if row["mode"] == "eager" else []
        assert list(row["models"]) == [f"internimage_tiny ({BACKEND})", "convnext_tiny", *others]
        for got in row["models"].values():
            assert got["images_per_second"] == pytest.approx(row["batch"] * 1e3 / got["milliseconds"], rel=1e-3)
            assert got["time_to_convnext"]["ratio"] > 0


def step(name: str, code: str, seconds: float = 60.0, **options: Any) -> Any:
    return steps.Step(name, name.title(), ("-c", textwrap.dedent(code)), seconds, **options)


FAULTS = {
    "raises": (PRINT_ROW + "raise ValueError('the reason')", "failed", "exit status 1: ValueError: the reason"),
    "aborts": (PRINT_ROW + "import os; os.abort()", "crashed", "SIGABRT"),
    "hangs": (PRINT_ROW + "import time; time.sleep(99)", "timed out", "ended after 3 s"),
    "ignores the signal": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + PRINT_ROW + "time.sleep(99)",
        "timed out",
        "ended after 3 s",
    ),
    "says so": (PRINT_ROW + 'print(\'@row {"name": "two", "failed": "why"}\')', "failed", "two: why"),
    "says nothing": ("print('hello')", "failed", "no results: hello"),
    "lacks something": (
        PRINT_ROW + 'print(\'@row {"name": "two", "not_available": "no tool"}\')',
        "not available",
        "no tool",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_goes_wrong_loses_nothing_else(fault: str, tmp_path: Path, monkeypatch: Any) -> None:
    code, status, reason = FAULTS[fault]
    seconds = 3.0 if status == "timed out" else 60.0
    monkeypatch.setattr(steps, "_GRACE", 0.5)
    monkeypatch.setattr(
        gpu_check,
        "plan",
        lambda arguments: [[step("wrong", code, seconds), step("beside", PRINT_ROW)], [step("after", PRINT_ROW)]],
    )
    code = gpu_check.main([str(tmp_path)])
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    by_name = {part["name"]: part for part in result["steps"]}
    assert by_name["wrong"]["status"] == status
    assert reason in by_name["wrong"]["reason"]
    if fault != "says nothing":
        assert by_name["wrong"]["rows"][0] == {"name": "one", "value": 1}
    assert by_name["beside"]["status"] == by_name["after"]["status"] == "passed"
    assert result["passed"] == (status == "not available")
    assert code == (0 if result["passed"] else 1)
    assert reason in (tmp_path / "gpu_check.md").read_text()


def test_time_that_runs_out(tmp_path: Path, monkeypatch: Any) -> None:
    """Measurements may miss their turn, tests may not."""
    for required in (False, True):
        late = step("late", PRINT_ROW, worth_starting=50.0, required=required)
        monkeypatch.setattr(gpu_check, "plan", lambda arguments, late=late: [[step("first", PRINT_ROW)], [late]])
        assert gpu_check.main([str(tmp_path), "--seconds-limit", "30"]) == int(required)
        result = json.loads((tmp_path / "gpu_check.json").read_text())
        assert [part["status"] for part in result["steps"]] == ["passed", "not run"]
        assert "50 s are the least it needs" in (tmp_path / "gpu_check.md").read_text()


def test_without_a_device_nothing_else_is_tried(tmp_path: Path, monkeypatch: Any) -> None:
    missing = "import sys; sys.exit('PyTorch finds no CUDA device')"
    monkeypatch.setattr(gpu_check, "plan", lambda a: [[step("environment", missing)], [step("models", PRINT_ROW)]])
    assert gpu_check.main([str(tmp_path)]) == 1
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["status"] for part in result["steps"]] == ["failed", "not run"]
    assert "PyTorch finds no CUDA device" in result["steps"][1]["reason"]


def test_steps_know_how_long_they_may_take() -> None:
    code = "import os, json; print('@row ' + json.dumps({'name': 'limit', 'value': os.environ['GPU_CHECK_SECONDS']}))"
    outcomes: list[Any] = []
    steps.run_groups([[step("short", code, 20.0)], [step("long", code, 500.0)]], 100.0, os.environ, outcomes.append)
    limits = {outcome.name: float(outcome.rows[0]["value"]) for outcome in outcomes if outcome.status == "passed"}
    assert limits["short"] == 17
    assert 60 < limits["long"] <= 97


def test_a_later_row_replaces_one_of_its_name() -> None:
    rows: list[Any] = []
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        steps.add_row(rows, steps.ROW + json.dumps({"name": name, "value": value}))
    assert rows == [{"name": "a", "value": 3}, {"name": "b", "value": 2}]


def test_ended_from_outside(tmp_path: Path) -> None:
    """Results so far are written, and no process is left running."""
    code = f"""
        import sys
        sys.path.insert(0, {str(BENCHMARKS)!r})
        import gpu_check
        from harness.steps import Step
        inner = '''import json, os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
        print("@row " + json.dumps(dict(name="pids", value=[os.getpid(), child.pid])), flush=True)
        time.sleep(99)'''.replace("        ", "")
        gpu_check.plan = lambda arguments: [[Step("long", "Long", ("-c", inner), 90.0)]]
        sys.exit(gpu_check.main([{str(tmp_path)!r}]))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    result: Any = {}
    for _ in range(300):
        time.sleep(0.1)
        if (tmp_path / "gpu_check.json").exists():
            result = json.loads((tmp_path / "gpu_check.json").read_text())
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    pids = result["steps"][0]["rows"][0]["value"]
    for pid in pids:
        assert not is_running(pid)
    assert json.loads((tmp_path / "gpu_check.json").read_text())["passed"] is False


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if not state.parent.parent.exists():  # not Linux
        return False
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("arguments", [["--seconds-limit", "0"], ["--shards", "0"], ["--parts", "all"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["out", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_tests_that_the_script_runs_exist() -> None:
    for name in (*gpu_check.OPERATOR_TESTS, *gpu_check.MODEL_TESTS):
        assert (ROOT / name).is_file()


def test_only_chosen_parts(tmp_path: Path) -> None:
    groups = gpu_check.plan(gpu_check.read_arguments([str(tmp_path), "--parts", "models", "sanitizer"]))
    assert [[each.name for each in group] for group in groups] == [["sanitizer"], ["models"]]


# Tests in several processes


def run_tests(folder: Path, code: str, backends: tuple[str, ...] = ("mine",), budget: Any = None) -> dict[str, Any]:
    """The last rows, by name, of running a file of tests in two processes."""
    (folder / "test_these.py").write_text("import os, time\nimport pytest\n" + textwrap.dedent(code))
    rows: list[Any] = []
    budget = budget or steps.Budget(120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(BENCHMARKS))
        for row in testing.run_tests(["test_these.py"], backends, 2, budget, folder / "pytest.log", folder, None):
            steps.add_row(rows, steps.ROW + json.dumps(row))
    return {row["name"]: row for row in rows}


def test_every_kind_of_test(tmp_path: Path) -> None:
    """Among them one that breaks the GPU's context, and one that ends the process: all others run, and once only."""
    rows = run_tests(
        tmp_path,
        """
        @pytest.mark.parametrize("number", range(20))
        @pytest.mark.parametrize("backend", ["mine"])
        def test_good(number, backend):
            with open(f"{os.path.dirname(__file__)}/ran", "a") as file:
                file.write(f"{number}\\n")
        def test_skipped():
            pytest.skip("no such thing")
        def test_wrong():
            assert 1 == 2
        def test_breaks_the_context():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        def test_aborts():
            os.abort()
        """,
    )
    counts = rows["tests"]
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(20))
    assert (counts["collected"], counts["passed"], counts["skipped"], counts["not_run"]) == (24, 20, 1, 0)
    assert counts["skip_reasons"] == {"no such thing": 1}
    assert {name.rpartition("::")[2] for name in counts["failed_tests"]} == {"test_wrong", "test_breaks_the_context"}
    assert "2 tests failed, see pytest.log" in counts["failed"]
    assert "crashed in test_these.py::test_aborts" in counts["failed"]
    assert rows["tests of mine"] == {"name": "tests of mine", "passed": 20}
    log = (tmp_path / "pytest.log").read_text()
    assert "assert 1 == 2" in log
    assert "NOT FINISHED test_these.py::test_aborts" in log


def test_tests_that_take_too_long_or_are_not_there(tmp_path: Path) -> None:
    class UntilTwoRun:
        def left(self) -> float:
            return 0.1 if len(list(tmp_path.glob("runs_*"))) < 2 else 0.0

    code = """
        @pytest.mark.parametrize("number", range(3))
        def test_slow(number):
            open(f"{os.path.dirname(__file__)}/runs_{number}", "w").close()
            time.sleep(99)
    """
    rows = run_tests(tmp_path, code, ("other",), UntilTwoRun())
    assert rows["tests"]["not_run"] == 1
    assert "ended in test_these.py::test_slow" in rows["tests"]["failed"]
    assert "1 tests were not run" in rows["tests"]["failed"]
    assert rows["tests of other"]["failed"] == "none passed"
    rows = run_tests(tmp_path, "import nothing_of_this_name")
    assert "tests failed" in rows["tests"]["failed"]
    assert "nothing_of_this_name" in (tmp_path / "pytest.log").read_text()


# compute-sanitizer

CHECKED = "checked 24 calls of cuda, 0 wrong\n"


@pytest.mark.parametrize(
    ("text", "code", "key", "part"),
    [
        (f"{CHECKED}========= ERROR SUMMARY: 0 errors", 0, "errors", 0),
        (f"{CHECKED}========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, "errors", 0),
        (f"{CHECKED}========= ERROR SUMMARY: 3 errors", 0, "failed", "3 errors, see sanitizer.log"),
        (f"{CHECKED}========= RACECHECK SUMMARY: 2 hazards displayed (2 errors)", 0, "failed", "2 errors"),
        ("checked 24 calls of cuda, 2 wrong\n==== ERROR SUMMARY: 0 errors", 1, "failed", "2 wrong results"),
        ("Traceback\n========= ERROR SUMMARY: 0 errors", 1, "failed", "stopped early with exit status 1"),
        (CHECKED, 0, "failed", "no summary"),
        ("========= Error: Device not supported", 1, "not_available", "Device not supported"),
        (None, 1, "failed", "not finished in time"),
    ],
)
def test_what_the_sanitizer_says(text: str | None, code: int, key: str, part: Any) -> None:
    row = sanitizing.verdict(text, code, watched=True)
    if key == "errors":
        assert row == {"calls": 24, "wrong": 0, "errors": 0}
    else:
        assert part in row[key]


def test_how_the_sanitizer_is_called(tmp_path: Path, monkeypatch: Any) -> None:
    program = tmp_path / "compute-sanitizer"
    says = ("$PYTORCH_NO_CUDA_MEMORY_CACHING $@", CHECKED.strip(), "ERROR SUMMARY: 0 errors")
    program.write_text("\n".join(["#!/bin/sh", *(f'echo "{text}"' for text in says), ""]))
    program.chmod(0o755)
    monkeypatch.setattr(sanitizing, "sanitizer", lambda: str(program))
    rows = list(sanitizing.sanitize(tmp_path, ("cuda", "triton"), "cuda", steps.Budget(30)))
    assert [row["name"] for row in rows] == ["memcheck, cuda", "racecheck, cuda", "memcheck, triton"]
    assert [row["errors"] for row in rows] == [0, 0, 0]
    log = (tmp_path / "sanitizer.log").read_text()
    assert f"1 --tool racecheck --report-api-errors no --print-limit 20 {sys.executable} " in log
    assert "--step sanitizer_target --device cuda --backend triton" in log


def test_wrong_results_are_seen(monkeypatch: Any) -> None:
    call = hostile_calls.hostile_calls()[0]
    assert hostile_calls.wrong_result(call, BACKEND, "cpu") is None
    right = hostile_calls.dcnv3

    def slightly_wrong(*tensors: Any, backend: str, **arguments: Any) -> torch.Tensor:
        return right(*tensors, backend="torch", **arguments) * (1 if tensors[0].dtype == torch.float64 else 1.001)

    monkeypatch.setattr(hostile_calls, "dcnv3", slightly_wrong)
    assert "output is off by" in hostile_calls.wrong_result(call, BACKEND, "cpu")


# What is measured


def test_floor_is_that_of_the_design() -> None:
    """22 and 38 us at 4.3 TB/s for stage 1 of T, batch 64, bfloat16."""
    cases = gpu_operators.gpu_operator_cases(("t", "b", "l"))
    first, second = cases[0], cases[1]
    assert first.name == "T stage 1, batch 64, bfloat16, forward"
    assert [case.backward for case in cases if case.stage == 1 and case.size == "t"][:2] == [False, True]
    for case in (first, second):
        assert (case.size, case.stage, case.batch, case.dtype) == ("t", 1, 64, "bfloat16")
        assert case.least_bytes() / 4.3e12 * 1e6 == pytest.approx(38 if case.backward else 22, rel=0.02)
    assert len({case.name for case in cases}) == len(cases)
    shapes = {(case.size, case.stage, case.height, case.channels, case.groups) for case in cases}
    assert {("t", 4, 7, 512, 32), ("b", 1, 56, 112, 7), ("l", 1, 96, 160, 10), ("l", 4, 12, 1280, 80)} <= shapes
    assert len(shapes) == 12


def test_the_first_model_comes_first() -> None:
    cases = gpu_models.gpu_model_cases(("t", "s", "b", "l"))
    order = list(dict.fromkeys((mode, case.size) for case, mode in cases))
    assert order[:2] == [("eager", "t"), ("compile", "t")]
    assert order[-2:] == [("compile", "s"), ("compile", "l")]
    assert len(cases) == 4 * 2 * 4
    jobs = list(gpu_models.warm_up_jobs(("t",), ("cuda", "triton"), "cuda"))
    assert len(jobs) == 4 * 3


def test_work_that_does_not_fit_is_named() -> None:
    budget = steps.Budget(0.5)
    cases = gpu_models.gpu_model_cases(("tiny",))[:1]
    budget.record("eager", 10.0)
    rows = list(gpu_models.measure_gpu_models(cases, (BACKEND,), "cpu", budget, 0.0))
    assert [row["name"] for row in rows] == ["TINY, eager, 32, batch 2"]
    assert rows[0]["not_run"].startswith("needs about 12 s")
    assert steps.Budget(100).refusal("eager", 10.0) is None


def test_warm_up_outlives_what_cannot_be_compiled(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    warming = importlib.import_module("harness.warming")
    done = []

    def fails() -> None:
        raise RuntimeError("too large")

    jobs = [fails, lambda: done.append(1), fails, lambda: done.append(3)]
    monkeypatch.setattr(gpu_models, "warm_up_jobs", lambda *arguments: jobs)
    monkeypatch.setattr(gpu_operators, "warm_up_jobs", lambda *arguments: [])
    warming.warm_up(("t",), ("t",), ("cuda",), "cpu", 0, 1)
    assert done == [1, 3]
    assert capsys.readouterr().out.count("RuntimeError: too large") == 2


def test_a_backend_that_cannot_run_fails_its_case() -> None:
    case = gpu_operators.gpu_operator_cases(("tiny",))[0]
    row = gpu_operators.measure_case(case, ["cuda", "torch"], gpu.Clock("cpu"), 1e9, 0.0, ("cuda",))
    assert row["failed"].startswith("cuda: ")
    assert list(row["implementations"]) == ["torch"]


class Told:
    """Stands for CUDA's events and for what is called between them, and notes the order."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order, self.name = order, name

    def __call__(self, *_: Any) -> Any:
        self.order.append(self.name)
        return self

    record = sum = __call__

    def elapsed_time(self, other: Any) -> float:
        return 2.5


def test_order_of_what_is_timed(monkeypatch: Any) -> None:
    """The GPU waits, then reads other data; only the call itself lies between the events."""
    order: list[str] = []
    clock = gpu.Clock("cpu")
    clock.is_cuda = True
    for name in ("_start", "_stop", "_other_data"):
        setattr(clock, name, Told(order, name))
    monkeypatch.setattr(torch.cuda, "_sleep", Told(order, "sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", Told(order, "synchronize"))
    seconds = clock.seconds(gpu.Timed(Told(order, "run"), Told(order, "prepare")))
    assert order == ["prepare", "sleep", "_other_data", "_start", "run", "_stop", "synchronize"]
    assert seconds == 2.5e-3


# The report


def timing(milliseconds: float, **more: Any) -> dict[str, Any]:
    return {"milliseconds": milliseconds, "spread": 0.01, "peak_memory_mib": 1.0, **more}


@pytest.fixture
def result() -> dict[str, Any]:
    """A result as a GPU would give it, in part."""
    operator = {
        "name": "T stage 1, batch 64, bfloat16, forward",
        "size": "t",
        "stage": 1,
        "dtype": "bfloat16",
        "offsets": "normal",
        "backward": False,
        "left_out": {"grid_sample, compiled": "no | such\nluck"},
        "implementations": {
            name: timing(time, floor_fraction=0.022 / time, time_to_triton={"ratio": time / 0.1, "spread": 0.02})
            for name, time in {"triton": 0.1, "cuda": 0.05, "torch": 4.0, "torch, compiled": 0.3}.items()
        },
    }
    models = {
        "name": "T, eager, 224, batch 64",
        "size": "t",
        "left_out": {},
        "models": {
            name: timing(64e3 / speed, images_per_second=speed, time_to_convnext={"ratio": 5e3 / speed, "spread": 0.0})
            for name, speed in {
                "internimage_t (cuda)": 6e3,
                "convnext_t": 5e3,
                "convnext_t (channels_last)": 8e3,
            }.items()
        },
    }
    parts = {"operator": [operator], "models": [models, {"name": "L, compile, 224, batch 1", "not_run": "needs more"}]}
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python benchmarks/gpu_check.py OUT",
        "device": "cuda",
        "backends": ["cuda", "triton"],
        "quick": False,
        "passed": False,
        "steps": [
            {
                "name": name,
                "title": name.title(),
                "status": "passed",
                "seconds": 1.0,
                "reason": None,
                "rows": rows,
                "log": "",
            }
            for name, rows in parts.items()
        ],
    }


def test_goals(result: dict[str, Any]) -> None:
    assert gpu_report.goals(result) == [
        ("T stage 1, batch 64, bf16, forward: at most 0.08 ms", "0.05 ms (cuda)", "yes"),
        ("forward: 5 times as fast as compiled PyTorch", "6.00 (torch, compiled)", "yes"),
        ("T, eager, 224, batch 64: ConvNeXt-T's speed", "0.75 times", "no"),
    ]


def test_report(result: dict[str, Any]) -> None:
    lines = gpu_report.to_markdown(result).splitlines()
    assert "cuda; ; 2026-01-02: **not passed**." in lines
    assert not any("dry run" in line for line in lines)
    row = "| T stage 1, batch 64, bfloat16, forward | `cuda` | 50.0 | 1.0% | 44% | 0.500 | 1.00 |"
    assert row in lines
    assert "| T, eager, 224, batch 64 | `internimage_t (cuda)` | 6000 | 10.7 | 1.0% | 1.20 | 1.00 |" in lines
    assert "- Models, L, compile, 224, batch 1: needs more" in lines
    left = "Left out of T stage 1, batch 64, bfloat16, forward: `grid_sample, compiled` (no | such luck)."
    assert left in lines
    assert gpu_report.summary(result).splitlines()[-1] == "FAILED"
