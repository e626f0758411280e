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

from hf_internimage.checkpoints.classifiers import CHECKPOINTS
from hf_internimage.checkpoints.systems import DENSE_CHECKPOINTS, DenseCheckpoint
from hf_internimage.hub.cards import REPORTED, evaluated_card, official_card
from hf_internimage.hub.system_cards import SYSTEM_TITLES, published_dense_card

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "model_cards"
MEASUREMENTS = ROOT / "benchmarks" / "results" / "systems_cpu.json"
INDEX = "README.md"
_INDEX = """\
# Model cards

One for each published checkpoint, made by `python scripts/make_model_cards.py` from the tables in
[checkpoints.py](../src/hf_internimage/checkpoints.py) and
[dense_checkpoints.py](../src/hf_internimage/dense_checkpoints.py), the measurements in
[systems_cpu.json](../benchmarks/results/systems_cpu.json), and the template
[model_card.md](../src/hf_internimage/data/model_card.md). Edit those, not the cards: a test compares.

The template is in the package because the cards of other models are made of it, too, from their own evaluation:
`hf_internimage.hub.cards.evaluated_card`, or `scripts/make_model_cards.py --evaluation FILE.json --model-id NAME`.

Parameters and multiply-accumulates (MACs, which the paper calls FLOPs) are counted by us. The accuracies are
{reported}.

## Image classification

| Card | Parameters | MACs | Image size | Classes | ImageNet-1K top-1, % |
| --- | ---: | ---: | ---: | ---: | ---: |
"""
_DENSE_INDEX = """
## Segmentation and detection

`scripts/convert_checkpoint.py` converts these files. Scores are in percent, single-scale first. Time and memory are
those of one image of 480x640 on the machine that systems_cpu.json names, with weights that have no meaning.

| Card | System | Data | Parameters | Reported | Seconds | Peak memory, GiB |
| --- | --- | --- | ---: | --- | ---: | ---: |
"""


def cards() -> dict[str, str]:
    """{file name: text} of everything in the folder of the published checkpoints' cards."""
    texts = {INDEX: _index(), **{f"{found.name}.md": str(official_card(found)) for found in CHECKPOINTS}}
    measured = _measurements()
    return texts | {
        f"{found.name}.md": str(published_dense_card(found, _measured(found, measured))) for found in convertible()
    }


def convertible() -> list[DenseCheckpoint]:
    """The segmentation and detection checkpoints this package has a model for."""
    return [found for found in DENSE_CHECKPOINTS if found.system in SYSTEM_TITLES]


def _measurements() -> list[dict[str, Any]]:
    result = json.loads(MEASUREMENTS.read_text(encoding="utf-8"))
    return [{**row, "device": result["device"], "dtype": result["dtype"]} for row in result["systems"]]


def _measured(checkpoint: DenseCheckpoint, measurements: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The measurement of this model, else of one of the same system, backbone and input, else None."""
    by_name = {row["name"]: row for row in measurements}
    if checkpoint.name in by_name:
        return by_name[checkpoint.name]
    alike = ("system", "size", "shortest_edge", "longest_edge", "size_divisor")
    for other in convertible():
        same = all(getattr(other, field) == getattr(checkpoint, field) for field in alike)
        if same and other.name in by_name and abs(other.parameters / checkpoint.parameters - 1) < 0.01:
            return by_name[other.name]
    return None


def _index() -> str:
    rows = []
    for found in CHECKPOINTS:
        top1 = "-" if found.top1 is None else f"{found.top1:.1f}"
        rows.append(
            f"| [{found.name}]({found.name}.md) | {found.parameters / 1e6:.1f} M | {found.macs / 1e9:.1f} G | "
            f"{found.image_size} | {found.num_labels} | {top1} |\n"
        )
    measurements = _measurements()
    dense = []
    for checkpoint in convertible():
        measured = _measured(checkpoint, measurements)
        scores = ", ".join(f"{score.metric} {score.value:g}" for score in checkpoint.scores) or "-"
        cost = "- | -" if measured is None else f"{measured['seconds']:.3g} | {measured['peak_memory_mib'] / 1024:.3g}"
        dense.append(
            f"| [{checkpoint.name}]({checkpoint.name}.md) | {SYSTEM_TITLES[checkpoint.system]}, "
            f"{checkpoint.size.upper()} | {checkpoint.dataset} | {checkpoint.parameters / 1e6:.1f} M | {scores} | "
            f"{cost} |\n"
        )
    return _INDEX.format(reported=REPORTED) + "".join(rows) + _DENSE_INDEX + "".join(dense)


def _stale(folder: Path) -> list[str]:
    """Names of files that differ from what the table gives, are missing, or do not belong there."""
    wanted = {name: text.encode() for name, text in cards().items()}
    found = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the published checkpoints' cards are")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a card is not up to date")
    own = parser.add_argument_group("card of one model")
    own.add_argument("--evaluation", type=Path, metavar="FILE.json", help="what the evaluation wrote")
    own.add_argument("--model-id", metavar="OWNER/NAME", help="repository the card is for")
    own.add_argument("--base-model", metavar="OWNER/NAME", help="checkpoint it was fine-tuned from")
    own.add_argument("--license", metavar="ID", help="SPDX identifier in lower case, such as mit")
    own.add_argument("--dataset", metavar="OWNER/NAME", help="data set on the Hub, if not the evaluation's")
    own.add_argument("--output", type=Path, metavar="FILE.md", help="where to write it (default: standard output)")
    return parser


def _write_own(args: argparse.Namespace) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 after one sentence on stderr; wrong arguments exit with 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.evaluation and not args.model_id:
        parser.error("--evaluation needs --model-id, the repository the card is for.")
    if args.model_id and not args.evaluation:
        parser.error("--model-id is for the card of one model: give its --evaluation, too.")
    try:
        if args.evaluation:
            _write_own(args)
            return 0
        stale = _stale(args.folder)
        if args.check:
            if stale:
                raise ValueError(f"Not up to date: {', '.join(stale)}; run python scripts/make_model_cards.py.")
            return 0
        args.folder.mkdir(parents=True, exist_ok=True)
        for name, text in cards().items():
            (args.folder / name).write_text(text, encoding="utf-8", newline="\n")
    except (ValueError, OSError) as error:
        print("make_model_cards.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"{len(CHECKPOINTS) + len(convertible())} cards, {len(stale)} files changed, in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
