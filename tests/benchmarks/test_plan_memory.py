# SPDX-License-Identifier: MIT
"""benchmarks/plan_memory.py: what it counts on the meta device is what real tensors and a real process need."""

import contextlib
import json
import os
import platform
import re

import pytest
import torch
from support.golden_data import load_module, model_case
from support.loading import run_python
from support.paths import BENCHMARKS, ROOT
from torch import nn

from hf_internimage import InternImageConfig, InternImageForImageClassification
from hf_internimage.complexity import count_parameters

pytestmark = pytest.mark.slow

script = load_module(BENCHMARKS / "plan_memory.py")
GIB = 2**30
DOCS = ROOT / "docs" / "scale.md"


def tiny(name, **fields):
    """A tiny model with the structure of T, B, L, H or G."""
    return InternImageConfig(**{**model_case(f"tiny_{name}")[0]["config"], **fields})


def counts(saved):
    return saved.everything(), saved.kept(), *saved.recomputed()


@pytest.mark.parametrize("precision", ["float32", "mixed"])
@pytest.mark.parametrize("name", ["t", "l", "h", "g"])
def test_shapes_on_the_meta_device_are_real(name, precision):
    """Exactly what a forward pass with real tensors saves, also for sides that differ and stages of odd size.

    Not so in bfloat16: the CPU keeps a layer norm's statistics in it, the meta device in float32, as GPUs do.
    """
    for image_size in ((64, 96), (32, 32)):
        real, meta = (script.save_forward(tiny(name), image_size, 2, precision, device) for device in ("cpu", "meta"))
        if name in ("h", "g"):
            # the attention of the head has another kernel, which keeps a few numbers for each query
            for planned, actual in zip(counts(meta), counts(real), strict=True):
                assert planned == pytest.approx(actual, rel=0.02)
        else:
            assert counts(meta) == counts(real)


@pytest.mark.parametrize("size", ["t", "s"])
def test_gradient_checkpointing(size):
    """`kept` is what a forward pass with checkpointed blocks saves."""
    config = InternImageConfig.from_size(size)
    expected = script.save_forward(config, (64, 64), 2, "float32")
    with torch.device("meta"):
        model = InternImageForImageClassification(config).train()
        model.activation_checkpointing_enable()
        pixels, labels = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    saved = script.SavedTensors(model)
    # the blocks' own hooks would also see what they recompute
    with script.GpuPath(), torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        model(pixels, labels=labels)
    assert saved.everything() == expected.kept()
    assert expected.kept() < expected.everything() / 4
    assert sum(expected.recomputed()) + expected.kept() == expected.everything()
    assert len(expected.recomputed()) == sum(config.depths)


@pytest.mark.parametrize("precision", script.PRECISIONS)
def test_activations_are_those_of_one_image(precision):
    config = tiny("l")
    image = script.activations(config, (64, 64), precision)
    one, four = (script.save_forward(config, (64, 64), batch, precision) for batch in (1, 4))
    # of layer norms' statistics and the loss, some bytes do not grow evenly
    assert four.everything() == pytest.approx(one.everything() + 3 * image.everything, rel=1e-3)
    assert four.kept() == pytest.approx(one.kept() + 3 * image.kept, rel=1e-3)
    # beside the copies of weights, which stay the same
    grown = max(more - less for less, more in zip(one.recomputed(), four.recomputed(), strict=True))
    assert grown == pytest.approx(3 * image.recomputed, rel=1e-3)


def test_copies_of_weights_under_autocast():
    """Two bytes for each weight of a convolution or linear layer; no copies without autocast."""
    config = InternImageConfig.from_size("t")
    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    expected = 2 * sum(layer.weight.numel() for layer in layers)
    assert script.activations(config, (64, 64), "mixed").copies == pytest.approx(expected, rel=1e-3)
    assert abs(script.activations(config, (64, 64), "float32").copies) < 1e4


