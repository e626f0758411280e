# SPDX-License-Identifier: MIT
"""Backends of the operator, one module each; the registry imports them when they are needed."""
