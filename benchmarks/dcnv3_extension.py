# SPDX-License-Identifier: MIT
"""Measure InternImage's own `ops_dcnv3` on the stand-in of hf-internimage-compat against its PyTorch form.

    pip install hf-internimage-compat "setuptools<81"
    python benchmarks/dcnv3_extension.py InternImage/classification/ops_dcnv3

The argument is the folder of a checkout of OpenGVLab/InternImage. Both forms compute the same layers of InternImage-T
in turn, in float32 on the CPU; the table has the median of their times in milliseconds.
"""

import argparse
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

_SIDES_AND_GROUPS = {"stage 1": (56, 4), "stage 2": (28, 8), "stage 3": (14, 16), "stage 4": (7, 32)}  # at 224
_GROUP_CHANNELS = 16


def _inputs(side: int, groups: int, batch: int) -> list[torch.Tensor]:
    """Return input, offset and mask."""
    channels = groups * _GROUP_CHANNELS
    input, offset = torch.randn(batch, side, side, channels), torch.randn(batch, side, side, groups * 18)
    mask = torch.rand(batch, side, side, groups, 9).softmax(-1).flatten(3)
    return [tensor.requires_grad_() for tensor in (input, offset, mask)]


def _forward(form: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return form()


def _forward_and_backward(form: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    output = form()
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


def _milliseconds(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median time of each call; they take turns, for `seconds` after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = None
    while end is None or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if end is not None:
                times[name].append(1000 * (time.perf_counter() - start))
        end = end or time.perf_counter() + seconds
    return {name: statistics.median(values) for name, values in times.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print a table of the layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="ops_dcnv3 of a checkout of OpenGVLab/InternImage")
    parser.add_argument("--batch", type=int, default=1, help="images; 1 if not given")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table; 1 if not given")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(options.folder.resolve().parent))
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*torch.cuda.amp.custom_", category=FutureWarning)
    theirs = importlib.import_module(f"{options.folder.resolve().name}.functions")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}")
    print("| Layer | Pass | Stand-in, ms | PyTorch form, ms | Ratio |\n| --- | --- | --- | --- | --- |")
    torch.manual_seed(0)
    for name, (side, groups) in _SIDES_AND_GROUPS.items():
        leaves = _inputs(side, groups, options.batch)
        geometry = (3, 3, 1, 1, 1, 1, 1, 1, groups, _GROUP_CHANNELS, 1.0)
        forms: dict[str, Callable[[], torch.Tensor]] = {
            "stand-in": partial(theirs.DCNv3Function.apply, *leaves, *geometry, 256, 0),
            "PyTorch": partial(theirs.dcnv3_core_pytorch, *leaves, *geometry, 0),
        }
        torch.testing.assert_close(*(form() for form in forms.values()), rtol=1e-4, atol=1e-4)
        forwards = {key: partial(_forward, form) for key, form in forms.items()}
        steps = {key: partial(_forward_and_backward, form, leaves) for key, form in forms.items()}
        for what, calls in (("forward", forwards), ("forward and backward", steps)):
            found = _milliseconds(calls, options.seconds)
            ours, other = found["stand-in"], found["PyTorch"]
            print(f"| {name} | {what} | {ours:.2f} | {other:.2f} | {other / ours:.1f} |")


if __name__ == "__main__":
    main()
