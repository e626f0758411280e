# SPDX-License-Identifier: MIT
"""Operator and models on a CUDA device: precision, training, graphs, streams, threads, sizes above 2**31.

Each test runs on each of the GPU's backends, and once more on the CPU, so that its body is tried where there is no GPU.
A backend named in HF_INTERNIMAGE_TEST_BACKENDS that cannot run fails its tests; others are skipped.
"""

import contextlib
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support import gpu_backends
from support.golden_data import TINY, awaken, golden_model, model_case, model_input, tiny_config, write_official_folder
from torch import nn

from hf_internimage import InternImageForImageClassification
from hf_internimage.models.dcnv3_reference import check_dcnv3
from hf_internimage.ops import dcnv3, native

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # float32 means float32; read when CUDA's libraries load

# CUDA's libraries and compilers have notices of their own, which are no failures.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")

HALF = (torch.bfloat16, torch.float16)
BACKEND_VARIABLE = "HF_INTERNIMAGE_BACKEND"


class Place(NamedTuple):
    """Place of a test: the kind of device, and the backend that must run."""

    device: str
    backend: str

    @property
    def is_cuda(self):
        return self.device == "cuda"


@pytest.fixture(params=[*(pytest.param(name, marks=pytest.mark.gpu) for name in gpu_backends.NAMES), "cpu"])
def place(request, monkeypatch):
    """Each backend in turn, also as the one that models use."""
    backend = request.param
    if backend == "cpu":
        if reason := native.why_not():
            pytest.skip(f"the cpu backend {reason}")
    else:
        gpu_backends.need(backend)
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    with exact_convolutions() if backend != "cpu" else contextlib.nullcontext():
        yield Place("cpu" if backend == "cpu" else "cuda", backend)


@contextlib.contextmanager
def exact_convolutions():
    """No TF32 in float32 convolutions, which is PyTorch's default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer PyTorch likes another way, which older does not have
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def operator_inputs(device, dtype=torch.float32, size=(9, 13), groups=3, depth=16, batch=2, spread=2.0, taps=9):
    """Value, offset, mask logits and the output's gradient; positions keep away from pixel lines."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, *size, groups * depth, generator=generator)
    offset = torch.randn(batch, *size, groups * taps * 2, generator=generator).mul(spread).round()
    offset += 0.25 + torch.rand(offset.shape, generator=generator) / 2
    mask = torch.randn(batch, *size, groups * taps, generator=generator)
    grad_output = torch.randn(value.shape, generator=generator)
    return [tensor.to(device=device, dtype=dtype) for tensor in (value, offset, mask, grad_output)]


def results(inputs, backend, groups=3, **arguments):
    """The output and the gradients of value, offset and mask."""
    *leaves, grad_output = inputs
    leaves = [tensor.detach().requires_grad_() for tensor in leaves]
    output = dcnv3(*leaves, groups=groups, softmax=True, backend=backend, **arguments)
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def exactly(inputs, **arguments):
    """The same in float64 by PyTorch, on the CPU."""
    return results([tensor.detach().cpu().double() for tensor in inputs], "torch", **arguments)


def assert_close(found, expected, part=1e-5):
    """Equal to a part of the largest element of each tensor; half types may also round each element."""
    for what, got, want in zip(("output", "value", "offset", "mask"), found, expected, strict=False):
        rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(got.dtype, 0)
        atol = part * want.abs().max().item()
        torch.testing.assert_close(
            got.cpu().double(), want.cpu().double(), rtol=rounding, atol=atol, msg=lambda t, w=what: f"{w}: {t}"
        )


# Kinds of calls: the golden cases have few channels, and tensors of their own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 71, 128])
def test_operator_of_any_depth(depth, dtype, place):
    inputs = operator_inputs(place.device, dtype, depth=depth)
    assert_close(results(inputs, place.backend), exactly(inputs), part=1e-12 if dtype == torch.float64 else 1e-5)


def in_one_tensor(inputs, shift):
    """Offsets and masks side by side, as one linear layer makes them, behind `shift` other features; value likewise."""
    value, offset, mask, grad_output = inputs
    together = torch.cat((mask[..., :shift], offset, mask), -1)
    offset, mask = together[..., shift:].split((offset.shape[3], mask.shape[3]), -1)
    value = torch.cat((value[..., :shift], value), -1)[..., shift:]
    return [value, offset, mask, grad_output]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2, 8])
def test_operator_on_views_at_odd_places(shift, dtype, place):
    inputs = operator_inputs(place.device, dtype, depth=32)
    views = in_one_tensor(inputs, shift)
    assert views[1].stride(2) != views[1].shape[3]
    for got, want in zip(results(views, place.backend), results(inputs, place.backend), strict=True):
        assert_close([got], [want])
    assert_close(results(views, place.backend), exactly(inputs))


