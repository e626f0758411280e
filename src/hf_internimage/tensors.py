# SPDX-License-Identifier: MIT
"""Named tensors: find them in a loaded file, compare names and shapes, cast, name the place that cannot be written."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

Shapes = Mapping[str, Sequence[int]]

LISTED = 3  # number of names that an error lists of each kind
_MOST_SHARED = 2**36  # bytes


def find_state_dict(checkpoint: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a loaded file: those under `model`, else those under `state_dict`, else the file itself.

    An exponential moving average beside them (`model_ema`) is ignored, as in the original's own conversion.

    Raises:
        ValueError: unless they are a non-empty dict from names to tensors.
    """
    if isinstance(checkpoint, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        kind = "an empty dict" if isinstance(checkpoint, Mapping) else f"a {type(checkpoint).__name__}"
        raise ValueError(
            f"Found {kind} in place of a state dict; give a file with named tensors, flat or under the key 'model'."
        )
    for name, tensor in checkpoint.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            entry = f"Entry {name!r}" if isinstance(name, str) else f"An entry named by a {type(name).__name__}"
            raise ValueError(
                f"{entry} is a {type(tensor).__name__}, not a tensor; give a state dict, flat or under the key 'model'."
            )
    return dict(checkpoint)


def check_values(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors have values, and do not grow beyond reason when they are copied.

    Raises:
        ValueError: for a tensor on the meta device, a nested one, and for tensors with more than 64 GiB of elements
            that share their values, as `expand` makes them. (Released files have up to 13 GB.)
    """
    shared = 0
    for name, tensor in state_dict.items():
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device, without values; give a checkpoint with all weights.")
        if tensor.is_nested:
            raise ValueError(f"{name} is a nested tensor; give a checkpoint with dense tensors.")
        if tensor.layout is torch.strided:
            shared += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
        if shared > _MOST_SHARED:
            raise ValueError(
                f"{name} has {tensor.numel():,} elements of shape {tuple(tensor.shape)}, far more than the file holds; "
                "give a checkpoint with all weights."
            )


def shapes_of(state_dict: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def dimensions(shapes: Shapes, name: str, count: int) -> tuple[int, ...]:
    """Return the shape of the tensor `name`, which must have `count` dimensions.

    Raises:
        ValueError: if the tensor is missing or has another number of dimensions.
    """
    shape = tuple(shapes.get(name, ()))
    if len(shape) != count:
        problem = f"has shape {shape}" if name in shapes else "is missing"
        raise ValueError(f"{name} {problem}, expected {count} dimensions; give a complete checkpoint.")
    return shape


def check_tensors(shapes: Shapes, expected: Shapes) -> None:
    """Check that names and shapes agree exactly.

    Raises:
        ValueError: if they do not; the message counts and lists missing, unexpected and misshapen tensors.
    """
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    misshapen = [
        f"{name} is {tuple(shapes[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{len(names)} {kind} ({listing(names)})" for kind, names in kinds if names]
    if problems:
        raise ValueError(
            f"The tensors do not fit the model: {', '.join(problems)}; give a complete file, or the configuration it "
            "was trained with."
        )


def listing(names: Sequence[str]) -> str:
    """Return the first names, separated by commas, and "..." for the others."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def cast_weights(state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors as `dtype`, contiguous, each in a storage of its own; `num_batches_tracked` stays an integer.

    Raises:
        ValueError: for a weight that is not a dense floating-point tensor, is not finite, or is too large for `dtype`.
    """
    storages: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        if not name.endswith("num_batches_tracked"):
            if tensor.layout is not torch.strided or not tensor.is_floating_point():
                raise ValueError(
                    f"{name} is {tensor.dtype} with layout {tensor.layout}, expected dense floating-point values; give "
                    "a checkpoint that is not quantised."
                )
            source, tensor = tensor, tensor.to(dtype)
            if not _is_finite(tensor):
                raise ValueError(
                    f"{name} has values that are too large for {dtype}; choose bfloat16 or float32."
                    if _is_finite(source.double())
                    else f"{name} has values that are not finite; give an undamaged checkpoint."
                )
        tensor = tensor.contiguous()
        # `save_pretrained` refuses tensors that share a storage, as tied weights.
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.numel() or all(math.isfinite(bound) for bound in tensor.aminmax())  # NaN is both bounds


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the errors of safetensors and torch.save in this context, such as of a full disk, into an OSError.

    Args:
        place: file or folder that is written, for the message.

    Raises:
        OSError: naming the place.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{place} cannot be written: {error}") from error
    except RuntimeError as error:
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):  # of torch.save
            raise
        raise OSError(f"{place} cannot be written (is the disk full?): {str(error).splitlines()[0]}") from error


__all__ = [
    "LISTED",
    "Shapes",
    "cast_weights",
    "check_tensors",
    "check_values",
    "dimensions",
    "find_state_dict",
    "listing",
    "shapes_of",
    "writing",
]
