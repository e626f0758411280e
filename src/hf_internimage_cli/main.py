# SPDX-License-Identifier: MIT
"""Run the command line `hf-internimage`, which is the same as `python -m hf_internimage`.

Each command is a module of this package with `HELP`, `add_arguments(parser)` and `run(args) -> exit status`, and
perhaps `INTERRUPTED`, what to say after Ctrl-C.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .library import LIBRARY, source_folder
from .usage import Parser, UsageError

PROGRAM = "hf-internimage"
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "app",
    "convert",
    "export",
    "push",
    "models",
    "env",
    "benchmark",
    "reproduce",
)
# Errors with a message for the user. Those of other packages by their names, since their classes would import torch.
_EXPECTED = (OSError, ValueError)
_EXPECTED_NAMES = {"BackendError", "OutOfMemoryError", "PushError", "SafetensorError"}
_EXTRAS = {
    "gradio": "app",
    "kernels": "hub-kernel",
    "torchvision": "torchvision",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"), "export"),
}  # package -> what installs it, if it is not train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name) or the process's arguments ask for.

    Returns:
        The exit status: 0; 1 after one line `error: ...` for a failure, 2 for wrong arguments, and 130 for Ctrl-C.
    """
    try:
        args = build_parser().parse_args(argv)
        return run_command(args.module, args)
    except SystemExit as end:  # argparse has shown help or an error
        return end.code if isinstance(end.code, int) else 0


def build_parser() -> Parser:
    """Return the parser of all commands; a parsed command line has the command's module as `module`."""
    parser = Parser(
        prog=PROGRAM,
        description="Train, evaluate and use InternImage models of Hugging Face transformers.",
        epilog=f"`{PROGRAM} COMMAND --help` shows the options of a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in COMMANDS:
        if find_spec(f"{__package__}.{name}") is None:
            continue
        module = import_module(f"{__package__}.{name}")
        description = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        command = commands.add_parser(name, help=module.HELP, description=description)
        command.set_defaults(module=module, prog=command.prog)
        module.add_arguments(command)
    return parser


class _Version(argparse.Action):
    """Show the version, which is read in the sources, since importing the library takes seconds."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        text = (source_folder(LIBRARY) / "__init__.py").read_text(encoding="utf-8")
        version = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
        print(f"{PROGRAM} {version and version.group(1)}")
        parser.exit()


def run_command(module: ModuleType, args: argparse.Namespace) -> int:
    """Run a command; return its exit status, after one line on stderr for an error that the user can mend."""
    try:
        status = int(module.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        return 0
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted{getattr(module, 'INTERRUPTED', '')}.\n")
        return 130
    except UsageError as error:
        sys.stderr.write(f"{args.prog}: error: {_one_line(error)}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f"error: {_missing_package(error)}\n")
        return 1
    except Exception as error:
        if not isinstance(error, _EXPECTED) and not _EXPECTED_NAMES & {kind.__name__ for kind in type(error).__mro__}:
            raise
        sys.stderr.write(f"error: {_one_line(error)}\n")
        return 1


def _one_line(error: Exception) -> str:
    """Return the message of an error without line breaks, and without access tokens of the Hub."""
    text = " ".join(str(error).split()) or type(error).__name__
    tokens = sys.modules.get("hf_internimage.hub.tokens")  # where no command needed the Hub, there is no token
    return text if tokens is None else tokens.without_tokens(text)


def _missing_package(error: ImportError) -> str:
    """Return one line that names the package whose import failed, and the command that installs it."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    package = (name or "").partition(".")[0]
    if package not in ("", "hf_internimage"):
        return f'{name} is missing: pip install "hf-internimage[{_EXTRAS.get(package, "train")}]"'
    return _one_line(error)


__all__ = ["COMMANDS", "PROGRAM", "build_parser", "main", "run_command"]
