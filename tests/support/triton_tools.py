# SPDX-License-Identifier: MIT
"""Triton without a GPU: which kernels a call compiles, and what they compile to."""

import os
import re
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_internimage.models.dcnv3_reference import check_dcnv3
from hf_internimage.ops.backends import dcnv3_triton

REQUIRED = "triton" in os.environ.get("HF_INTERNIMAGE_TEST_BACKENDS", "").split(",")
needs_triton = pytest.mark.skipif(find_spec("triton") is None and not REQUIRED, reason="triton is not installed")


def plan(value, offset, mask, *, softmax=False, **arguments):
    return dcnv3_triton.Plan(check_dcnv3(value, offset, mask, **arguments), softmax, value, offset, mask)


def run_both_ways(inputs, **arguments):
    """A forward and a backward pass on kernels that are not interpreted."""
    prepared = plan(*inputs, **arguments)
    prepared.backward(torch.empty_like(prepared.forward(*inputs)), *inputs)


@pytest.fixture
def compilations(monkeypatch):
    """What Triton is asked to compile, each as `machine_code` takes it. Nothing runs; the device is not there."""
    import triton
    from triton.backends.compiler import GPUTarget

    asked = []

    def compile(source, target=None, options=None, **_):
        asked.append((source, {name: options[name] for name in ("num_warps", "enable_fp_fusion")}))
        kernel = SimpleNamespace(function=None, packed_metadata=None, run=lambda *_: None)
        kernel.launch_metadata = lambda *_: None
        return kernel

    device = object()  # Triton keeps the kernels of each device; this one has none
    driver = SimpleNamespace(
        get_current_device=lambda: device,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(triton.compiler, "compile", compile)
    monkeypatch.setattr(type(triton.runtime.driver), "active", driver)
    return asked


def machine_code(source, options, architecture, folder):
    """How often each instruction occurs, with its suffixes and without, and the registers and local bytes needed."""
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    cubin = folder / f"{source.name}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])

    def look(tool, option):
        command = [Path(triton.__file__).parent / "backends/nvidia/bin" / tool, option, cubin]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout

    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", look("nvdisasm", "-c"), re.MULTILINE)
    usage = look("cuobjdump", "--dump-resource-usage")
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return Counter(found) + Counter(name.partition(".")[0] for name in found if "." in name), registers, stack + local
