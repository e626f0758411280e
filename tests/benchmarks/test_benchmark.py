# SPDX-License-Identifier: MIT
"""benchmarks/benchmark.py: a quick run of all of it, what it refuses, its baseline, tables and charts; never speed."""

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT

from hf_internimage.ops import dcnv3

pytestmark = pytest.mark.slow

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

benchmark = importlib.import_module("benchmark")
measuring = importlib.import_module("harness.measuring")
models = importlib.import_module("harness.models")
operators = importlib.import_module("harness.operators")
report = importlib.import_module("harness.report")
scaling = importlib.import_module("harness.scaling")

TELLS_MEMORY = os.access("/proc/self/clear_refs", os.W_OK)
SETTINGS = measuring.Settings("cpu", "float32")
PNG = b"\x89PNG\r\n"


def test_quick_run(tmp_path: Path) -> None:
    """The script as a user runs it, on tiny shapes, with everything it can write."""
    folder = tmp_path / "made" / "by the script"
    command = ["benchmarks/benchmark.py", "--quick", "--threads", "1", "--device", "cpu", "--products"]
    command += ["--output", str(folder / "result.json"), "--table", str(folder / "table.md")]
    command += ["--plot", str(folder / "chart.png")] if HAS_MATPLOTLIB else []
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    result = json.loads((folder / "result.json").read_text())
    assert result["command"].startswith("python benchmarks/benchmark.py --quick --threads 1 ")
    assert (result["dtype"], result["threads"]) == ("float32", [1])
    assert result["date"]
    assert result["device"]
    assert result["versions"].keys() == {"hf_internimage", "torch", "transformers", "python"}
    assert "torch" in result["backends"]
    check_operator_rows(result["operator"], result["backends"])
    check_model_rows(result["models"], result["backends"])
    assert json.loads(done.stdout.splitlines()[-1]) == result["models"][-1]

    table = (folder / "table.md").read_text()
    assert table == report.to_markdown(result)
    for name in ("`internimage_tiny`", "`convnext_tiny`", "`swin_tiny`", "`grid_sample`", "`torch`", "1 thread"):
        assert name in table
    products = next(line for line in table.splitlines() if "`convnext_tiny (products)`" in line)
    assert "| 1 |" not in products, "only a whole model is the reference of its ratios"
    if HAS_MATPLOTLIB:
        assert (folder / "chart.png").read_bytes().startswith(PNG)


def check_operator_rows(rows: list[dict[str, Any]], backends: list[str]) -> None:
    assert [row["name"] for row in rows] == [
        "stage 1, batch 1, forward",
        "stage 2, batch 1, forward",
        "stage 1, batch 1, forward and backward",
        "stage 2, batch 1, forward and backward",
    ]
    for row in rows:
        assert row["runs"] >= measuring.LEAST_ROUNDS
        assert list(row["implementations"]) == ["grid_sample", *backends]
        assert row["left_out"] == {}
        for got in row["implementations"].values():
            check_time(got)
            assert got["time_to_grid_sample"]["ratio"] > 0
            check_memory(got["peak_memory_mib"])
            check_memory(got["memory_to_inputs"])
        assert row["implementations"]["grid_sample"]["time_to_grid_sample"] == {"ratio": 1, "spread": 0}


def check_model_rows(rows: list[dict[str, Any]], backends: list[str]) -> None:
    assert [(row["name"], row["mode"], row["training"]) for row in rows] == [
        ("32, batch 1", "eager", False),
        ("32, batch 2, training step", "eager", True),
    ]
    plain = ["internimage_tiny (torch)"] if backends != ["torch"] else []
    products = ["internimage_tiny (products)", "convnext_tiny (products)"]
    for row in rows:
        assert list(row["models"]) == ["internimage_tiny", *plain, "convnext_tiny", "swin_tiny", *products]
        assert row["left_out"] == {}
        for got in row["models"].values():
            check_time(got)
            assert got["images_per_second"] == pytest.approx(row["batch"] * 1e3 / got["milliseconds"], rel=1e-3)
            assert got["time_to_convnext"]["ratio"] > 0
            assert got["time_to_swin"]["ratio"] > 0
            check_memory(got["peak_memory_mib"])
        assert row["models"]["convnext_tiny"]["time_to_convnext"] == {"ratio": 1, "spread": 0}
        assert row["models"]["swin_tiny"]["time_to_swin"] == {"ratio": 1, "spread": 0}


