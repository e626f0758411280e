# SPDX-License-Identifier: MIT
"""The command line as a whole: help and mistakes are answered without torch, and errors are one line."""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from support.loading import run_python

import hf_internimage
from hf_internimage.env import describe
from hf_internimage.hub import PushError
from hf_internimage.ops import BackendError
from hf_internimage_cli import main as command_line
from hf_internimage_cli.main import build_parser, main, run_command
from hf_internimage_cli.usage import UsageError

HEAVY = {"datasets", "hf_internimage", "numpy", "torch", "transformers"}
TRAIN = ["train", "classification", "--train_dir=."]
# Command lines, and what the one line on stderr says after "error: ".
MISTAKES = {
    "": "the following arguments are required: COMMAND",
    "trian": "argument COMMAND: invalid choice: 'trian', did you mean train?",
    "train": "the following arguments are required: TASK",
    "train classifcation": "argument TASK: invalid choice: 'classifcation', did you mean classification?",
    "train classification --size q --train_dir .": "argument --size: invalid choice: 'q', expected one of t, s, b,",
    "train classification --num_train_epochs many": "argument --num_train_epochs: invalid float value: 'many'",
    "train classification --train_dir .": "choose what to train: --recipe NAME (finetune, few_images, scratch,",
    "train classification --recipe finetun --train_dir .": "--recipe finetun is unknown; did you mean finetune?",
    "train classification --recipe upernet_t --train_dir .": "--recipe upernet_t is for segmentation; the recipes for",
    "train classification --recipe a.yaml": "--recipe a.yaml is a file of settings; give it first, without --recipe",
    "train classification --recipe t": "there are no data: give --train_dir DIR (and --validation_dir DIR), or",
    "train classification --recipe t --train_dir absent": "train_dir is absent, which is not a folder",
    "train classification --recipe t --train_dir . --dataset_name x": "dataset_name and train_dir are both set",
    "train classification --recipe t --train_dir . --learning_rat 1": "--learning_rat is no setting of classification; "
    "did you mean --learning_rate?",
    "train classification --recipe t --train_dir . --batch_size 3": "--batch_size is no setting of classification; "
    "did you mean --per_device_train_batch_size?",
    "train classification --recipe t --train_dir . --lr 3": "--lr is no setting of classification; "
    "did you mean --learning_rate?",
    "train classification --size t --model_name_or_path me/model --train_dir .": "model_name_or_path and size are both",
    "train classification --model_name_or_path ./absent --train_dir .": "model_name_or_path ./absent is no folder",
    "train classification --size t --train_dir . --recipee x": "--recipee is no setting of classification; "
    "did you mean --recipe? --help_all lists all",
    "train classification --size T --train_dir absent": "train_dir is absent, which is not a folder",
    "train classification large.yaml --train_dir absent": "train_dir is absent, which is not a folder",
    "train classification --backbone outt --train_dir .": "--backbone is no setting of classification",
    "train detection --backbone outt --train_dir .": "backbone outt is no folder; did you mean out?",
    "train classification absent.yaml": "there is no file of settings absent.yaml",
    "train classification unknown.yaml --train_dir .": "unknown.yaml: learning_rat is no setting of",
    "train classification size.yaml --train_dir .": "size.yaml: size is 'q', expected one of t, s, b, l, xl, h, g.",
    "train classification photos": "photos is no file of settings (.yaml, .yml, .json); give data as --train_dir DIR",
    "train detection --head rtdetr --train_dir .": "argument --head: invalid choice: 'rtdetr', did you mean rt_detr?",
    "train detection --recipe dino_t --train_dir . --train_annotations a.json": "train_annotations is a.json, which is",
    "evaluate": "give a MODEL first: a folder, or a repository on the Hub",
    "evaluate ./absent --validation_dir .": "./absent is no folder; give that of a saved model, or a repository",
    "evaluate . --validation_dir .": ". has no config.json; give the folder of a saved model",
    "evaluate outt --validation_dir .": "outt is no folder; did you mean out?",
    "evaluate model_of_mine --validation_dir .": "model_of_mine is no folder; give that of a saved model",
    "evaluate a/b --task detection --validation_dir . --devic cpu": "--devic is no setting of detection; did you mean",
    "evaluate me/model --task detection --validation_dir . --output a.json": "--output_dir a.json is a file; ",
    "evaluate me/model --task classification": "there are no data: give --validation_dir DIR, or --dataset_name NAME.",
    "evaluate me/model --task segmentation --validation_dir . --device cuda:1": "--device cuda:1: for segm",
    "evaluate me/model --task segmentation --validation_dir . --validation_annotations size.yaml": "--validation_ann",
    "evaluate me/model --task detection --validation_dir . --tta_flip": "--tta_flip is no setting of detection",
    "evaluate me/model photos --task detection --validation_dir .": "photos is one argument too many",
    "evaluate me/model --validation_dir . --dtype int8": "argument --dtype: invalid choice: 'int8', expected one of",
    "convert a.pth": "the following arguments are required: DST",
    "convert a.pth b --image-size 0": "argument --image_size: '0' is not a positive number",
    "convert a.pth b --image-siz=8": "unrecognized arguments: --image-siz=8; did you mean --image_size?",
    "push ./absent me/x": "./absent is no folder; give that of a saved model",
    "push . me/x --dry-run": "--dry_run needs --output_dir DIR",
    "push . me/x --base-model me/y": "--base_model needs --result FILE",
    "push . me/x --dry-run --output-dir .": "--output_dir . is not an empty folder; name a new one",
    "push . a/b/c --dry-run --output-dir new": "REPO_ID 'a/b/c' is no name for a repository; give NAME or OWNER/NAME",
    "push . me/-x": "REPO_ID 'me/-x' is no name for a repository",
    "push . me/x --privat": "unrecognized arguments: --privat; did you mean --private?",
    "predict out . --output size.yaml/x": "--output_dir size.yaml/x cannot be a folder: size.yaml is a file",
    "predict outt .": "outt is no folder; did you mean out?",
    "predict internimage_t_1k_224 .": "internimage_t_1k_224 is no folder; did you mean OpenGVLab/internimage_t_1k_224?",
    "benchmark outt": "outt is no folder; did you mean out?",
    "env all": "unrecognized arguments: all",
    "export me/m o --half --int8": "argument --int8: not allowed with argument --half",
    "export me/m o --calibration .": "--calibration is for --int8; add it, or leave --calibration out.",
    "export me/m o --int8 --calibration nowhere": "--calibration nowhere: there is no such folder.",
    "export me/m o --evaluate nowhere": "--evaluate nowhere: there is no such folder.",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Exit status, stdout, stderr and heavy modules for help and mistakes, all in one new process."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "unknown.yaml").write_text("learning_rat: 1.0e-4\n")
    (folder / "size.yaml").write_text("size: q\n")
    (folder / "large.yaml").write_text("size: T\n")
    (folder / "out").mkdir()
    commands = [name for action in build_parser()._actions for name in action.choices or ()]
    lines = ["--help", *(f"{name} --help" for name in commands)]
    lines += [f"train {task} --help" for task in ("classification", "segmentation", "detection")]
    code = f"""
import contextlib, io, json, os, sys
from hf_internimage_cli.main import main

os.chdir({str(folder)!r})
answers = {{}}
for line in {[*lines, *MISTAKES]!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(line.split())
    answers[line] = [status, out.getvalue(), err.getvalue(), sorted({HEAVY!r} & set(sys.modules))]
print(json.dumps(answers))
"""
    return json.loads(run_python(code, fork=False, COLUMNS="120"))


def test_help_of_every_command(answers):
    helps = {line: answer for line, answer in answers.items() if line.endswith("--help")}
    assert len(helps) >= 9
    for line, (status, out, err, heavy) in helps.items():
        assert (status, err, heavy) == (0, "", []), line
        assert out.startswith(f"usage: hf-internimage {line.removesuffix('--help').strip()}".strip()), line
    for task in ("classification", "segmentation", "detection"):
        text = helps[f"train {task} --help"][1]
        for part in (
            "data:",
            "model:",
            "training:",
            "output:",
            "--help_all",
            "recipes:",
            "examples:",
            "(default without",
        ):
            assert part in text, (task, part)


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line_without_torch(line, answers):
    status, out, err, heavy = answers[line]
    assert (status, out, heavy) == (2, "", [])
    assert err.count("\n") == 1, err
    program, _, message = err.partition(": error: ")
    assert f"hf-internimage {line}".startswith(program)
    assert message.startswith(MISTAKES[line]), message


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("two\n lines"), 1, "error: two lines\n"),
        (OSError("with hf_abcdefghij0123456789"), 1, "error: with [token]\n"),
        (BackendError("none"), 1, "error: none\n"),
        (SafetensorError("cut"), 1, "error: cut\n"),
        (PushError("refused"), 1, "error: refused\n"),
        (ValueError(), 1, "error: ValueError\n"),
        (
            ModuleNotFoundError("x", name="scipy.stats"),
            1,
            "error: scipy.stats is missing: pip install",
        ),
        (
            ModuleNotFoundError("x", name="kernels"),
            1,
            'error: kernels is missing: pip install "hf-internimage[hub-kernel]',
        ),
        (ImportError("cannot import name 'a'"), 1, "error: cannot import name 'a'\n"),
        (UsageError("wrong"), 2, "hf-internimage some: error: wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is lost.\n"),
    ],
)
def test_errors_are_one_line(error, status, text, capsys):
    def fail(args):
        raise error

    module = SimpleNamespace(run=fail, INTERRUPTED="; nothing is lost")
    assert run_command(module, argparse.Namespace(prog="hf-internimage some")) == status
    assert capsys.readouterr().err.startswith(text)


