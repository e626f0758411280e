# SPDX-License-Identifier: MIT
"""benchmarks/dcnv3_extension.py, with a small package in place of the authors' ops_dcnv3."""

import sys

import dcnv3_extension
import pytest

FUNCTIONS = """
from hf_internimage.ops import dcnv3

class DCNv3Function:
    @staticmethod
    def apply(input, offset, mask, *arguments):
        assert arguments[:8] == (3, 3, 1, 1, 1, 1, 1, 1) and arguments[10:] == (1.0, 256, 0)
        return dcnv3(input, offset, mask, groups=arguments[8])

def dcnv3_core_pytorch(input, offset, mask, *arguments):
    assert len(arguments) == 12 and arguments[11] == 0
    return dcnv3(input, offset, mask, groups=arguments[8], backend="torch") + ERROR
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs the program for an error of the second form."""
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(name, error):
        (tmp_path / name).mkdir()
        (tmp_path / name / "functions.py").write_text(FUNCTIONS.replace("ERROR", str(error)))
        dcnv3_extension.main([str(tmp_path / name), "--seconds", "0.01"])

    yield run
    for name in [name for name in sys.modules if name.startswith("ops_for_test")]:
        del sys.modules[name]


def test_prints_a_table(run, capsys):
    run("ops_for_test_right", 0.0)
    version, *head, last = capsys.readouterr().out.splitlines()
    assert version.startswith("torch ")
    assert len(head) == 9  # two lines of the head, and two for each stage but the last line
    assert last.startswith("| stage 4 | forward and backward | ")
    assert float(last.split(" | ")[2]) > 0


def test_the_two_forms_must_agree(run):
    with pytest.raises(AssertionError, match="not close"):
        run("ops_for_test_wrong", 0.01)