def test_quick_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "operator_is_right", lambda: True)
    path, threads = tmp_path / "result.json", str(torch.get_num_threads())
    command = ["--quick", "--parts", "scaling", "--threads", threads, "--device", "cpu", "--output", str(path)]
    assert benchmark.main(command) == 0

    result = json.loads(path.read_text())
    assert (result["operator"], result["models"]) == ([], [])
    names = {"resolution": ["32, batch 1", "64, batch 1"], "batch": ["32, batch 1", "32, batch 2"]}
    assert [row["name"] for row in result["scaling"]] == list(names)
    for row in result["scaling"]:
        assert row["runs"] >= measuring.LEAST_ROUNDS
        assert list(row["models"]) == ["internimage_tiny", "convnext_tiny"]
        for entries in row["models"].values():
            assert [entry["name"] for entry in entries] == names[row["name"]]
            assert entries[0]["time_per_pixel_to_first"] == {"ratio": 1, "spread": 0}
            for entry in entries:
                check_time(entry)
                check_memory(entry["memory_mib_per_megapixel"])
                assert entry["time_to_convnext"]["ratio"] > 0
    assert "### Scaling with the batch: size TINY, eager, " in report.to_markdown(result)


def check_time(got: dict[str, Any]) -> None:
    assert got["milliseconds"] > 0
    assert got["spread"] >= 0


def check_memory(value: float | None) -> None:
    if TELLS_MEMORY:
        assert value is not None
        assert math.isfinite(value)
        assert value >= 0
    else:
        assert value is None


def timing(milliseconds: float, **ratios: float) -> dict[str, Any]:
    return {
        "milliseconds": milliseconds,
        "spread": 0.0123,
        **{f"time_to_{name}": {"ratio": ratio, "spread": 0.045} for name, ratio in ratios.items()},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """A result with several series, a model that could not run and memory that could not be measured."""
    rows = [
        {
            "size": size,
            "name": "224, batch 8",
            "threads": 2,
            "mode": "eager",
            "models": {
                f"internimage_{size}": {
                    **timing(123.456, convnext=1.25),
                    "images_per_second": 64.8,
                    "peak_memory_mib": None,
                },
                f"convnext_{size}": {**timing(98.7, convnext=1.0), "images_per_second": 81.1, "peak_memory_mib": 0.5},
            },
            "left_out": {f"swin_{size}": "it cannot"},
        }
        for size in ("t", "s")
    ]
    operator = {
        "size": "t",
        "name": "stage 1, batch 8, forward",
        "threads": 1,
        "height": 56,
        "width": 56,
        "channels": 64,
        "implementations": {
            "grid_sample": {**timing(5.0, grid_sample=1.0), "peak_memory_mib": 250.0, "memory_to_inputs": 9.5},
            "torch": {**timing(2.5, grid_sample=0.5), "peak_memory_mib": 99.96, "memory_to_inputs": 3.25},
        },
        "left_out": {},
    }
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python benchmarks/benchmark.py --sizes t s",
        "device": "Some Processor",
        "dtype": "float32",
        "threads": [2],
        "backends": ["torch"],
        "versions": {"torch": "2.13.0"},
        "operator": [operator],
        "models": rows,
    }


def test_former_result_is_shown_without_measuring(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "operator_is_right", lambda: pytest.fail("measures"))
    source, table, chart = tmp_path / "result.json", tmp_path / "new" / "table.md", tmp_path / "newer" / "chart.png"
    source.write_text(json.dumps(result))
    outputs = ["--table", str(table), *(["--plot", str(chart)] if HAS_MATPLOTLIB else [])]
    assert benchmark.main(["--from", str(source), *outputs]) == 0
    assert table.read_text(encoding="utf-8") == report.to_markdown(result)
    if HAS_MATPLOTLIB:
        assert chart.read_bytes().startswith(PNG)


