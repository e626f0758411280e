# SPDX-License-Identifier: MIT
"""Measure InternImage beside transformers' ConvNeXt and Swin of the same size, all with random weights."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from hf_internimage import InternImageConfig, InternImageForImageClassification
from hf_internimage.ops import fused_cpu
from hf_internimage.ops.registry import BACKEND_VARIABLE

from .measuring import (
    Settings,
    Step,
    compile_separately,
    peak_memory,
    rounded,
    start_steps,
    take_turns,
    time_ratio,
    times,
)
from .operators import runnable_backends

# Ends of a competitor's name.
PLAIN = " (torch)"  # InternImage with this backend demanded; other backends likewise
CHANNELS_LAST = " (channels_last)"  # another model, with the weights of its convolutions in this memory format
PRODUCTS = " (products)"  # the linear layers and dense convolutions of the model alone, never compiled
TINY = "tiny"  # size for trying the benchmark itself
# Without the type of problem, the first loss would set it, and torch.compile would compile again.
COMMON: dict[str, Any] = {"num_labels": 1000, "problem_type": "single_label_classification"}

CONVNEXT: dict[str, dict[str, Any]] = {
    "t": {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "s": {"depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768]},
    "b": {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
    "l": {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]},
    TINY: {"num_stages": 2, "depths": [1, 1], "hidden_sizes": [8, 16]},
}
SWIN: dict[str, dict[str, Any]] = {
    "t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    TINY: {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32},
}


@dataclass(frozen=True)
class ModelCase:
    """One pass of a batch through a model: inference, or a training step of forward, loss and backward."""

    size: str
    name: str
    batch: int
    height: int
    width: int
    training: bool


def model_cases(size: str) -> list[ModelCase]:
    """Return the cases that are measured for each model of a size."""
    if size == TINY:
        return [
            ModelCase(size, "32, batch 1", 1, 32, 32, False),
            ModelCase(size, "32, batch 2, training step", 2, 32, 32, True),
        ]
    return [
        ModelCase(size, "224, batch 1", 1, 224, 224, False),
        ModelCase(size, "224, batch 8", 8, 224, 224, False),
        ModelCase(size, "800x1280, batch 1", 1, 800, 1280, False),
        ModelCase(size, "224, batch 8, training step", 8, 224, 224, True),
    ]


def internimage_config(size: str) -> InternImageConfig:
    """Return the configuration of the released architecture, without stochastic depth."""
    if size == TINY:
        return InternImageConfig.from_size("t", channels=16, depths=[1, 1], groups=[1, 2], image_size=32, **COMMON)
    return InternImageConfig.from_size(size, **COMMON)


def internimage(size: str) -> nn.Module:
    """Build InternImage with offsets of about a pixel, as in a trained model; a new model's offsets are all zero."""
    model = InternImageForImageClassification(internimage_config(size))
    spread_offsets(model)
    return model


@torch.no_grad()
def spread_offsets(model: nn.Module) -> None:
    """Give InternImage's layers within a model offsets of about a pixel."""
    for name, parameter in model.named_parameters():
        if ".dcn.offset.weight" in name or ".dcn.mask.weight" in name:
            parameter.normal_(0, 1 / parameter.shape[1] ** 0.5)


def convnext(size: str) -> nn.Module:
    """Build ConvNeXt as published, without stochastic depth."""
    config = {**COMMON, **CONVNEXT[size]}
    return ConvNextForImageClassification(ConvNextConfig(**config))


def swin(size: str) -> nn.Module:
    """Build Swin with windows of 7 as published, without stochastic depth like the other two."""
    config = {**COMMON, "drop_path_rate": 0.0, **SWIN[size]}
    return SwinForImageClassification(SwinConfig(**config))


FAMILIES: dict[str, Callable[[str], nn.Module]] = {"internimage": internimage, "convnext": convnext, "swin": swin}
REFERENCES = ("convnext", "swin")


def model_names(size: str, settings: Settings) -> list[str]:
    """Return the names of the competitors; if there is a faster backend, InternImage also runs on plain PyTorch."""
    names = [f"internimage_{size}"]
    if runnable_backends(settings) != ["torch"]:
        names.append(f"internimage_{size}{PLAIN}")
    names += [f"{family}_{size}" for family in REFERENCES]
    return names + [f"{family}_{size}{PRODUCTS}" for family in ("internimage", "convnext")] * settings.products