def test_a_bug_is_no_mistake_of_the_user():
    with pytest.raises(ZeroDivisionError):
        run_command(SimpleNamespace(run=lambda args: 1 / 0), argparse.Namespace(prog="hf-internimage some"))


def test_env(capsys):
    assert main(["env"]) == 0
    assert capsys.readouterr().out == describe() + "\n"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf-internimage {hf_internimage.__version__}\n"


@pytest.mark.skipif(not shutil.which("bash"), reason="the pipe is one of bash")
@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    code = "from hf_internimage_cli.main import main; import sys; sys.exit(main())"
    pipe = f"{sys.executable} -c '{code}' env | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.slow
def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "hf_internimage", "env"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hf_internimage ")
    assert done.stderr == ""


def test_an_empty_name_is_none(capsys):
    assert main(["predict", "", "."]) == 2
    assert main(["predict", ".", ""]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("hf-internimage predict: error: '' is no folder; give that of a saved model")
    assert errors[1].startswith("hf-internimage predict: error: an INPUT is an empty text; give images")


def all_parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from all_parsers(command)


def test_every_option_has_one_spelling_and_takes_both():
    options = 0
    for parser in all_parsers(build_parser()):
        for action in parser._actions:
            names = [name for name in action.option_strings if name.startswith("--")]
            assert len(names) == bool(action.option_strings), names
            for name in names:
                for separator in "-_":
                    spelled = "--" + re.sub("[-_]", separator, name[2:])
                    assert parser._with_known_names([f"{spelled}=x"]) == [f"{name}=x"]
                    options += 1
            if "--output_dir" in names:
                assert parser._with_known_names(["--output", "x"]) == ["--output_dir", "x"]
    assert options > 150


@pytest.mark.parametrize("spelling", ["--image-size=8", "--image_size=8"])
def test_both_spellings_of_options(spelling):
    args = build_parser().parse_args(["convert", "a", "b", spelling])
    assert args.image_size == 8
    args = build_parser().parse_args(["train", "classification", spelling, "--learning-rate", "0.5"])
    assert (args.image_size, args.learning_rate) == (8, 0.5)
    assert args.argv == ["--image_size=8", "--learning_rate", "0.5"]


def test_commands_are_those_there_are(monkeypatch):
    monkeypatch.setattr(command_line, "COMMANDS", ("env", "absent"))
    assert [name for action in build_parser()._actions for name in action.choices or ()] == ["env"]


def test_modules_import_the_standard_library_alone():
    """Other imports stand in functions: those of the bodies of commands."""
    folder = Path(command_line.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= set(sys.stdlib_module_names), path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.partition(".")[0] in sys.stdlib_module_names, f"{path}: {node.module}"
