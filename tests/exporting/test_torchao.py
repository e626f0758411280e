# SPDX-License-Identifier: MIT
"""Models in 8 bits within PyTorch, by torchao: weights alone, and products of a captured program."""

import pytest
import torch
from support.golden_data import awaken, tiny_config
from torch import nn
from transformers import AutoModelForImageClassification, TorchAoConfig

from hf_internimage import InternImageForImageClassification

pytest.importorskip("torchao", reason="torchao is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torchao's own, about itself


@pytest.fixture(scope="module")
def model():
    return awaken(InternImageForImageClassification(tiny_config(depths=[1, 1], groups=[1, 2])).eval())


@torch.no_grad()
def check(model, quantised):
    pixels = torch.randn(8, 3, 64, 96)
    expected = model(pixels).logits
    result = quantised(pixels)
    result = result.logits if hasattr(result, "logits") else result[0]
    assert torch.cosine_similarity(result, expected).min() > 0.999
    assert not torch.equal(result, expected)


def test_weights_are_saved_and_loaded_in_8_bits(model, tmp_path):
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

    model.save_pretrained(tmp_path / "float")
    quantised = AutoModelForImageClassification.from_pretrained(
        tmp_path / "float", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    ).eval()
    quantised.save_pretrained(tmp_path / "int8")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "int8").eval()
    linear = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)} - {"head"}
    for each in (quantised, loaded):
        parts = dict(each.named_modules())
        assert {name for name in parts if isinstance(getattr(parts[name], "weight", None), Int8Tensor)} >= linear
    check(model, loaded)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, quantised(pixels).logits)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.8 * sizes[1]


def test_products_of_a_captured_program(model, tmp_path):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model.config.return_dict = False
    batches = ({0: torch.export.Dim.DYNAMIC},)
    pixels = (torch.randn(2, 3, 64, 96),)
    with torch.no_grad():
        program = torch.export.export(model, pixels, dynamic_shapes=batches).module()
        settings = x86.get_default_x86_inductor_quantization_config()
        prepared = prepare_pt2e(program, x86.X86InductorQuantizer().set_module_type_qconfig(nn.Linear, settings))
        prepared(torch.randn(16, 3, 64, 96))
        quantised = convert_pt2e(prepared)
        torch.export.save(torch.export.export(quantised, pixels, dynamic_shapes=batches), tmp_path / "int8.pt2")
    model.config.return_dict = True
    loaded = torch.export.load(tmp_path / "int8.pt2").module()
    kinds = [str(node.target) for node in loaded.graph.nodes]
    assert kinds.count("hf_internimage.dcnv3.default") == 2  # stays as it is
    assert kinds.count("quantized_decomposed.dequantize_per_channel.default") == 2 * 6 + 1  # the weights
    check(model, loaded)
