# SPDX-License-Identifier: MIT
"""InternImage on the GPU of a Mac: the same numbers as on the CPU, forward and backward."""

import copy

import pytest
import torch
from support.golden_data import tiny_config

from hf_internimage import InternImageForImageClassification

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.backends.mps.is_available(), reason="this machine has no MPS"),
]


@pytest.mark.parametrize("training", [False, True])
def test_mps_is_as_the_cpu(training):
    torch.manual_seed(0)
    on_cpu = InternImageForImageClassification(tiny_config(num_labels=5)).train(training)
    on_mps = copy.deepcopy(on_cpu).to("mps")
    pixels, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    expected = on_cpu(pixel_values=pixels, labels=labels)
    result = on_mps(pixel_values=pixels.to("mps"), labels=labels.to("mps"))
    torch.testing.assert_close(result.logits.cpu(), expected.logits, rtol=1e-3, atol=1e-4)
    expected.loss.backward()
    result.loss.backward()
    for name, parameter in on_cpu.named_parameters():
        gradient = on_mps.get_parameter(name).grad.cpu()
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-2, atol=1e-4, msg=f"gradient of {name}")
