# SPDX-License-Identifier: MIT
"""Files for OpenVINO."""

import openvino
import pytest
import torch
from openvino import opset15 as op
from support.golden_data import awaken, tiny_config

from hf_internimage import InternImageForImageClassification
from hf_internimage.exporting import ExportError, export
from hf_internimage.exporting.targets import openvino as target

SIDE = 64


@pytest.mark.slow
def test_openvino_runs_the_file_as_it_is(tmp_path):
    model = awaken(InternImageForImageClassification(tiny_config(depths=[1, 1], groups=[1, 2])).eval())
    report = export(model, tmp_path / "out", target="openvino", size=SIDE)
    assert report.dynamic
    assert report.relative_error < 1e-5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("config.json", "export.json", "model.bin", "model.xml")
    ]
    compiled = openvino.compile_model(report.file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((2, 3, 48, 80), (1, 3, 96, SIDE)):
        pixels = torch.randn(shape)
        with torch.no_grad():
            expected = model(pixels).logits
        result = torch.from_numpy(compiled({"pixel_values": pixels.numpy()})["logits"])
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_loops_are_refused(tmp_path):
    state, outer = op.parameter([2, 3]), op.parameter([2, 3])
    body = openvino.Model([op.constant(True), op.relu(state)], [state])
    loop = op.loop(op.constant(4), op.constant(True))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 0])
    loop.set_merged_input(state, outer.output(0), body.outputs[1])
    result = loop.get_iter_value(body.outputs[1], -1)
    openvino.save_model(openvino.Model([result], [outer]), tmp_path / "model.xml")
    with pytest.raises(ExportError, match="the file has Loop, which takes one turn after the other"):
        target.describe(tmp_path / "model.xml")