# Precision of models


@pytest.mark.parametrize("which", ["plain", "odd"])
@pytest.mark.parametrize("name", TINY)
def test_model_matches_the_original_in_float32(name, which, place):
    case, expected = model_case(name)
    if which not in case["inputs"]:
        pytest.skip(f"{name} takes no images of odd sizes")
    prefix = "" if which == "plain" else f"{which}/"
    model, pixel_values = golden_model(name).to(place.device), model_input(name, which).to(place.device)
    with torch.no_grad():
        found = {
            "logits": model(pixel_values).logits,
            "pooler_output": model.get_image_features(pixel_values).pooler_output,
        }
    for what, got in found.items():
        atol = case["float32_noise"][prefix + what]["atol"]
        want = expected[prefix + what]
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=atol, msg=lambda text, w=what: f"{w}: {text}")


def outputs_of(model, pixel_values, backend, monkeypatch):
    """Logits and hidden states in float64, on the CPU."""
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
    return [tensor.double().cpu() for tensor in (outputs.logits, *outputs.hidden_states)]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", TINY)
def test_half_precision_model_is_as_exact_as_pytorchs(name, dtype, place, monkeypatch):
    """Against float64 with the same rounded weights: hidden states are off by at most 1.5 times what the same model in
    the same dtype with PyTorch's own operators is off (in norm), logits, which are few numbers, by 3 times. Where the
    two best classes are further apart than PyTorch's error, the best one is right."""
    model, pixel_values = golden_model(name, dtype).to(place.device), model_input(name).to(place.device, dtype)
    ours = outputs_of(model, pixel_values, place.backend, monkeypatch)
    pytorchs = outputs_of(model, pixel_values, "torch", monkeypatch)
    exact = outputs_of(model.double(), pixel_values.double(), "torch", monkeypatch)
    for index, (got, other, want) in enumerate(zip(ours, pytorchs, exact, strict=True)):
        factor = 3.0 if index == 0 else 1.5
        assert got.isfinite().all()
        assert (got - want).norm() <= factor * (other - want).norm(), index
    best = exact[0].topk(2)
    is_clear = best.values.diff().abs().squeeze(-1) > 6 * (pytorchs[0] - exact[0]).abs().max()
    assert torch.equal(ours[0].argmax(-1)[is_clear], best.indices[:, 0][is_clear])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_trains_as_pytorchs_operators_do(dtype, place, monkeypatch):
    """Loss and gradients of float32 weights: all finite, and in norm off from float64 by at most twice as much as with
    PyTorch's own operators."""
    pixel_values, labels = model_input("tiny_t").to(place.device), torch.tensor([1, 3], device=place.device)

    def step(model, pixel_values, backend):
        monkeypatch.setenv(BACKEND_VARIABLE, backend)
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert {gradient.dtype for gradient in gradients} == {pixel_values.dtype}
        return loss.item(), torch.cat([gradient.flatten() for gradient in gradients]).double().cpu()

    with torch.autocast(place.device, dtype=dtype):
        loss, gradient = step(golden_model("tiny_t").to(place.device), pixel_values, place.backend)
        _, pytorchs = step(golden_model("tiny_t").to(place.device), pixel_values, "torch")
    exact_loss, exact = step(golden_model("tiny_t", torch.float64).to(place.device), pixel_values.double(), "torch")
    assert gradient.isfinite().all()
    assert (gradient - exact).norm() <= 2 * (pytorchs - exact).norm()
    assert (gradient - exact).norm() <= 0.2 * exact.norm()
    assert loss == pytest.approx(exact_loss, rel=0.02)


def losses_of_training(device, steps=20):
    """Of a small model that learns eight images by heart, in float32."""
    torch.manual_seed(0)
    model = awaken(InternImageForImageClassification(tiny_config())).train().to(device)
    pixel_values = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3)).to(device)
    labels = (torch.arange(8) % 5).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_goes_as_with_pytorchs_operators_on_the_cpu(place, monkeypatch):
    found = losses_of_training(place.device)
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    expected = losses_of_training("cpu")
    assert expected[-1] < 0.3 * expected[0]
    assert found == pytest.approx(expected, rel=1e-4)


# Graphs


def captured(function, device):
    """A call that replays what `function()` did on the device; elsewhere `function` itself."""
    if device != "cuda":
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay():
        graph.replay()
        torch.cuda.synchronize()
        return result

    return replay


