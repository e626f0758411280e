# SPDX-License-Identifier: MIT
"""Devices and dtypes by their names, as command lines have them."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str | torch.device | None) -> torch.device:
    """Return the device of a name, or the best one that the machine has.

    Raises:
        ValueError: for one that PyTorch cannot use here.
    """
    if name is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device is {name}, which PyTorch does not find here; leave it out, or set cpu.") from error
    return device


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype of a name, or the given one.

    Raises:
        ValueError: for another than those of `DTYPES`.
    """
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if known is None or known not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    return known


__all__ = ["DTYPES", "find_device", "find_dtype"]
