# SPDX-License-Identifier: MIT
"""Dynamic quantization of linear layers by PyTorch's own tool, which knows layers by their exact type."""

import warnings

import torch
from torch import nn


def quantize_linear_layers(model):
    """Return a copy of the model with 8-bit weights in linear layers; check that none was passed over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tool is deprecated
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert any(isinstance(module, nn.Linear) for module in model.modules())
    assert not [name for name, module in quantized.named_modules() if isinstance(module, nn.Linear)]
    return quantized
