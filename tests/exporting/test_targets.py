# SPDX-License-Identifier: MIT
"""Backbones, segmenters and detectors in runtimes other than ONNX Runtime: any size, equal to the model's results."""

import pytest
import torch
from support.export_systems import SIDES, backbone, composite_dino, mask2former, upernet
from support.golden_data import awaken

from hf_internimage.exporting import export, symbolic_sizes
from hf_internimage.exporting.query_choice import QueryChoice
from hf_internimage.exporting.system import QUERY_POSITIONS, System, random_pixels
from hf_internimage.exporting.targets import openvino, torchscript

TARGETS = {"openvino": openvino, "torchscript": torchscript}
PIXELS = (2, 3, 96, 160)  # neither the exporter nor its comparison had these


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", [backbone, upernet, mask2former, composite_dino])
def test_a_file_for_any_size(make, target, tmp_path):
    torch.manual_seed(0)
    model = awaken(make().eval())
    report = export(model, tmp_path / "out", target=target, size=SIDES)
    assert report.dynamic
    assert report.relative_error < 1e-5
    system, pixels = System(model), random_pixels(PIXELS)
    system.name_outputs(pixels)
    results = dict(zip(system.output_names, TARGETS[target].load(report.file)(pixels), strict=True))
    with torch.no_grad():
        positions = results.get(QUERY_POSITIONS)
        expected = system(pixels) if positions is None else system.on_queries(pixels, QueryChoice(positions, 1e-5))
    for name, tensor in zip(results, expected, strict=True):
        atol = 1e-5 * float(tensor.abs().max())
        torch.testing.assert_close(results[name].to(tensor.dtype), tensor, rtol=0, atol=atol, msg=name)


def test_sizes_stay_free_in_traces():
    def call(pixels):
        height, width = pixels.shape[-2:]
        with symbolic_sizes.SymbolicSizes():
            sizes = [(height, width), (2, width)]
            tensors = torch.tensor(sizes), torch.as_tensor(sizes, dtype=torch.float32), torch.as_tensor(height)
            return *tensors, torch.linspace(0.5, width - 0.5, width), torch.tensor([[1.5]]), torch.as_tensor([])

    trace = torch.jit.trace(call, (torch.zeros(1, 5, 7),), check_trace=False)
    for pixels in (torch.zeros(1, 3, 4), torch.zeros(1, 9, 1)):
        for result, expected in zip(trace(pixels), call(pixels), strict=True):
            torch.testing.assert_close(result, expected)
