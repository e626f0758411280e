# SPDX-License-Identifier: MIT
"""Files with our operators for ONNX Runtime: what they hold and compute, mistakes, threads, and versions."""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as errors
from onnxscript import ir
from support.golden_data import awaken, tiny_config
from support.operator_cases import LOPSIDED, make_inputs

import hf_internimage
from hf_internimage import InternImageForImageClassification, dcnv3
from hf_internimage.exporting import ExportError, onnxruntime_operators
from hf_internimage.exporting.onnxruntime_fusion import fuse
from hf_internimage.exporting.targets import onnx as onnx_target
from hf_internimage.exporting.targets import onnxruntime as target
from hf_internimage.ops import native

pytestmark = pytest.mark.skipif(not native.is_available(), reason="there is no compiled library")

DTYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.float64: TensorProto.DOUBLE}
NODE = {**LOPSIDED, "softmax": True}  # the attributes
EPSILON = 1e-6


def classifier():
    return awaken(InternImageForImageClassification(tiny_config()).eval())


def graph(attributes=NODE, dtypes=(torch.float32,) * 3, operator="DCNv3"):
    """A file of one node, which takes tensors of any shape."""
    names = [f"input_{i}" for i in range(len(dtypes))]
    types = map(DTYPES.get, dtypes)
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, types, strict=True)]
    output = helper.make_tensor_value_info("output", DTYPES[dtypes[0]], None)
    numbers = {key: int(value) if isinstance(value, bool) else value for key, value in attributes.items()}
    node = helper.make_node(operator, names, ["output"], domain="hf_internimage", **numbers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("hf_internimage", 1)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=opsets, ir_version=9)
    return model.SerializeToString()


def depthwise_graph(dtype=torch.float32):
    return graph({"epsilon": EPSILON}, (dtype,) * 5, "DepthwiseNormGelu")


def depthwise_inputs(batch=2, size=(7, 6), channels=20, kernel=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, *size, channels), (channels, 1, kernel, kernel), *((channels,),) * 3)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def depthwise(inputs):
    """The same by PyTorch's modules, in float64."""
    states, weight, bias, gamma, beta = (tensor.double() for tensor in inputs)
    padding = weight.shape[-1] // 2
    result = F.conv2d(states.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=len(weight))
    return F.gelu(F.layer_norm(result.permute(0, 2, 3, 1), gamma.shape, gamma, beta, EPSILON))


