# SPDX-License-Identifier: MIT
"""Write the model cards of the published checkpoints, or that of one model from its own evaluation.

    python scripts/make_model_cards.py                # model_cards/, from the tables of checkpoints
    python scripts/make_model_cards.py --check        # write nothing; fail if a card is not what the table gives
    python scripts/make_model_cards.py --evaluation eval_results.json --model-id me/my-model --license mit \\
        --base-model OpenGVLab/internimage_t_1k_224 --output my-model/README.md
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.classifiers import CHECKPOINTS
from ..checkpoints.systems import SYSTEM_CHECKPOINTS, SystemCheckpoint
from .card_blocks import REPORTED
from .cards import evaluated_card, official_card
from .reproduced_scores import read_results
from .system_cards import SYSTEM_TITLES, published_system_card

INDEX = "README.md"
_MEASUREMENTS = Path("benchmarks", "results", "systems_cpu.json")
_REPRODUCTIONS = Path("benchmarks", "results", "reproduction")
_CLASSIFIER_INDEX = """\
# Model cards

One for each published checkpoint, made by `python scripts/make_model_cards.py` from the tables in
[classifiers.py](../src/hf_internimage/checkpoints/classifiers.py) and
[systems.py](../src/hf_internimage/checkpoints/systems.py), the measurements in
[systems_cpu.json](../benchmarks/results/systems_cpu.json), and the template
[model_card.md](../src/hf_internimage/hub/model_card.md). Edit those, not the cards: a test compares.

The template is in the package because the cards of other models are made from it, too, with their own evaluation:
`hf_internimage.hub.cards.evaluated_card`, or
`python scripts/make_model_cards.py --evaluation FILE.json --model-id NAME`.

Parameters and multiply-accumulates (MACs, which the paper calls FLOPs) are counted by us. The accuracies are
{reported}.

## Image classification

| Card | Parameters | MACs | Image size | Classes | ImageNet-1K top-1, % |
| --- | ---: | ---: | ---: | ---: | ---: |
"""
_SYSTEM_INDEX = """
## Segmentation and detection

`hf-internimage convert` converts these files. Scores are in percent, single-scale first. Time and memory are
those of one image of 480x640 on the machine that systems_cpu.json names, with random weights.

