# SPDX-License-Identifier: MIT
"""Write the application as the repository of a Space on the Hugging Face Hub."""

import shutil
from importlib.metadata import version
from pathlib import Path

from ..atomic_write import atomic_write, is_free

_APP = """\
from hf_internimage.app.interface import build
from hf_internimage.app.viewer import Viewer

app = build([Viewer({name!r})])

if __name__ == "__main__":
    app.queue(max_size=32).launch(max_file_size="20mb")
"""
_CARD = """\
---
title: {title}
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: mit
---

An InternImage model to try in the browser, with the points that it samples.
"""
_MODEL_FOLDER = "model"


def write_space(model: str, folder: str | Path) -> Path:
    """Write app.py, requirements.txt and README.md, and a copy of the model if it is a local folder.

    Args:
        model: folder, or repository on the Hub.
        folder: must not exist, or be empty.

    Returns:
        The folder. It runs as it is: `pip install -r requirements.txt`, `python app.py`.

    Raises:
        ValueError: if the folder has files.
    """
    destination = Path(folder)
    if not is_free(destination):
        raise ValueError(f"{destination} is no empty folder; name a new one, or remove it first.")
    is_local = Path(model).is_dir()
    with atomic_write(destination) as path:
        path.mkdir()
        if is_local:
            shutil.copytree(model, path / _MODEL_FOLDER, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
        name = _MODEL_FOLDER if is_local else model
        title = Path(model).resolve().name if is_local else model.rpartition("/")[2]
        (path / "app.py").write_text(_APP.format(name=name), encoding="utf-8")
        (path / "requirements.txt").write_text("hf-internimage[app]\n", encoding="utf-8")
        (path / "README.md").write_text(_CARD.format(title=title, gradio=version("gradio")), encoding="utf-8")
    return destination


__all__ = ["write_space"]
