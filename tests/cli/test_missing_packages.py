# SPDX-License-Identifier: MIT
"""A missing package is named before torch is imported and a model is loaded."""

import pytest

from hf_internimage_cli import usage
from hf_internimage_cli.main import main


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("app out", "gradio", "app"),
        ("export out x", "onnx", "export"),
        ("export out x --target openvino", "openvino", "export"),
    ],
)
def test_missing_package_is_named_first(command, package, extra, tmp_path, monkeypatch, capsys):
    """The folder holds no model: whoever loads it before has another error."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(usage, "find_spec", lambda name: None, raising=False)
    assert main(command.split()) == 1
    assert capsys.readouterr().err == f'error: {package} is missing: pip install "hf-internimage[{extra}]"\n'
