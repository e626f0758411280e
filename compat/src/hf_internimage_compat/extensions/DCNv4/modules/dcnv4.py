# SPDX-License-Identifier: MIT
"""The layer DCNv4, which is `hf_internimage.nn.DCNv4`."""

from hf_internimage.nn import DCNv4

__all__ = ["DCNv4"]
