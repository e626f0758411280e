# SPDX-License-Identifier: MIT
"""Drawn attacks on the package, without end: `make fuzz`."""
