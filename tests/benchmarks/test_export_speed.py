# SPDX-License-Identifier: MIT
"""benchmarks/export_speed.py: the table of exported models; never speed."""

import importlib
import json
import re
import sys

import pytest

from hf_internimage.exporting import ExportError
from hf_internimage.ops import native

export_speed = importlib.import_module("export_speed")
HEAD = "| Model | Target | Sizes | Error | MB | Needs | ms, 1 thread | of ConvNeXt |"


def run(monkeypatch, capsys, *arguments):
    """The lines that the program prints."""
    monkeypatch.setattr(sys, "argv", ["export_speed.py", *map(str, arguments)])
    export_speed.main()
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not native.is_available(), reason="there is no compiled library")
def test_a_table(tmp_path, capsys, monkeypatch, threads):
    threads(1)
    folder = tmp_path / "made" / "here"
    options = [folder, "--model-size", "tiny", "--size", "40", "--threads", "1", "--seconds", "0"]
    first, *lines = run(monkeypatch, capsys, *options, "--targets", "onnxruntime")
    assert first.startswith(HEAD)
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
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run(monkeypatch, capsys, *options, "--targets", "onnxruntime")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_systems_and_their_file(tmp_path, capsys, monkeypatch, threads):
    threads(1)
    make = export_speed.export

    def refuse_convnext(model, path, **settings):
        if "convnext" in path.name and "backbone" in path.name:
            raise ExportError("no such\nfile.")
        return make(model, path, **settings)

    monkeypatch.setattr(export_speed, "export", refuse_convnext)
    output = tmp_path / "exports.json"
    options = [tmp_path / "files", "--quick", "--targets", "torchscript", "--output", output, "--systems"]
    run(monkeypatch, capsys, *options, "backbone")
    lines = run(monkeypatch, capsys, *options, "backbone", "upernet", "--minutes", "-1")
    assert not any("UperNet" in line for line in lines)
    lines = run(monkeypatch, capsys, *options, "backbone", "upernet")
    names = [line.split(" | ")[:2] for line in lines[2:10]]
    assert names == [
        [f"| {model}-TINY, {head}", target]
        for head in ("maps", "UperNet")
        for model in ("InternImage", "ConvNeXt")
        for target in ("PyTorch, eager", "torchscript")
    ]
    assert lines[3].endswith(" | – |")  # noqa: RUF001
    assert lines[5].endswith("| – |  |  | torch | – | – |")  # noqa: RUF001
    assert re.search(r"\| any \| \de-0[678] \| [\d.]+ \| torch \| [\d.]+ \| [\d.]+ \|$", lines[7])
    assert "Not exported: ConvNeXt, backbone, to torchscript (no such file.)." in lines
    rows = json.loads(output.read_text())["rows"]
    assert [row["system"] for row in rows] == ["backbone"] * 4 + ["upernet"] * 4
    assert rows[5]["times"]["1"]["of_convnext"] > 0


@pytest.mark.parametrize("system", export_speed.SYSTEMS)
@pytest.mark.parametrize("family", ["internimage", "convnext"])
def test_all_systems_can_be_built(system, family):
    model = export_speed.build(system, family, "tiny")
    offsets = [tensor for name, tensor in model.named_parameters() if ".dcn.offset.weight" in name]
    assert all(bool(tensor.any()) for tensor in offsets)
    assert bool(offsets) == (family == "internimage")