| Card | System | Data | Parameters | Reported | Seconds | Peak memory, GiB |
| --- | --- | --- | ---: | --- | ---: | ---: |
"""


def card_texts(checkout: Path) -> dict[str, str]:
    """Return {file name: text} of everything that belongs in model_cards/, the index included.

    Args:
        checkout: folder of the repository, whose measurements of systems and results of `hf-internimage reproduce`
            (benchmarks/results/reproduction/*.json) go into the cards.
    """
    measurements, reproduced = _read_measurements(checkout), read_results(checkout / _REPRODUCTIONS)
    texts = {
        f"{checkpoint.name}.md": str(official_card(checkpoint, reproduced.get(checkpoint.name, ())))
        for checkpoint in CHECKPOINTS
    }
    for checkpoint in system_checkpoints():
        measurement = measurement_of(checkpoint, measurements)
        card = published_system_card(checkpoint, measurement, reproduced.get(checkpoint.name, ()))
        texts[f"{checkpoint.name}.md"] = str(card)
    return {INDEX: _index(measurements), **texts}


def system_checkpoints() -> list[SystemCheckpoint]:
    """Return the segmentation and detection checkpoints that this package has a model for."""
    return [checkpoint for checkpoint in SYSTEM_CHECKPOINTS if checkpoint.system in SYSTEM_TITLES]


def measurement_of(checkpoint: SystemCheckpoint, measurements: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the measurement of this model, else of one of the same system, backbone and input, else None."""
    by_name = {row["name"]: row for row in measurements}
    if checkpoint.name in by_name:
        return by_name[checkpoint.name]
    same_fields = ("system", "size", "shortest_edge", "longest_edge", "size_divisor")
    for other in system_checkpoints():
        same = all(getattr(other, field) == getattr(checkpoint, field) for field in same_fields)
        if same and other.name in by_name and abs(other.parameters / checkpoint.parameters - 1) < 0.01:
            return by_name[other.name]
    return None


def _read_measurements(checkout: Path) -> list[dict[str, Any]]:
    result = json.loads((checkout / _MEASUREMENTS).read_text(encoding="utf-8"))
    return [{**row, "device": result["device"], "dtype": result["dtype"]} for row in result["systems"]]


def _index(measurements: Sequence[dict[str, Any]]) -> str:
    """Return the text of README.md: a table of the classifiers and a table of the systems."""
    classifiers = []
    for checkpoint in CHECKPOINTS:
        top1 = "-" if checkpoint.top1 is None else f"{checkpoint.top1:.1f}"
        classifiers.append(
            f"| [{checkpoint.name}]({checkpoint.name}.md) | {checkpoint.parameters / 1e6:.1f} M | "
            f"{checkpoint.macs / 1e9:.1f} G | {checkpoint.image_size} | {checkpoint.num_labels} | {top1} |\n"
        )
    systems = []
    for system in system_checkpoints():
        row = measurement_of(system, measurements)
        scores = ", ".join(f"{score.metric} {score.value:g}" for score in system.scores) or "-"
        cost = "- | -" if row is None else f"{row['seconds']:.3g} | {row['peak_memory_mib'] / 1024:.3g}"
        systems.append(
            f"| [{system.name}]({system.name}.md) | {SYSTEM_TITLES[system.system]}, {system.size.upper()} | "
            f"{system.dataset} | {system.parameters / 1e6:.1f} M | {scores} | {cost} |\n"
        )
    return _CLASSIFIER_INDEX.format(reported=REPORTED) + "".join(classifiers) + _SYSTEM_INDEX + "".join(systems)


def _outdated_files(folder: Path, texts: dict[str, str]) -> list[str]:
    """Return the names of files that differ from their text, are missing, or do not belong in the folder."""
    expected = {name: text.encode() for name, text in texts.items()}
    present = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    return sorted(name for name in {*expected, *present} if expected.get(name) != present.get(name))


def _parser(checkout: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=checkout / "model_cards", help="where the published checkpoints' cards are"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a card is not up to date")
    own = parser.add_argument_group("card of one model")
    own.add_argument("--evaluation", type=Path, metavar="FILE.json", help="what the evaluation wrote")
    own.add_argument("--model-id", metavar="OWNER/NAME", help="repository the card is for")
    own.add_argument("--base-model", metavar="OWNER/NAME", help="checkpoint it was fine-tuned from")
    own.add_argument("--license", metavar="ID", help="SPDX identifier in lower case, such as mit")
    own.add_argument("--dataset", metavar="OWNER/NAME", help="data set on the Hub, if not the evaluation's")
    own.add_argument("--output", type=Path, metavar="FILE.md", help="where to write it (default: standard output)")
    return parser


def _write_own_card(args: argparse.Namespace) -> None:
    """Write the card of one model from its evaluation, to --output or to standard output."""
    card = evaluated_card(
        json.loads(args.evaluation.read_text(encoding="utf-8")),
        model_id=args.model_id,
        base_model=args.base_model,
        license=args.license,
        dataset=args.dataset,
    )
    if args.output is None:
        print(card, end="")
    else:
        card.save(args.output)


def main(argv: Sequence[str] | None = None, *, checkout: Path) -> int:
    """Run the command line and return its exit status: 0, or 1 after one sentence on stderr.

    Wrong arguments exit with 2.

    Args:
        argv: arguments; those of the process if None.
        checkout: folder of the repository, which holds model_cards/ and the measurements.
    """
    parser = _parser(checkout)
    args = parser.parse_args(argv)
    if args.evaluation and not args.model_id:
        parser.error("--evaluation needs --model-id, the repository the card is for.")
    if args.model_id and not args.evaluation:
        parser.error("--model-id is for the card of one model: give its --evaluation, too.")
    try:
        if args.evaluation:
            _write_own_card(args)
            return 0
        texts = card_texts(checkout)
        outdated = _outdated_files(args.folder, texts)
        if args.check:
            if outdated:
                raise ValueError(f"Not up to date: {', '.join(outdated)}; run python scripts/make_model_cards.py.")
            return 0
        args.folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (args.folder / name).write_text(text, encoding="utf-8", newline="\n")
    except (ValueError, OSError, RecursionError) as error:
        print("make_model_cards.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"{len(texts) - 1} cards, {len(outdated)} files changed, in {args.folder}")
    return 0


__all__ = ["INDEX", "card_texts", "main", "measurement_of", "system_checkpoints"]
