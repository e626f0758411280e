# SPDX-License-Identifier: MIT
"""`hf-internimage benchmark`: measure the speed of a model on this machine."""

import argparse
import sys

from .names import BACKENDS, DTYPES, SIZES
from .settings import check_model_name
from .usage import positive_integer, positive_number

HELP = "measure milliseconds and images a second of a model on this machine"
_EPILOG = """\
examples:
  hf-internimage benchmark t
  hf-internimage benchmark b --batch_size 1 8 32 --dtype bfloat16 --backend cuda triton
  hf-internimage benchmark my-detector --image_size 800 1280 --compile --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the settings of the measurement."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "model",
        metavar="MODEL_OR_SIZE",
        help="folder or repository on the Hub; or t, s, b, l, xl, h or g for a classifier with random weights",
    )
    batch_help = "images at a time, one number or several (default: 1)"
    parser.add_argument("--batch_size", type=positive_integer, nargs="+", metavar="N", help=batch_help)
    parser.add_argument(
        "--image_size",
        type=positive_integer,
        nargs="+",
        metavar="N",
        help="side, or height and width, in pixels; if not given the classifier's own, and 512 for other models",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and images")
    parser.add_argument("--device", help="such as cpu or cuda:1; if not given the best there is")
    backend_help = f"of InternImage's operator: {', '.join(BACKENDS)}; several take turns; if not given the fastest"
    parser.add_argument("--backend", choices=BACKENDS, nargs="+", metavar="NAME", help=backend_help)
    parser.add_argument("--compile", action="store_true", help="measure the model compiled by torch.compile")
    parser.add_argument(
        "--seconds", type=positive_number, default=3.0, metavar="S", help="time to repeat each measurement"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from .usage import UsageError

    if args.image_size is not None and len(args.image_size) > 2:
        raise UsageError(f"--image_size has {len(args.image_size)} numbers; give one side, or height and width")
    if args.model.lower() not in SIZES:
        check_model_name(args.model)
    import json
    from dataclasses import asdict

    from hf_internimage.plain_text import text_table
    from hf_internimage.speed import load_model, measure_speed

    sizes = args.image_size
    speeds = list(
        measure_speed(
            load_model(args.model),
            batch_sizes=args.batch_size or (1,),
            image_size=None if sizes is None else (sizes[0], sizes[-1]),
            dtype=args.dtype,
            device=args.device,
            backends=args.backend or (None,),
            compile_model=args.compile,
            seconds=args.seconds,
        )
    )
    if args.json:
        sys.stdout.write(json.dumps([{"model": args.model, **asdict(speed)} for speed in speeds], indent=2) + "\n")
        return 0
    first = speeds[0]
    threads = "" if first.threads is None else f", {first.threads} thread{'s' if first.threads != 1 else ''}"
    height, width = first.image_size
    compiled = ", compiled" if first.compiled else ""
    sys.stdout.write(f"{args.model}, {height}x{width} pixels, {first.dtype}{compiled}, on {first.device}{threads}\n")
    columns = ["batch size", "backend", "milliseconds", "spread", "images/s", "peak memory"]
    rows = [
        (
            speed.batch_size,
            speed.backend or "-",
            f"{speed.milliseconds:.4g}",
            f"{100 * speed.spread:.0f} %",
            f"{speed.images_per_second:.4g}",
            "-" if speed.peak_memory_mib is None else f"{speed.peak_memory_mib:,.0f} MiB",
        )
        for speed in speeds
    ]
    sys.stdout.write(text_table(columns, rows, [name for name in columns if name != "backend"]) + "\n")
    return 0
