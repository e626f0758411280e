# SPDX-License-Identifier: MIT
"""Where the tensors of a loaded file are found."""

import torch

from hf_internimage.tensors import find_state_dict


def test_the_model_comes_before_other_entries():
    first, second, third = ({"weight": torch.full((2,), float(number))} for number in range(3))
    for content, expected in (
        ({"state_dict": second, "model": first, "model_ema": third}, first),
        ({"state_dict": second, "model_ema": third, "epoch": 3}, second),
        ({"model": None, "state_dict": second}, second),
        (third, third),
    ):
        found = find_state_dict(content)
        assert list(found) == ["weight"]
        assert found["weight"] is expected["weight"]