def test_precisions():
    config = InternImageConfig.from_size("t")
    float32, mixed, bf16 = (script.activations(config, (64, 64), name) for name in ("float32", "mixed", "bf16"))
    assert bf16.everything == pytest.approx(float32.everything / 2, rel=0.01)
    assert bf16.everything < mixed.everything < float32.everything


def test_layers_on_the_cpu_are_not_what_is_counted():
    """The CPU's fused layers keep less; a plan for GPUs must not see them, and what it sees must not be left on."""
    config = tiny("t")
    model = InternImageForImageClassification(config).train()
    saved = script.SavedTensors(model)
    with saved.counting():
        model(torch.zeros(2, 3, 64, 64), labels=torch.zeros(2, dtype=torch.long))
    assert saved.everything() <= script.save_forward(config, (64, 64), 2, "float32").everything()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell peak memory")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_a_real_process_needs_what_is_planned():
    """Peak resident memory of a training step of InternImage-T, gradients already there, beyond what was before it.

    Without gradient checkpointing the plan is the peak. With it the plan is above: the largest block is recomputed when
    the inputs of later blocks are gone.
    """
    printed = run_python(
        f"""
        import sys
        sys.path.append({str(BENCHMARKS)!r})
        import torch
        import plan_memory
        from harness import measuring
        from hf_internimage import InternImageConfig, InternImageForImageClassification

        measuring.WARM_UPS = 1

        def make_step(checkpointing, name, settings):
            model = InternImageForImageClassification(InternImageConfig.from_size("t")).train()
            if checkpointing:
                model.activation_checkpointing_enable()
            pixels, labels = torch.rand(2, 3, 224, 224), torch.zeros(2, dtype=torch.long)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)

            def step():
                with plan_memory.GpuPath():
                    model(pixels, labels=labels).loss.backward()

            return step

        for checkpointing in (False, True):
            print(measuring.peak_memory_here(make_step, checkpointing, "", measuring.Settings("cpu", "float32")))
        """,
        fork=False,
        MALLOC_MMAP_THRESHOLD_="65536",  # every tensor by itself, so that no memory is kept for later
        OMP_NUM_THREADS="1",
    )
    without, checkpointed = map(int, printed.split())
    planned = script.activations(InternImageConfig.from_size("t"), (224, 224), "float32")
    assert 2 * planned.everything == pytest.approx(without, rel=0.05)
    assert 1.0 < 2 * (planned.kept + planned.recomputed) / checkpointed < 1.4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", script.PRECISIONS)
@pytest.mark.gpu
def test_a_gpu_saves_what_is_planned(precision):
    config = InternImageConfig.from_size("t")
    real, meta = (script.save_forward(config, (96, 64), 2, precision, device) for device in ("cuda", "meta"))
    for planned, actual in zip(counts(meta), counts(real), strict=True):
        assert planned == pytest.approx(actual, rel=0.02)


@pytest.mark.parametrize(
    ("precision", "strategy", "gpus", "average", "expected"),
    [
        ("mixed", "DDP", 1, False, {"weights": 4000, "gradients": 4000, "optimizer": 8000, "copies": 77}),
        (
            "mixed",
            "DDP",
            8,
            True,
            {"weights": 4000, "gradients": 4000, "optimizer": 8000, "average": 4000, "buckets": 4000, "copies": 77},
        ),
        ("mixed", "ZeRO-1", 8, True, {"weights": 2000, "gradients": 2000, "optimizer": 1500, "average": 4000}),
        ("mixed", "ZeRO-2", 8, False, {"weights": 2000, "gradients": 250, "optimizer": 1500}),
        ("mixed", "ZeRO-3", 8, True, {"weights": 250, "gradients": 250, "optimizer": 1500, "gathered": 600}),
        (
            "mixed",
            "FSDP",
            8,
            True,
            {"weights": 500, "gradients": 500, "optimizer": 1000, "average": 500, "gathered": 600},
        ),
        ("mixed", "FSDP", 1, False, {"weights": 4000, "gradients": 4000, "optimizer": 8000}),
        ("bf16", "DDP", 2, False, {"weights": 2000, "gradients": 2000, "optimizer": 4000, "buckets": 2000}),
        (
            "bf16",
            "FSDP",
            2,
            True,
            {"weights": 1000, "gradients": 1000, "optimizer": 2000, "average": 2000} | {"gathered": 600},
        ),
        ("float32", "FSDP", 4, False, {"weights": 1000, "gradients": 1000, "optimizer": 2000, "gathered": 1200}),
    ],
)
def test_state_of_1000_parameters(precision, strategy, gpus, average, expected):
    held = script.state_bytes(1000, precision, strategy, gpus, unit=100, copies=77, average=average)
    assert held == expected


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_deepspeed_keeps_float32_weights(precision):
    with pytest.raises(ValueError, match=f"ZeRO-2 with precision '{precision}' is not planned for; choose 'mixed'"):
        script.state_bytes(1000, precision, "ZeRO-2", 8, unit=1, copies=0, average=False)


