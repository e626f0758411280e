# SPDX-License-Identifier: MIT
"""`hf-internimage train`: the usual options, recipes by name, and what the task's own parser gets."""

import importlib
import re
from dataclasses import fields

import pytest
import yaml
from support.paths import RECIPE_FOLDER
from transformers import HfArgumentParser

from hf_internimage.training.classification.evaluate_checkpoint import EvaluationArguments
from hf_internimage.training.command_line import DEFAULTS
from hf_internimage_cli.main import build_parser, main
from hf_internimage_cli.names import TASKS
from hf_internimage_cli.recipes import find_recipe, list_recipes
from hf_internimage_cli.settings import option_values, setting_names


def task_module(task):
    return importlib.import_module(f"hf_internimage.training.{task}.main")


def task_parser(task):
    """Return the full parser of a task, with its defaults, as `parse` makes it."""
    module = task_module(task)
    parser = HfArgumentParser([group.type for group in fields(module.ScriptArguments)])
    parser.set_defaults(**{**DEFAULTS, **module.DEFAULTS})
    return parser


def usual_parser(task):
    commands = next(action for action in build_parser()._actions if action.choices)
    tasks = next(action for action in commands.choices["train"]._actions if action.choices)
    return tasks.choices[task]


@pytest.mark.parametrize("task", TASKS)
def test_usual_options_are_the_tasks(task):
    """Their names, types, choices and the defaults in their help."""
    full = {action.dest: action for action in task_parser(task)._actions}
    usual = [action for action in usual_parser(task)._actions if action.dest not in ("help", "help_all", "recipe")]
    assert 10 <= len(usual) <= 18
    of_recipes = {name for path in (RECIPE_FOLDER / task).glob("*.yaml") for name in yaml.safe_load(path.read_text())}
    for action in usual:
        shown = re.search(r"\(default(?: without a recipe)?: (.*)\)$", action.help)
        default = full[action.dest].default
        if shown is None:
            assert default in (None, False), action.dest
        else:
            assert (action.type or str)(shown.group(1)) == default, action.dest
            assert ("without a recipe" in action.help) == (action.dest in of_recipes), action.dest


@pytest.mark.parametrize("task", TASKS)
def test_names_of_all_settings(task):
    """Those in the sources are those of the parser; a classifier's evaluation has further ones, which no other has."""
    known = {action.dest for action in task_parser(task)._actions} - {"help"}
    negations = {name for name in known if name.startswith("no_") and name[3:] in known}
    further = {field.name for field in fields(EvaluationArguments)} if task == "classification" else set()
    assert setting_names(task) >= known - negations
    assert setting_names(task) <= known
    assert setting_names(task, evaluates=True) == setting_names(task) | further


def test_values_of_options():
    assert option_values(["--a", "1", "--b=2", "--c-d", "--e", "x", "y"]) == {"a": "1", "b": "2", "c_d": "", "e": "x"}


# ---- Recipes ----


@pytest.mark.parametrize("task", TASKS)
def test_recipes_have_a_name_and_a_line(task):
    recipes = dict(list_recipes(task))
    assert sorted(recipes) == sorted(path.stem for path in (RECIPE_FOLDER / task).glob("*.yaml"))
    assert next(iter(recipes)) == "finetune"
    for name, line in recipes.items():
        assert find_recipe(task, name) == RECIPE_FOLDER / task / f"{name}.yaml"
        assert re.match(r"[A-Z].*[^.]\.$", line), line
        assert len(line) <= 80, line  # a line of the terminal, beside the name
        text = (RECIPE_FOLDER / task / f"{name}.yaml").read_text()
        assert "scripts/" not in text  # they are not in a wheel
        for module in re.findall(r"python -m (hf_internimage[.\w]+)", text):
            assert importlib.util.find_spec(module), module


# ---- Handing on ----


@pytest.fixture
def handed_on(monkeypatch):
    """What each task's main function is called with; it returns 5."""
    calls = []
    for task in TASKS:
        monkeypatch.setattr(task_module(task), "main", lambda argv, task=task: calls.append((task, argv)) or 5)
    return calls


def test_the_task_gets_recipes_then_files_then_options(handed_on, tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("learning_rate: 1.0e-3\n")
    options = ["--train_dir", str(tmp_path), "--adam-beta1=0.8", "--image_size=64"]
    argv = [str(settings), "--recipe", "finetune", *options, "--recipe=few_images"]
    assert main(["train", "classification", *argv]) == 5
    recipes = [str(RECIPE_FOLDER / "classification" / f"{name}.yaml") for name in ("finetune", "few_images")]
    assert handed_on == [("classification", [*recipes, str(settings), *options])]


@pytest.mark.parametrize("task", TASKS)
def test_help_all_is_the_tasks(task, capsys):
    assert main(["train", task, "--help_all"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: hf-internimage train {task} [SETTINGS.yaml ...] [options]")
    assert "--adam_beta1" in printed
    assert "--adam-beta1" not in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--config_overrides", '{"depths": [1]}'], ["--model_type=convnext"], ["--do_eval"],
        ["--size=t", "--num_train_epochs=0", "--max_steps=2"], ["--size", "b", "--bf16"],
        ["--size=t", "--no_logging_nan_inf_filter"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_the_task_may_accept_is_handed_on(options, handed_on, tmp_path):
    assert main(["train", "classification", f"--train_dir={tmp_path}", *options]) == 5
    assert handed_on == [("classification", [f"--train_dir={tmp_path}", *options])]
