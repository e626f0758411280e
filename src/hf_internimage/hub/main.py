# SPDX-License-Identifier: MIT
"""Run the command line of scripts/push_to_hub.py.

It takes everything that `from_pretrained` takes, and the checkpoint folders of a Trainer. An image processor in the
model's folder is pushed too. A README.md there becomes the model card, unless --result or --license ask for a new one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..models import auto
from . import repository
from .cards import evaluated_card
from .tokens import without_tokens

_PREPROCESSOR = "preprocessor_config.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="push_to_hub.py",
        description="Push an InternImage model to the Hugging Face Hub, with the token of `hf auth login` or HF_TOKEN.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or the name of one on the Hub")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository to push to: name, or owner/name")
    parser.add_argument("--private", action="store_true", help="make a private repository; refuse one that is public")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; made if there is none of this name")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--dry-run", action="store_true", help="only write the files, into --output-dir")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="folder to write the files into, and keep them")
    parser.add_argument(
        "--result",
        type=Path,
        metavar="FILE",
        help="result of scripts/evaluate.py (JSON) for a model card with its numbers",
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights for the model card: mit, apache-2.0, ..."
    )
    parser.add_argument("--base-model", metavar="REPO_ID", help="what it was fine-tuned from, for the card of --result")
    return parser


def _check_folder(name: str) -> None:
    """Check that a name is not that of a file, nor of a folder without a model.

    Raises: ValueError that says which folder to give instead.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"{name} is a file; give the folder it lies in.")
    if not path.is_dir() or (path / "config.json").exists():
        return
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in path.glob("checkpoint-*")}
    checkpoints = [folder for folder, step in steps.items() if step.isdigit()]
    hint = "give the folder of a saved model"
    if checkpoints:
        hint = f"give one of the checkpoints in it, such as {max(checkpoints, key=lambda folder: int(steps[folder]))}"
    raise ValueError(f"{name} has no config.json; {hint}.")


def _load_model(name: str) -> PreTrainedModel:
    """Load a classifier, a backbone or a model without a head.

    Raises: ValueError for another type of model, and for weights that lack tensors.
    """
    fields = PreTrainedConfig.get_config_dict(name)[0]
    model_type = fields.get("model_type")
    if model_type not in auto.model_types("AutoModelForImageClassification"):
        raise ValueError(
            f"{name} is a model of type {model_type!r}; give a classifier or backbone. "
            "Detectors: hf_internimage.hub.push; heads of transformers: their own push_to_hub."
        )
    # Official configurations name the class without a head, although their weights have one: try the classifier first.
    backbone = auto.model_class(model_type, "AutoBackbone")
    is_backbone = fields.get("architectures") == [backbone.__name__]
    others = [auto.model_class(model_type, name) for name in ("AutoModelForImageClassification", "AutoModel")]
    for model_class in [backbone] if is_backbone else others:
        model, info = model_class.from_pretrained(name, output_loading_info=True)
        if not info["missing_keys"]:
            return model
    missing = sorted(info["missing_keys"])
    raise ValueError(f"{name} has no weights for {len(missing)} tensors (such as {missing[0]}); give a complete model.")


def _load_processor(name: str) -> BaseImageProcessor | None:
    """Load the image processor of the model's folder or repository; return None if it has none."""
    if Path(name).is_dir():
        if not Path(name, _PREPROCESSOR).exists():
            return None
    else:
        try:
            hf_hub_download(name, _PREPROCESSOR)
        except EntryNotFoundError:
            return None
    return AutoImageProcessor.from_pretrained(name)


def _make_card(args: argparse.Namespace, model: PreTrainedModel) -> ModelCard | str | None:
    """Return a new card if --result or --license ask for one, else the card in the model's folder, else None."""
    if args.result:
        if not isinstance(model, auto.model_class(model.config.model_type, "AutoModelForImageClassification")):
            raise ValueError(f"--result is for classifiers, and {args.model} has no head; leave it out.")
        try:
            result = json.loads(args.result.read_text(encoding="utf-8"))
            return evaluated_card(result, model_id=args.repo_id, base_model=args.base_model, license=args.license)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{args.result}: {error}") from error
    if args.license:
        return repository.short_card(model, args.repo_id, license=args.license)
    path = Path(args.model, "README.md")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 (130 for Ctrl-C) after one sentence on stderr.

    Wrong arguments exit with 2.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.dry_run and args.output_dir is None:
        parser.error("--dry-run needs --output-dir")
    if args.base_model and not args.result:
        parser.error("--base-model needs --result")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        _check_folder(args.model)
        model, processor = _load_model(args.model), _load_processor(args.model)
        card = _make_card(args, model)
        if args.dry_run:
            repository.save_for_hub(model, args.output_dir, image_processor=processor, card=card)
            print(f"written to {args.output_dir}")
            return 0
        commit = repository.push(
            model,
            args.repo_id,
            image_processor=processor,
            card=card,
            private=args.private or None,
            revision=args.revision,
            create_pr=args.create_pr,
            folder=args.output_dir,
        )
    except RecursionError:
        print(f"push_to_hub.py: error: {args.model} has JSON that is nested too deeply.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("push_to_hub.py: interrupted; the same command starts again.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        print("push_to_hub.py: error:", without_tokens(" ".join(str(error).split())), file=sys.stderr)
        return 1
    print(f"pushed: {commit.pr_url or commit.commit_url}")
    return 0


__all__ = ["main"]
