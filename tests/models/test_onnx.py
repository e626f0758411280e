# SPDX-License-Identifier: MIT
"""Exports to ONNX as the README says, run by onnxruntime."""

import re

import onnxruntime
import pytest
import torch
from support.golden_data import awaken, tiny_config
from support.paths import DOCS

from hf_internimage import InternImageForImageClassification


@pytest.fixture
def model():
    model = awaken(InternImageForImageClassification(tiny_config()).eval())
    model.config.return_dict = False
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_pytorch_backend_exports_and_equals_eager(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    images = torch.randn(1, 3, 64, 64)
    torch.onnx.export(model, (images,), tmp_path / "model.onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images)[0], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_documentation_quotes_the_error_without_it(model, tmp_path):
    quoted = "No ONNX function found for <OpOverload(op='hf_internimage.dcnv3'"
    with pytest.raises(Exception, match=re.escape(quoted)):
        torch.onnx.export(model, (torch.randn(1, 3, 64, 64),), tmp_path / "model.onnx", verbose=False)
    for page in ("backends.md", "how-to/troubleshooting.md"):
        assert quoted in (DOCS / page).read_text(encoding="utf-8")
