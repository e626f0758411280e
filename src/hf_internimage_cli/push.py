# SPDX-License-Identifier: MIT
"""`hf-internimage push`: upload a model to the Hugging Face Hub."""

import argparse
import re
from pathlib import Path

from .settings import check_model_name, check_new_folder
from .usage import UsageError

HELP = "upload a classifier, segmenter, detector or backbone to the Hugging Face Hub, with its card"
INTERRUPTED = "; the same command starts again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the repository and the options."""
    parser.epilog = f"""The token is that of `hf auth login`, or HF_TOKEN. An image processor in the model's
folder is uploaded, too, and a README.md there is the model's card, unless --result or
--license ask for a new one. Classifiers, DINO and backbones get their source files, too,
and work without this package; heads of transformers need it.

examples:
  {parser.prog} out my-internimage --private
  {parser.prog} out my-internimage --result evaluation/eval_evaluation.json --license mit
  {parser.prog} out my-internimage --dry_run --output_dir repository"""
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or the name of one on the Hub")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository to push to: name, or owner/name")
    repository = parser.add_argument_group("repository")
    private_help = "make a private repository; refuse one that is public"
    repository.add_argument("--private", action="store_true", help=private_help)
    branch_help = "branch to push to; made if there is none of this name"
    repository.add_argument("--revision", metavar="BRANCH", help=branch_help)
    repository.add_argument("--create_pr", action="store_true", help="open a pull request")
    card = parser.add_argument_group("model card")
    result_help = "result of `hf-internimage evaluate` (JSON) for a card with its numbers"
    card.add_argument("--result", type=Path, metavar="FILE", help=result_help)
    card.add_argument("--license", metavar="ID", help="licence of the weights: mit, apache-2.0, ...")
    base_help = "what it was fine-tuned from, for the card of --result"
    card.add_argument("--base_model", metavar="REPO_ID", help=base_help)
    output = parser.add_argument_group("output")
    output.add_argument("--dry_run", action="store_true", help="only write the files, into --output_dir")
    output.add_argument("--output_dir", type=Path, metavar="DIR", help="folder to write the files into, and keep them")


def run(args: argparse.Namespace) -> int:
    """Push, or write the files of the repository only; print where they are."""
    if args.dry_run and args.output_dir is None:
        raise UsageError("--dry_run needs --output_dir DIR.")
    if args.base_model and not args.result:
        raise UsageError("--base_model needs --result FILE.")
    check_model_name(args.model)
    _check_repository_name(args.repo_id)
    if args.dry_run:
        check_new_folder(args.output_dir, "--output_dir")
    from transformers.utils import logging

    from hf_internimage.hub.upload import upload

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    commit = upload(
        args.model,
        args.repo_id,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        result=args.result,
        license=args.license,
        base_model=args.base_model,
        dry_run=args.dry_run,
        folder=args.output_dir,
    )
    print(f"written to {args.output_dir}" if commit is None else f"pushed: {commit.pr_url or commit.commit_url}")
    return 0


def _check_repository_name(name: str) -> None:
    """Raise UsageError for a name that the Hub does not take."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    if not re.fullmatch(f"(?:{part}/)?{part}", name) or re.search(r"--|\.\.|\.git$", name):
        raise UsageError(
            f"REPO_ID {name!r} is no name for a repository; give NAME or OWNER/NAME of letters, digits, -, _ and ."
        )