def make_model_step(case: ModelCase, name: str, settings: Settings, learning_rate: float | None = None) -> Step:
    """Return a pass of a random batch through the model `name`; a training step leaves no gradients behind.

    With a learning rate, a training step ends with a step of plain gradient descent.
    """
    torch.manual_seed(0)
    device, dtype = settings.device, settings.torch_dtype
    label, _, option = name.partition(" (")
    with torch.device(device):
        model = FAMILIES[label.split("_")[0]](case.size)
    model = model.to(dtype=dtype).train(case.training)
    if f" ({option}" == CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixel_values = torch.randn(case.batch, 3, case.height, case.width, device=device, dtype=dtype)
    if f" ({option}" == PRODUCTS:
        return _products(model, pixel_values, case.training)
    labels = torch.zeros(case.batch, dtype=torch.long, device=device)
    backend = option.removesuffix(")") if option and label.startswith("internimage") else None
    optimizer = None if learning_rate is None else torch.optim.SGD(model.parameters(), lr=learning_rate)

    def logits(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).logits

    def loss(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values, labels=labels).loss

    function = loss if case.training else logits
    if settings.mode == "compile":
        function = compile_separately(function, backend=settings.compiler)

    def infer() -> None:
        with torch.inference_mode(), _operator_backend(backend):
            function(pixel_values)

    def train() -> None:
        with _operator_backend(backend):
            function(pixel_values).backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return train if case.training else infer


def _products(model: nn.Module, pixel_values: torch.Tensor, training: bool) -> Step:
    """Return a step that runs the model's linear layers and dense convolutions alone, each on an input of its size.

    No implementation of the layers between them can take the model below this time.
    """
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append((layer, torch.randn_like(inputs[0]).requires_grad_(training), torch.randn_like(output)))

    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        model(pixel_values)
    for hook in hooks:
        hook.remove()

    def compute(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        fast = fused_cpu.linear(states, layer)
        return layer(states) if fast is None else fast

    def infer() -> None:
        with torch.inference_mode():
            for layer, states, _ in calls:
                compute(layer, states)

    def train() -> None:
        for layer, states, gradient in calls:
            compute(layer, states).backward(gradient)
            states.grad = None
        model.zero_grad(set_to_none=True)

    return train if training else infer


@contextmanager
def _operator_backend(backend: str | None) -> Iterator[None]:
    """Make the operator use this backend, or its own choice if None, whatever the environment says."""
    before = os.environ.pop(BACKEND_VARIABLE, None)
    if backend is not None:
        os.environ[BACKEND_VARIABLE] = backend
    try:
        yield
    finally:
        os.environ.pop(BACKEND_VARIABLE, None)
        if before is not None:
            os.environ[BACKEND_VARIABLE] = before


def _allowed_errors(name: str) -> tuple[type[Exception], ...]:
    """Return the errors that may leave a model out: other models may be unable to run a case, InternImage may not."""
    return () if name.startswith("internimage") else (RuntimeError, ValueError)


def measure_models(cases: list[ModelCase], settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row for each case: time, images per second, ratios to the others' time and peak memory of every model."""
    for case in cases:
        torch.compiler.reset()
        makers = {name: partial(make_model_step, case, name, settings) for name in model_names(case.size, settings)}
        steps, left_out = start_steps(makers, _allowed_errors)
        runs = take_turns(steps, settings)
        labels = {family: f"{family}_{case.size}" for family in REFERENCES}
        references = {family: label for family, label in labels.items() if label in steps}
        rows = {}
        for name in steps:
            timing = times(runs, name)
            rows[name] = {
                **timing,
                "images_per_second": rounded(case.batch / timing["milliseconds"] * 1e3),
                **{f"time_to_{family}": time_ratio(runs, name, label) for family, label in references.items()},
            }
        steps.clear()  # to free memory for its measurement
        for name, row in rows.items():
            peak = peak_memory(make_model_step, case, name, settings)
            row["peak_memory_mib"] = None if peak is None else rounded(peak / 2**20)
        yield {
            **asdict(case),
            "threads": settings.threads,
            "mode": settings.mode,
            "runs": len(runs),
            "models": rows,
            "left_out": left_out,
        }
