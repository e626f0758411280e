# SPDX-License-Identifier: MIT
"""Operators of InternImage."""

from .dcnv3 import dcnv3, explain, use_hub_kernel
from .dcnv4 import dcnv4
from .registry import BackendError

__all__ = ["BackendError", "dcnv3", "dcnv4", "explain", "use_hub_kernel"]
