# SPDX-License-Identifier: MIT
"""Which backend runs a call, and why the others do not. Knows no operator and loads no backend before it is needed."""

import importlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

BACKEND_VARIABLE = "HF_INTERNIMAGE_BACKEND"
_COMPILED_DTYPES = ("float32", "float64", "bfloat16", "float16")


def environment() -> str | None:
    """The backend that the environment demands."""
    return os.environ.get(BACKEND_VARIABLE) or None


class BackendError(RuntimeError):
    """The backend asked for cannot run this call; the message says why."""


class Call(NamedTuple):
    """What a backend must know of a call to say whether it can run it."""

    device: str  # "cpu", "cuda", ...
    dtype: str  # "float32", ...


def wrong_dtype(call: Call) -> str | None:
    """None if compiled kernels, which all compute the same dtypes, are made for this call's; else the reason."""
    if call.dtype in _COMPILED_DTYPES:
        return None
    return f"computes {', '.join(_COMPILED_DTYPES)}, not {call.dtype}"


@dataclass(frozen=True)
class Backend:
    """One way to run an operator.

    `module` has `why_not(call)`, which returns None or the reason in words, beside the functions that do the work.
    `devices` are the device types it is made for; None stands for all. An `optional` one runs only where somebody asked
    for it, so nobody is told where it does not.
    """

    name: str
    module: str
    devices: tuple[str, ...] | None = None
    optional: bool = False

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

    def is_for(self, device: str) -> bool:
        """Whether it is made for a device type."""
        return self.devices is None or device in self.devices

    def why_not(self, call: Call) -> str | None:
        """None if this backend can run `call`, else the reason. BackendError if somebody demanded what it cannot do."""
        if self.devices is not None and not self.is_for(call.device):
            return f"needs tensors on {' or '.join(self.devices)}, got {call.device}"
        reason: str | None = self.load().why_not(call)
        return reason


class Registry:
    """The backends of one operator, the preferred ones first. The last one runs everything."""

    def __init__(self, operator: str, order: Sequence[Backend]) -> None:
        self.operator = operator
        self.backends = {backend.name: backend for backend in order}
        self._warned: set[str] = set()
        self._choose = lru_cache(maxsize=None)(self._choose_uncached)

    def wanted(self, backend: str | None) -> str | None:
        """The backend demanded by the argument or, without one, by the environment; None leaves the choice open."""
        name = backend if backend is not None else environment()
        if name is not None and name not in self.backends:
            source = "backend" if backend is not None else BACKEND_VARIABLE
            raise ValueError(f"{source} is {name!r}, expected one of {', '.join(self.backends)}, or none for the best.")
        return name

    def choose(self, call: Call, name: str | None) -> Backend:
        """The backend to run `call` on: the one named, or the first that can.

        Raises: BackendError if the one named cannot.
        """
        return self._choose(call, name)

    def _choose_uncached(self, call: Call, name: str | None) -> Backend:
        if name is not None:
            backend = self.backends[name]
            if reason := backend.why_not(call):
                raise BackendError(f"{self.operator}: backend {name!r} cannot run this call: {reason}.")
            return backend
        *faster, last = self.backends.values()
        refused = []
        for backend in faster:
            reason = backend.why_not(call)
            if reason is None:
                break
            if not backend.optional and backend.is_for(call.device):
                refused.append(f"{backend.name!r} {reason}")
        else:
            backend = last
        for reason in refused:
            self._warn(f"{self.operator} runs on its slower backend {backend.name!r}: {reason}.")
        return backend

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def explain(self, call: Call) -> dict[str, str | None]:
        """For each backend, in the order of preference: None if it can run `call`, else why not."""
        reasons: dict[str, str | None] = {}
        for name, backend in self.backends.items():
            try:
                reasons[name] = backend.why_not(call)
            except BackendError as error:
                reasons[name] = str(error)
        return reasons

    def forget(self) -> None:
        """Choose anew at the next call: what can run has changed."""
        self._choose.cache_clear()
