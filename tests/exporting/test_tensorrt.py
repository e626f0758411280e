# SPDX-License-Identifier: MIT
"""ONNX files for TensorRT: their structure. TensorRT itself does not run here."""

import onnx
import pytest
from onnx import TensorProto, helper
from support.golden_data import awaken, tiny_config

from hf_internimage import InternImageForImageClassification
from hf_internimage.exporting import ExportError, export
from hf_internimage.exporting.targets import tensorrt as target

SHAPES = {"x": (1, 2, 5, 5), "weight": (2, 1, 3, 3), "offset": (1, 18, 5, 5), "bias": (2,), "mask": (1, 9, 5, 5)}


def file_of(folder, *, names=tuple(SHAPES), kinds=None, pads=(1, 1, 1, 1), opset=20, node=None):
    """A file of one DeformConv, or of another node that takes its inputs."""
    kinds = dict.fromkeys(SHAPES, TensorProto.FLOAT) | (kinds or {})
    node = node or helper.make_node("DeformConv", names, ["y"], name="conv", group=2, pads=pads)
    inputs = [helper.make_tensor_value_info(name, kinds[name], SHAPES[name]) for name in names if name]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "graph", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.slow
def test_the_file_is_within_the_parsers_limits(tmp_path):
    model = awaken(InternImageForImageClassification(tiny_config(depths=[1, 1], groups=[1, 2])).eval())
    report = export(model, tmp_path / "out", target="tensorrt", size=(64, 48), static=True)
    assert report.relative_error < 1e-5
    assert report.details["opset"] == 20
    nodes = onnx.load(report.file).graph.node
    assert [len(node.input) for node in nodes if node.op_type == "DeformConv"] == [5, 5]


def test_a_plain_node_is_taken(tmp_path):
    assert target.describe(file_of(tmp_path)) == {"opset": 20, "nodes": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("x", "weight", "offset", "", "mask")}, "conv has no bias or no mask"),
        ({"names": ("x", "weight", "offset")}, "conv has no bias or no mask"),
        ({"kinds": {"bias": TensorProto.FLOAT16}}, "conv has inputs of FLOAT, FLOAT16"),
        ({"pads": (1, 1, 2, 1)}, r"conv has the padding \[1, 1, 2, 1\]"),
        ({"opset": 22}, "the file has opset 22; TensorRT 10 knows 20 at most"),
        ({"node": helper.make_node("Det", ["x"], ["y"])}, "the file has Det, which TensorRT's parser does not have"),
    ],
)
def test_what_the_parser_refuses(tmp_path, arguments, message):
    with pytest.raises(ExportError, match=message):
        target.describe(file_of(tmp_path, **arguments))