@pytest.mark.parametrize("content", ['{"cases": {}}', "[]"])
def test_other_files_are_no_results(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(SystemExit, match="no result of this version"):
        benchmark.main(["--from", str(tmp_path / "other.json"), "--table", str(tmp_path / "t.md")])


def test_table(result: dict[str, Any]) -> None:
    lines = report.to_markdown(result).splitlines()
    assert lines[0] == "Some Processor, float32; torch 2.13.0; 2026-01-02:"
    assert "    python benchmarks/benchmark.py --sizes t s" in lines
    assert [line for line in lines if line.startswith("#")] == [
        "### Models: size T, eager, 2 threads",
        "### Models: size S, eager, 2 threads",
        "### Operator: size T, 1 thread",
    ]
    assert "| 224, batch 8 | `internimage_t` | 64.8 | 123 | 1.2% | 1.25 (4.5%) | – | – |" in lines  # noqa: RUF001
    assert "| 224, batch 8 | `convnext_s` | 81.1 | 98.7 | 1.2% | 1 | – | 0.500 |" in lines  # noqa: RUF001
    assert "Left out of 224, batch 8: `swin_t` (it cannot)." in lines
    assert "| stage 1, batch 8, forward | 56x56x64 | `grid_sample` | 5.00 | 1.2% | 1 | 250 | 9.50 |" in lines
    assert "| stage 1, batch 8, forward | 56x56x64 | `torch` | 2.50 | 1.2% | 0.50 (4.5%) | 100 | 3.25 |" in lines


def test_scaling_table(result: dict[str, Any]) -> None:
    entry = {
        "name": "448, batch 1",
        **timing(400.0, convnext=1.25),
        "images_per_second": 2.5,
        "milliseconds_per_megapixel": 1993.0,
        "time_per_pixel_to_first": {"ratio": 0.96, "spread": 0.02},
        "memory_mib_per_megapixel": 163.2,
        "memory_per_pixel_to_first": None,
    }
    row = {"size": "t", "name": "resolution", "threads": 1, "mode": "eager", "models": {"internimage_t": [entry]}}
    lines = report.to_markdown({**result, "scaling": [row]}).splitlines()
    assert "### Scaling with the resolution: size T, eager, 1 thread" in lines
    assert "| 448, batch 1 | `internimage_t` | 2.50 | 1993 | 0.96 (2.0%) | 1.25 (4.5%) | 163 | – |" in lines  # noqa: RUF001


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
@pytest.mark.parametrize("missing", [None, "operator", "models"])
def test_chart(missing: str | None, result: dict[str, Any], tmp_path: Path) -> None:
    if missing:
        result[missing] = []
    report.plot(result, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(PNG)


def test_missing_matplotlib_is_found_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(benchmark, "operator_is_right", lambda: pytest.fail("measures"))
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--quick", "--plot", str(tmp_path / "chart.png")])
    assert stopped.value.code == 2
    assert "--plot needs matplotlib, which is not installed. Run: pip install matplotlib" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
@pytest.mark.parametrize("arguments", [["--parts", "scaling"], ["--systems", "folder"]])
def test_nothing_to_plot(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([*arguments, "--plot", "chart.png"])
    assert stopped.value.code == 2
    assert "--plot draws operator and models" in capsys.readouterr().err


def test_failing_operator_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tests = tmp_path / "test_failing.py"
    tests.write_text("def test_failing():\n    assert False\n")
    monkeypatch.setattr(benchmark, "OPERATOR_TESTS", tests)
    monkeypatch.setattr(benchmark, "measure", lambda *arguments: pytest.fail("measures"))
    assert benchmark.main(["--quick", "--output", str(tmp_path / "result.json")]) == 1
    assert f"Run: pytest {os.path.relpath(tests, ROOT)}" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()


def test_operator_tests_exist() -> None:
    assert benchmark.OPERATOR_TESTS.is_file()


def test_wrong_baseline_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    operators.check_baseline()
    right = operators.dcnv3_by_grid_sample

    def slightly_wrong(*arguments: Any) -> torch.Tensor:
        return right(*arguments) * (1 + 1e-8)

    monkeypatch.setattr(operators, "dcnv3_by_grid_sample", slightly_wrong)
    with pytest.raises(AssertionError):
        operators.check_baseline()


@pytest.mark.parametrize(("shape", "groups"), [((1, 1, 1, 4), 1), ((3, 4, 9, 32), 2), ((2, 8, 3, 15), 5)])
def test_baseline_equals_the_operator(shape: tuple[int, int, int, int], groups: int) -> None:
    inputs = operators.random_inputs(shape, groups, torch.float64, "cpu")
    inputs = [tensor.mul(3).requires_grad_() for tensor in inputs]  # many samples leave the image
    got, expected = (
        operators.dcnv3_by_grid_sample(*inputs, groups),
        dcnv3(*inputs, groups=groups, softmax=True, backend="torch"),
    )
    grad_output = torch.randn_like(got)
    got_all = (got, *torch.autograd.grad(got, inputs, grad_output))
    expected_all = (expected, *torch.autograd.grad(expected, inputs, grad_output))
    for one, other in zip(got_all, expected_all, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_baseline_takes_low_precision() -> None:
    inputs = operators.random_inputs((1, 6, 6, 16), 2, torch.bfloat16, "cpu")
    got = operators.dcnv3_by_grid_sample(*inputs, 2)
    assert got.dtype == torch.bfloat16
    expected = dcnv3(*inputs, groups=2, softmax=True, backend="torch")
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_operator_cases_are_those_of_the_model() -> None:
    cases = operators.operator_cases("t", models.internimage_config("t"), benchmark.BATCHES)
    assert len(cases) == 16
    assert {(case.height, case.width, case.channels, case.groups) for case in cases} == {
        (56, 56, 64, 4),
        (28, 28, 128, 8),
        (14, 14, 256, 16),
        (7, 7, 512, 32),
    }
    assert {case.batch for case in cases} == {1, 8}
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("internimage_t", 29.9),
        ("internimage_s", 50.1),
        ("internimage_b", 97.5),
        ("convnext_t", 28.6),
        ("convnext_s", 50.2),
        ("convnext_b", 88.6),
        ("internimage_l", 223.3),
        ("convnext_l", 197.8),
        ("swin_t", 28.3),
        ("swin_s", 49.6),
        ("swin_b", 87.8),
    ],
)
def test_models_are_the_published_ones(name: str, millions: float) -> None:
    family, size = name.split("_")
    with torch.device("meta"):
        model = models.FAMILIES[family](size)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


def test_offsets_are_not_zero() -> None:
    offsets = []
    model = models.internimage("tiny")
    for name, module in model.named_modules():
        if name.endswith(".offset"):
            module.register_forward_hook(lambda module, inputs, output: offsets.append(output))
    model(torch.randn(1, 3, 32, 32))
    assert len(offsets) == 2
    assert all(0.1 < offset.std() < 3 for offset in offsets)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("internimage_tiny", None), ("internimage_tiny (torch)", "torch"), ("convnext_tiny (channels_last)", None)],
)
def test_what_a_name_asks_for(name: str, backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    build = models.FAMILIES[name.split("_")[0]]

    def watched(size: str) -> torch.nn.Module:
        model = build(size)
        model.register_forward_hook(lambda *_: seen.append((model, os.environ.get(models.BACKEND_VARIABLE))))
        return model

    monkeypatch.setitem(models.FAMILIES, name.split("_")[0], watched)
    monkeypatch.setenv(models.BACKEND_VARIABLE, "cpu")
    case = models.model_cases("tiny")[1]
    step = models.make_model_step(case, name, SETTINGS, learning_rate=0.1)
    step()
    model, forced = seen[0]
    assert forced == backend
    before = [parameter.clone() for parameter in model.parameters()]
    step()
    assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    last = [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights]
    assert all(last) == name.endswith(models.CHANNELS_LAST)


@pytest.mark.parametrize("before", [None, "cpu"])
def test_backend_is_forced_within_the_step_only(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = models.BACKEND_VARIABLE
    monkeypatch.delenv(variable, raising=False)
    if before:
        monkeypatch.setenv(variable, before)
    for backend in ("torch", None):
        with models._operator_backend(backend):
            assert os.environ.get(variable) == backend
        assert os.environ.get(variable) == before


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ([], (16, 4, 0)),
        (["--cases", "batch 8"], (8, 2, 0)),
        (["--cases", "training", "800x1280"], (0, 2, 0)),
        (["--cases", "stage 2, batch 1, forward"], (2, 0, 0)),
        (["--parts", "scaling", "--sizes", "t", "s"], (0, 0, 4)),
        (["--parts", "models", "scaling", "--cases", "resolution"], (0, 0, 1)),
    ],
)
def test_cases_are_chosen_by_name(arguments: list[str], counts: tuple[int, ...]) -> None:
    chosen = benchmark.choose_cases(benchmark.read_arguments(arguments))
    assert tuple(map(len, chosen)) == counts


