# SPDX-License-Identifier: MIT
"""`hf-internimage app`: try a model in the browser."""

import argparse
from pathlib import Path

from .settings import check_model_name
from .usage import UsageError, positive_integer, require_package

HELP = "try a model in the browser, and see where it samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the options."""
    parser.usage = f"{parser.prog} MODEL [options]"
    parser.epilog = f"""The application listens on this machine only, reads uploaded files only (20 MB, 40 million
pixels), and runs no code of a repository. Its page "Use via API" documents how programs call it.

examples:
  {parser.prog} out
  {parser.prog} out --compare OpenGVLab/internimage_t_1k_224
  {parser.prog} out --space my-space"""
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or a repository on the Hub")
    compare_help = "a second model, whose predictions are shown beside the first one's"
    parser.add_argument("--compare", metavar="MODEL", help=compare_help)
    parser.add_argument("--port", type=positive_integer, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda:1; default: the best there is")
    parser.add_argument("--open", action="store_true", help="open the browser")
    space_help = "write the repository of a Space on the Hugging Face Hub to this folder, and run nothing"
    parser.add_argument("--space", type=Path, metavar="DIR", help=space_help)


def run(args: argparse.Namespace) -> int:
    """Serve the application until Ctrl-C, or write a Space."""
    for name in (args.model, args.compare):
        if name is not None:
            check_model_name(name)
    if args.space is not None and args.compare is not None:
        raise UsageError("--space takes one model; leave out --compare.")
    if args.space is None:
        require_package("gradio")
    from hf_internimage import app

    if args.space is not None:
        print(f"written to {app.write_space(args.model, args.space)}: app.py, requirements.txt, README.md")
        return 0
    from transformers.utils import logging

    from hf_internimage.app.viewer import Viewer

    logging.disable_progress_bar()  # of loading the weights
    names = [name for name in (args.model, args.compare) if name is not None]
    app.serve([Viewer(name, device=args.device) for name in names], port=args.port, open_browser=args.open)
    return 0