def session(file, library=native.PATH, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(file, options)


def run(runner, tensors):
    (output,) = runner.run(None, {f"input_{i}": tensor.numpy() for i, tensor in enumerate(tensors)})
    return torch.from_numpy(output)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the model, the report of its export)."""
    model = classifier()
    return model, hf_internimage.export(model, tmp_path_factory.mktemp("ort") / "out", target="onnxruntime", size=64)


@pytest.mark.slow
def test_a_folder_is_complete(exported):
    model, report = exported
    assert sorted(path.name for path in report.file.parent.iterdir()) == sorted(
        ["config.json", "export.json", "model.onnx", target.LIBRARY]
    )
    kinds = [(node.domain, node.op_type) for node in onnx.load(report.file).graph.node]
    assert kinds.count(("hf_internimage", "DCNv3")) == sum(model.config.depths)
    assert kinds.count(("hf_internimage", "DepthwiseNormGelu")) == sum(model.config.depths)
    assert {domain for domain, _ in kinds} == {"", "hf_internimage"}
    assert report.details["opset"] == 20
    # As in docs/how-to/export.md: with the library that lies there.
    runner = session(report.file, report.file.with_name(target.LIBRARY))
    for shape in ((4, 3, 40, 100), (1, 3, 64, 64)):
        pixels = torch.randn(shape)
        (logits,) = runner.run(["logits"], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(pixels).logits, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_sessions_in_threads_do_not_disturb_each_other(exported):
    model, report = exported
    runners = [session(report.file, threads=2) for _ in range(2)]
    batches = [torch.randn(n, 3, 64, 64) for n in (1, 2, 1, 3, 2, 1)]

    def logits(i):
        return torch.from_numpy(runners[i % 2].run(None, {"pixel_values": batches[i].numpy()})[0])

    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        for result, pixels in zip(pool.map(logits, range(len(batches))), batches, strict=True):
            torch.testing.assert_close(result, model(pixels).logits, rtol=0, atol=1e-6)


def test_without_the_library_the_reason_is_given(tmp_path, monkeypatch):
    without = SimpleNamespace(why_not=lambda: "has no compiled library: install again")
    monkeypatch.setattr(target, "native", without)
    with pytest.raises(ExportError, match=r"^the target onnxruntime needs the compiled library; hf_internimage has no"):
        hf_internimage.export(classifier(), tmp_path / "out", target="onnxruntime", size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("others", [torch.float16, torch.float32])
def test_float16(others):
    value, *rest = make_inputs(LOPSIDED, dtype=torch.float16)
    inputs = [value, *(tensor.to(others) for tensor in rest)]
    result = run(session(graph(dtypes=[tensor.dtype for tensor in inputs])), inputs)
    assert torch.equal(result, dcnv3(*inputs, **LOPSIDED, softmax=True, backend="cpu"))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("softmax", [True, False])
def test_results_are_those_of_the_package_for_any_number_of_threads(threads, softmax):
    runner = session(graph({**NODE, "softmax": softmax}), threads=threads)
    for batch, size in ((2, (7, 6)), (1, (60, 90)), (0, (7, 6)), (1, (4, 3))):
        inputs = make_inputs(LOPSIDED, batch, size, depth=5, dtype=torch.float32)
        assert torch.equal(run(runner, inputs), dcnv3(*inputs, **LOPSIDED, softmax=softmax, backend="cpu"))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_depthwise_norm_gelu(dtype, kernel):
    alone = session(depthwise_graph(dtype))
    team = session(depthwise_graph(dtype), threads=3)
    for batch, size in ((2, (7, 6)), (1, (30, 41)), (0, (7, 6)), (1, (1, 1))):
        inputs = depthwise_inputs(batch, size, kernel=kernel, dtype=dtype)
        result = run(alone, inputs)
        assert torch.equal(result, run(team, inputs))
        atol = 1e-5 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(result.double(), depthwise(inputs), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (2, 7, 6, 19)}, "weight has shape 20x1x3x3, expected 19x1xKxK with an odd K"),
        ({0: (7, 6, 20)}, "states has 3 dimensions, expected 4"),
        ({1: (20, 1, 2, 2)}, "weight has shape 20x1x2x2"),
        ({1: (20, 1, 3, 5)}, "weight has shape 20x1x3x5"),
        ({1: (20, 20, 3, 3)}, "weight has shape 20x20x3x3"),
        ({2: (19,)}, "bias has size 19, expected 20"),
        ({4: (1, 20)}, "beta has 2 dimensions, expected 1"),
        ({0: (2, 7, 6, 0), 1: (0, 1, 3, 3)}, "weight has shape 0x1x3x3"),
    ],
)
def test_wrong_shapes_of_depthwise_norm_gelu_are_errors(change, message):
    inputs = depthwise_inputs()
    for index, shape in change.items():
        inputs[index] = torch.zeros(shape)
    with pytest.raises(errors.InvalidArgument, match=message):
        run(session(depthwise_graph()), inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, o, m: (v, o[:, :-1], m), "offset has size 2 in dimension 1, expected 3"),
        (lambda v, o, m: (v, o, m[..., :-1]), "mask has size 11 in dimension 3, expected 12"),
        (lambda v, o, m: (v[..., :-1], o, m), "value has 5 channels, expected a positive multiple of groups=2"),
        (lambda v, o, m: (v[0], o, m), "value has 3 dimensions, expected 4"),
        (lambda v, o, m: (v[:, :1], o, m), "the kernel is larger than the padded image"),
        (lambda v, o, m: (v[:1], o, m), "offset has size 2 in dimension 0, expected 1"),
        (lambda v, o, m: (v[..., :0], o, m), "value has 0 channels, expected a positive multiple of groups=2"),
    ],
)
def test_wrong_shapes_are_errors(change, message):
    inputs = make_inputs(LOPSIDED, dtype=torch.float32)
    runner = session(graph())
    with pytest.raises(errors.InvalidArgument, match=message):
        run(runner, [tensor.contiguous() for tensor in change(*inputs)])
    assert torch.equal(run(runner, inputs), dcnv3(*inputs, **LOPSIDED, softmax=True, backend="cpu"))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kernel_size": (3, 0)}, "a kernel size, stride, padding or dilation is 0"),
        ({"padding": (-1, 0)}, "a kernel size, stride, padding or dilation is -1"),
        ({"stride": (2**40, 1)}, f"a kernel size, stride, padding or dilation is {2**40}"),
        ({"groups": 0}, "value has 6 channels, expected a positive multiple of groups=0"),
        ({"offset_scale": float("nan")}, "offset_scale is nan, expected a finite number"),
        ({"groups": 1, "kernel_size": (2**20, 2**20), "padding": (2**20, 2**20)}, "offset has size"),
    ],
)
def test_wrong_attributes_are_errors(attributes, message):
    runner = session(graph({**NODE, **attributes}))
    with pytest.raises(errors.InvalidArgument, match=message):
        run(runner, make_inputs(LOPSIDED, dtype=torch.float32))


@pytest.mark.parametrize("name", NODE)
def test_missing_attributes_are_errors(name):
    with pytest.raises(errors.RuntimeException, match=rf"[Aa]ttribute.*\b{name}\b"):
        session(graph({key: value for key, value in NODE.items() if key != name}))


def test_attributes_of_another_length_are_errors():
    for pair in ((3,), (3, 3, 3)):
        with pytest.raises(errors.RuntimeException, match="DCNv3: the attribute kernel_size must be two integers"):
            session(graph({**NODE, "kernel_size": pair}))


def test_other_dtypes_are_errors():
    for dtypes in ((torch.float32, torch.float16, torch.float16), (torch.float64,) * 3):
        with pytest.raises(Exception, match="DCNv3"):
            session(graph(dtypes=dtypes))


def test_an_onnx_runtime_without_deform_conv_is_named(monkeypatch):
    """Version 1.24 says so."""
    reason = "Could not find an implementation for DeformConv(19) node with name 'node_DeformConv_24'"

    def refuse(*_, **__):
        raise errors.NotImplemented(reason)

    monkeypatch.setattr(onnx_target.onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ExportError, match=r"^ONNX Runtime \d[\d.]+ lacks an operator of the file; DeformConv"):
        onnx_target.load("model.onnx")


def test_an_old_onnx_runtime_is_told_so():
    """Versions without the functions that the library calls give no table of that version."""
    status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    said = []

    @status
    def create_status(code, message):
        said.append((code, message.decode()))
        return 77

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def api(version):
        return None if version > 16 else ctypes.addressof(table)

    table = (ctypes.c_void_p * 275)(ctypes.cast(create_status, ctypes.c_void_p))
    base = (ctypes.c_void_p * 2)(ctypes.cast(api, ctypes.c_void_p))
    library = ctypes.CDLL(str(native.PATH))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, base) == 77
    assert said == [(1, "hf_internimage's operators need ONNX Runtime 1.17 or newer")]


def test_the_schema_is_that_of_the_library():
    """Tests of the library's attributes use NODE."""
    assert set(onnxruntime_operators._SCHEMA.attributes) == set(NODE)
    assert re.fullmatch(r"libdcnv3-[\w.-]+\.(so|dylib|dll)", target.LIBRARY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("strides=[1,1]", "strides=[2,1]"),
        ("dilations=[1,1]", "dilations=[1,2]"),
        ("pads=[1,1,1,1]", "pads=[1,1,1,0]"),
        ("group=4", "group=2"),
        ("[4,1,3,3] w", "[4,1,3,5] w"),
        ("perm=[0,2,3,1]", "perm=[0,3,2,1]"),
        ("axis=-1", "axis=-2"),
        ('"none"', '"tanh"'),
        ("=> (float[N,7,6,4] y)", "=> (float[N,7,6,4] y, float[N,7,6,4] normal)"),
    ],
)
def test_only_what_the_operator_computes_is_fused(old, new):
    text = """<ir_version: 9, opset_import: ["" : 20]>
        g (float[N,7,6,4] x, float[4,1,3,3] w, float[4] b, float[4] s, float[4] t) => (float[N,7,6,4] y) {
            image = Transpose <perm=[0,3,1,2]> (x)
            result = Conv <group=4, pads=[1,1,1,1], strides=[1,1], dilations=[1,1]> (image, w, b)
            pixels = Transpose <perm=[0,2,3,1]> (result)
            normal = LayerNormalization <axis=-1, epsilon=1e-6> (pixels, s, t)
            y = Gelu <approximate="none"> (normal)
        }"""
    assert old in text
    program = SimpleNamespace(model=ir.serde.deserialize_model(onnx.parser.parse_model(text.replace(old, new))))
    fuse(program)
    kinds = [node.op_type for node in program.model.graph]
    assert (kinds == ["DepthwiseNormGelu"]) == (not old), kinds
    assert len(kinds) == (5 if old else 1)
