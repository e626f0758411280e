# SPDX-License-Identifier: MIT
"""benchmarks/export_speed.py: the table of exported models; never speed."""

import importlib
import re
import sys

import pytest

from hf_internimage.ops import native

export_speed = importlib.import_module("export_speed")


@pytest.mark.slow
@pytest.mark.skipif(not native.is_available(), reason="there is no compiled library")
def test_a_table(tmp_path, capsys, monkeypatch, threads):
    threads(1)
    command = ["export_speed.py", str(tmp_path / "made" / "here"), "--model-size", "tiny", "--size", "40"]
    monkeypatch.setattr(sys, "argv", [*command, "--targets", "onnxruntime", "--threads", "1", "--seconds", "0"])
    export_speed.main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("| Model | Target | Sizes | Error | MB | Needs | ms, 1 thread | of ConvNeXt |")
    assert [line.split(" | ")[:3] for line in lines[1:5]] == [
        ["| InternImage-TINY", "PyTorch, eager", "any"],
        ["| InternImage-TINY", "onnxruntime", "any"],
        ["| ConvNeXt-TINY", "PyTorch, eager", "any"],
        ["| ConvNeXt-TINY", "onnx", "any"],
    ]
    assert all(line.endswith("| 1.00 |") for line in lines[3:5])
    assert re.search(r"\| \de-0[678] \| [\d.]+ \| onnxruntime, and the library in the folder \| ", lines[2])
    assert lines[-1].endswith("40x40, batch 1; medians of 5 rounds.")
    # Files that are there are measured again, not written again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "here").rglob("*")}
    export_speed.main()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "here").rglob("*")} == before
