# SPDX-License-Identifier: MIT
"""Check that an installed wheel contains a CPU library that runs here and agrees with PyTorch."""

import torch

from hf_internimage.ops import dcnv3, explain

torch.manual_seed(0)
value, offset, mask = torch.rand(2, 5, 7, 32), torch.randn(2, 5, 7, 36), torch.randn(2, 5, 7, 18)
cpu, reference = (dcnv3(value, offset, mask, groups=2, softmax=True, backend=name) for name in ("cpu", "torch"))
torch.testing.assert_close(cpu, reference)
print(explain())
