# SPDX-License-Identifier: MIT
"""DCNv3 by a precompiled kernel from the Hub, on request only.

The package `kernels` fetches and imports it; sources and interface are those of kernels/dcnv3. The name of a kernel is
"owner/repository@version", where the version is a number or else a revision (branch, tag, commit), or the path of a
folder: absolute, or beginning with "." or "~".
"""

import importlib
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...models.dcnv3_reference import DCNv3Geometry
from ..registry import BackendError, Call, wrong_dtype
from .dcnv3_call import CheckedPlan

KERNEL_VARIABLE = "HF_INTERNIMAGE_USE_HUB_KERNEL"

_wanted: str | None = None
_loaded: dict[str, ModuleType | BackendError] = {}
_lock = threading.Lock()


def use(name: str | None) -> None:
    """Set the name of the kernel for later calls; None leaves it to the environment. Nothing is loaded yet.

    A kernel that could not be loaded before is tried again.
    """
    global _wanted
    _wanted = name or None
    with _lock:
        for failed in [key for key, found in _loaded.items() if isinstance(found, BackendError)]:
            del _loaded[failed]


def wanted() -> str | None:
    """Return the name of the requested kernel, if any."""
    return _wanted or os.environ.get(KERNEL_VARIABLE) or None


def why_not(call: Call) -> str | None:
    """Return None if this backend can run `call`, else the reason. Load the kernel, if one is requested.

    Raises: BackendError if it cannot be loaded.
    """
    name = wanted()
    if name is None:
        return (
            "is used only where a kernel is asked for: hf_internimage.ops.use_hub_kernel(...), or "
            f"{KERNEL_VARIABLE}=owner/repository@version"
        )
    if reason := wrong_dtype(call):
        return reason
    load(name)
    return None


def load(name: str) -> ModuleType:
    """Return the kernel of that name; fetch and import it at the first call.

    Raises: BackendError with the reason if it cannot be loaded; the same error at the next call.
    """
    with _lock:
        if name not in _loaded:
            try:
                _loaded[name] = _load(name)
            except BackendError as error:
                _loaded[name] = error
        found = _loaded[name]
    if isinstance(found, BackendError):
        raise BackendError(str(found)) from found
    return found


def _load(name: str) -> ModuleType:
    folder, repository, version = parse(name)
    try:
        kernels = importlib.import_module("kernels")
        get_kernel, get_local_kernel = kernels.get_kernel, kernels.get_local_kernel
    except (ImportError, AttributeError) as error:  # AttributeError: a folder of that name, taken for a package
        raise BackendError(
            f"The kernel {name!r} needs the package kernels, which cannot be imported ({error}): "
            "pip install hf-internimage[hub-kernel]."
        ) from error
    try:
        kernel: ModuleType = get_kernel(repository, **version) if folder is None else get_local_kernel(folder)
    except Exception as error:  # whatever goes wrong on the way from the Hub, or in the code that came from there
        text = f"The kernel {name!r} cannot be loaded: {type(error).__name__}: {error}"
        if "trust_remote_code" in text:  # an argument of theirs, and a decision that a name is not
            text += (
                " Here: fetch it with kernels.install_kernel(..., trust_remote_code=True) and name the folder it gives."
            )
        raise BackendError(text) from error
    if missing := [part for part in ("forward", "backward") if not callable(getattr(kernel, part, None))]:
        raise BackendError(f"The kernel {name!r} is none of DCNv3: it has no {' and no '.join(missing)}.")
    return kernel


def parse(name: str) -> tuple[Path | None, str, dict[str, Any]]:
    """Parse the name of a kernel: a folder, or a repository and the version arguments of `kernels.get_kernel`.

    Raises: BackendError for another name.

    >>> parse("owner/dcnv3@1"), parse("owner/dcnv3@v1.0")
    ((None, 'owner/dcnv3', {'version': 1}), (None, 'owner/dcnv3', {'revision': 'v1.0'}))
    """
    if name.startswith((".", "~")) or os.path.isabs(name):
        folder = Path(name).expanduser().resolve()
        if not folder.is_dir():
            raise BackendError(f"The kernel {name!r} is a folder that does not exist: {folder}.")
        return folder, "", {}
    repository, at, version = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or not at or not version:
        raise BackendError(
            f"The kernel is {name!r}, expected owner/repository@version, as in owner/dcnv3@1, or a folder's path that "
            "is absolute or begins with ./ or ~."
        )
    if version.isascii() and version.isdigit():
        return None, repository, {"version": int(version)}
    return None, repository, {"revision": version}


class Plan(CheckedPlan):
    """A call of the kernel; under `torch.use_deterministic_algorithms` it sums grad_value in fixed point."""

    def __init__(
        self, geometry: DCNv3Geometry, softmax: bool, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> None:
        super().__init__(geometry, softmax, value, offset, mask)
        name = wanted()
        if name is None:
            raise BackendError("dcnv3: backend 'hub' has no kernel: none is asked for.")
        self._kernel = load(name)
        self._arguments: dict[str, Any] = {**geometry._asdict(), "softmax": softmax}

    def _forward(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._kernel.forward(value, offset, mask, **self._arguments)
        return output

    def _backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grad_value, grad_offset, grad_mask = self._kernel.backward(grad_output, value, offset, mask, **self._arguments)
        return grad_value, grad_offset, grad_mask
