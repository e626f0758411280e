# SPDX-License-Identifier: MIT
"""`hf-internimage env`: print versions and available backends."""

import argparse
import sys

HELP = "print versions, devices and the backends of the operator, for bug reports"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print what this machine has."""
    from hf_internimage.env import describe

    sys.stdout.write(describe() + "\n")
    return 0
