# SPDX-License-Identifier: MIT
"""The Dockerfile: what .dockerignore leaves is enough to build the package, and the command that starts is there."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from support.paths import ROOT

pytest.importorskip("hatchling", reason="wheels are built by hatchling")

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_context_is_enough_to_build(tmp_path):
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines  # everything else stays outside
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "_dcnv3_cpu.*"))
        else:
            shutil.copy(source, tmp_path / name)
    environment = {**os.environ, "HF_INTERNIMAGE_BUILD_CPU": "0"}
    code = "import hatchling.build; print(hatchling.build.build_wheel('dist'))"
    (tmp_path / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "dist").glob("*.whl"))


def test_files_that_are_copied_are_in_the_context():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE)
    assert {name for name in copied if name != "."} <= kept


def test_entry_point_is_a_command_of_the_package():
    (entry,) = json.loads(re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[1])
    assert re.search(rf"^{entry} = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


def test_last_stage_has_no_compiler_and_no_root():
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert not re.search(r"apt|g\+\+|gcc|pip", last)
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
