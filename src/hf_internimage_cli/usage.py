# SPDX-License-Identifier: MIT
"""Parse command lines: a parser with errors of one line, types of arguments, and the error of a wrong use."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
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
    """A parser whose errors are one line, and which takes `--image-size` and `--image_size` for the same option.

    Attributes:
        forwards: set it for a parser of the usual options of a command whose full parser needs torch. A parsed command
            line then has all its arguments as `argv`, and those that belong to no usual option as `rest`.
    """

    forwards = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = None if args is None else self._with_known_names(args)
        parsed, rest = super().parse_known_args(args, namespace)
        if self.forwards:
            parsed.argv, parsed.rest, rest = args, rest, []
        return parsed, rest

    def _with_known_names(self, args: Sequence[str]) -> list[str]:
        """Return the arguments with each unknown option replaced that is known with the other separator of words."""
        known, changed = self._option_string_actions, []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name.startswith("--") and name not in known:
                spellings = ("--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_"))
                name = next((spelling for spelling in spellings if spelling in known), name)
            changed.append(name + equals + value)
        return changed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        close = get_close_matches(str(value), map(str, action.choices), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(map(str, action.choices))}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}, {hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


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
    "existing_folder",
    "existing_path",
    "positive_integer",
    "positive_number",
]
