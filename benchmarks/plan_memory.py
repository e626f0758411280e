# SPDX-License-Identifier: MIT
"""Compute the memory that a GPU needs to train an InternImage, from shapes alone: no GPU and no weights are needed.

    python benchmarks/plan_memory.py                                              # H at 640 and G at 512
    python benchmarks/plan_memory.py --sizes h --image-size 384 --batch-size 16 --output plan.json

Activations are the tensors that PyTorch saves for the backward pass of one image, counted by saved-tensor hooks during
a training forward pass on the meta device. The operator saves its three inputs there, as it does on the GPU.
docs/scale.md says what the numbers include.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_internimage import InternImageConfig, InternImageForImageClassification
from hf_internimage.complexity import count_macs, count_parameters
from hf_internimage.models.configuration_internimage import SIZES

GIB = 2**30
PRECISIONS = {
    "mixed": "float32 weights under autocast to bfloat16",
    "bf16": "everything in bfloat16",
    "float32": "everything in float32",
}
_ALL = ("weights", "gradients", "optimizer", "average")
# Parts that each strategy divides among the GPUs; every GPU holds all of the others. ZeRO is DeepSpeed's.
STRATEGIES: dict[str, tuple[str, ...]] = {
    "DDP": (),
    "ZeRO-1": ("optimizer",),
    "ZeRO-2": ("gradients", "optimizer"),
    "ZeRO-3": _ALL,
    "FSDP": _ALL,
}
_RESERVED = 0.1  # share of a GPU's memory for CUDA itself, fragments, work space of cuDNN and NCCL
# Functions that autocast runs in bfloat16, and in float32.
_LOWERED = (F.linear, torch.conv2d, F.scaled_dot_product_attention)
_RAISED = (F.layer_norm, F.cross_entropy, torch.addcmul)


@dataclass(frozen=True)
class Activations:
    """Bytes that a training step keeps for the backward pass of one image.

    Attributes:
        everything: without gradient checkpointing.
        kept: with gradient checkpointing: the input of every block, and everything that is saved outside of blocks.
        recomputed: with gradient checkpointing: what the largest block adds during its own backward pass.
        copies: bfloat16 copies of the weights under autocast; they do not grow with the images.
    """

    everything: int
    kept: int
    recomputed: int
    copies: int


class GpuPath(TorchDispatchMode):
    """Make operator and layers save what they save on GPUs: under a dispatch mode, the CPU's fused layers are off."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """Autocast InternImage's operators as on CUDA; the meta device has no autocast of its own.

    Source: PyTorch's list of CUDA operators that autocast to lower precision, to float32, or to the widest type.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = torch.bfloat16 if function in _LOWERED else torch.float32 if function in _RAISED else None
        if dtype is not None:
            args = tuple(_cast(value, dtype) for value in args)
            kwargs = {name: _cast(value, dtype) for name, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class SavedTensors:
    """Count the memory that a forward pass saves for the backward pass: each storage once, without the parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.block: nn.Module | None = None
        self.skipped = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        self.saved: dict[int, tuple[torch.UntypedStorage, nn.Module | None]] = {}
        self.inputs: dict[int, torch.UntypedStorage] = {}

    @contextlib.contextmanager
    def counting(self) -> Any:
        """Count everything that the model's forward pass saves inside this context."""
        blocks = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        hooks = [block.register_forward_pre_hook(self._enter) for block in blocks]
        hooks += [block.register_forward_hook(self._leave) for block in blocks]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, block: nn.Module, args: Any) -> None:
        self.block = block
        storage = args[0].untyped_storage()
        self.inputs[storage._cdata] = storage

    def _leave(self, *_: Any) -> None:
        self.block = None

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a saved tensor, and return it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.skipped:
            # the storage is kept alive, or another one could get its address
            self.saved.setdefault(storage._cdata, (storage, self.block))
        return tensor

    def everything(self) -> int:
        """Return the bytes saved without gradient checkpointing."""
        return sum(storage.nbytes() for storage, _ in self.saved.values())

    def kept(self) -> int:
        """Return the bytes saved with gradient checkpointing of every block."""
        outside = {key: storage for key, (storage, block) in self.saved.items() if block is None}
        return sum(storage.nbytes() for storage in {**outside, **self.inputs}.values())

    def recomputed(self) -> list[int]:
        """Return the bytes that each block saves without its input, in the order of the blocks."""
        blocks: dict[nn.Module, int] = {}
        for key, (storage, block) in self.saved.items():
            if block is not None:
                blocks[block] = blocks.get(block, 0) + (0 if key in self.inputs else storage.nbytes())
        return list(blocks.values())


