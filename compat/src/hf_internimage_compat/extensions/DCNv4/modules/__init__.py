# SPDX-License-Identifier: MIT
"""The layer DCNv4."""

from .dcnv4 import DCNv4

__all__ = ["DCNv4"]
