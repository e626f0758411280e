# SPDX-License-Identifier: MIT
"""Parse command lines: a parser with errors of one line, types of arguments, and the error of a wrong use."""

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn


class UsageError(Exception):
    """A mistake of the caller that a command finds before it does any work. Shown as one line; the exit status is 2."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of each option, and descriptions and epilogs as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with the closest name there is.

    Options are called as settings are, with underscores, and also taken with hyphens. `--output` is also taken for
    `--output_dir`.

    Attributes:
        forwards: set it for a parser of the usual options of a command whose full parser needs torch. A parsed command
            line then has all its arguments as `argv`, those that belong to no usual option as `rest`, and the names of
            the usual options as `usual`.
    """

    forwards = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = None if args is None else self._with_known_names(args)
        parsed, rest = super().parse_known_args(args, namespace)
        options = [name for name in self._option_string_actions if name.startswith("--")]
        if self.forwards:
            parsed.argv, parsed.rest, parsed.usual, rest = args, rest, options, []
        elif rest:  # here and not in the parser of all commands, which does not know this one's options
            name = rest[0].partition("=")[0]
            guess = did_you_mean(name.replace("-", "_"), options) if name.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{guess and f'; {guess}'}")
        return parsed, rest

    def _with_known_names(self, args: Sequence[str]) -> list[str]:
        """Return the arguments with the known spelling of each option."""
        known, changed = self._option_string_actions, []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name.startswith("--") and name not in known:
                spellings = ["--" + name[2:].replace("-", "_"), "--" + name[2:].replace("_", "-")]
                spellings += ["--output_dir"] if name == "--output" else []
                name = next((spelling for spelling in spellings if spelling in known), name)
            changed.append(name + equals + value)
        return changed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        hint = did_you_mean(str(value), choices) or f"expected one of {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}, {hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question for the one of `names` that is closest to a mistyped name; an empty text if none is close."""
    close = get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]}?" if close else ""


def require_package(name: str) -> None:
    """Raise ModuleNotFoundError if a package is not installed, before anything slow is imported or loaded."""
    if find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def positive_integer(text: str) -> int:
    """Return the number that an argument names; argparse shows the error for another one than 1, 2, 3, ..."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def positive_number(text: str) -> float:
    """Return the finite number above 0 that an argument names; argparse shows the error for another one."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def boolean(text: str) -> bool:
    """Return what an argument such as true or no means; argparse shows the error for another word."""
    words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    words |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def existing_path(text: str) -> Path:
    """Return the path that an argument names; argparse shows the error if there is nothing."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def existing_folder(text: str) -> Path:
    """Return the folder that an argument names; argparse shows the error if it is none."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


__all__ = [
    "HelpFormatter",
    "Parser",
    "UsageError",
    "boolean",
    "did_you_mean",
    "existing_folder",
    "existing_path",
    "positive_integer",
    "positive_number",
    "require_package",
]
