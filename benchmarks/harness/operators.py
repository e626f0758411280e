# SPDX-License-Identifier: MIT
"""Measure the DCNv3 operator by itself: every implementation that runs here, at the shapes of InternImage's stages.

Times are compared with the baseline: DCNv3 written with `F.grid_sample`, like the original's PyTorch version. Inputs
are random, with offsets of about a pixel; the softmax over the mask is part of the operator.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from hf_internimage import InternImageConfig
from hf_internimage.ops import BackendError, dcnv3
from hf_internimage.ops.dcnv3 import DCNV3

from .measuring import Settings, Step, peak_memory, rounded, start_steps, take_turns, time_ratio, times

BASELINE = "grid_sample"
# The slowest first. A kernel from the Hub runs only on request.
BACKENDS = [name for name in reversed(DCNV3.backends) if name != "hub"]
Operator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class OperatorCase:
    """One call of the operator: 3x3 taps, stride 1, padding 1."""

    size: str
    stage: int
    batch: int
    height: int
    width: int
    channels: int
    groups: int
    backward: bool

    @property
    def name(self) -> str:
        """Return the name that `--cases` searches."""
        return f"stage {self.stage}, batch {self.batch}, {'forward and backward' if self.backward else 'forward'}"


def operator_cases(size: str, config: InternImageConfig, batches: tuple[int, ...]) -> list[OperatorCase]:
    """Return cases of every stage of a model for images of its configured size: forward, and forward and backward."""
    side = config.image_size
    assert isinstance(side, int)
    shapes = [
        (stage, side // 2 ** (stage + 1), channels, groups)
        for stage, (channels, groups) in enumerate(zip(config.hidden_sizes, config.groups, strict=True), start=1)
    ]
    return [
        OperatorCase(size, stage, batch, length, length, channels, groups, backward)
        for backward in (False, True)
        for batch in batches
        for stage, length, channels, groups in shapes
    ]


def dcnv3_by_grid_sample(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int) -> torch.Tensor:
    """Compute DCNv3 as the original does in PyTorch: every group is an image of its own to sample from.

    3x3 taps, stride 1, padding 1, with the softmax; computed in float32 (float64 for float64).
    """
    batch, height, width, channels = value.shape
    dtype, device, pixels = value.dtype, value.device, height * width
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    padded = F.pad(value.to(wide), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)
    images = padded.reshape(batch * groups, channels // groups, height + 2, width + 2)

    tap = torch.arange(3, dtype=wide, device=device)
    taps = torch.stack(torch.meshgrid(tap, tap, indexing="ij"), -1).view(9, 2)  # (x, y), x outer
    lines = torch.arange(height, dtype=wide, device=device)
    columns = torch.arange(width, dtype=wide, device=device)
    y, x = torch.meshgrid(lines, columns, indexing="ij")
    centres = torch.stack((x, y), -1).view(pixels, 1, 1, 2)
    positions = (centres + taps) + offset.to(wide).view(batch, pixels, groups, 9, 2)
    scale = torch.tensor([2 / (width + 2), 2 / (height + 2)], dtype=wide, device=device)
    grid = ((positions + 0.5) * scale - 1).transpose(1, 2).flatten(0, 1)  # (N*G, H*W, 9, 2)

    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = mask.to(wide).view(batch, pixels, groups, 9).softmax(-1).transpose(1, 2).flatten(0, 1)
    summed = (sampled * weights.unsqueeze(1)).sum(-1)  # (N*G, D, H*W)
    return summed.view(batch, channels, height, width).permute(0, 2, 3, 1).contiguous().to(dtype)


def dcnv3_by_backend(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, backend: str
) -> torch.Tensor:
    """Compute DCNv3 by one named backend of the package."""
    return dcnv3(value, offset, mask, groups=groups, softmax=True, backend=backend)


def random_inputs(
    shape: tuple[int, int, int, int], groups: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return normally distributed value, offset and mask logits."""
    torch.manual_seed(0)
    features = (shape[3], groups * 9 * 2, groups * 9)
    value, offset, mask = (torch.randn(*shape[:3], count, dtype=dtype, device=device) for count in features)
    return value, offset, mask


def check_baseline() -> None:
    """Check that the baseline equals the package's PyTorch path, with all gradients, in float64.

    Raises: AssertionError.
    """
    inputs = random_inputs((2, 5, 7, 12), 3, torch.float64, "cpu")
    for tensor in inputs:
        tensor.requires_grad_()
    results = []
    operators: tuple[Operator, ...] = (dcnv3_by_grid_sample, partial(dcnv3_by_backend, backend="torch"))
    for operator in operators:
        output = operator(*inputs, 3)
        results.append((output, *torch.autograd.grad(output, inputs, output.detach().sin())))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def runnable_backends(settings: Settings) -> list[str]:
    """Return the names of the package's backends that run on this device in this dtype."""
    inputs = random_inputs((1, 4, 4, 32), 2, settings.torch_dtype, settings.device)
    runnable = []
    for backend in BACKENDS:
        try:
            with torch.inference_mode():
                dcnv3_by_backend(*inputs, groups=2, backend=backend)
        except (ValueError, BackendError):  # ValueError: this version knows no such backend
            continue
        runnable.append(backend)
    return runnable


def make_operator_step(case: OperatorCase, name: str, settings: Settings) -> Step:
    """Return a call of the implementation `name`, with gradients of all inputs if the case has a backward pass."""
    shape = (case.batch, case.height, case.width, case.channels)
    inputs = random_inputs(shape, case.groups, settings.torch_dtype, settings.device)
    operator: Operator = dcnv3_by_grid_sample if name == BASELINE else partial(dcnv3_by_backend, backend=name)

    def forward() -> None:
        with torch.inference_mode():
            operator(*inputs, case.groups)

    def forward_and_backward() -> None:
        torch.autograd.grad(operator(*inputs, case.groups), inputs, grad_output)

    if not case.backward:
        return forward
    for tensor in inputs:
        tensor.requires_grad_()
    grad_output = torch.randn_like(inputs[0])
    return forward_and_backward


def measure_operators(cases: list[OperatorCase], settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row for each case: time, ratio to the baseline's time and peak memory of every implementation."""
    names = [BASELINE, *runnable_backends(settings)]
    for case in cases:
        makers = {name: partial(make_operator_step, case, name, settings) for name in names}
        steps, left_out = start_steps(makers, lambda name: () if name in (BASELINE, "torch") else (BackendError,))
        runs = take_turns(steps, settings)
        yield {
            "name": case.name,
            **asdict(case),
            "threads": settings.threads,
            "runs": len(runs),
            "implementations": {
                name: {
                    **times(runs, name),
                    f"time_to_{BASELINE}": time_ratio(runs, name, BASELINE),
                    **_memory(case, name, settings),
                }
                for name in steps
            },
            "left_out": left_out,
        }


def _memory(case: OperatorCase, name: str, settings: Settings) -> dict[str, float | None]:
    """Return the peak memory beyond value, offset and mask in MiB, and its ratio to their size."""
    peak = peak_memory(make_operator_step, case, name, settings)
    if peak is None:
        return {"peak_memory_mib": None, "memory_to_inputs": None}
    numbers = case.batch * case.height * case.width * (case.channels + case.groups * 9 * 3)
    inputs = numbers * settings.torch_dtype.itemsize
    return {"peak_memory_mib": rounded(peak / 2**20), "memory_to_inputs": rounded(peak / inputs)}