@pytest.mark.parametrize("size", ["t", "h"])
def test_largest_unit(size):
    """A block of the last stage: projections, offsets, masks and MLP hold nearly all of its parameters."""
    config = InternImageConfig.from_size(size)
    channels, groups = config.hidden_sizes[-1], config.groups[-1]
    weights = channels * (2 * channels + 8 * channels + 27 * groups)
    assert weights < script.largest_unit(config) < 1.05 * weights
    assert script.largest_unit(config) < count_parameters(config) / 4


def test_script(tmp_path, capsys):
    output = tmp_path / "plan.json"
    command = ["--sizes", "t", "--image-size", "64", "--gpus", "1", "8", "--output", str(output)]
    assert script.main(command) == 0
    printed = capsys.readouterr().out
    (plan,) = json.loads(output.read_text())
    assert (plan["size"], plan["image_size"], plan["parameters"]) == ("t", [64, 64], 29_918_424)
    assert [(row["precision"], row["strategy"]) for row in plan["rows"][::2]] == [
        *(("mixed", name) for name in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP")),
        ("bf16", "DDP"),
        ("bf16", "FSDP"),
    ]
    for row in plan["rows"]:
        image = plan["activations"]["bf16" if row["strategy"].startswith("ZeRO") else row["precision"]]
        assert row["state_total"] == sum(row["state"].values())
        assert row["image_without"] == image["everything"]
        assert row["image_with_checkpointing"] == image["kept"] + image["recomputed"]
        most = row["most_images_with_checkpointing"]
        free = 72 * GIB - row["state_total"]
        assert most * row["image_with_checkpointing"] <= free < (most + 1) * row["image_with_checkpointing"]
        cell = f"{row['state_total'] / GIB:.1f} ({most} / {row['most_images_without']})"
        assert cell in printed
    assert printed.startswith("### InternImage-T, 64x64\n")

    assert script.main([*command[:6], "--batch-size", "16", "--no-average", "--precisions", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "GiB a GPU with 16 images (with / without checkpointing):" in printed
    row = re.search(r"\| float32 \| DDP \| ([\d.]+) / ([\d.]+) \|", printed)
    image = script.activations(InternImageConfig.from_size("t"), (64, 64), "float32")
    state = 16 * 29_918_424
    assert float(row[1]) == pytest.approx((state + 16 * (image.kept + image.recomputed)) / GIB, abs=0.06)
    assert float(row[2]) == pytest.approx((state + 16 * image.everything) / GIB, abs=0.06)


def test_script_refuses(tmp_path, capsys):
    # H's head needs a third stage with even sides
    assert script.main(["--sizes", "h", "--image-size", "80"]) == 1
    assert "multiples of 32" in capsys.readouterr().err
    for wrong in (["--image-size", "0"], ["--sizes", "xxl"], ["--gpus", "-1"]):
        with pytest.raises(SystemExit), contextlib.redirect_stderr(None):
            script.main(wrong)


def test_the_documentation_has_this_plan(capsys):
    """docs/scale.md holds what the script prints for H. If this fails: python benchmarks/plan_memory.py"""
    assert script.main(["--sizes", "h"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed in DOCS.read_text(encoding="utf-8")
