# SPDX-License-Identifier: MIT
"""The drawn attacks of `make fuzz` run, each for a seed or a few; `make fuzz` itself looks for faults."""

import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fuzz import configurations
from fuzz.__main__ import PARTS, checks_of, run_checks
from support.paths import ROOT, TESTS

CHECKS = checks_of(None)
SLOW = ("layers.models_equal_their_modules", "files.interrupted_saves_leave_one_model")


@pytest.mark.parametrize("name", [name for name in CHECKS if not name.startswith("resuming") and name not in SLOW])
def test_checks_run(name):
    for seed in range(3):
        torch.manual_seed(seed)
        CHECKS[name](random.Random(f"{name} {seed}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CHECKS if name.startswith("resuming") or name in SLOW])
def test_slow_checks_run(name):
    torch.manual_seed(0)
    CHECKS[name](random.Random(f"{name} 0"))


def test_every_part_has_checks():
    assert {name.partition(".")[0] for name in CHECKS} == set(PARTS)


@pytest.mark.parametrize("name", ["file", "files.damaged", "operators."])
def test_a_wrong_name_is_one_line(name):
    with pytest.raises(SystemExit, match=f"^make fuzz: --only is {re.escape(name)}, expected some of .*[.]$"):
        checks_of(["operators", name])


def test_a_failure_names_its_seed_and_a_run_its_draws(tmp_path, monkeypatch, threads, capsys):
    def fails(draw):
        assert draw.random() < 0

    threads(torch.get_num_threads())
    monkeypatch.setattr(configurations, "CHECKS", (configurations.misspelt_fields_are_named, fails))
    arguments = {"only": ["configurations"], "seed": 7, "once": True, "seconds": 60, "current": tmp_path / "current"}
    assert run_checks(SimpleNamespace(**arguments)) == 1
    printed = capsys.readouterr().out
    assert "FAILED configurations.fails: make fuzz FUZZ='--only configurations.fails --seed 7 --once'" in printed
    assert printed.count("FAILED") == 1
    assert [line.split()[:2] for line in printed.splitlines() if "draws" in line] == [["1", "draws,"]] * 2


@pytest.mark.slow
def test_a_death_is_a_failure_with_its_seed(tmp_path):
    """Python runs `sitecustomize` first: there a check is replaced by one that ends the process at seed 8."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, fuzz.configurations as part\n"
        "def dies(draw):\n"
        "    if draw.random() == __import__('random').Random('configurations.dies 8').random(): os.abort()\n"
        "part.CHECKS = (dies,)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(TESTS)))}
    command = [sys.executable, "-m", "fuzz", "--only", "configurations", "--seed", "7", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    assert "FAILED configurations.dies: the process died of -6: make fuzz FUZZ='--only" in done.stdout
    assert "--seed 8 --once'" in done.stdout