@pytest.mark.parametrize("deterministic", [False, True], ids=["sums", "fixed_point"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operator_in_a_cuda_graph(dtype, deterministic, place, determinism):
    determinism(deterministic)
    inputs = operator_inputs(place.device, dtype)
    replay = captured(lambda: results(inputs, place.backend), place.device)
    for factor in (1.0, -0.5):
        inputs[0].mul_(factor)
        inputs[3].mul_(factor)
        assert_close(replay(), exactly(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_model_in_a_cuda_graph(dtype, place):
    model, pixel_values = golden_model("tiny_t", dtype).to(place.device), model_input("tiny_t").to(place.device, dtype)

    def infer():
        with torch.no_grad():
            return model(pixel_values).logits

    replay = captured(infer, place.device)
    for factor in (1.0, -0.5):
        pixel_values.mul_(factor)
        tolerance = 1e-5 if dtype == torch.float32 else 5e-3
        torch.testing.assert_close(replay().clone(), infer(), rtol=tolerance, atol=tolerance)


class Layer(nn.Module):
    """An operator with its linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.offset, self.mask = nn.Linear(32, 36), nn.Linear(32, 18)

    def forward(self, states):
        return dcnv3(states, self.offset(states), self.mask(states), groups=2, softmax=True)


def compiler(place):
    return "inductor" if place.is_cuda else "aot_eager"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_layer_in_one_graph(dtype, place):
    layer = Layer().to(place.device, dtype)
    states = torch.randn(2, 8, 8, 32).to(place.device, dtype).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler(place))
    wanted = []
    for function in (layer, compiled):
        output = function(states)
        inputs = (states, *layer.parameters())
        wanted.append([output.detach(), *torch.autograd.grad(output, inputs, torch.ones_like(output))])
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for eager, got in zip(*wanted, strict=True):
        atol = tolerance * eager.abs().max().item()
        torch.testing.assert_close(got, eager, rtol=tolerance, atol=atol)


def test_compiled_model_in_one_graph(place):
    model = awaken(InternImageForImageClassification(tiny_config(depths=[1, 1], groups=[1, 2]))).eval()
    model = model.to(place.device)
    pixel_values = torch.randn(2, 3, 64, 64).to(place.device)
    labels = torch.tensor([1, 2], device=place.device)
    compiled = torch.compile(model, fullgraph=True, backend=compiler(place))
    expected, got = model(pixel_values, labels=labels), compiled(pixel_values, labels=labels)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    weight = model.model.patch_embed.conv1.weight
    wanted, found = (torch.autograd.grad(outputs.loss, weight)[0] for outputs in (expected, got))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registered_operator_keeps_pytorchs_rules(dtype, place):
    *inputs, _ = operator_inputs(place.device, dtype, size=(5, 6))
    geometry = check_dcnv3(
        *inputs,
        groups=3,
        kernel_size=3,
        stride=1,
        padding=1,
        dilation=1,
        offset_scale=1.0,
        remove_center=False,
    )
    numbers = geometry.numbers()
    leaves = [tensor.requires_grad_() for tensor in inputs]
    tolerance = {"rtol": 2**-7, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    operator = torch.ops.hf_internimage.dcnv3
    torch.library.opcheck(operator.default, (*leaves, *numbers, True), **tolerance)
    if place.backend:
        torch.library.opcheck(operator.backend, (*leaves, *numbers, True, place.backend), **tolerance)


# How calls reach the device


@pytest.fixture
def determinism():
    before = torch.are_deterministic_algorithms_enabled()
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_gradients_have_the_same_bits(dtype, place, determinism):
    determinism(True)
    inputs = operator_inputs(place.device, dtype, size=(48, 40), spread=6.0)
    first = results(inputs, place.backend)
    for _ in range(3):
        for got, want in zip(results(inputs, place.backend), first, strict=True):
            assert torch.equal(got, want)
    assert_close(first, exactly(inputs), part=5e-5)


def test_the_current_stream_is_used(place):
    """Inputs that change in this stream, after a while: who works in another stream sees them as they were."""
    *inputs, grad_output = operator_inputs(place.device)
    fresh = [tensor.clone() for tensor in inputs]
    with torch.no_grad():
        inputs[0].zero_()
    results([*inputs, grad_output], place.backend)  # compiles
    with contextlib.ExitStack() as stack:
        if place.is_cuda:
            torch.cuda.synchronize()
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
            torch.cuda._sleep(200_000_000)  # a tenth of a second
        inputs[0].copy_(fresh[0])
        found = results([*inputs, grad_output], place.backend)
        if place.is_cuda:
            torch.cuda.current_stream().synchronize()
    assert_close(found, exactly([*fresh, grad_output]))


def test_a_thread_that_never_used_the_device(place):
    inputs = operator_inputs(place.device)
    found = []

    def work():
        found.extend(results(inputs, place.backend))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_close(found, exactly(inputs))


def test_threads_with_streams_of_their_own(place):
    inputs = operator_inputs(place.device)
    expected = exactly(inputs)
    found = {}

    def work(number):
        stream = torch.cuda.stream(torch.cuda.Stream()) if place.is_cuda else contextlib.nullcontext()
        with stream:
            for _ in range(5):
                found[number] = results(inputs, place.backend)
            if place.is_cuda:
                torch.cuda.current_stream().synchronize()

    if place.is_cuda:
        torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for got in found.values():
        assert_close(got, expected)


def test_devices_with_and_without_their_number(place):
    inputs = operator_inputs(place.device)
    numbered = operator_inputs(f"{place.device}:0")
    assert_close(results(numbered, place.backend), results(inputs, place.backend))
    with torch.device(place.device):
        assert_close(results(inputs, place.backend), exactly([tensor.cpu() for tensor in inputs]))


@pytest.mark.gpu
def test_a_device_that_is_not_the_current_one(place):
    if not place.is_cuda or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = operator_inputs("cuda:1")
    for current in (0, 1):
        with torch.cuda.device(current):
            found = results(inputs, place.backend)
            assert torch.cuda.current_device() == current
        assert {str(tensor.device) for tensor in found} == {"cuda:1"}
        assert_close(found, exactly(inputs))


def test_pipeline(place, tmp_path):
    from PIL import Image
    from transformers import pipeline

    folder = str(write_official_folder("tiny_t", tmp_path))
    picture = Image.fromarray(torch.randint(0, 256, (300, 260, 3), dtype=torch.uint8).numpy())
    found = pipeline("image-classification", model=folder, device=place.device)([picture] * 3, top_k=10, batch_size=2)
    expected = pipeline("image-classification", model=folder, device="cpu")(picture, top_k=10)
    scores = {entry["label"]: entry["score"] for entry in expected}
    for entries in found:
        assert {entry["label"]: entry["score"] for entry in entries} == pytest.approx(scores, rel=1e-3, abs=1e-5)


# Sizes

BORDER = 6  # lines of a cut image that samples from outside of it may have touched
LARGE = {"one_image": (1, 8200, 8192, 32), "many_images": (5, 4096, 4096, 32)}
SMALL = {"one_image": (1, 40, 24, 32), "many_images": (5, 20, 16, 32)}


@contextlib.contextmanager
def alone():
    """No other process is in here, where one needs a large part of the GPU's memory."""
    fcntl = pytest.importorskip("fcntl")
    with (Path(tempfile.gettempdir()) / f"hf_internimage_large_{os.getuid()}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@pytest.mark.parametrize("which", LARGE)
def test_tensors_of_more_than_2_to_the_31_elements(which, place):
    """One tap each, so that offsets stay small; the last lines of the last image tell."""
    with alone():
        check_large(which, place)


def check_large(which, place):
    shape = LARGE[which] if place.is_cuda else SMALL[which]
    elements = torch.Size(shape).numel()
    if place.is_cuda:
        assert elements > 2**31
        needed = elements * 20  # value, output, their gradients: 2 bytes each; the sums of a gradient: 4; some copies
        torch.cuda.empty_cache()
        if (free := torch.cuda.mem_get_info()[0]) < needed:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB of free memory, there are {free / 2**30:.0f}")
    torch.manual_seed(0)
    options = {"device": place.device, "dtype": torch.float16}
    value = torch.randn(*shape, **options)
    # 0.25 to 0.75 from pixel lines, where gradients jump: positions in the thousands have few digits
    offset = torch.rand(*shape[:3], 4, **options).mul_(0.5).add_(0.25)
    offset -= torch.randint(2, offset.shape, **options)
    mask = torch.rand(*shape[:3], 2, **options)
    for tensor in (value, offset, mask):
        tensor.requires_grad_()
    arguments = {"groups": 2, "kernel_size": 1, "padding": 0}
    output = dcnv3(value, offset, mask, **arguments, backend=place.backend)
    gradients = torch.autograd.grad(output, (value, offset, mask), output.detach())
    lines = 3 * BORDER
    last = [tensor.detach()[-1:, -lines:].cpu().double().requires_grad_() for tensor in (value, offset, mask)]
    expected = dcnv3(*last, **arguments, backend="torch")
    # the gradient that the half-precision output was
    wanted = torch.autograd.grad(expected, last, output.detach()[-1:, -lines:].cpu().double())
    inside = slice(-lines + BORDER, None)
    for got, want in zip((output, *gradients), (expected, *wanted), strict=True):
        near = got.detach()[-1:, inside].cpu().double()
        atol = 1e-3 * want.abs().max().item()
        torch.testing.assert_close(near, want.detach()[:, inside], rtol=2**-10, atol=atol)
