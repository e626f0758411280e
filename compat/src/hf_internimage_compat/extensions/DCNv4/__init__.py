# SPDX-License-Identifier: MIT
"""Stand-in of hf-internimage-compat for the authors' package DCNv4: the extension `ext`, its function and its layer.

The operator FlashDeformAttn, which their package has besides, is not here.
"""

from .functions import DCNv4Function
from .modules import DCNv4

__all__ = ["DCNv4", "DCNv4Function"]
