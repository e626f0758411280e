# SPDX-License-Identifier: MIT
"""`hf-internimage reproduce`: mistakes that are found before anything is fetched. What it does: tests/reproduction."""

import pytest

from hf_internimage_cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "."], "give the NAME of a checkpoint, or --all"),
        (["internimage_t_1k_224", "--all", "--data", "."], "give the NAME of a checkpoint, or --all"),
        (["internimage_t_1k_224"], "the following arguments are required: --data"),
        (["internimage_t_1k_224", "--data", "absent"], "--data is absent, which is no folder"),
        (["internimage_t_1k_224", "--data", ".", "--file", "absent.pth"], "--file is absent.pth, which does not exist"),
        (["internimage_t_1k_224", "--data", ".", "--output", "absent/a.json"], "absent/a.json does not exist"),
        (["--all", "--data", ".", "--sha256", "00"], "--sha256 is of one file"),
        (["--all", "--data", ".", "--file", __file__], "with --all give the folder of the files NAME.pth"),
    ],
)
def test_usage_errors(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-internimage reproduce: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("internimage_t", "error: 'internimage_t' is no published checkpoint; did you mean internimage_t_1k_224"),
        ("internimage_l_22k_384", "error: internimage_l_22k_384 cannot be reproduced: the authors report no score"),
        ("internimage_t_1k_224", "holds no validation data of ImageNet-1K, expected val/ with a folder for each class"),
    ],
)
def test_what_cannot_be_measured(name, message, capsys, tmp_path):
    assert main(["reproduce", name, "--data", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
