# SPDX-License-Identifier: MIT
"""Operators of InternImage."""

from .dcnv3 import dcnv3

__all__ = ["dcnv3"]