def save_forward(
    config: InternImageConfig, image_size: tuple[int, int], batch: int, precision: str, device: str = "meta"
) -> SavedTensors:
    """Run a training forward pass with its loss and return what it saves, for images of (height, width) pixels.

    `device` may be a real one, for comparison; on a GPU, "mixed" is autocast itself.
    """
    with torch.device(device):
        model = InternImageForImageClassification(config).train()
        if precision == "bf16":
            model = model.to(torch.bfloat16)
        pixels = torch.zeros((batch, config.num_channels, *image_size), dtype=model.dtype)
        labels = torch.zeros(batch, dtype=torch.long)
    saved = SavedTensors(model)
    autocast: Any = contextlib.nullcontext()
    if precision == "mixed":
        autocast = torch.autocast("cuda", torch.bfloat16) if pixels.is_cuda else _Autocast()
    with GpuPath(), autocast, saved.counting():
        model(pixels, labels=labels)
    return saved


def activations(config: InternImageConfig, image_size: tuple[int, int], precision: str) -> Activations:
    """Return the bytes for one image: the difference between two images and one. The rest is copies of weights."""
    one, two = (save_forward(config, image_size, batch, precision) for batch in (1, 2))
    per_image = two.everything() - one.everything()
    return Activations(
        everything=per_image,
        kept=two.kept() - one.kept(),
        recomputed=max(more - less for less, more in zip(one.recomputed(), two.recomputed(), strict=True)),
        copies=one.everything() - per_image,
    )


def largest_unit(config: InternImageConfig) -> int:
    """Return the parameters of the largest part that FSDP gathers at once: block, downsampling layer, or the rest."""
    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    names = set(model._no_split_modules or ())
    units = [count_parameters(module) for module in model.modules() if type(module).__name__ in names]
    return max(*units, count_parameters(model) - sum(units))


