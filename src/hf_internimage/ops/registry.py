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


def environment() -> str | None:
    """The backend that the environment demands."""
    return os.environ.get(BACKEND_VARIABLE) or None


class BackendError(RuntimeError):
    """The backend asked for cannot run this call; the message says why."""


class Call(NamedTuple):
    """What a backend must know of a call to say whether it can run it."""

    device: str  # "cpu", "cuda", ...
    dtype: str  # "float32", ...


@dataclass(frozen=True)
class Backend:
    """One way to run an operator.

    `module` has `why_not(call)`, which returns None or the reason in words, beside the functions that do the work.
    `devices` are the device types it is made for; None stands for all.
    """

    name: str
    module: str
    devices: tuple[str, ...] | None = None

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

    def why_not(self, call: Call) -> str | None:
        """None if this backend can run `call`, else the reason."""
        if self.devices is not None and call.device not in self.devices:
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
        for backend in faster:
            reason = backend.why_not(call)
            if reason is None:
                return backend
            if backend.devices is None or call.device in backend.devices:
                self._warn(f"{self.operator} runs on its slower backend {last.name!r}: {backend.name!r} {reason}.")
        return last

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def explain(self, call: Call) -> dict[str, str | None]:
        """For each backend, in the order of preference: None if it can run `call`, else why not."""
        return {name: backend.why_not(call) for name, backend in self.backends.items()}
