# SPDX-License-Identifier: MIT
"""An application in the browser to try a model and to see where it looks (extra `app`)."""

from .interface import build, serve
from .space import write_space

__all__ = ["build", "serve", "write_space"]