def test_no_such_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--cases", "batch 9"]) == 1
    assert "No case has such a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--threads", "0"], ["--threads", "some"], ["--from", "result.json"], ["--sizes", "h"]]
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_all_threads_are_the_default() -> None:
    assert benchmark.read_arguments([]).threads == [benchmark.available_cores()]
    assert benchmark.read_arguments(["--threads", "3", "1", "3"]).threads == [3, 1]


def test_competitors_take_turns() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_calls_per_sample", lambda step, device, sample: 1)
        runs = measuring.take_turns(steps, SETTINGS)
    assert order == list("abc") * measuring.LEAST_ROUNDS
    assert [list(run) for run in runs] == [list("abc")] * measuring.LEAST_ROUNDS


@pytest.mark.parametrize(("sample", "calls"), [(0.0, 3), (0.05, 25), (60.0, measuring.MOST_CALLS)])
def test_short_steps_are_repeated(sample: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def seconds(step: Any, device: str, calls: int = 1) -> float:
        seen.append(calls)
        return 0.002

    monkeypatch.setattr(measuring, "_seconds", seconds)
    measuring.take_turns({"a": lambda: None}, SETTINGS, sample)
    assert seen == [1, 1] + [calls] * measuring.LEAST_ROUNDS


def test_scaling_is_per_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the pixels: InternImage takes six times the time and memory, ConvNeXt twice."""
    seconds = {"internimage, 32": 1.0, "internimage, 64": 6.0, "convnext, 32": 1.0, "convnext, 64": 2.0}
    run = {f"{key}, batch 1": value for key, value in seconds.items()}
    monkeypatch.setattr(scaling, "start_steps", lambda makers, allowed_errors: (dict(makers), {}))
    monkeypatch.setattr(scaling, "take_turns", lambda steps, settings, sample: [run] * 5)
    monkeypatch.setattr(
        scaling, "peak_memory", lambda make, case, name, settings: int(run[f"{name[:-5]}, {case.name}"] * 2**20)
    )
    (row,) = scaling.measure_scaling(scaling.scaling_series("tiny")[:1], SETTINGS)
    for name, per_pixel, to_convnext in (("internimage_tiny", 1.5, 3), ("convnext_tiny", 0.5, 1)):
        first, last = row["models"][name]
        assert (first["images_per_second"], first["milliseconds_per_megapixel"]) == (1, 976600)
        assert last["time_per_pixel_to_first"] == {"ratio": per_pixel, "spread": 0}
        assert last["time_to_convnext"] == {"ratio": to_convnext, "spread": 0}
        assert first["memory_mib_per_megapixel"] == 976.6
        assert last["memory_per_pixel_to_first"] == pytest.approx(per_pixel, rel=1e-3)


def test_statistics() -> None:
    runs = [{"a": 2.0 * n, "b": float(n)} for n in (1, 2, 3, 4, 100)]
    assert measuring.times(runs, "b") == {"milliseconds": 3000, "spread": 0.6667}
    assert measuring.time_ratio(runs, "a", "b") == {"ratio": 2, "spread": 0}


def test_only_excused_errors_leave_a_competitor_out() -> None:
    def fails() -> None:
        raise RuntimeError("too large\nand more")

    steps, left_out = measuring.start_steps({"good": lambda: int, "bad": lambda: fails}, lambda name: (RuntimeError,))
    assert list(steps) == ["good"]
    assert left_out == {"bad": "too large"}
    with pytest.raises(RuntimeError, match="too large"):
        measuring.start_steps({"bad": lambda: fails}, lambda name: ())


def make_allocating_step(megabytes: int, name: str, settings: Any) -> Any:
    """Return a step that fills so much memory two times, one after the other."""

    def step() -> None:
        for _ in range(2):
            torch.ones(megabytes * 2**18)

    return step


@pytest.mark.skipif(not TELLS_MEMORY, reason="the system does not tell")
def test_peak_memory_is_that_of_one_step() -> None:
    peak = measuring.peak_memory(make_allocating_step, 64, "", SETTINGS)
    assert 60 < peak / 2**20 < 80
