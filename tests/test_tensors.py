# SPDX-License-Identifier: MIT
"""Where the tensors of a loaded file are found, and how large they may be."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from hf_internimage.tensors import cast_weights, check_tensors, check_values, dimensions, find_state_dict, writing


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


@pytest.mark.parametrize("count", [3, 4])
def test_three_names_of_each_kind_are_listed(count):
    names = [f"w{index}" for index in range(count)]
    rest = ", ..." if count > 3 else ""
    for shapes, expected, message in (
        ({}, dict.fromkeys(names, (2,)), f"{count} missing (w0, w1, w2{rest});"),
        (dict.fromkeys(names, (2,)), {}, f"{count} unexpected (w0, w1, w2{rest});"),
        (
            dict.fromkeys(names, (2, 1)),
            {name: [2] for name in names},
            f"{count} of another shape ({', '.join(f'{name} is (2, 1), expected (2,)' for name in names[:3])}{rest});",
        ),
    ):
        with pytest.raises(ValueError, match=f"The tensors do not fit the model: {re.escape(message)}"):
            check_tensors(shapes, expected)


def test_a_shape_of_other_dimensions_is_named():
    assert dimensions({"w": [3, 4]}, "w", 2) == (3, 4)
    with pytest.raises(ValueError, match=r"^w has shape \(3, 4\), expected 3 dimensions; give a complete checkpoint"):
        dimensions({"w": (3, 4)}, "w", 3)
    with pytest.raises(ValueError, match=r"^v is missing, expected 2 dimensions"):
        dimensions({"w": (3, 4)}, "v", 2)


def test_weights_are_cast():
    """Contiguous, each in a storage of its own; counters of batches stay integers."""
    whole = torch.arange(12.0).reshape(3, 4)
    found = cast_weights(
        {"a": whole, "b": whole[1], "c": whole.t(), "d": torch.zeros(0), "n.num_batches_tracked": torch.tensor(7)},
        torch.float32,
    )
    assert len({tensor.untyped_storage().data_ptr() for name, tensor in found.items() if name in "abc"}) == 3
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert torch.equal(found["b"], whole[1])
    assert torch.equal(found["c"], whole.t())
    assert (found["n.num_batches_tracked"].item(), found["n.num_batches_tracked"].dtype) == (7, torch.int64)
    assert cast_weights({"a": whole}, torch.float16)["a"].dtype == torch.float16


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.int8), "w is torch.int8 with layout torch.strided, expected dense floating-point"),
        (torch.eye(2).to_sparse(), "w is torch.float32 with layout torch.sparse_coo, expected dense floating-point"),
        (torch.tensor([1.0, float("nan")]), "w has values that are not finite; give an undamaged checkpoint"),
        (torch.tensor([float("-inf"), 1.0]), "w has values that are not finite"),
        (torch.tensor([1.0, 1e5]), "w has values that are too large for torch.float16; choose bfloat16 or float32"),
        (torch.tensor([1e300], dtype=torch.float64), "w has values that are too large for torch.float16"),
    ],
    ids=str,
)
def test_weights_that_cannot_be_cast(tensor, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        cast_weights({"w": tensor}, torch.float16)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SafetensorError("no space left"), r"^place cannot be written: no space left$"),
        (RuntimeError("[enforce fail at inline_container.cc:664]\nframe #0"), r"full\?\): \[enforce fail .*:664\]$"),
        (RuntimeError("PytorchStreamWriter failed\nframe #0"), r"\(is the disk full\?\): PytorchStreamWriter failed$"),
    ],
    ids=str,
)
def test_errors_of_writing_name_the_place(error, message):
    with pytest.raises(OSError, match=message) as caught, writing(Path("place")):
        raise error
    assert str(caught.value).startswith("place cannot be written")
    assert caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match=r"^another$"), writing(Path("place")):
        raise RuntimeError("another")
