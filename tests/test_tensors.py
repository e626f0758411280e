# SPDX-License-Identifier: MIT
"""Where the tensors of a loaded file are found, and how large they may be."""

import pytest
import torch

from hf_internimage.tensors import check_values, find_state_dict


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


def test_expanded_tensors_are_counted_together():
    """Each of 16 GiB, of one value: four stay below the limit of 64 GiB, beside ordinary tensors of any size."""
    expanded = {f"tensor{index}": torch.zeros(1).expand(2**32) for index in range(5)}
    check_values({**dict(list(expanded.items())[:4]), "ordinary": torch.zeros(5, 7)})
    with pytest.raises(ValueError, match=r"tensor4 has 4,294,967,296 elements of shape \(4294967296,\), far more than"):
        check_values({**expanded, "ordinary": torch.zeros(5, 7)})
