# SPDX-License-Identifier: MIT
"""Choice of the backend that runs a call, with the reasons against the others; backends load when first needed."""

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

BACKEND_VARIABLE = "HF_INTERNIMAGE_BACKEND"
_COMPILED_DTYPES = ("float32", "float64", "bfloat16", "float16")


def environment() -> str | None:
    """Return the backend named by the environment variable, if any."""
    return os.environ.get(BACKEND_VARIABLE) or None


@contextmanager
def demanded_backend(name: str | None) -> Iterator[None]:
    """Demand a backend of the operators within this context; None leaves the choice as it is."""
    before = os.environ.get(BACKEND_VARIABLE)
    if name is not None:
        os.environ[BACKEND_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(BACKEND_VARIABLE, None)
        else:
            os.environ[BACKEND_VARIABLE] = before


class BackendError(RuntimeError):
    """The requested backend cannot run this call; the message gives the reason."""


class Call(NamedTuple):
    """Properties of a call by which backends decide whether they can run it."""

    device: str  # "cpu", "cuda", ...
    dtype: str  # "float32", ...


def wrong_dtype(call: Call) -> str | None:
    """Return None if compiled kernels support the call's dtype, else the reason; all support the same dtypes."""
    if call.dtype in _COMPILED_DTYPES:
        return None
    return f"computes {', '.join(_COMPILED_DTYPES)}, not {call.dtype}"


@dataclass(frozen=True)
class Backend:
    """One way to run an operator.

    Attributes:
        name: name for the user.
        module: module with `why_not(call)`, which returns None or the reason in words, and `Plan`.
        devices: the device types it is made for; None for all.
        optional: it runs only on request, so that there is no warning where it does not run.
    """

    name: str
    module: str
    devices: tuple[str, ...] | None = None
    optional: bool = False

    def load(self) -> ModuleType:
        """Import and return the backend's module."""
        return importlib.import_module(self.module)

    def is_for(self, device: str) -> bool:
        """Return True if it is made for a device type."""
        return self.devices is None or device in self.devices

    def why_not(self, call: Call) -> str | None:
        """Return None if this backend can run `call`, else the reason.

        Raises: BackendError if a Hub kernel was requested that cannot be loaded.
        """
        if self.devices is not None and not self.is_for(call.device):
            return f"needs tensors on {' or '.join(self.devices)}, got {call.device}"
        reason: str | None = self.load().why_not(call)
        return reason


class Registry:
    """The backends of one operator, in order of preference. The last one runs everything."""

    def __init__(self, operator: str, order: Sequence[Backend]) -> None:
        self.operator = operator
        self.backends = {backend.name: backend for backend in order}
        self._warned: set[str] = set()
        self._choose = lru_cache(maxsize=None)(self._choose_uncached)

    def requested(self, backend: str | None) -> str | None:
        """Return the backend requested by the argument or, if that is None, by the environment; None if by neither.

        Raises: ValueError for an unknown name.
        """
        name = backend if backend is not None else environment()
        if name is not None and name not in self.backends:
            source = "backend" if backend is not None else BACKEND_VARIABLE
            raise ValueError(f"{source} is {name!r}, expected one of {', '.join(self.backends)}, or none for the best.")
        return name

    def choose(self, call: Call, name: str | None) -> Backend:
        """Return the backend to run `call` on: the named one, or the first that can run it.

        Raises: BackendError if the named one cannot.
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
        """Return, for each backend in order of preference, None if it can run `call`, else the reason."""
        reasons: dict[str, str | None] = {}
        for name, backend in self.backends.items():
            try:
                reasons[name] = backend.why_not(call)
            except BackendError as error:
                reasons[name] = str(error)
        return reasons

    def forget(self) -> None:
        """Forget earlier choices, because the set of backends that can run has changed."""
        self._choose.cache_clear()
