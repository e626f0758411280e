# SPDX-License-Identifier: MIT
"""Run everything that needs a GPU, in one command of less than eight minutes: tests, sanitizer, benchmark.

    python benchmarks/gpu_check.py OUT

Writes OUT/gpu_check.json (while it runs), gpu_check.md, pytest.log and sanitizer.log, and ends with status 0 only if
all required parts passed. Needs PyTorch, Triton, transformers and pytest; the package need not be installed. With
`--device cpu --quick` the program can be tried on a machine without a GPU; the numbers then mean nothing.
"""

import argparse
import datetime
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "benchmarks", ROOT / "src"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from harness.gpu_report import summary, to_markdown  # noqa: E402
from harness.machine import available_cores  # noqa: E402
from harness.steps import Budget, Outcome, Row, Step, emit, end, end_all, run_groups, start_python  # noqa: E402

PARTS = ("environment", "operator_tests", "model_tests", "sanitizer", "operator", "models")
OPERATOR_TESTS = ("tests/ops/test_dcnv3_golden.py", "tests/ops/test_dcnv3_backends.py")
MODEL_TESTS = ("tests/ops/test_gpu.py",)
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
OPERATOR_SIZES, MODEL_SIZES, TINY = ("t", "b", "l"), ("t", "s", "b", "l"), ("tiny",)
WARM_UP_WORKERS = 4


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; end the program with a message if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do (default: all)")
    parser.add_argument("--device", choices=list(BACKENDS), default="cuda", help="cpu: only for dry runs")
    parser.add_argument("--backends", nargs="+", help="backends that must work (default: cuda, triton; on a CPU: cpu)")
    parser.add_argument("--quick", action="store_true", help="few tests, tiny shapes and models")
    parser.add_argument("--seconds-limit", type=float, default=460.0, help="time limit of everything (default: 460)")
    parser.add_argument("--shards", type=int, help="processes for the operator's tests; the models' get half")
    parser.add_argument("--no-warm-up", action="store_true", help="do not compile ahead while the tests run")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.seconds_limit <= 0:
        parser.error(f"--seconds-limit is {arguments.seconds_limit:g}, expected more than 0.")
    if arguments.backends is None:
        arguments.backends = list(BACKENDS[arguments.device])
    if arguments.shards is None:
        arguments.shards = max(1, min(10, available_cores() * 5 // 8))
    if arguments.shards < 1:
        parser.error(f"--shards is {arguments.shards}, expected at least 1.")
    return arguments


def plan(arguments: argparse.Namespace) -> list[list[Step]]:
    """Return groups of steps in their order; the steps of a group run at once, and measurements run alone."""
    common = [__file__, str(arguments.out), "--device", arguments.device, "--backends", *arguments.backends]
    common += ["--quick"] if arguments.quick else []
    common += ["--shards", str(arguments.shards)]

    def step(name: str, title: str, seconds: float, **options: Any) -> Step:
        return Step(name, title, (*common, "--step", name), seconds, **options)

    groups = [
        [step("environment", "Environment and first calls", 75)],
        [
            step("operator_tests", "Operator tests", 230),
            step("model_tests", "Model and GPU tests", 200),
            step("sanitizer", "compute-sanitizer", 170),
        ],
        [step("operator", "Operator benchmark", 130, required=False, worth_starting=15)],
        [step("models", "Models beside ConvNeXt", 400, required=False, worth_starting=15)],
    ]
    selected = [[step for step in group if step.name in arguments.parts] for group in groups]
    return [group for group in selected if group]


def step_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one step, which runs in this process. Each step imports only the modules that it needs."""
    device, backends = arguments.device, tuple(arguments.backends)
    budget = Budget(float(os.environ.get("GPU_CHECK_SECONDS", "600")))
    if arguments.step == "environment":
        from harness.environment import describe_environment

        yield from describe_environment(arguments.out, backends, device)
    elif arguments.step in ("operator_tests", "model_tests"):
        from harness.testing import run_tests

        files = OPERATOR_TESTS if arguments.step == "operator_tests" else MODEL_TESTS
        only = None
        if arguments.quick:
            files = files[:1]
            only = "(k3_dil2_stride2_scale05 and matches_the_original) or deterministic or thread"
        # The models' tests take little time, and what they compile runs in other processes.
        count = arguments.shards if arguments.step == "operator_tests" else max(1, arguments.shards // 2)
        log = arguments.out / "pytest.log"
        yield from run_tests(list(files), backends, count, budget, log, ROOT, only)
    elif arguments.step == "sanitizer":
        from harness.sanitizing import sanitize

        yield from sanitize(arguments.out, backends, device, budget)
    elif arguments.step == "operator":
        from harness import gpu_operators

        cases = gpu_operators.gpu_operator_cases(TINY if arguments.quick else OPERATOR_SIZES)
        cases = cases[:2] if arguments.quick else cases
        seconds = 0.0 if arguments.quick else gpu_operators.SECONDS
        yield from gpu_operators.measure_gpu_operators(cases, backends, device, budget, seconds)
    elif arguments.step == "models":
        from harness import gpu_models

        models = gpu_models.gpu_model_cases(TINY if arguments.quick else MODEL_SIZES)
        models = models[1::4] if arguments.quick else models
        seconds = 0.0 if arguments.quick else gpu_models.SECONDS
        yield from gpu_models.measure_gpu_models(models, backends, device, budget, seconds)
    else:
        raise SystemExit(f"--step is {arguments.step!r}, expected one of {', '.join(PARTS)}.")


def run_one_step(arguments: argparse.Namespace) -> int:
    """Run the step that this process was started for, and return its exit status."""
    if arguments.step == "first_call":
        from harness.environment import first_call

        first_call(arguments.backend, arguments.device)
    elif arguments.step == "sanitizer_target":
        from harness.hostile_calls import sanitizer_target

        return 1 if sanitizer_target(arguments.backend, arguments.device) else 0
    elif arguments.step == "warm_up":
        from harness.warming import warm_up

        operators, models = (TINY, TINY) if arguments.quick else (OPERATOR_SIZES, MODEL_SIZES)
        warm_up(operators, models, tuple(arguments.backends), arguments.device, arguments.worker, WARM_UP_WORKERS)
    else:
        for row in step_rows(arguments):
            emit(row)
    return 0


class Check:
    """Run the whole check and collect its result."""

    def __init__(self, arguments: argparse.Namespace, argv: list[str]) -> None:
        self.arguments = arguments
        self.groups = plan(arguments)
        self.outcomes = {
            step.name: Outcome(step.name, step.title, step.required) for group in self.groups for step in group
        }
        self.result: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "benchmarks/gpu_check.py", *argv]),
            "device": arguments.device,
            "backends": arguments.backends,
            "quick": arguments.quick,
            "seconds_limit": arguments.seconds_limit,
            "passed": False,
            "steps": [],
        }
        self._warming: list[Any] = []
        self._saving = threading.Lock()

    def run(self) -> int:
        """Run all steps and return the exit status."""
        out = self.arguments.out
        out.mkdir(parents=True, exist_ok=True)
        (out / "pytest.log").write_text("", encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True) as scratch:
            environment = child_environment(self.arguments, Path(scratch))
            try:
                seconds = self.arguments.seconds_limit
                run_groups(
                    self.groups, seconds, environment, self.update, lambda index: self.prepare_group(index, environment)
                )
            finally:
                end_all()
                self.save()
        print(summary(self.result))
        return 0 if self.result["passed"] else 1

    def update(self, outcome: Outcome) -> None:
        """Take in the new outcome of a step and write the result."""
        if outcome.status != "running":
            print(f"{outcome.title}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)
        self.outcomes[outcome.name] = outcome
        self.save()

    def prepare_group(self, index: int, environment: dict[str, str]) -> str | None:
        """Start compiling for the benchmarks before the tests, and stop it before the benchmarks.

        Returns a reason not to run this group, if there is one.
        """
        names = {step.name for step in self.groups[index]}
        device = self.outcomes.get("environment")
        if device and device.status in ("failed", "crashed") and not device.rows:
            return f"there is no device to run on: {device.reason}"
        if names & {"operator", "models"}:
            while self._warming:
                end(self._warming.pop())
        later = {step.name for group in self.groups[index:] for step in group}
        if self.arguments.no_warm_up or self._warming or "environment" in names or not later & {"operator", "models"}:
            return None
        if names & {"operator_tests", "model_tests", "sanitizer"}:
            command = [*self.groups[index][0].command[:-2], "--step", "warm_up"]
            for worker in range(1 if self.arguments.quick else WARM_UP_WORKERS):
                options = ["--worker", str(worker)]
                self._warming.append(
                    start_python(
                        [*command, *options], {**environment, "TORCHINDUCTOR_COMPILE_THREADS": "2"}, quiet=True
                    )
                )
        return None

    def save(self) -> None:
        """Write the JSON and the Markdown file, each complete or not at all."""
        with self._saving:
            self._save()

    def _save(self) -> None:
        self.result["steps"] = [vars(outcome) for outcome in self.outcomes.values()]
        self.result["passed"] = all(outcome.is_good for outcome in self.outcomes.values())
        out = self.arguments.out
        for name, text in (
            ("gpu_check.json", json.dumps(self.result, indent=1) + "\n"),
            ("gpu_check.md", to_markdown(self.result)),
        ):
            temporary = out / f".{name}"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, out / name)


def child_environment(arguments: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Return the variables of the steps: this checkout, no network, own caches, backends that must work."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    caches = {
        "HF_INTERNIMAGE_CACHE": "kernels",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "PYTEST_DEBUG_TEMPROOT": "pytest",
    }
    for name in caches.values():
        (scratch / name).mkdir()
    return {
        **{key: text for key, text in os.environ.items() if key != "HF_INTERNIMAGE_BACKEND"},
        **{key: str(scratch / name) for key, name in caches.items()},
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_INTERNIMAGE_TEST_BACKENDS": ",".join(arguments.backends),
        "OMP_NUM_THREADS": "1",
    }


def stop(*_: object) -> None:
    """End the program because of SIGTERM."""
    raise SystemExit(143)


def main(argv: list[str] | None = None) -> int:
    """Run the whole check, or one step of it, and return the exit status."""
    arguments = read_arguments(argv)
    arguments.out = arguments.out.resolve()
    if arguments.step:
        return run_one_step(arguments)
    signal.signal(signal.SIGTERM, stop)
    return Check(arguments, sys.argv[1:] if argv is None else argv).run()


if __name__ == "__main__":
    raise SystemExit(main())