def state_bytes(
    parameters: int, precision: str, strategy: str, gpus: int, *, unit: int, copies: int, average: bool
) -> dict[str, int]:
    """Return the bytes that one of `gpus` GPUs holds beside activations, by purpose.

    AdamW keeps two numbers for each parameter. In "mixed", torch's strategies (DDP, FSDP) train float32 weights under
    autocast; DeepSpeed's (ZeRO) have bfloat16 weights and gradients, and float32 weights within the optimizer. ZeRO-3
    has no average of the weights, because no process holds all weights.

    Args:
        parameters: parameters of the model.
        unit: parameters that FSDP gathers at once.
        copies: bytes of the weights' copies under autocast.
        average: train with the moving average of the weights.

    Raises:
        ValueError: for ZeRO without float32 weights.
    """
    if strategy.startswith("ZeRO") and precision != "mixed":
        raise ValueError(f"{strategy} with precision {precision!r} is not planned for; choose 'mixed'.")
    if precision == "mixed":
        each = {"weights": 4, "gradients": 4, "optimizer": 8}
        if strategy.startswith("ZeRO"):
            each = {"weights": 2, "gradients": 2, "optimizer": 12}
    else:
        width = 2 if precision == "bf16" else 4
        each = {"weights": width, "gradients": width, "optimizer": 2 * width}
    if average and strategy != "ZeRO-3":
        each["average"] = 4  # float32: a ten-thousandth of a weight would be lost in bfloat16
    sharded = STRATEGIES[strategy]
    held = {name: parameters * count // (gpus if name in sharded else 1) for name, count in each.items()}
    if strategy == "DDP" and gpus > 1:
        held["buckets"] = held["gradients"]  # unless gradient_as_bucket_view
    if strategy == "DDP" and precision == "mixed":
        held["copies"] = copies
    if "weights" in sharded and gpus > 1:
        # the weights of this unit and of the next, and the gradients of one
        held["gathered"] = 3 * unit * (4 if precision == "float32" else 2)
    return held


def plan(
    size: str,
    image_size: tuple[int, int],
    *,
    precisions: Sequence[str],
    gpus: Sequence[int],
    capacity: float,
    average: bool,
) -> dict[str, Any]:
    """Return the plan for one size: parameters, MACs, activations, and the rows of the table; memory in bytes."""
    config = InternImageConfig.from_size(size)
    parameters, unit = count_parameters(config), largest_unit(config)
    # DeepSpeed's mixed precision has bfloat16 activations
    activation_types = dict.fromkeys([*precisions, *(["bf16"] if "mixed" in precisions else [])])
    counted = {precision: activations(config, image_size, precision) for precision in activation_types}
    rows = []
    for precision in precisions:
        for strategy in STRATEGIES:
            zero = strategy.startswith("ZeRO")
            if zero and precision != "mixed":
                continue
            image = counted["bf16" if zero else precision]
            for count in gpus:
                held = state_bytes(
                    parameters, precision, strategy, count, unit=unit, copies=image.copies, average=average
                )
                free = capacity * GIB * (1 - _RESERVED) - sum(held.values())
                rows.append(
                    {
                        "precision": precision,
                        "strategy": strategy,
                        "gpus": count,
                        "state": held,
                        "state_total": sum(held.values()),
                        "image_with_checkpointing": image.kept + image.recomputed,
                        "image_without": image.everything,
                        "most_images_with_checkpointing": max(0, int(free // (image.kept + image.recomputed))),
                        "most_images_without": max(0, int(free // image.everything)),
                    }
                )
    return {
        "size": size,
        "image_size": list(image_size),
        "parameters": parameters,
        "macs": count_macs(config, image_size).total,
        "largest_unit": unit,
        "activations": {precision: asdict(image) for precision, image in counted.items()},
        "rows": rows,
    }


def to_markdown(table: dict[str, Any], capacity: float, batch: int | None) -> str:
    """Return two tables: activations of an image, and the memory of each GPU."""
    height, width = table["image_size"]
    lines = [
        f"### InternImage-{table['size'].upper()}, {height}x{width}",
        "",
        f"{table['parameters'] / 1e6:.1f} M parameters, {table['macs'] / 1e9:.1f} G multiply-accumulates an image.",
        "",
        "| Activations of one image, GiB | No checkpointing | Gradient checkpointing: kept | and recomputed | Sum |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for precision, image in table["activations"].items():
        kept, again = image["kept"] / GIB, image["recomputed"] / GIB
        lines.append(
            f"| {PRECISIONS[precision]} | {image['everything'] / GIB:.2f} | {kept:.2f} | {again:.2f} | "
            f"{kept + again:.2f} |"
        )
    counts = list(dict.fromkeys(row["gpus"] for row in table["rows"]))
    title = f"GiB a GPU, without activations (most images in {capacity:g} GiB with / without checkpointing)"
    if batch is not None:
        title = f"GiB a GPU with {batch} images (with / without checkpointing)"
    lines += ["", f"{title}:", "", "| Precision | Strategy | " + " | ".join(_gpus(count) for count in counts) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(counts))
    by_line: dict[tuple[str, str], list[str]] = {}
    for row in table["rows"]:
        by_line.setdefault((row["precision"], row["strategy"]), []).append(_cell(row, batch))
    lines += [f"| {precision} | {name} | " + " | ".join(cells) + " |" for (precision, name), cells in by_line.items()]
    return "\n".join(lines) + "\n"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _cell(row: dict[str, Any], batch: int | None) -> str:
    total = row["state_total"] / GIB
    if batch is None:
        return f"{total:.1f} ({row['most_images_with_checkpointing']} / {row['most_images_without']})"
    ways = (row["image_with_checkpointing"], row["image_without"])
    return " / ".join(f"{total + batch * image / GIB:.1f}" for image in ways)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["h", "g"], help="default: h g")
    parser.add_argument(
        "--image-size", type=_positive, metavar="PIXELS", help="default: the size each model was trained for"
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=["mixed", "bf16"], help="default: mixed bf16"
    )
    parser.add_argument(
        "--gpus",
        nargs="+",
        type=_positive,
        default=[1, 2, 4, 8, 16, 32],
        help="numbers of GPUs (default: 1 2 4 8 16 32)",
    )
    parser.add_argument("--capacity", type=float, default=80.0, metavar="GIB", help="memory of one GPU (default: 80)")
    parser.add_argument("--batch-size", type=_positive, help="show the sum for this number of images on a GPU")
    parser.add_argument("--no-average", action="store_true", help="train without the moving average of the weights")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers here, in bytes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 after one sentence on stderr.

    Wrong arguments exit with 2.
    """
    args = _parser().parse_args(argv)
    plans = []
    try:
        for size in args.sizes:
            side = args.image_size or SIZES[size]["image_size"]
            plans.append(
                plan(
                    size,
                    (side, side),
                    precisions=args.precisions,
                    gpus=args.gpus,
                    capacity=args.capacity,
                    average=not args.no_average,
                )
            )
            print(to_markdown(plans[-1], args.capacity, args.batch_size))
        if args.output:
            args.output.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print("plan_memory.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
