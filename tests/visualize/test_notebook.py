# SPDX-License-Identifier: MIT
"""examples/where_it_samples.ipynb: its cells run, with fewer scenes and steps."""

import json
import re
import shlex

import pytest
from matplotlib.figure import Figure
from support.paths import ROOT

from hf_internimage_cli.main import main

SMALLER = {'"800"': '"8"', '"80"': '"4"', "--num_train_epochs 10": "--max_steps 1", "[:16]": "[:2]"}


@pytest.mark.slow
def test_the_cells_run(tmp_path, monkeypatch, capsys):
    notebook = json.loads((ROOT / "examples" / "where_it_samples.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for long, short in SMALLER.items():
        assert any(long in cell for cell in cells), long
        cells = [cell.replace(long, short) for cell in cells]
    monkeypatch.chdir(tmp_path)
    shown = []
    names = {"display": shown.append, "run": lambda line: main(shlex.split(line))}
    for cell in cells:
        cell = re.sub("^%.*$", "", cell, flags=re.MULTILINE)
        code = re.sub(
            r"^!hf-internimage (.*)$", lambda match: f"assert run({match[1]!r}) == 0", cell, flags=re.MULTILINE
        )
        exec(compile(code, "cell", "exec"), names)
    printed = capsys.readouterr().out
    assert "ConvNeXt, trained: half of the energy within" in printed
    assert len(shown) == 2
    assert all(isinstance(figure, Figure) for figure in shown)
    trainings = re.findall(r"UperNetForSemanticSegmentation, ([\d.]+) M parameters", printed)
    assert len(trainings) == 2
    assert float(trainings[0]) == pytest.approx(float(trainings[1]), rel=0.05), "of equal size"


def test_the_outputs_are_there():
    """The notebook is read on the web, with what a run has shown."""
    notebook = json.loads((ROOT / "examples" / "where_it_samples.ipynb").read_text("utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    text = json.dumps(notebook)
    assert not re.search(r"/(tmp|home|root|work)/", text)
