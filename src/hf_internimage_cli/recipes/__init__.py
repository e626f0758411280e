# SPDX-License-Identifier: MIT
"""Recipes of trainings: a folder of files of settings for each task, called by the name of the file."""

from pathlib import Path

from ..names import TASKS
from ..usage import UsageError, did_you_mean

_FOLDER = Path(__file__).parent
_FIRST = ("finetune", "few_images", "scratch")  # those for a user's own data


def list_recipes(task: str) -> list[tuple[str, str]]:
    """Return the name and the first line of each recipe of a task, those for data of one's own first."""
    paths = {path.stem: path for path in sorted((_FOLDER / task).glob("*.yaml"))}
    names = [name for name in _FIRST if name in paths]
    names += [name for name in paths if name not in _FIRST]
    return [(name, _first_line(paths[name])) for name in names]


def find_recipe(task: str, name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        UsageError: with the names there are, if the task has none of this name.
    """
    names = [known for known, _ in list_recipes(task)]
    if name in names:
        return _FOLDER / task / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        raise UsageError(f"--recipe {name} is a file of settings; give it first, without --recipe.")
    for other in TASKS:
        if other != task and (_FOLDER / other / f"{name}.yaml").is_file():
            raise UsageError(f"--recipe {name} is for {other}; the recipes for {task} are {', '.join(names)}.")
    guess = did_you_mean(name, names)
    raise UsageError(f"--recipe {name} is unknown{f'; {guess}' if guess else '.'} The recipes are {', '.join(names)}.")


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


__all__ = ["find_recipe", "list_recipes"]
