# SPDX-License-Identifier: MIT
"""Run drawn checks for some time, each with a seed of its own.

A check is a function of a `random.Random` that raises if the package does something wrong. It runs in a process that
may die: the process is then started again behind the seed that ended it, and the death counts as a failure.
"""

import argparse
import importlib
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from support.native_library import sanitizer_preload
from support.paths import TESTS

PARTS = ("operators", "layers", "configurations", "files", "resuming")
_MOST_DEATHS = 5  # of the checks' process; then something is wrong with all of them
LIBRARY_VARIABLE = "HF_INTERNIMAGE_FUZZ_LIBRARY"


def parse():
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="this seed only, to see a failure again")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts, or checks as part.check (default: all parts)")
    parser.add_argument("--sanitize", action="store_true", help="under the address and undefined-behaviour sanitizers")
    parser.add_argument("--current", type=Path, help=argparse.SUPPRESS)  # a process that runs checks
    return parser.parse_args()


def checks_of(names):
    """The checks {part.check: function}, all or those of some parts or names."""
    checks, known = {}, set(PARTS)
    for part in PARTS:
        if names is None or any(name.split(".")[0] == part for name in names):
            for function in importlib.import_module(f"fuzz.{part}").CHECKS:
                name = f"{part}.{function.__name__}"
                known.add(name)
                if names is None or part in names or name in names:
                    checks[name] = function
    for name in names or ():
        if name not in known:
            part = name.split(".")[0]
            places = sorted(name for name in known if name.startswith(f"{part}.")) if part in PARTS else PARTS
            sys.exit(f"make fuzz: --only is {name}, expected some of {', '.join(places)}.")
    return checks


def run_checks(arguments):
    """Run the checks for equal times; write the seed under way to the file `current`, failures to standard output."""
    import torch

    if os.environ.get(LIBRARY_VARIABLE):
        from hf_internimage.ops import native

        native.PATH = Path(os.environ[LIBRARY_VARIABLE])
        assert native.library()._name == os.environ[LIBRARY_VARIABLE]
    torch.set_num_threads(2)  # kernels that share memory wrongly need two
    checks, counts, failures = checks_of(arguments.only), Counter(), 0
    spent = dict.fromkeys(checks, 0.0)  # seconds
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end if not arguments.once else len(counts) < len(checks):
        name = min(checks, key=lambda name: (spent[name], counts[name]))
        start, seed = time.monotonic(), arguments.seed + counts[name]
        arguments.current.write_text(f"{seed} {name}")
        torch.manual_seed(seed)
        try:
            checks[name](random.Random(f"{name} {seed}"))
        except Exception:
            failures += 1
            print(f"{traceback.format_exc()}\nFAILED {name}: {again(name, seed)}\n", flush=True)
        counts[name] += 1
        spent[name] += time.monotonic() - start
    for name, count in counts.items():
        print(f"{count:7} draws, {spent[name]:5.0f} s  {name}")
    return failures


def again(name, seed):
    return f"make fuzz FUZZ='--only {name} --seed {seed} --once'"


def sanitized(folder):
    """The environment of a process under the sanitizers, with the library built for them."""
    sys.path.insert(0, str(TESTS.parent / "kernels" / "dcnv3"))
    build = importlib.import_module("build")
    runtime = sanitizer_preload(build.find_compiler())
    if runtime is None:
        sys.exit("make fuzz: --sanitize needs a compiler with libasan.")
    library = Path(folder) / "sanitized.so"
    build.build(library, sanitize=True)
    return {
        LIBRARY_VARIABLE: str(library),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
    }


def main():
    arguments = parse()
    if arguments.current:
        return min(run_checks(arguments), 100)
    checks_of(arguments.only)
    deaths, failed = 0, False
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **(sanitized(folder) if arguments.sanitize else {})}
        current, seed, end = Path(folder) / "current", arguments.seed, time.monotonic() + arguments.seconds
        while True:
            command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", "--current", current, "--seed", str(seed)]
            command += ["--seconds", str(end - time.monotonic()), *(["--once"] if arguments.once else [])]
            command += ["--only", *arguments.only] if arguments.only else []
            status = subprocess.run([str(part) for part in command], env=environment).returncode
            failed = failed or status != 0
            if (0 <= status <= 100 and current.exists()) or arguments.once:
                break
            number, name = current.read_text().split()
            deaths += 1
            print(f"FAILED {name}: the process died of {status}: {again(name, number)}\n", flush=True)
            if deaths >= _MOST_DEATHS or time.monotonic() >= end:
                break
            seed = int(number) + 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
