# SPDX-License-Identifier: MIT
"""The operator as the authors' autograd function is called."""

from .dcnv4_func import DCNv4Function

__all__ = ["DCNv4Function"]
